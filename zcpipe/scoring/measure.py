"""From proxies to values: which passes they need, what went wrong, and the reductions at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zcpipe.errors import ZcpipeError
from zcpipe.ops.philox import Stream
from zcpipe.proxies.base import Proxy, Statistic
from zcpipe.scoring.blocks import ProbeSource, block_statistics
from zcpipe.scoring.guard import untouched
from zcpipe.scoring.rewrite import fast_operations
from zcpipe.spaces.base import Size


@dataclass(frozen=True)
class Failure:
    """Why a proxy has no value: ``kind`` is error, memory or nonfinite."""

    proxy: str
    kind: str
    message: str


@dataclass
class Measurement:
    """What scoring one network gave. A failed proxy is None in ``scores`` and named in ``failures``."""

    scores: dict[str, float | None] = field(default_factory=dict)
    statistics: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)


def statistics_of(proxies: Sequence[Proxy]) -> tuple[Statistic, ...]:
    """Return every statistic the proxies read, each once, in order of first use."""
    return tuple({s.name: s for proxy in proxies for s in proxy.statistics}.values())


def philox_probes(seed: int, space: str, scope: str, repeat: int) -> ProbeSource:
    """Return the source of +-1 probes that belongs to a seed and an architecture's key."""

    def probe(block: str, output: Tensor) -> Tensor:
        g_out = torch.empty_like(output)
        Stream.of(seed, space, scope, repeat, f"probe:{block}").rademacher_(g_out)
        return g_out

    return probe


def measure(
    model: nn.Module,
    inputs: Sequence[Tensor],  # first dimension N
    proxies: Sequence[Proxy],
    blocks: Sequence[str],
    probe: ProbeSource,
    size: Callable[[], Size],
) -> Measurement:
    """Score one network with the weights it has.

    Args:
        model: the network; untouched afterwards.
        inputs: positional arguments of its forward.
        proxies: what to compute.
        blocks: names of its block modules in the order in which they run.
        probe: source of the probes.
        size: counts parameters and multiply-accumulates; called only if a static proxy is asked for.
    """
    result = Measurement()
    passes = [proxy for proxy in proxies if proxy.statistics]
    static = [proxy for proxy in proxies if not proxy.statistics]
    if passes:
        _guarded(passes, result, lambda: _block_pass(model, inputs, passes, blocks, probe, result))
    if static:
        _guarded(static, result, lambda: _count(static, size, result))
    result.scores = {proxy.name: result.scores.get(proxy.name) for proxy in proxies}
    return result


def _block_pass(
    model: nn.Module,
    inputs: Sequence[Tensor],
    proxies: Sequence[Proxy],
    blocks: Sequence[str],
    probe: ProbeSource,
    result: Measurement,
) -> None:
    with untouched(model), fast_operations(model):
        result.statistics |= block_statistics(model, inputs, blocks, statistics_of(proxies), probe)
    for proxy in proxies:
        _reduce(proxy, result.statistics, result)


def _count(proxies: Sequence[Proxy], size: Callable[[], Size], result: Measurement) -> None:
    counted = size()
    counts = {"params": np.array(counted.params), "macs": np.array(counted.macs)}
    for proxy in proxies:
        _reduce(proxy, counts, result)


def _reduce(proxy: Proxy, values: Mapping[str, NDArray[np.float64]], result: Measurement) -> None:
    score = proxy.reduce(values)
    if np.isnan(score):
        bad = next((s.name for s in proxy.statistics if np.isnan(values[s.name]).any()), None)
        where = f"statistic {bad} holds non-finite values" if bad else "the reduction is not a number"
        result.failures.append(Failure(proxy.name, "nonfinite", where))
    else:
        result.scores[proxy.name] = score


def _guarded(proxies: Sequence[Proxy], result: Measurement, compute: Callable[[], None]) -> None:
    """Run a pass; if it fails, every proxy that waits for it fails with its reason."""
    try:
        compute()
    except (ZcpipeError, RuntimeError, ValueError, TypeError, MemoryError, IndexError) as error:
        kind = "memory" if is_out_of_memory(error) else "error"
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        result.failures.extend(Failure(proxy.name, kind, message) for proxy in proxies)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out; torch's CPU allocator says so only in its message."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)
