"""``zcpipe.score``: zero-cost proxies of any module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zcpipe.errors import UsageError
from zcpipe.proxies import resolve
from zcpipe.scoring.blocks import ProbeSource
from zcpipe.scoring.measure import Failure, measure, philox_probes, status_of
from zcpipe.scoring.size import count


@dataclass(frozen=True)
class Scores(Mapping[str, float | None]):
    """Proxy name -> raw value, None where it failed; ``failures`` says why.

    ``statistics`` holds what the proxies were reduced from: ``<statistic>@block`` -> one value per block
    (for ``trainability@block`` one per block after the first).
    """

    values_by_name: dict[str, float | None]
    statistics: dict[str, NDArray[np.float64]]
    failures: tuple[Failure, ...]
    status: str  # ok, partial if some proxies failed, memory or error if all of a pass did

    def __getitem__(self, name: str) -> float | None:
        return self.values_by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)


def score(
    model: nn.Module,
    inputs: Tensor | Sequence[Tensor],  # [N, ...]
    proxies: str | Sequence[str] = "aznas",
    *,
    blocks: Sequence[str] | None = None,
    probes: Mapping[str, Tensor] | Sequence[Tensor] | None = None,
    seed: int = 0,
) -> Scores:
    """Score a network as it stands: with the weights it has, on the batch it is given.

    The model comes back exactly as it was: parameters, buffers, modes, hooks, ``requires_grad`` and the global random
    state. In-place activations and train-mode batch norm are handled. ``zcpipe.initialise`` draws the weights of the
    AZ-NAS recipe first, if those are wanted.

    Args:
        model: any module.
        inputs: its positional inputs, [N, ...] each. Images are computed in channels-last layout.
        proxies: names or groups (``zcpipe.list_proxies()``).
        blocks: names of the modules whose outputs are the block maps, in the order in which they run; by default
            ``model.block_names`` if the model has them. The AZ-NAS proxies need at least two.
        probes: +-1 cotangents for the local Jacobians, by block name or as a sequence for ``blocks[1:]``; by default
            drawn from ``seed``.
        seed: of the probes.

    Returns:
        The scores, the statistics behind them, and the reasons of failures.

    Raises:
        UsageError: unknown proxies, missing, unknown or misordered blocks, probes that do not fit, inputs that are
            empty or not finite, or a call inside ``torch.inference_mode``.

    Example:
        >>> import torch, zcpipe
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 3, padding=1))
        >>> scores = zcpipe.score(net, torch.randn(16, 3, 8, 8), blocks=["0", "1"])
        >>> scores.status, sorted(scores)
        ('ok', ['complexity', 'expressivity', 'progressivity', 'trainability'])
    """
    chosen = resolve(proxies)
    batch = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    _check_inputs(batch)
    batch = [tensor.clone() if tensor.is_inference() else tensor for tensor in batch]
    batch = [tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor for tensor in batch]
    names = _block_names(model, blocks) if any(proxy.statistics for proxy in chosen) else ()
    probe = philox_probes(seed, "", "", 0) if probes is None else _given_probes(names, probes)
    result = measure(model, batch, chosen, names, probe, lambda: count(model, batch))
    statistics = {f"{name}@block": values for name, values in result.statistics.items()}
    status = status_of(chosen, result.scores, result.failures)
    return Scores(result.scores, statistics, tuple(result.failures), status)


def _check_inputs(batch: Sequence[Tensor]) -> None:
    if torch.is_inference_mode_enabled():
        raise UsageError("scoring needs gradients: call zcpipe.score outside torch.inference_mode()")
    foreign = next((type(tensor).__name__ for tensor in batch if not isinstance(tensor, Tensor)), None)
    if foreign is not None:
        raise UsageError(f"inputs must be torch tensors, got {foreign}")
    if not batch or any(tensor.ndim == 0 or tensor.shape[0] == 0 for tensor in batch):
        raise UsageError("inputs must be one or more tensors with at least one sample in their first dimension")
    if any(tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()) for tensor in batch):
        raise UsageError("inputs hold NaN or infinite values; clean the batch before scoring")


def _block_names(model: nn.Module, blocks: Sequence[str] | None) -> tuple[str, ...]:
    names = getattr(model, "block_names", None) if blocks is None else blocks
    if names is None:
        raise UsageError("these proxies read block maps: pass blocks=[names of modules, in the order they run]")
    if isinstance(names, str):
        raise UsageError(f"blocks must be a sequence of module names, got the text {names!r}")
    if len(names) < 2 or len(set(names)) < len(names):
        raise UsageError(f"blocks must be at least two different module names, got {list(names)}")
    unknown = [name for name in names if name not in dict(model.named_modules())]
    if unknown:
        raise UsageError(f"the model has no module named {unknown[0]!r}; see dict(model.named_modules())")
    return tuple(names)


def _given_probes(blocks: Sequence[str], probes: Mapping[str, Tensor] | Sequence[Tensor]) -> ProbeSource:
    if not isinstance(probes, Mapping):
        if len(probes) != len(blocks) - 1:
            raise UsageError(
                f"probes must be one per block after the first: expected {len(blocks) - 1}, got {len(probes)}"
            )
        probes = dict(zip(blocks[1:], probes, strict=True))

    def probe(block: str, output: Tensor) -> Tensor:
        if block not in probes:
            raise UsageError(f"no probe given for block {block!r}")
        given = probes[block]
        if given.shape != output.shape:
            raise UsageError(
                f"probe of block {block!r}: expected shape {tuple(output.shape)}, got {tuple(given.shape)}"
            )
        return torch.empty_like(output).copy_(given)

    return probe
