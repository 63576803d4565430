"""What scoring makes of the arithmetic that the calling process has chosen for itself."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import zcpipe
from zcpipe.scoring.arithmetic import plain_arithmetic


def chosen():
    kinds = [(backend, operation) for backend in ("cuda", "mkldnn") for operation in ("conv", "matmul", "rnn")]
    return {
        **{kind: torch._C._get_fp32_precision_getter(*kind) for kind in kinds},
        "cudnn": (torch._C._get_cudnn_deterministic(), torch._C._get_cudnn_benchmark()),
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "warns": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fills": torch._C._get_deterministic_fill_uninitialized_memory(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "attention": (
            torch._C._get_flash_sdp_enabled(),
            torch._C._get_mem_efficient_sdp_enabled(),
            torch._C._get_cudnn_sdp_enabled(),
            torch._C._get_math_sdp_enabled(),
        ),
        "products": torch.get_float32_matmul_precision(),
    }


@pytest.fixture(params=["medium", "high", "highest"])
def rounding(request):
    before, allowed = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)
    torch.backends.cudnn.allow_tf32 = allowed


class Watched(nn.Module):
    """Notes in what arithmetic it is called."""

    def __init__(self):
        super().__init__()
        self.conv, self.seen = nn.Conv2d(3, 4, 3, padding=1), []

    def forward(self, x):
        if not x.is_meta:  # which computes nothing
            self.seen.append(chosen())
        return self.conv(x)


@pytest.mark.parametrize("proxies", ["aznas", "snip", "synflow", "zico", "swap"])
def test_nothing_is_rounded_below_float32_in_any_pass(rounding, proxies):
    model = nn.Sequential(Watched(), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    before = chosen()
    zcpipe.score(model, torch.randn(4, 3, 8, 8), torch.arange(4), proxies, blocks=["0", "2"])
    assert model[0].seen
    for seen in model[0].seen:
        assert {seen[kind] for kind in seen if kind[0] == "mkldnn"} <= {"none", "ieee"}
    assert chosen() == before


def test_on_a_gpu_sums_are_taken_in_one_order():
    before = chosen()
    with plain_arithmetic(torch.device("cuda")):
        assert torch._C._get_cudnn_deterministic() and not torch._C._get_cudnn_benchmark()
        assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
    assert chosen() == before


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_error_puts_back_what_was_chosen(rounding, device):
    before = chosen()
    with pytest.raises(ZeroDivisionError), plain_arithmetic(torch.device(device)):
        raise ZeroDivisionError
    assert chosen() == before


def test_a_process_that_insists_on_one_order_keeps_doing_so():
    try:
        torch.use_deterministic_algorithms(True)
        with plain_arithmetic(torch.device("cuda")):
            pass
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_older_names_of_settings_can_be_read_inside(rounding, device):
    with plain_arithmetic(torch.device(device)):
        with torch.backends.cudnn.flags(enabled=False):
            pass
        assert torch.backends.cudnn.allow_tf32 == (device == "cpu")
        if device == "cuda":
            assert not torch.backends.cuda.matmul.allow_tf32
            assert chosen()[("cuda", "conv")] in ("none", "ieee") and chosen()[("cuda", "matmul")] in ("none", "ieee")


def test_a_process_that_sets_nothing_is_left_alone_on_the_cpu():
    code = """
import torch
from zcpipe.scoring.arithmetic import plain_arithmetic
with plain_arithmetic(torch.device("cpu")):
    pass
torch.backends.fp32_precision = "ieee"
print(torch._C._get_fp32_precision_getter("cuda", "conv"), torch._C._get_fp32_precision_getter("mkldnn", "matmul"))
"""
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said.split() == ["ieee", "ieee"]
