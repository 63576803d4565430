"""The public functions' own autograd is that of the registered ops."""

import pytest
import torch

from zcpipe.ops import avg_pool3x3, batch_norm_train, conv_batch_norm_train


def images(channels, requires_grad=True):
    x = torch.randn(2, channels, 5, 5, generator=torch.Generator().manual_seed(channels))
    return x.contiguous(memory_format=torch.channels_last).requires_grad_(requires_grad)


def convolution(x, total):
    weight = torch.linspace(-1, 1, 27).view(1, 3, 3, 3)
    return conv_batch_norm_train(x, weight, padding=1, relu_input=True, total=total), (
        torch.ops.zcpipe.conv_batch_norm_train(x, weight, None, None, total, 1e-5, 1, 1, True, False)[0]
    )


def norm(x, total):
    scale = torch.tensor([0.5, 1.0, 2.0])
    return batch_norm_train(x, scale, relu=True, total=total), (
        torch.ops.zcpipe.batch_norm_train(x, scale, None, total, 1e-5, True)[0]
    )


def pool(x, total):
    return avg_pool3x3(x) + total, torch.ops.zcpipe.avg_pool3x3(x) + total


@pytest.mark.parametrize(("op", "channels"), [(convolution, 1), (norm, 3), (pool, 3)])
@pytest.mark.parametrize("needed", [(True, True), (True, False), (False, True)])
def test_the_public_function_and_the_op_have_the_same_derivatives(native, op, channels, needed):
    x, total = images(3, needed[0]), images(channels, needed[1])
    asked = [t for t in (x, total) if t.requires_grad]
    ours, theirs = op(x, total)
    assert torch.equal(ours, theirs)
    cotangent = torch.arange(ours.numel(), dtype=torch.float32).view_as(ours)
    for a, b in zip(
        torch.autograd.grad(ours, asked, cotangent), torch.autograd.grad(theirs, asked, cotangent), strict=True
    ):
        assert torch.equal(a, b)


def test_without_a_need_nothing_is_recorded(native):
    x, total = images(3), images(3)
    with torch.no_grad():
        results = [*norm(x, total), *pool(x, total)]
    assert not any(result.requires_grad for result in results)
