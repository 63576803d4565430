"""From proxies to values: which passes they need, what went wrong, and the reductions at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zcpipe.errors import UsageError
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
    """Return every statistic the proxies read, each once, in order of first use.

    Raises:
        UsageError: two proxies mean different statistics by one name.
    """
    found: dict[str, Statistic] = {}
    for proxy in proxies:
        for statistic in proxy.statistics:
            if found.setdefault(statistic.name, statistic) != statistic:
                raise UsageError(f"proxy {proxy.name!r} reads another statistic named {statistic.name!r}; rename one")
    return tuple(found.values())


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

    Raises:
        UsageError: the blocks or probes do not fit the network.
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


def status_of(proxies: Sequence[Proxy], scores: Mapping[str, float | None], failures: Sequence[Failure]) -> str:
    """Summarise an outcome: ``ok``, ``partial``, ``memory`` or ``error``.

    The proxies that need a pass decide, since sizes never fail with them: ``partial`` if some of them have values,
    ``memory`` or ``error`` by the reason if none has.
    """
    if all(scores[proxy.name] is not None for proxy in proxies):
        return "ok"
    deciding = [proxy for proxy in proxies if proxy.statistics] or list(proxies)
    if any(scores[proxy.name] is not None for proxy in deciding):
        return "partial"
    return "memory" if any(failure.kind == "memory" for failure in failures) else "error"


def _block_pass(
    model: nn.Module,
    inputs: Sequence[Tensor],
    proxies: Sequence[Proxy],
    blocks: Sequence[str],
    probe: ProbeSource,
    result: Measurement,
) -> None:
    modules = dict(model.named_modules())
    # Scores are defined in the precision of the inputs, whatever the caller casts automatically.
    plain = torch.autocast(inputs[0].device.type, enabled=False)
    with untouched(modules), plain, fast_operations(modules, called=blocks):
        measured = block_statistics(model, modules, inputs, blocks, statistics_of(proxies), probe)
    result.statistics |= measured.statistics
    for proxy in proxies:
        broken = next((measured.errors[s.name] for s in proxy.statistics if s.name in measured.errors), None)
        if broken is not None:
            result.failures.append(_failure(proxy, broken))
        else:
            _reduce(proxy, result.statistics, result)


def _count(proxies: Sequence[Proxy], size: Callable[[], Size], result: Measurement) -> None:
    counted = size()
    counts = {"params": np.array(counted.params), "macs": np.array(counted.macs)}
    for proxy in proxies:
        _reduce(proxy, counts, result)


def _reduce(proxy: Proxy, values: Mapping[str, NDArray[np.float64]], result: Measurement) -> None:
    try:
        score = float(proxy.reduce(values))
    except Exception as error:
        result.failures.append(_failure(proxy, error))
        return
    if np.isnan(score):
        bad = next((s.name for s in proxy.statistics if np.isnan(values[s.name]).any()), None)
        where = f"statistic {bad} holds non-finite values" if bad else "the reduction is not a number"
        result.failures.append(Failure(proxy.name, "nonfinite", where))
    else:
        result.scores[proxy.name] = score


def _guarded(proxies: Sequence[Proxy], result: Measurement, compute: Callable[[], None]) -> None:
    """Run a pass; if the network fails in it, every proxy that waits for it fails with the reason.

    What the caller got wrong, such as blocks that do not exist, is the caller's to hear.
    """
    try:
        compute()
    except UsageError:
        raise
    except Exception as error:
        result.failures.extend(_failure(proxy, error) for proxy in proxies)


def _failure(proxy: Proxy, error: Exception) -> Failure:
    kind = "memory" if is_out_of_memory(error) else "error"
    reason = (str(error).splitlines() or [""])[0]
    return Failure(proxy.name, kind, f"{type(error).__name__}: {reason}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out; torch's CPU allocator says so only in its message."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)
