"""The cell spaces of NDS (Radosavovic et al., 2019): DARTS, ENAS, PNAS, NASNet and Amoeba, each with width and depth.

NDS draws both cells of an architecture uniformly: for each node two operations and two earlier nodes, which may be the
same. DARTS and PNAS concatenate all nodes of a cell, the others those that no other node reads. Width and depth come
from 16, 24, 32 and 4, 8, 12, 16, 20 for CIFAR-10; the official ImageNet files hold the widths 32, 48, 64, 80, 96 and
the depths 6, 10, 14, 18, 22, and only networks below six million parameters. The official ``fix-w-d`` files hold
architectures of the same spaces, all of one width and depth.

An architecture's text is ``darts w32 d8 normal <cell> reduce <cell>``, a cell being written as
``|sep_conv_3x3~0|none~1|+|skip_connect~2|max_pool_3x3~0|@2,3``: its nodes, each the sum of two operations on the nodes
after ``~``, and those that are concatenated. How often paths were dropped in training is no part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import combinations, count, product
from typing import Any

from zcpipe.errors import UsageError, unknown_name
from zcpipe.ops.philox import Stream
from zcpipe.spaces.base import Built, Dataset, Size, Slots
from zcpipe.spaces.genotype_cells import INPUTS, Cell, CellNetwork, Edge, loose_ends, split_text
from zcpipe.spaces.genotype_networks import GenotypeNetwork, published_flops, size_of, slots_of

WIDTHS, DEPTHS = range(8, 1026, 2), range(1, 65)  # far beyond what was published; skips that halve need even ones


@dataclass(frozen=True)
class Scale:
    """What a space's networks are for one dataset.

    Attributes:
        dataset: the task.
        widths: what a width is drawn from, in ascending order.
        depths: likewise.
        below: draws of so many parameters or more are drawn again; None where all are kept.
    """

    dataset: Dataset
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    below: int | None = None


@dataclass(frozen=True)
class GenotypeSpace:
    """A space of cell networks.

    Attributes:
        name: the space's; its last part is the first word of its architectures' texts.
        paper: where its cells come from.
        operations: what an edge may be, in the order of neighbours.
        nodes: how many sums a cell has.
        loose: whether a cell's output is the nodes that no other reads, and not all of them.
        scales: its datasets, the first being the one whose widths and depths are drawn from unless another is named.
        strict: whether the two edges of a node read different nodes, the lower one first, and whether there are no
            widths and depths but those of ``scales`` and no auxiliary classifier.
    """

    name: str
    paper: str
    operations: tuple[str, ...]
    nodes: int
    loose: bool
    scales: tuple[Scale, ...]
    strict: bool = False

    @property
    def family(self) -> str:
        """The first word of its architectures' texts."""
        return self.name.rpartition("/")[2]

    @cached_property
    def datasets(self) -> Mapping[str, Dataset]:
        """Its datasets by name."""
        return {scale.dataset.name: scale.dataset for scale in self.scales}

    def parse(self, text: str) -> CellNetwork:
        """Read an architecture's text.

        Raises:
            UsageError: the text is no architecture of this space; the message says where it goes wrong.
        """
        try:
            arch = self._parsed(text.strip())
        except UsageError as error:
            raise UsageError(f"malformed architecture {text!r:.300}: {error}") from None
        if str(arch) != text.strip():
            raise UsageError(f"malformed architecture {text!r:.300}: did you mean {str(arch)!r}?")
        return arch

    def from_entry(self, net: Mapping[str, Any]) -> CellNetwork:
        """Turn the ``net`` of an entry of an official file into the architecture.

        Raises:
            UsageError: it is none of this space; the message names the field and what is wrong with it.
        """
        genotype = _field(net, "genotype", dict)
        cells = [
            self._cell(kind, _field(genotype, kind, list), _field(genotype, f"{kind}_concat", list))
            for kind in ("normal", "reduce")
        ]
        aux = _field(net, "aux", bool) if "aux" in net else False
        return self._network(_field(net, "width", int), _field(net, "depth", int), cells[0], cells[1], aux)

    def sample(self, seed: int, i: int, dataset: str | None = None) -> CellNetwork:
        """Return the ``i``-th random architecture under ``seed``; every choice is uniform, and draws may repeat.

        Args:
            seed: any integer.
            i: which draw.
            dataset: whose widths and depths to draw from; the space's first dataset's where none is named.
        """
        scale = self.scales[0] if dataset is None else self._scale(dataset)
        for attempt in count():
            arch = self._drawn(Stream.of(seed, self.name, scale.dataset.name, i, f"sample:{attempt}"), scale)
            if scale.below is None or size_of(arch, scale.dataset).params < scale.below:
                break
        return arch

    def neighbours(self, arch: CellNetwork) -> list[CellNetwork]:
        """Return what one other operation, one other input or one step of width or depth makes.

        The order is that of the normal cell's edges and then the reduction cell's, for each all other operations and
        then all other inputs, in ascending order; then the next smaller and larger width and depth among those of the
        space's draws.
        """
        found = [replace(arch, normal=cell) for cell in self._cells_beside(arch.normal)]
        found += [replace(arch, reduce=cell) for cell in self._cells_beside(arch.reduce)]
        widths = _beside(arch.width, (width for scale in self.scales for width in scale.widths))
        depths = _beside(arch.depth, (depth for scale in self.scales for depth in scale.depths))
        found += [replace(arch, width=width) for width in widths]
        return found + [replace(arch, depth=depth) for depth in depths]

    def mutate(self, arch: CellNetwork, seed: int, i: int) -> CellNetwork:
        """Return the ``i``-th random neighbour of ``arch`` under ``seed``, all being equally likely."""
        options = self.neighbours(arch)
        stream = Stream.of(seed, self.name, str(arch), i, "mutate")
        return options[int(stream.integers(1, len(options))[0])]

    def key(self, arch: CellNetwork) -> str:
        """Return family, width, depth and what each cell computes of its inputs ``a`` and ``b`` in canonical texts.

        Neither the numbers of nodes, nor the order of edges and of concatenated nodes, nor dead edges decide it.
        """
        aux = " aux" if arch.aux else ""
        cells = f"normal {arch.normal.key(reduction=False)} reduce {arch.reduce.key(reduction=True)}"
        return f"{arch.family} w{arch.width} d{arch.depth}{aux} {cells}"

    def size(self, arch: CellNetwork, dataset: str) -> Size:
        """Return parameters and multiply-accumulates of the FULL network, dead edges included.

        Multiply-accumulates are those of convolutions and the classifier; `published_flops` counts as the files do.
        """
        return size_of(arch, self._scale(dataset).dataset)

    def published_flops(self, arch: CellNetwork, dataset: str) -> int:
        """Return the ``flops`` of the official files; see `zcpipe.spaces.genotype_networks.published_flops`."""
        return published_flops(arch, self._scale(dataset).dataset)

    def slots(self, arch: CellNetwork, dataset: str) -> Slots:
        """Return the stems and cells, and the convolutions and the classifiers of the full network."""
        return slots_of(arch, self._scale(dataset).dataset)

    def common_slots(self, dataset: str) -> None:
        """Return None: architectures differ in their slots."""

    def correspondence(self, representative: CellNetwork, member: CellNetwork, dataset: str) -> dict[str, str]:
        """Return for each slot that the pruned network of ``member`` fills, in order, that of ``representative``.

        Where the two concatenate corresponding nodes in different orders, what reads the concatenation needs the
        input channels of its weights in the other's order.

        Raises:
            UsageError: the architectures have different keys.
        """
        scales = [(arch.family, arch.width, arch.depth, arch.aux) for arch in (representative, member)]
        if scales[0] != scales[1]:
            raise UsageError(f"the architectures differ: {representative} and {member}")
        matches = {
            False: _matches(representative.normal, member.normal, False),
            True: _matches(representative.reduce, member.reduce, True),
        }
        found: dict[str, str] = {}
        for slot in self.slots(member, dataset).layers:
            part, _, rest = slot.partition(".")
            if part == "cells":
                position, part, rest = rest.split(".", 2)
                edges = matches[int(position) in member.reductions]
                number, _, layer = rest.partition(".")
                if part == "ops" and int(number) in edges:
                    found[slot] = f"cells.{position}.ops.{edges[int(number)]}.{layer}"
                elif part.startswith("preprocess") and member.cell(int(position)).read[int(part[-1])]:
                    found[slot] = slot
            elif part != "auxiliary_head":
                found[slot] = slot
        return found

    @property
    def cell_codes(self) -> dict[str, tuple[str, ...]]:
        """The operation of each edge of the normal and of the reduction cell, and the node that it reads."""
        codes: dict[str, tuple[str, ...]] = {}
        for kind, position in product(("normal", "reduce"), range(2 * self.nodes)):
            codes[f"{kind}.{position}"] = self.operations
            codes[f"{kind}.{position}.source"] = tuple(map(str, range(INPUTS + position // 2)))
        return codes

    def cell_code(self, arch: CellNetwork) -> list[int]:
        """Return operation and node of each edge; width and depth are no part of it."""
        edges = (*arch.normal.edges, *arch.reduce.edges)
        return [number for operation, source in edges for number in (self.operations.index(operation), source)]

    def build(self, arch: CellNetwork, dataset: str, *, full: bool = False) -> Built:
        """Build the network without what cannot influence its cells' outputs; weights are zero until initialised.

        Args:
            arch: the architecture.
            dataset: one of the space's.
            full: keep dead layers and the auxiliary classifier. Their inputs are those of the published network as long
                as batch norms have bias 0: a dead edge whose input nothing reaches adds its bias to a live node there,
                nothing here.
        """
        model = GenotypeNetwork(arch, self._scale(dataset).dataset, full=full)
        return Built(model, model.block_names)

    def _scale(self, dataset: str) -> Scale:
        for scale in self.scales:
            if scale.dataset.name == dataset:
                return scale
        raise unknown_name("dataset", dataset, self.datasets)

    def _parsed(self, text: str) -> CellNetwork:
        parts = split_text(text)
        if parts.family != self.family:
            raise UsageError(f"the architectures of {self.name} begin with {self.family!r}, not {parts.family!r:.40}")
        normal, reduce = (self._cell(kind, *parts.cells[kind]) for kind in ("normal", "reduce"))
        return self._network(parts.width, parts.depth, normal, reduce, parts.aux)

    def _network(self, width: int, depth: int, normal: Cell, reduce: Cell, aux: bool) -> CellNetwork:
        if self.strict:
            known = [f"w{w} d{d}" for scale in self.scales for w in scale.widths for d in scale.depths]
            got = f"w{width} d{depth}" + " aux" * aux
            if got not in known:
                raise UsageError(f"got {got}, expected {' or '.join(known)}")
        if width not in WIDTHS:
            raise UsageError(f"width: got {width}, expected an even number from {WIDTHS[0]} to {WIDTHS[-1]}")
        if depth not in DEPTHS:
            raise UsageError(f"depth: got {depth}, expected {DEPTHS[0]} to {DEPTHS[-1]}")
        return CellNetwork(self.family, width, depth, normal, reduce, aux)

    def _cell(self, kind: str, edges: list[Any], concat: list[Any]) -> Cell:
        """Check a cell's edges and put its concat in order."""
        if len(edges) != 2 * self.nodes:
            raise UsageError(f"{kind}: got {len(edges)} edges, expected {2 * self.nodes}, two for each node")
        checked = [self._edge(kind, INPUTS + position // 2, edge) for position, edge in enumerate(edges)]
        nodes = tuple(zip(checked[::2], checked[1::2], strict=True))
        for node, ((_, first), (_, second)) in enumerate(nodes, start=INPUTS):
            if self.strict and first >= second:
                raise UsageError(f"{kind}: node {node} reads {first} and {second}, expected two in ascending order")
        if not all(type(node) is int for node in concat) or len(set(concat)) < len(concat):
            raise UsageError(f"{kind}_concat: got {concat!r:.80}, expected nodes that differ")
        asked = self._concat(nodes)
        for node in sorted(set(concat) - set(asked)):
            there = 0 <= node < INPUTS + self.nodes
            why = f"the output of {self.name}'s cells is {_listed(asked)} here" if there else "there is no such node"
            raise UsageError(f"{kind}_concat: names node {node}; {why}")
        for node in sorted(set(asked) - set(concat)):
            raise UsageError(f"{kind}_concat: misses node {node}; expected {_listed(asked)}")
        return Cell(nodes, asked)

    def _edge(self, kind: str, node: int, edge: object) -> Edge:
        if not isinstance(edge, (list, tuple)) or list(map(type, edge)) != [str, int]:
            raise UsageError(
                f"{kind}: node {node} has the edge {edge!r:.80}, expected an operation and a node's number"
            )
        operation, source = edge
        if operation not in self.operations:
            raise UsageError(f"{kind}: node {node}: {unknown_name('operation', operation[:80], self.operations)}")
        if not 0 <= source < node:
            raise UsageError(f"{kind}: node {node} reads node {source}, expected one before it, 0 to {node - 1}")
        return operation, source

    def _concat(self, nodes: tuple[tuple[Edge, Edge], ...]) -> tuple[int, ...]:
        return loose_ends(nodes) if self.loose else tuple(range(INPUTS, INPUTS + self.nodes))

    def _drawn(self, stream: Stream, scale: Scale) -> CellNetwork:
        roll = _dice(stream, 2 + 8 * self.nodes)
        width, depth = (options[roll(len(options))] for options in (scale.widths, scale.depths))
        normal, reduce = (self._drawn_cell(roll) for _ in range(2))
        return CellNetwork(self.family, width, depth, normal, reduce)

    def _drawn_cell(self, roll: Callable[[int], int]) -> Cell:
        nodes = []
        for node in range(INPUTS, INPUTS + self.nodes):
            first, second = (self.operations[roll(len(self.operations))] for _ in range(2))
            pairs = list(combinations(range(node), 2) if self.strict else product(range(node), repeat=2))
            sources = pairs[roll(len(pairs))]
            nodes.append(((first, sources[0]), (second, sources[1])))
        return Cell(tuple(nodes), self._concat(tuple(nodes)))

    def _cells_beside(self, cell: Cell) -> Iterator[Cell]:
        for position, edge in enumerate(cell.edges):
            for other in self._edges_beside(edge, INPUTS + position // 2):
                pair = [other if at == position % 2 else old for at, old in enumerate(cell.nodes[position // 2])]
                if self.strict:
                    pair.sort(key=lambda edge: edge[1])
                if not self.strict or pair[0][1] < pair[1][1]:
                    nodes = (*cell.nodes[: position // 2], (pair[0], pair[1]), *cell.nodes[position // 2 + 1 :])
                    yield Cell(nodes, self._concat(nodes))

    def _edges_beside(self, edge: Edge, node: int) -> Iterator[Edge]:
        yield from ((operation, edge[1]) for operation in self.operations if operation != edge[0])
        yield from ((edge[0], source) for source in range(node) if source != edge[1])


def _field(entry: Mapping[str, Any], name: str, kind: type) -> Any:  # noqa: ANN401 - of that kind
    if not isinstance(entry, Mapping) or name not in entry:
        raise UsageError(f"lacks {name!r}")
    if type(entry[name]) is not kind:
        raise UsageError(f"{name}: got {entry[name]!r:.80}, expected {kind.__name__}")
    return entry[name]


def _listed(nodes: tuple[int, ...]) -> str:
    return ", ".join(map(str, nodes))


def _beside(value: int, options: Iterable[int]) -> list[int]:
    """Return the next smaller and the next larger option, where there is one."""
    ordered = sorted({*options, value})
    at = ordered.index(value)
    return ordered[max(at - 1, 0) : at] + ordered[at + 1 : at + 2]


def _dice(stream: Stream, rolls: int) -> Callable[[int], int]:
    """Return a function whose calls, so many at most, give one random number each, below what they are told."""
    words = iter(stream.bits(2 * rolls).tolist())
    return lambda high: (next(words) | next(words) << 32) * high >> 64


@lru_cache(maxsize=1 << 12)
def _matches(representative: Cell, member: Cell, reduction: bool) -> dict[int, int]:
    return representative.matches(member, reduction)


_SCALES = (
    Scale(Dataset("cifar10", (3, 32, 32), 10), (16, 24, 32), (4, 8, 12, 16, 20)),
    Scale(Dataset("imagenet", (3, 224, 224), 1000), (32, 48, 64, 80, 96), (6, 10, 14, 18, 22), below=6_000_000),
)
_POOLS = ("avg_pool_3x3", "max_pool_3x3")
_SEPARABLE = ("sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7")
_CROSSED = ("conv_3x1_1x3", "conv_7x1_1x7")

DARTS = ("max_pool_3x3", "avg_pool_3x3", "skip_connect", *_SEPARABLE[:2], "dil_conv_3x3", "dil_conv_5x5")
PNAS = (*_SEPARABLE, _CROSSED[1], "skip_connect", *_POOLS, "dil_conv_3x3")
ENAS = ("skip_connect", *_SEPARABLE[:2], *_POOLS)
AMOEBA = ("skip_connect", *_SEPARABLE, *_POOLS, "dil_sep_conv_3x3", _CROSSED[1])
NASNET = (
    *("skip_connect", *_CROSSED, "dil_conv_3x3", *_POOLS, "max_pool_5x5", "max_pool_7x7"),
    *("conv_1x1", "conv_3x3", *_SEPARABLE),
)


def _nds(family: str, paper: str, operations: tuple[str, ...], nodes: int = 5, *, loose: bool) -> GenotypeSpace:
    nds = "Radosavovic et al., On Network Design Spaces for Visual Recognition, ICCV 2019"
    return GenotypeSpace(f"nds/{family}", f"{nds}; cells of {paper}", operations, nodes, loose, _SCALES)


GENOTYPE_SPACES = (
    _nds("darts", "Liu et al., DARTS: Differentiable Architecture Search, ICLR 2019", ("none", *DARTS), 4, loose=False),
    _nds(
        "enas", "Pham et al., Efficient Neural Architecture Search via Parameter Sharing, ICML 2018", ENAS, loose=True
    ),
    _nds("pnas", "Liu et al., Progressive Neural Architecture Search, ECCV 2018", PNAS, loose=False),
    _nds(
        "nasnet",
        "Zoph et al., Learning Transferable Architectures for Scalable Image Recognition, CVPR 2018",
        NASNET,
        loose=True,
    ),
    _nds(
        "amoeba",
        "Real et al., Regularized Evolution for Image Classifier Architecture Search, AAAI 2019",
        AMOEBA,
        loose=True,
    ),
)
