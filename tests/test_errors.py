"""Which exceptions mean that memory ran out or that the GPU is lost, and what others are said to say."""

from __future__ import annotations

import pytest
import torch

from zcpipe.errors import asking, is_device_lost, is_out_of_memory, reason_of

MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    torch.AcceleratorError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA: out of memory"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. (originally from torch_call_dispatcher)"),
]
LOST = [
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"),
]
NEITHER = [
    ValueError("CUDA error: written by a builder"),
    RuntimeError("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"),
    KeyError("CUDA error: "),
]


@pytest.mark.parametrize(
    ("errors", "verdict"), [(MEMORY, (True, False)), (LOST, (False, True)), (NEITHER, (False,) * 2)]
)
def test_what_an_exception_means(errors: list[Exception], verdict: tuple[bool, bool]) -> None:
    for error in errors:
        assert (is_out_of_memory(error), is_device_lost(error)) == verdict, error


def test_the_allocator_of_the_cpu_is_known_by_what_it_says() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55)
    assert is_out_of_memory(caught.value)


def test_whatever_an_exception_says_is_one_line_that_a_file_can_hold():
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("nothing to say")

    assert reason_of(ValueError("one\ntwo")) == "ValueError: one"
    assert reason_of(FileNotFoundError("a\udc80b")) == r"FileNotFoundError: a\udc80b"
    assert reason_of(MuteError()) == "MuteError"


def test_a_space_is_not_blamed_for_a_generator_that_ends():
    """As where an interruption hits between entering a context and what is done in it."""

    def members():
        with asking("toy", "its members"):
            yield 1
            yield 2

    running = members()
    assert next(running) == 1
    running.close()
