"""Scoring whole key classes of a run: one pass for the function, counts for each member."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from zcpipe.errors import UnsupportedError, UsageError
from zcpipe.inputs import batch_of, noise_of
from zcpipe.ops.philox import Stream
from zcpipe.proxies import Proxy, resolve
from zcpipe.proxies.base import Recipe
from zcpipe.scoring.columns import COUNTS, Column, columns_of
from zcpipe.scoring.init import initialise
from zcpipe.scoring.measure import Batch, Failure, Measurement, measure, philox_probes, status_of
from zcpipe.scoring.network import Loss
from zcpipe.spaces import asked, get_space
from zcpipe.spaces.base import Architecture, Size, slot_of

if TYPE_CHECKING:  # the run is above scoring; its spec is only data here
    from zcpipe.run.spec import RunSpec

_BATCHES_KEPT = 8


class ClassScorer:
    """Scores the architectures of one run; lives in whichever process does the work.

    Values depend on the spec and the key alone: the network scored is that of the class's representative, its weights
    and probes are drawn for the key, the batch for the run. Proxies that count dead layers are taken of each member's
    own network.
    """

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._space = get_space(spec.space)
        self._proxies = resolve(spec.proxies)
        self._own = [proxy for proxy in self._proxies if proxy.scope == "full" and proxy.statistics]
        self._static = [proxy for proxy in self._proxies if not proxy.statistics]
        self._passed = [proxy for proxy in self._proxies if proxy.statistics]
        self._batches = Batches(spec)
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
        # What members must measure for themselves, the representative need not where its row is not wanted.
        shared = [p for p in self._passed if p.scope == "function" or representative in members]
        measured = self._measure(representative, shared)
        rows = []
        for member in members:
            own = measured if member == representative else self._measure(member, self._own)
            rows.append(self._row(member, representative, measured, own))
        seconds = (time.perf_counter() - start) / max(len(rows), 1)
        return [{**row, "seconds": seconds} for row in rows]

    def _measure(self, arch: Architecture, proxies: Sequence[Proxy]) -> list[Measurement]:
        """Measure an architecture once per repeat, each with weights, probes and inputs of its own."""
        if not proxies:
            return []
        subjects = (BuiltSubject(self._spec, arch, repeat, self._batches) for repeat in range(self._spec.repeats))
        return [measure(subject, proxies, self._spec.protocol) for subject in subjects]

    def _row(
        self,
        member: Architecture,
        representative: Architecture,
        shared: Sequence[Measurement],
        own: Sequence[Measurement],
    ) -> dict[str, object]:
        """Put a member's row together of what its class shares and what is its own."""
        counted = measure(BuiltSubject(self._spec, member, 0, self._batches), self._static)
        function = [p.name for p in self._passed if p.scope == "function"]
        full = [p.name for p in self._own]
        size = asked.size_of(self._space, member, self._spec.dataset)
        means, spreads = _over_repeats([{n: m.scores[n] for n in function} for m in shared])
        own_means, own_spreads = _over_repeats([{n: m.scores[n] for n in full} for m in own])
        scores = {**means, **own_means, **counted.scores}
        failures = [f for m in shared for f in m.failures if f.proxy in function]
        failures += [f for m in own for f in m.failures if f.proxy in full] + counted.failures
        values: dict[str, object] = {p.name: scores[p.name] for p in self._proxies if p.name not in COUNTS}
        if self._spec.repeats > 1:
            deviations = spreads | own_spreads
            values |= {f"{p.name}_sd": deviations.get(p.name, 0.0) for p in self._proxies if p.name not in COUNTS}
        values |= {"params": size.params, "macs": size.macs}
        values |= self._statistics(member, representative, shared, own)
        return {**values, "status": status_of(self._proxies, scores, failures), "failures": _as_records(failures)}

    def _statistics(
        self,
        member: Architecture,
        representative: Architecture,
        shared: Sequence[Measurement],
        own: Sequence[Measurement],
    ) -> dict[str, object]:
        """Return the statistics of a member in its own slots."""
        full = {s.name for p in self._own for s in p.statistics}
        slots = self._space.slots(member, self._spec.dataset).layers
        theirs = self._space.slots(representative, self._spec.dataset).layers
        moved = cache(partial(self._space.correspondence, representative, member, self._spec.dataset))
        values: dict[str, object] = {}
        for column in self.columns:
            if column.kind == "statistic":
                name, _, node = column.name.rpartition("@")
                found = own if name in full else shared
                mean = _mean_statistic(name, found)
                if mean is not None and node == "layer":
                    placed = _in_slots(mean, found[0].layers[name], slots if name in full else theirs)
                    mean = placed if name in full else _moved(placed, theirs, moved(), slots)
                values[column.name] = None if mean is None else mean.astype(np.float32)
        return values


class BuiltSubject:
    """An architecture of a run; see `zcpipe.scoring.measure.Subject`."""

    loss: Loss | None = None
    pruned = True

    def __init__(self, spec: RunSpec, arch: Architecture, repeat: int, batches: Batches) -> None:
        self._spec = spec
        self._arch = arch
        self._repeat = repeat
        self._batches = batches
        self._space = get_space(spec.space)
        self._key = asked.key_of(self._space, arch)
        self._models: dict[bool, tuple[nn.Module, str]] = {}  # by whether it is full: and how it was initialised
        self._probe = philox_probes(spec.seed, spec.space, self._key, repeat)
        self.blocks: Sequence[str] = self._space.slots(arch, spec.dataset).blocks

    @contextmanager
    def network(self, recipe: Recipe, full: bool) -> Iterator[nn.Module]:
        """Lend the network; it is built once and drawn anew where the last recipe drew otherwise."""
        model, init = self._models.get(full, (None, ""))
        if model is None:
            built = self._space.build(self._arch, self._spec.dataset, full=full)
            model, self.blocks = built.model, built.blocks
        if init != recipe.init:
            model = _drawn(
                model,
                init=recipe.init,
                seed=self._spec.seed,
                space=self._spec.space,
                scope=self._key,
                repeat=self._repeat,
                device=self._spec.device,
            )
            self._models[full] = (model, recipe.init)
        yield model

    def batch(self, recipe: Recipe) -> Batch:
        """Return noise, or the run's images and labels."""
        return self._batches.of(self._repeat, noise=recipe.inputs != "data")

    def stream(self, purpose: str) -> Stream:
        """Return the random numbers of the architecture's key for a purpose."""
        return Stream.of(self._spec.seed, self._spec.space, self._key, self._repeat, purpose)

    def probe(self, block: str, output: Tensor) -> Tensor:
        """Return the probe of the architecture's key for a block."""
        return self._probe(block, output)

    def size(self) -> Size:
        """Count as the space does."""
        return self._space.size(self._arch, self._spec.dataset)


def _drawn(model: nn.Module, **how: Any) -> nn.Module:  # noqa: ANN401
    """Initialise a network; what no rule fills is the recipe's failure, not the architecture's."""
    try:
        return initialise(model, strict=True, **how)
    except UsageError as error:
        raise UnsupportedError(str(error)) from error


class Batches:
    """The batches of a run's repeats, the same for every architecture."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._kept: dict[tuple[int, bool], Batch] = {}

    def of(self, repeat: int, noise: bool) -> Batch:
        """Return the batch of a repeat: pure noise, or the run's images with labels."""
        known = (repeat, noise)
        if known not in self._kept:
            if len(self._kept) == _BATCHES_KEPT:
                self._kept.clear()
            drawn = (noise_of if noise else batch_of)(self._spec, repeat)
            self._kept[known] = Batch([drawn.images], drawn.labels)
        return self._kept[known]


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


def _mean_statistic(name: str, found: Sequence[Measurement]) -> NDArray[np.float64] | None:
    """Mean of a statistic over the repeats, None if a repeat did not get that far."""
    values = [m.statistics[name] for m in found if name in m.statistics]
    return np.mean(values, axis=0) if values and len(values) == len(found) else None


def _in_slots(values: NDArray[np.float64], layers: Sequence[str], slots: Sequence[str]) -> NDArray[np.float64]:
    """Put a value per layer into the slots of the full architecture; slots without a layer hold 0."""
    placed = np.zeros(len(slots))
    position = {slot: i for i, slot in enumerate(slots)}
    for value, layer in zip(values, layers, strict=True):
        placed[position[slot_of(layer, position)]] = value
    return placed


def _moved(
    placed: NDArray[np.float64], theirs: Sequence[str], origins: Mapping[str, str], slots: Sequence[str]
) -> NDArray[np.float64]:
    """Move the representative's values to a member's own slots; slots of neither's live layers hold 0."""
    value = dict(zip(theirs, placed.tolist(), strict=True))
    return np.array([value[origins[slot]] if slot in origins else 0.0 for slot in slots])


def _as_records(failures: Sequence[Failure]) -> list[dict[str, str]]:
    """Turn failures into the table's records, each once however many repeats met it."""
    distinct = dict.fromkeys(failures)
    return [{"proxy": f.proxy, "kind": f.kind, "message": f.message} for f in distinct]
