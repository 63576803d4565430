"""Scoring whole key classes of a run: one pass for the function, counts for each member."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zcpipe.errors import UsageError
from zcpipe.ops.philox import Stream
from zcpipe.proxies import Proxy, resolve
from zcpipe.scoring.columns import COUNTS, Column, columns_of
from zcpipe.scoring.init import initialise
from zcpipe.scoring.measure import Failure, Measurement, measure, philox_probes, status_of
from zcpipe.spaces import get_space
from zcpipe.spaces.base import Architecture

if TYPE_CHECKING:  # the run is above scoring; its spec is only data here
    from zcpipe.run.spec import RunSpec

_BATCHES_KEPT = 8


class ClassScorer:
    """Scores the architectures of one run; lives in whichever process does the work.

    Values depend on the spec and the key alone: the network scored is that of the class's representative, its weights
    and probes are drawn for the key, the batch for the run.
    """

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._space = get_space(spec.space)
        self._proxies = resolve(spec.proxies)
        _check_recipes(self._proxies)
        self._batches: dict[int, Tensor] = {}
        self.columns: tuple[Column, ...] = columns_of(self._space, spec.dataset, self._proxies)

    def score(self, representative: Architecture, members: Sequence[Architecture]) -> list[dict[str, object]]:
        """Score one class.

        Args:
            representative: the member of smallest index, whose network is built.
            members: the members whose rows are wanted.

        Returns:
            One row per member: every column's value (None for a failed proxy), ``<proxy>_sd`` with repeats, status,
            failures, and the class's wall time in seconds divided over its members.
        """
        start = time.perf_counter()
        function = [proxy for proxy in self._proxies if proxy.scope == "function"]
        shared = self._score_function(representative, function) if function else []
        rows = [self._row(member, shared) for member in members]
        seconds = (time.perf_counter() - start) / max(len(rows), 1)
        return [{**row, "seconds": seconds} for row in rows]

    def _score_function(self, arch: Architecture, proxies: Sequence[Proxy]) -> list[Measurement]:
        """Score the function once per repeat, each with weights, probes and inputs of its own."""
        spec, key = self._spec, self._space.key(arch)
        results = []
        for repeat in range(spec.repeats):
            built = self._space.build(arch, spec.dataset)
            model = initialise(
                built.model,
                seed=spec.seed,
                space=spec.space,
                scope=key,
                repeat=repeat,
                device=spec.device,
                strict=True,
            )
            size = partial(self._space.size, arch, spec.dataset)
            probe = philox_probes(spec.seed, spec.space, key, repeat)
            results.append(measure(model, [self._batch(repeat)], proxies, built.blocks, probe, size))
        return results

    def _batch(self, repeat: int) -> Tensor:  # [N, C, H, W]
        """Return the noise batch of a repeat, the same for every architecture of the run."""
        if repeat not in self._batches:
            if len(self._batches) == _BATCHES_KEPT:
                self._batches.clear()
            self._batches[repeat] = noise_batch(self._spec, repeat)
        return self._batches[repeat]

    def _row(self, member: Architecture, shared: Sequence[Measurement]) -> dict[str, object]:
        full = [proxy for proxy in self._proxies if proxy.scope == "full"]
        size = self._space.size(member, self._spec.dataset)
        counted = measure(torch.nn.Identity(), [], full, (), _no_probe, lambda: size)
        means, spreads = _over_repeats([m.scores for m in shared])
        scores = {**means, **counted.scores}
        failures = [failure for m in (*shared, counted) for failure in m.failures]
        values: dict[str, object] = {p.name: scores[p.name] for p in self._proxies if p.name not in COUNTS}
        if self._spec.repeats > 1:
            values |= {f"{p.name}_sd": spreads.get(p.name, 0.0) for p in self._proxies if p.name not in COUNTS}
        values |= {"params": size.params, "macs": size.macs}
        values |= {c.name: _mean_statistic(c.name, shared) for c in self.columns if c.kind == "statistic"}
        return {**values, "status": status_of(self._proxies, scores, failures), "failures": _as_records(failures)}


def _check_recipes(proxies: Sequence[Proxy]) -> None:
    """Refuse what no pass of this version computes; while all proxies share one recipe, both protocols are one pass.

    Raises:
        UsageError: several recipes, or statistics of the full architecture.
    """
    if len({proxy.recipe for proxy in proxies if proxy.recipe is not None}) > 1:
        raise UsageError("these proxies need passes under different recipes, which this version cannot run together")
    for proxy in proxies:
        if proxy.scope == "full" and proxy.statistics:
            raise UsageError(f"proxy {proxy.name!r} reads statistics of the full architecture, which are not measured")


def noise_batch(spec: RunSpec, repeat: int) -> Tensor:  # [N, C, H, W]
    """Draw the batch of a run's repeat: i.i.d. standard normals, channels-last, the same for every architecture."""
    shape = (spec.batch_size, *get_space(spec.space).datasets[spec.dataset].input_shape)
    batch = torch.empty(shape, device=spec.device, memory_format=torch.channels_last)
    return Stream.of(spec.seed, spec.space, "run", repeat, "inputs").normal_(batch)


def _no_probe(block: str, output: Tensor) -> Tensor:
    raise AssertionError("counts need no probe")


def _over_repeats(
    repeats: Sequence[dict[str, float | None]],
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Mean and sample standard deviation of each proxy; None if any repeat failed or, for the latter, is infinite."""
    means: dict[str, float | None] = {}
    spreads: dict[str, float | None] = {}
    for name in repeats[0] if repeats else ():
        values = [scores[name] for scores in repeats]
        numbers = [value for value in values if value is not None]
        whole = len(numbers) == len(values)
        means[name] = float(np.mean(numbers)) if whole else None
        finite = whole and len(numbers) > 1 and bool(np.isfinite(numbers).all())
        spreads[name] = float(np.std(numbers, ddof=1)) if finite else None
    return means, spreads


def _mean_statistic(column: str, shared: Sequence[Measurement]) -> NDArray[np.float32] | None:
    """Mean of a statistic over the repeats, None if a repeat did not get that far."""
    name = column.removesuffix("@block")
    found = [m.statistics[name] for m in shared if name in m.statistics]
    if not found or len(found) < len(shared):
        return None
    mean: NDArray[np.float32] = np.mean(found, axis=0).astype(np.float32)
    return mean


def _as_records(failures: Sequence[Failure]) -> list[dict[str, str]]:
    """Turn failures into the table's records, each once however many repeats met it."""
    distinct = dict.fromkeys(failures)
    return [{"proxy": f.proxy, "kind": f.kind, "message": f.message} for f in distinct]
