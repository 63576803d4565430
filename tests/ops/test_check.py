"""Which tensors go to the native library."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from zcpipe.ops import _library
from zcpipe.ops._check import use_native


@pytest.fixture(params=[True, False], ids=["with CUDA kernels", "without"])
def library(native, monkeypatch, request):
    monkeypatch.setattr(_library, "has_cuda", lambda op: request.param and op == "null")
    return request.param


def test_cuda_tensors_go_where_there_is_a_kernel_for_the_op(library):
    with FakeTensorMode():  # which has devices that are not there
        x = torch.empty(2, device="cuda")
    assert use_native("null", x) is library
    assert use_native("null", x, None) is library
    assert not use_native("covariance", x)


def test_cpu_and_meta_tensors_always_go(library):
    assert use_native("null", torch.empty(2)) and use_native("covariance", torch.empty(2, device="meta"))


def test_the_library_says_which_kernels_it_holds(native):
    assert _library.has_cuda("null") is _library.build_info()["cuda"]
