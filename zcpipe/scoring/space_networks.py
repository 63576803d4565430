"""Checks of the networks that a space builds: their structure, counts and slots, and what shares a key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from zcpipe.errors import UsageError
from zcpipe.proxies.base import tensor_of
from zcpipe.scoring.guard import untouched
from zcpipe.scoring.init import without_rule
from zcpipe.scoring.layers import LAYERS, weights_of
from zcpipe.scoring.size import count_macs, count_params
from zcpipe.scoring.space_findings import Findings, drawn_from, other_random_states, random_states, shown
from zcpipe.scoring.space_functions import LARGEST, Functions
from zcpipe.scoring.space_members import Member
from zcpipe.spaces.base import Architecture, Built, Size, Slots, Space, slot_of
from zcpipe.spaces.layers import recurrent_weights_kept

_RECIPES = ("kaiming_normal", "default")
_IMAGES = 2  # of a forward that computes nothing
_GHOSTS_AFTER = 16  # networks, none of which fills a slot that all have
_SHOWN = 3


@dataclass
class _Trace:
    """What a forward without computing has told of a network."""

    output: tuple[int, ...] = ()
    blocks: list[str] = field(default_factory=list)  # as they ran
    layers: set[str] = field(default_factory=set)  # convolutions and linear layers that ran
    macs: int = 0  # of these alone


class NetworkChecks:
    """Builds members of a space and looks at the networks; what it finds goes to ``findings``."""

    def __init__(self, space: Space[Architecture], dataset: str, functions: Functions, findings: Findings) -> None:
        self._space = space
        self._name = dataset
        self._dataset = space.datasets[dataset]
        self._functions = functions
        self._findings = findings
        self._filled: Counter[str] = Counter()
        self._networks = 0
        self._common: Slots | None = None
        with findings.asking("layers", None, "its common slots"):
            self._common = space.common_slots(dataset)
            if self._common is not None and not isinstance(self._common, Slots):
                findings.problem("layers", None, f"common_slots must be Slots or None, got {self._common!r}")
                self._common = None

    def network(self, member: Member, compared: bool = True) -> bool:
        """Check the networks of a member, the pruned and the full one.

        Args:
            member: whose.
            compared: compute the outputs of both, where they differ, as well.

        Returns:
            Whether they could be built and run.
        """
        found, text = self._findings, member.text
        slots = self._slots(member)
        pruned = self._built(member, full=False)
        full = self._built(member, full=True)
        if pruned is None or full is None:
            return False
        self._same_again(member, pruned)
        self._drawable(member, full)
        traces = {}
        for name, built in (("pruned", pruned), ("full", full)):
            if slots is not None:
                said = f"the {name} network has the blocks {built.blocks}, slots has {slots.blocks}"
                found.require(tuple(built.blocks) == tuple(slots.blocks), "blocks", text, said)
            traces[name] = self._trace(member, name, built)
        self._size(member, full.model, traces["full"])
        if slots is not None:
            self._layers(member, slots, pruned.model, full.model)
        if None in traces.values():
            return False
        if compared and _structure(pruned.model) != _structure(full.model):
            self._functions.compare_full(member, pruned, full)
        return True

    def _slots(self, member: Member) -> Slots | None:
        found, text = self._findings, member.text
        with found.asking("layers", text, "its slots"):
            slots = self._space.slots(member.arch, self._name)
            if not found.require(isinstance(slots, Slots), "layers", text, f"slots must be Slots, got {slots!r}"):
                return None
            for kind, names in (("blocks", slots.blocks), ("layers", slots.layers)):
                twice = [name for name, n in Counter(names).items() if n > 1]
                said = f"slots.{kind} has {_listed(twice)} more than once"
                found.require(not twice, "blocks" if kind == "blocks" else "layers", text, said)
            if self._common is not None:
                for kind, names, common in (
                    ("blocks", slots.blocks, self._common.blocks),
                    ("layers", slots.layers, self._common.layers),
                ):
                    said = f"slots.{kind} differs from that of common_slots: {_difference(names, common)}"
                    equal = tuple(names) == tuple(common)
                    found.require(equal, "blocks" if kind == "blocks" else "layers", text, said)
            return slots
        return None

    def _built(self, member: Member, full: bool) -> Built | None:
        """Build as a run does; what is wrong with that is a problem."""
        found, text = self._findings, member.text
        what = f"build(full={full})"
        with found.asking("build", text, what):
            before = random_states()
            built = self._space.build(member.arch, self._name, full=full)
            for whose in drawn_from(before):
                if whose == "torch":  # torch's own layers draw weights that a recipe replaces
                    said = "build draws from torch's global random state; weights need none: zcpipe.spaces.layers"
                    found.note("build", None, said)
                else:
                    found.problem("build", text, f"{what} changes the global random state of {whose}")
            if found.require(isinstance(built, Built), "build", text, f"{what} must give Built, got {built!r}"):
                return built
        return None

    def _same_again(self, member: Member, pruned: Built) -> None:
        found, text = self._findings, member.text
        with found.asking("build", text, "build for the second time"), other_random_states(5):
            again = self._space.build(member.arch, self._name)
            if _structure(again.model) != _structure(pruned.model) or again.blocks != pruned.blocks:
                said = f"built again it is another network: {_first_difference(pruned.model, again.model)}"
                found.problem("build", text, said)

    def _drawable(self, member: Member, full: Built) -> None:
        """Say which recipes cannot draw all parameters: that costs the proxies of these recipes."""
        lacking = {}
        with self._findings.asking("init", member.text, "looking for rules of its parameters"):
            for recipe in _RECIPES:
                if (parameter := without_rule(full.model, recipe)) is not None:
                    lacking[recipe] = parameter
        if len(lacking) == len(_RECIPES):
            said = f"no recipe has a rule for {lacking[_RECIPES[0]]}; no network with it can be scored by a run"
            self._findings.problem("init", member.text, said)
        for recipe, parameter in lacking.items() if len(lacking) < len(_RECIPES) else ():
            said = f"the recipe {recipe} has no rule for {parameter}: proxies of this recipe fail"
            self._findings.note("init", None, said)

    def _trace(self, member: Member, name: str, built: Built) -> _Trace | None:
        """Run a network on the meta device; on the CPU, small, where that is not possible."""
        found, text = self._findings, member.text
        modules = dict(built.model.named_modules())
        for block in dict.fromkeys(built.blocks):
            said = f"block {block!r} is no module of the {name} network"
            found.require(block in modules, "blocks", text, said)
        trace = _Trace()
        handles = [_watch(modules[block], trace.blocks, block) for block in built.blocks if block in modules]
        weighted = {n: m for n, m in modules.items() if isinstance(m, LAYERS) and type(m) is not _INSIDE_ATTENTION}
        handles += [_count(layer, layer_name, trace) for layer_name, layer in weighted.items()]
        handles.append(built.model.register_forward_hook(lambda _, __, output: _keep_shape(trace, output)))
        try:
            with found.asking("build", text, f"the forward of the {name} network"):
                self._forward(built.model, modules, trace)
        finally:
            for handle in handles:
                handle.remove()
        if not trace.output:
            return None
        self._ran(text, name, built, trace, modules, [layer for layer in weighted if layer not in trace.layers])
        return trace

    def _forward(self, model: nn.Module, modules: Mapping[str, nn.Module], trace: _Trace) -> None:
        """Run a network at the data set's own shape: small images on the CPU, large ones where nothing is computed."""
        images = torch.zeros(_IMAGES, *self._dataset.input_shape)
        with untouched(modules, training=False), torch.no_grad():
            if max(self._dataset.input_shape[1:]) > LARGEST:
                state = {name: tensor.to("meta") for name, tensor in model.state_dict(keep_vars=True).items()}
                try:
                    with recurrent_weights_kept(modules.values()):
                        torch.func.functional_call(model, state, (images.to("meta"),))
                    return
                except Exception:  # a forward may need numbers, or make tensors on the CPU
                    trace.blocks.clear()
                    trace.macs = 0
            model(images)

    def _ran(
        self, text: str, name: str, built: Built, trace: _Trace, modules: Mapping[str, nn.Module], idle: Sequence[str]
    ) -> None:
        found = self._findings
        said = f"weighted layers of the {name} network that its forward does not run: {_listed(idle)}"
        found.require(not idle, "layers", text, said)
        times = Counter(trace.blocks)
        existing = [block for block in built.blocks if block in modules]
        wrong = [f"{block} {times[block]} times" for block in existing if times[block] != 1]
        said = f"each block must run once in a forward of the {name} network; it runs {_listed(wrong)}"
        if found.require(not wrong, "blocks", text, said):
            said = f"blocks must be in the order in which they run: {_difference(built.blocks, trace.blocks)}"
            found.require(existing == trace.blocks, "blocks", text, said)
        said = (
            f"the output of the {name} network must have the shape [N, {self._dataset.classes}], "
            f"got [N, {', '.join(map(str, trace.output[1:]))}]"
            if trace.output
            else "the output is no tensor of floats"
        )
        found.require(trace.output == (_IMAGES, self._dataset.classes), "build", text, said)

    def _size(self, member: Member, full: nn.Module, trace: _Trace | None) -> None:
        found, text = self._findings, member.text
        with found.asking("size", text, "its size"):
            size = self._space.size(member.arch, self._name)
            if not found.require(isinstance(size, Size), "size", text, f"size must be Size, got {size!r}"):
                return
            params = count_params(full)
            for what, stated in (("params", size.params), ("macs", size.macs)):
                said = f"size.{what} must be an int, got {stated!r}"
                found.require(type(stated) is int, "size", text, said)
            said = f"size.params is {size.params}, but its full network has {params}"
            found.require(size.params == params, "size", text, said)
            if trace is None or size.macs * _IMAGES == trace.macs:
                return
            # Products of activations, as attention has them, may be counted, too: we do.
            macs = count_macs(full, [torch.empty(1, *self._dataset.input_shape, device="meta")])
            said = f"size.macs is {size.macs}, but its full network has {macs}"
            if macs * _IMAGES != trace.macs:
                said += f", {trace.macs // _IMAGES} of them in convolutions and linear layers"
            found.require(size.macs == macs, "size", text, said)

    def _layers(self, member: Member, slots: Slots, pruned: nn.Module, full: nn.Module) -> None:
        """Check that slots and weighted layers belong together."""
        found, text = self._findings, member.text
        filled = self._filling(text, slots, full, "full")
        live = self._filling(text, slots, pruned, "pruned")
        if filled is None or live is None:
            return
        self._networks += 1
        self._filled.update(set(filled))
        if self._common is None:
            empty = [slot for slot in slots.layers if slot not in set(filled)]
            said = f"no layer of its full network fills {_listed(empty)} of slots.layers"
            found.require(not empty, "layers", text, said)
        extra = [slot for slot in live if slot not in set(filled)]
        found.require(not extra, "layers", text, f"the pruned network fills {_listed(extra)}, the full one does not")
        with found.asking("correspondence", text, "correspondence(arch, arch)"):
            mapping = dict(self._space.correspondence(member.arch, member.arch, self._name))
            said = "correspondence(arch, arch) must map each slot that its pruned network fills to itself, in order: "
            said += _difference([f"{s} -> {o}" for s, o in mapping.items()], [f"{s} -> {s}" for s in live])
            found.require(list(mapping.items()) == [(slot, slot) for slot in live], "correspondence", text, said)

    def _filling(self, text: str, slots: Slots, model: nn.Module, name: str) -> list[str] | None:
        """Return the slots that a network's layers fill, in order; None where that is a problem."""
        found = self._findings
        known = set(slots.layers)
        filled: dict[str, str] = {}
        order = {slot: place for place, slot in enumerate(slots.layers)}
        for layer in weights_of(dict(model.named_modules())):
            try:
                slot = slot_of(layer, known)
            except UsageError:
                found.problem("layers", text, f"layer {layer!r} of the {name} network fills no slot of slots.layers")
                return None
            if slot in filled:
                found.problem("layers", text, f"layers {filled[slot]!r} and {layer!r} fill one slot, {slot!r}")
                return None
            filled[slot] = layer
        for one, other in pairwise(filled):
            if order[one] > order[other]:
                said = f"slots.layers has {other!r} before {one!r}, the {name} network has their layers the other way"
                found.problem("layers", text, said)
                return None
        return list(filled)

    def ghosts(self, members: int | None) -> None:
        """Check that each common slot is some network's; to be asked at the end.

        Args:
            members: how many the space has, None where that is not known.
        """
        enough = _GHOSTS_AFTER if members is None else min(_GHOSTS_AFTER, members)
        if self._common is None or not self._networks or self._networks < enough:
            return
        empty = [slot for slot in self._common.layers if not self._filled[slot]]
        said = f"no layer fills {_listed(empty)} of common_slots in any of {self._networks} full networks"
        self._findings.require(not empty, "layers", None, said)


_INSIDE_ATTENTION = NonDynamicallyQuantizableLinear  # whose weight nn.MultiheadAttention uses without calling it


def _keep_shape(trace: _Trace, output: object) -> None:
    trace.output = tuple(tensor_of(output).shape)


def _watch(module: nn.Module, ran: list[str], name: str) -> torch.utils.hooks.RemovableHandle:
    return module.register_forward_hook(lambda *_: ran.append(name))


def _count(layer: nn.Module, name: str, trace: _Trace) -> torch.utils.hooks.RemovableHandle:
    def hook(module: nn.Module, _: object, output: Tensor) -> None:
        trace.layers.add(name)
        if isinstance(weight := module.weight, Tensor):
            trace.macs += output.numel() * (weight.numel() // len(weight))

    return layer.register_forward_hook(hook)


def _structure(model: nn.Module) -> tuple[str, list[tuple[str, torch.Size]]]:
    """What tells networks apart: modules with their settings, and the shapes of all tensors."""
    return repr(model), [(name, tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()]


def _first_difference(one: nn.Module, other: nn.Module) -> str:
    mine, theirs = (repr(model).splitlines() for model in (one, other))
    for line, again in zip(mine, theirs, strict=False):
        if line != again:
            return f"{line.strip()}, then {again.strip()}"
    return f"{len(mine)} modules, then {len(theirs)}" if len(mine) != len(theirs) else "other blocks or tensors"


def _difference(got: Sequence[str], expected: Sequence[str]) -> str:
    """Say where two lists of names differ first."""
    for place, (one, other) in enumerate(zip(got, expected, strict=False)):
        if one != other:
            return f"at position {place} {one!r}, expected {other!r}"
    if len(got) > len(expected):
        return f"at position {len(expected)} {got[len(expected)]!r}, expected no more"
    return f"no {expected[len(got)]!r} at position {len(got)}" if len(got) < len(expected) else "none"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(shown(name) for name in names[:_SHOWN]) + more
