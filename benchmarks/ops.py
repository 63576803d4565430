"""CPU time of each native op against torch's own for the same purpose, at 64x16x32x32 in float32 and channels_last.

    python -m benchmarks.ops                      # table
    python -m benchmarks.ops --json
    python -m benchmarks.ops --device cuda        # on a machine with a GPU; ops without a kernel for it use their twins

Every op is first compared with a float64 or twin result. Then ours and torch's run in turns, one thread, as often
each time as takes a few milliseconds; the ratio is that of their CPU times within a turn: median, quartiles.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zcpipe import ops
from zcpipe.ops._philox_twin import _normal, _rademacher, _uniform
from zcpipe.ops.codes import _hamming_distances, _sign_codes
from zcpipe.ops.moments import _covariance, _cross_moment
from zcpipe.ops.parameters import _parameter_statistics
from zcpipe.ops.products import _product_sums
from zcpipe.scoring.arithmetic import plain_arithmetic

SHAPE = (64, 16, 32, 32)
TURN = 4e-3  # seconds of CPU time of one contender's turn


class Case(NamedTuple):
    """An op, torch's way to the same end, and the exact result that ours must have."""

    name: str
    ours: Callable[[], Tensor]
    theirs: Callable[[], object]
    exact: Callable[[], Tensor]
    tolerance: float  # of the largest error, relative to the largest exact value


def _image(seed: int, device: torch.device) -> Tensor:
    image = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).to(device)
    return image.contiguous(memory_format=torch.channels_last)


def _rows(image: Tensor) -> Tensor:
    return image.permute(0, 2, 3, 1).reshape(-1, image.shape[1])


def _pooling(device: torch.device) -> list[Case]:
    x, grad = _image(1, device), _image(2, device)
    geometry = ([3, 3], [1, 1], [1, 1], False, False, None)

    def pool(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

    def back(grad: Tensor, x: Tensor) -> Tensor:
        return torch.ops.aten.avg_pool2d_backward(grad, x, *geometry)

    native = torch.ops.zcpipe
    return [
        Case("avg_pool3x3 forward", lambda: ops.avg_pool3x3(x), lambda: pool(x), lambda: pool(x.double()), 1e-6),
        Case(
            "avg_pool3x3 backward",
            lambda: native.avg_pool3x3_backward(grad),
            lambda: back(grad, x),
            lambda: back(grad.double().contiguous(), x.double().contiguous()),  # torch's other layout: pytorch 188344
            1e-6,
        ),
    ]


def _normalisation(device: torch.device) -> list[Case]:
    x, grad = _image(1, device), _image(2, device)
    weight, bias, eps = torch.rand(SHAPE[1], device=device) + 0.5, torch.rand(SHAPE[1], device=device), 1e-5
    _, mean, invstd = torch.ops.zcpipe.batch_norm_train(x, weight, bias, None, eps, False)

    def norm(*tensors: Tensor) -> Tensor:
        x, weight, bias = tensors
        return F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)

    def back(*tensors: Tensor) -> tuple[Tensor, ...]:
        grad, x, weight, mean, invstd = tensors
        wanted = [True, True, True]
        return torch.ops.aten.native_batch_norm_backward(grad, x, weight, None, None, mean, invstd, True, eps, wanted)

    theirs = (grad, x, weight, mean.float(), invstd.float())
    exact = [t.double() for t in (grad, x, weight, mean, invstd)]
    return [
        Case(
            "batch_norm_train forward",
            lambda: ops.batch_norm_train(x, weight, bias, eps),
            lambda: norm(x, weight, bias),
            lambda: norm(x.double(), weight.double(), bias.double()),
            1e-6,
        ),
        Case(
            "batch_norm_train backward",
            lambda: torch.ops.zcpipe.batch_norm_train_backward(grad, x, weight, bias, mean, invstd, False)[0],
            lambda: back(*theirs),
            lambda: back(*exact)[0],
            1e-6,
        ),
    ]


def _convolution(kernel: int, device: torch.device) -> Case:
    """ReLU, convolution, batch norm and a sum, forward and the input's gradient."""
    x, total, grad = _image(1, device), _image(2, device), _image(3, device)
    channels = SHAPE[1]
    weight = torch.randn(channels, channels, kernel, kernel, generator=torch.Generator().manual_seed(4)).to(device)

    def theirs(x: Tensor, weight: Tensor, total: Tensor, grad: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        y = F.batch_norm(F.conv2d(F.relu(x), weight, padding=kernel // 2), None, None, training=True) + total
        return torch.cat([y.detach(), *torch.autograd.grad(y, x, grad)])

    def ours() -> Tensor:
        leaf = x.detach().requires_grad_()
        y = ops.conv_batch_norm_train(leaf, weight, padding=kernel // 2, relu_input=True, total=total)
        return torch.cat([y.detach(), *torch.autograd.grad(y, leaf, grad)])

    return Case(
        f"ReLU, {kernel}x{kernel} convolution, norm, sum; both ways",
        ours,
        lambda: theirs(x, weight, total, grad),
        lambda: theirs(x.double(), weight.double(), total.double(), grad.double()),
        1e-4,
    )


def _all_gradients(channels: int, pixels: int, device: torch.device) -> Case:
    """ReLU, 3x3 convolution and batch norm: what a gradient of the result gives of the input, and of the kernels."""
    shape = (SHAPE[0], channels, pixels, pixels)
    drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device) for seed in (1, 2)]
    x, grad = (t.contiguous(memory_format=torch.channels_last) for t in drawn)
    weight = torch.randn(channels, channels, 3, 3, generator=torch.Generator().manual_seed(4)).to(device)

    def graph(op: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> Callable[[], Tensor]:
        leaves = [t.to(dtype).requires_grad_() for t in (x, weight)]
        y, cotangent = op(*leaves), grad.to(dtype)
        return lambda: torch.autograd.grad(y, leaves, cotangent, retain_graph=True)[1]

    def theirs(x: Tensor, weight: Tensor) -> Tensor:
        layout = weight.contiguous(memory_format=torch.channels_last)
        return F.batch_norm(F.conv2d(F.relu(x), layout, padding=1), None, None, training=True)

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return ops.conv_batch_norm_train(x, weight, padding=1, relu_input=True)

    return Case(
        f"ReLU, 3x3 convolution, norm; all gradients, {channels}x{pixels}x{pixels}",
        graph(ours, torch.float32),
        graph(theirs, torch.float32),
        graph(theirs, torch.float64),
        1e-5,
    )


def _random_numbers(device: torch.device) -> list[Case]:
    out, stream = _image(1, device), ops.Stream(key=1, nonce=2)

    def numbers(draw: Callable[[int, int, int], object]) -> Tensor:
        return torch.as_tensor(draw(stream.key, stream.nonce, out.numel())).view(SHAPE).to(device)

    return [
        Case(
            "Rademacher probe",
            lambda: stream.rademacher_(out),
            lambda: (torch.bernoulli(torch.full_like(out, 0.5)) - 0.5) * 2,
            lambda: numbers(_rademacher),
            0,
        ),
        Case(
            "philox normals",
            lambda: stream.normal_(out),
            lambda: torch.randn_like(out),
            lambda: numbers(_normal),
            1e-7,  # float32 rounds
        ),
        Case(
            "philox uniform numbers",
            lambda: stream.uniform_(out),
            lambda: torch.empty_like(out).uniform_(-1, 1),
            lambda: numbers(_uniform),
            1e-7,
        ),
    ]


def _moments(device: torch.device) -> list[Case]:
    x = _image(1, device)
    a, b = _rows(x), _rows(_image(2, device))

    def covariance(rows: Tensor) -> Tensor:
        centred = rows - rows.mean(0, keepdim=True)
        return centred.T @ centred / rows.shape[0]

    return [
        Case("covariance", lambda: ops.covariance(x), lambda: covariance(a), lambda: _covariance(x), 1e-7),
        Case(
            "cross_moment",
            lambda: ops.cross_moment(a, b),
            lambda: a.T @ b / a.shape[0],
            lambda: _cross_moment(a, b),
            1e-6,
        ),
    ]


def _layers(device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """Return an all-3x3 NAS-Bench-201 network's weights and, as torch's channels_last backward lays them, gradients."""
    shapes = [(16, 3, 3, 3)]
    for width in (16, 32, 64):
        if width > 16:
            shapes += [(width, width // 2, 3, 3), (width, width, 3, 3), (width, width // 2, 1, 1)]
        shapes += 30 * [(width, width, 3, 3)]
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
    grads = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
    return weights, [grad.contiguous(memory_format=torch.channels_last) for grad in grads]


def _parameters(device: torch.device) -> list[Case]:
    weights, grads = _layers(device)
    dense = [g.contiguous() for g in grads]

    def sums(grads: Sequence[Tensor]) -> list[Tensor]:
        columns = []
        for w, g in zip(weights, grads, strict=True):
            products = g * w
            columns += [g.square().sum(), products.sum(), products.abs().sum(), w.square().sum()]
        return columns

    def case(name: str, grads: Sequence[Tensor]) -> Case:
        return Case(
            name,
            lambda: torch.stack(ops.parameter_statistics(weights, grads), 1),
            lambda: torch.stack(sums(grads)),
            lambda: _parameter_statistics(weights, grads),
            1e-12,
        )

    return [
        case(f"parameter_statistics of {len(weights)} layers", grads),
        case("parameter_statistics, contiguous gradients", dense),
    ]


def _products(device: torch.device) -> list[Case]:
    z, dz = _image(1, device), _image(2, device)
    return [
        Case(
            "product_sums",
            lambda: ops.product_sums(z, dz),
            lambda: (z * dz).sum((2, 3)),
            lambda: _product_sums(z, dz),
            1e-12,
        )
    ]


def _activation_codes(device: torch.device) -> list[Case]:
    x = _image(1, device)
    codes, on = ops.sign_codes(x), (x > 0).flatten(1).float()
    return [
        Case("sign_codes", lambda: ops.sign_codes(x), lambda: (x > 0).flatten(1).float(), lambda: _sign_codes(x), 0),
        Case(
            "hamming_distances",
            lambda: ops.hamming_distances(codes),
            lambda: on @ on.T + (1 - on) @ (1 - on).T,
            lambda: _hamming_distances(codes),
            0,
        ),
    ]


def cases(device: torch.device) -> list[Case]:
    """Return every case, in the order of the table."""
    return [
        *_pooling(device),
        *_normalisation(device),
        _convolution(1, device),
        _convolution(3, device),
        _all_gradients(16, 32, device),
        _all_gradients(64, 8, device),
        *_random_numbers(device),
        *_moments(device),
        *_parameters(device),
        *_products(device),
        *_activation_codes(device),
    ]


def gate(case: Case) -> float:
    """Return the case's largest error, relative to the largest exact value; stop if it is too large."""
    ours, exact = case.ours(), case.exact()
    if not exact.is_floating_point():
        error = 0.0 if torch.equal(ours.cpu(), exact.cpu()) else float("inf")
    else:
        error = float((ours.double() - exact.double()).abs().max() / exact.abs().max())
    if not error <= case.tolerance:
        sys.exit(f"correctness gate: {case.name} has a relative error of {error}, above {case.tolerance}")
    return error


def _seconds(run: Callable[[], object], times: int, device: torch.device) -> float:
    """CPU time of a run on the CPU; on a GPU the time until it is done."""
    on_gpu = device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.cuda.synchronize(device)
    start = clock()
    for _ in range(times):
        run()
    if on_gpu:
        torch.cuda.synchronize(device)
    return (clock() - start) / times


def measure(case: Case, turns: int, device: torch.device) -> dict[str, float]:
    """Return the case's median times and the median and quartiles of their ratio."""
    contenders = (case.ours, case.theirs)
    times = [max(1, round(TURN / max(min(_seconds(run, 1, device) for _ in range(3)), 1e-6))) for run in contenders]
    samples = [[_seconds(run, n, device) for run, n in zip(contenders, times, strict=True)] for _ in range(turns)]
    ratios = [theirs / ours for ours, theirs in samples]
    low, _, high = statistics.quantiles(ratios, n=4)
    ours, theirs = (1000 * statistics.median(column) for column in zip(*samples, strict=True))
    return {"ours_ms": ours, "torch_ms": theirs, "ratio": statistics.median(ratios), "low": low, "high": high}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--turns", type=int, default=15, help="of each contender, at least 2")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda[:i] with a library that was built for it")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not (torch.cuda.is_available() and ops.build_info()["cuda"]):
        parser.error("--device cuda: needs a GPU and a library built with FORCE_CUDA=1")
    if options.turns < 2:
        parser.error("--turns: expected at least 2")
    if not ops.available():
        sys.exit("the native library is not built")
    torch.set_num_threads(1)
    with plain_arithmetic(device):
        gated = [(case, gate(case)) for case in cases(device)]
        rows = {case.name: {**measure(case, options.turns, device), "relative_error": error} for case, error in gated}
    if options.json:
        print(json.dumps({"build": ops.build_info(), "turns": options.turns, "ops": rows}))
        return
    print(f"{'op':58} {'ours ms':>9} {'torch ms':>9} {'ratio':>7}   quartiles")
    for name, row in rows.items():
        quartiles = f"{row['low']:.2f} .. {row['high']:.2f}"
        print(f"{name:58} {row['ours_ms']:9.3f} {row['torch_ms']:9.3f} {row['ratio']:7.2f}   {quartiles}")


if __name__ == "__main__":
    main()
