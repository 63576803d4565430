"""Whether architectures with one key, and a network with and without its dead layers, compute the same function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zcpipe.errors import UsageError, reason_of
from zcpipe.ops.philox import Stream
from zcpipe.proxies.base import tensor_of
from zcpipe.scoring.guard import untouched
from zcpipe.scoring.init import initialise, without_rule
from zcpipe.scoring.layers import weights_of
from zcpipe.scoring.size import count_params
from zcpipe.scoring.space_findings import Findings, shown
from zcpipe.scoring.space_members import Keyed, Member
from zcpipe.spaces.base import Architecture, Built, Dataset, LimitsResolution, Space, slot_of

LARGEST = 64  # side of images, unless another is asked for
_IMAGES = 2
# Of the largest number of a map. Sums in another order differ by less, and other functions mostly by far more: what
# single precision leaves open, double decides.
_SURELY_THE_SAME, _DOUBLE, _SINGLE = 1e-5, 1e-7, 1e-3


@dataclass(frozen=True)
class _Outputs:
    output: Tensor
    blocks: list[Tensor]


class Functions:
    """Runs networks on one small batch as scoring does, weights drawn, batch norms in train mode.

    Attributes:
        compared: how many pairs of members with one key were compared.
        side: of the images.
    """

    def __init__(self, space: Space[Architecture], dataset: str, resolution: int | None, findings: Findings) -> None:
        self._space = space
        self._name = dataset
        self._dataset = space.datasets[dataset]
        self._findings = findings
        self._given = resolution is not None
        self.side = resolution or self._small(self._dataset)
        self.compared = 0

    def _small(self, dataset: Dataset) -> int | None:
        """Return a small side that all networks should take; None for the data set's own shape."""
        if max(dataset.input_shape[1:]) <= LARGEST:
            return None
        if isinstance(self._space, LimitsResolution):
            try:
                self._space.check_resolution(LARGEST)
            except UsageError:
                return None
            except Exception as error:
                self._findings.problem("space", None, f"check_resolution({LARGEST}) raises {reason_of(error)}")
                return None
        return LARGEST

    def compare_full(self, member: Member, pruned: Built, full: Built) -> None:
        """Check that dead layers leave no trace in the output and the block maps."""
        text = member.text
        with self._findings.asking("build", text, "comparing its full network with the pruned one"):
            if not (self._draw(pruned.model, text) and self._draw(full.model, text)):
                return
            if (said := self._difference(full, pruned)) is not None:
                said = f"with the same weights its full network computes another function than the pruned one: {said}"
                self._findings.problem("build", text, said)

    def compare(self, representative: Keyed, member: Keyed) -> None:
        """Check that two members with one key compute the same function with the same free weights."""
        found, text = self._findings, member.member.text
        key, theirs = shown(member.key), representative.member.text
        with found.asking("key", text, f"comparing it with {theirs}, which has the same key {key},"):
            one, other = (self._space.build(k.member.arch, self._name) for k in (representative, member))
            params = count_params(one.model), count_params(other.model)
            alike = f"it shares the key {key} with {theirs}"
            said = f"{alike}, but their pruned networks have {params[1]} and {params[0]} free weights"
            if not found.require(params[0] == params[1], "key", text, said):
                return
            if not (self._draw(one.model, member.key) and self._draw(other.model, member.key)):
                return
            wrong = self._give(representative.member, one, member.member, other)
            if wrong is not None:
                found.problem("correspondence", text, f"{alike}, but {wrong}")
                return
            self.compared += 1
            if (said_of := self._difference(other, one)) is not None:
                said = f"{alike}, but with the same weights (by correspondence) it computes another function: {said_of}"
                found.problem("key", text, said)

    def _draw(self, model: nn.Module, scope: str) -> bool:
        """Draw weights by a recipe that has rules for all parameters; return whether there is one."""
        recipe = next((one for one in ("kaiming_normal", "default") if without_rule(model, one) is None), None)
        if recipe is not None:
            initialise(model, init=recipe, space=self._space.name, scope=scope)
        return recipe is not None

    def _give(self, representative: Member, one: Built, member: Member, other: Built) -> str | None:
        """Give a member's layers the weights of their counterparts; return what is wrong with these."""
        origins = dict(self._space.correspondence(representative.arch, member.arch, self._name))
        weights, own = self._weights(representative, one.model), self._weights(member, other.model)
        if list(origins) != list(own):
            lacking, extra = [s for s in own if s not in origins], [s for s in origins if s not in own]
            where = f"without {lacking[0]!r}" if lacking else f"with {extra[0]!r}" if extra else "in another order"
            return f"correspondence must name the slots that its pruned network fills, in order; it does {where}"
        if set(origins.values()) != set(weights) or len(set(origins.values())) != len(origins):
            strange = next((o for o in origins.values() if o not in weights), None)
            why = "some twice" if strange is None else f"{strange!r}, which is none"
            return f"correspondence must give each layer of {representative.text} once; it gives {why}"
        with torch.no_grad():
            for slot, origin in origins.items():
                for mine, theirs in zip(own[slot], weights[origin], strict=True):
                    if mine.shape != theirs.shape:
                        shapes = f"of shape {list(mine.shape)} is {origin!r} of {list(theirs.shape)}"
                        return f"by correspondence {slot!r} {shapes}"
                    mine.copy_(theirs)
        return None

    def _weights(self, member: Member, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Return weight and bias of the layer in each slot that a network fills, in order."""
        slots = set(self._space.slots(member.arch, self._name).layers)
        modules = dict(model.named_modules())
        found: dict[str, list[nn.Parameter]] = {}
        for layer, weight in weights_of(modules).items():
            bias = getattr(modules.get(layer), "bias", None)
            found[slot_of(layer, slots)] = [weight, bias] if isinstance(bias, nn.Parameter) else [weight]
        return found

    def _difference(self, got: Built, expected: Built) -> str | None:
        """Say where two networks compute something else; None where they compute the same."""
        one, other = self._run_in([got, expected], torch.float32)
        if _difference(one, other, got.blocks, _SURELY_THE_SAME) is None:
            return None
        try:
            finer = self._run_in([got, expected], torch.float64)
        except Exception:  # a forward that makes tensors of its own may know single precision only
            return _difference(one, other, got.blocks, _SINGLE)
        return _difference(finer[0], finer[1], got.blocks, _DOUBLE)

    def _run_in(self, networks: Sequence[Built], dtype: torch.dtype) -> list[_Outputs]:
        try:
            return [_outputs(built, self._images(dtype)) for built in networks]
        except Exception:
            if self._given or self.side is None:
                raise
            self.side = None  # too small: the data set's own do then
            return [_outputs(built, self._images(dtype)) for built in networks]

    def _images(self, dtype: torch.dtype) -> Tensor:
        channels, height, width = self._dataset.input_shape
        images = torch.empty(_IMAGES, channels, self.side or height, self.side or width)
        Stream.of(0, self._space.name, "", 0, "inputs").normal_(images)
        return images.to(dtype)


@torch.no_grad()
def _outputs(built: Built, images: Tensor) -> _Outputs:
    model = built.model.to(images.dtype)
    modules = dict(model.named_modules())
    maps: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: object) -> None:
        maps.append(tensor_of(output).clone())

    handles = [modules[block].register_forward_hook(keep) for block in built.blocks if block in modules]
    try:
        with untouched(modules):
            return _Outputs(tensor_of(model(images)), maps)
    finally:
        for handle in handles:
            handle.remove()


def _difference(got: _Outputs, expected: _Outputs, blocks: Sequence[str], tolerance: float) -> str | None:
    """Say which of the block maps and the output differs first; None where none does."""
    if len(got.blocks) != len(expected.blocks):
        return f"{len(got.blocks)} block maps, expected {len(expected.blocks)}"
    places = [f"block {block!r}" for block in blocks]
    if len(places) != len(got.blocks):  # a block that is no module, or runs twice: a problem of its own
        places = ["a block"] * len(got.blocks)
    maps = zip((*places, "the output"), (*got.blocks, got.output), (*expected.blocks, expected.output), strict=True)
    for place, one, other in maps:
        if one.shape != other.shape:
            return f"{place} has the shape {list(one.shape)}, expected {list(other.shape)}"
        most = _distance(one, other)
        if most > tolerance:
            return f"{place} differs by {most:.2g} of its largest number"
    return None


def _distance(one: Tensor, other: Tensor) -> float:
    """Return the largest difference, as a part of the largest number."""
    if torch.equal(one, other):
        return 0.0
    finite = torch.isfinite(other)
    if not torch.equal(torch.isfinite(one), finite):
        return float("inf")
    difference = (one - other)[finite].abs()
    scale = other[finite].abs()
    if not len(difference):
        return 0.0
    return float(difference.max() / scale.max()) if scale.max() else float("inf")
