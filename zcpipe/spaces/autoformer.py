"""AutoFormer (Chen et al., ICCV 2021): three spaces of vision transformers, tiny, small and base.

An architecture has one embedding dimension, and for each of its blocks a number of heads and the ratio of its
perceptron; `zcpipe.spaces.autoformer_networks` says what its network is. A text is ``tiny e192 h4-r3.5 h3-r4 ...``, a
word for each block; the JSON object with which Auto-Prox published architectures is read, too.

Draws are those of the published searches: depth, embedding, and of each block heads and ratio, each independent of the
others and uniform. For base AZ-NAS drew from 9 or 10 heads, and so does this (the files of its searched networks list 8
as well, but have none).

Networks share the weights that they have in common, so no weight belongs to a network alone. No two architectures
compute the same function, and keys are texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from zcpipe.errors import UsageError, unknown_name
from zcpipe.ops.philox import Stream
from zcpipe.spaces.autoformer_networks import GRID, HEAD, PATCH, Layer, SuperNetwork, Transformer, grid_of, hidden
from zcpipe.spaces.base import Built, Dataset, Size, Slots
from zcpipe.untrusted.jsonfile import loads

_IMAGE = (3, GRID * PATCH, GRID * PATCH)
_FIELDS = ("hidden_dim", "mlp_ratio", "num_heads", "depth")  # of the JSON object
_MOST = 9_999  # of any number in a text
_WORD = re.compile(r"h([1-9][0-9]?)-r([1-9](?:\.5)?)")


@dataclass(frozen=True)
class AutoFormer:
    """One architecture: the space that it is of, channels of a token, and its blocks."""

    family: str
    embedding: int
    layers: tuple[Layer, ...]

    def __str__(self) -> str:
        words = (f"h{layer.heads}-r{layer.ratio:g}" for layer in self.layers)
        return " ".join((self.family, f"e{self.embedding}", *words))


@dataclass(frozen=True)
class AutoFormerSpace:
    """One of the spaces: its super-network and what its architectures choose from."""

    family: str
    whole: SuperNetwork
    embeddings: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    ratios: tuple[float, ...]

    paper = "Chen et al., AutoFormer: Searching Transformers for Visual Recognition, ICCV 2021"
    datasets = {  # noqa: RUF012 - a constant of the benchmarks
        "imagenet": Dataset("imagenet", _IMAGE, 1000),
        "cifar100": Dataset("cifar100", _IMAGE, 100),
        "flowers": Dataset("flowers", _IMAGE, 102),
        "chaoyang": Dataset("chaoyang", _IMAGE, 4),
    }

    @property
    def name(self) -> str:
        """The space's name."""
        return f"autoformer/{self.family}"

    def parse(self, text: str) -> AutoFormer:
        """Read an architecture, or the JSON object of one.

        The object has ``hidden_dim``, ``depth``, and the lists ``num_heads`` and ``mlp_ratio``.

        Raises:
            UsageError: the text is no architecture of this space; the message says where it goes wrong.
        """
        try:
            arch = self._from_json(text) if text.lstrip().startswith("{") else self._from_words(text.split())
            self._check(arch)
        except UsageError as error:
            raise UsageError(f"malformed architecture {text!r:.120}: {error}") from None
        return arch

    def _from_words(self, words: list[str]) -> AutoFormer:
        if words[:1] != [self.family]:
            raise UsageError(f"expected {self.family!r} as its first word, got {words[0] if words else ''!r}")
        if len(words) < 2 or not re.fullmatch(r"e[1-9][0-9]{0,3}", words[1]):
            raise UsageError(f"expected the embedding as its second word, such as e{self.embeddings[0]}")
        layers = []
        for word in words[2:]:
            match = _WORD.fullmatch(word)
            if match is None:
                raise UsageError(f"{word!r} is no block; expected one such as h{self.heads[0]}-r{self.ratios[0]:g}")
            layers.append(Layer(int(match[1]), float(match[2])))
        return AutoFormer(self.family, int(words[1][1:]), tuple(layers))

    def _from_json(self, text: str) -> AutoFormer:
        try:
            found = loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"it is no JSON: {error}") from None
        if set(found) != set(_FIELDS):
            raise UsageError(f"expected the fields {', '.join(_FIELDS)}, got {', '.join(map(str, found))}")
        embedding, ratios, heads, depth = (found[name] for name in _FIELDS)
        if not (isinstance(ratios, list) and isinstance(heads, list)):
            raise UsageError("mlp_ratio and num_heads must be lists")
        numbers = (embedding, depth, *ratios, *heads)
        fit = (type(number) in (int, float) and 0 <= number <= _MOST for number in numbers)  # NaN does not
        if not all(fit) or any(number != int(number) for number in (embedding, *heads)):
            raise UsageError(f"its fields must be numbers from 0 to {_MOST}, hidden_dim and num_heads whole ones")
        if not len(ratios) == len(heads) == depth:
            raise UsageError(f"its depth is {depth}, and it has {len(ratios)} ratios and {len(heads)} numbers of heads")
        layers = (Layer(int(h), float(r)) for h, r in zip(heads, ratios, strict=True))
        return AutoFormer(self.family, int(embedding), tuple(layers))

    def _check(self, arch: AutoFormer) -> None:
        """Refuse what is outside the space."""
        _require("embedding", arch.embedding, self.embeddings)
        _require("number of blocks", len(arch.layers), self.depths)
        for layer in arch.layers:
            _require("number of heads", layer.heads, self.heads)
            _require("ratio", layer.ratio, self.ratios)

    def sample(self, seed: int, i: int) -> AutoFormer:
        """Return the ``i``-th random architecture under ``seed``: every choice uniform."""

        def draw(purpose: str, n: int, most: int) -> list[int]:
            drawn: list[int] = Stream.of(seed, self.name, "", i, purpose).integers(n, most).tolist()
            return drawn

        depth = self.depths[draw("depth", 1, len(self.depths))[0]]
        embedding = self.embeddings[draw("embedding", 1, len(self.embeddings))[0]]
        heads, ratios = draw("heads", depth, len(self.heads)), draw("ratios", depth, len(self.ratios))
        layers = (Layer(self.heads[h], self.ratios[r]) for h, r in zip(heads, ratios, strict=True))
        return AutoFormer(self.family, embedding, tuple(layers))

    def neighbours(self, arch: AutoFormer) -> list[AutoFormer]:
        """Return the architectures one choice away.

        First those with another embedding, then those with other heads or another ratio in one block, those with one
        more block at the end, and that without the last.
        """
        return list(self._neighbours(arch))

    def _neighbours(self, arch: AutoFormer) -> Iterator[AutoFormer]:
        for embedding in self.embeddings:
            if embedding != arch.embedding:
                yield replace(arch, embedding=embedding)
        for place, layer in enumerate(arch.layers):
            others = [Layer(heads, layer.ratio) for heads in self.heads if heads != layer.heads]
            others += [Layer(layer.heads, ratio) for ratio in self.ratios if ratio != layer.ratio]
            for other in others:
                yield replace(arch, layers=(*arch.layers[:place], other, *arch.layers[place + 1 :]))
        if len(arch.layers) < self.depths[-1]:
            for heads in self.heads:
                for ratio in self.ratios:
                    yield replace(arch, layers=(*arch.layers, Layer(heads, ratio)))
        if len(arch.layers) > self.depths[0]:
            yield replace(arch, layers=arch.layers[:-1])

    def mutate(self, arch: AutoFormer, seed: int, i: int) -> AutoFormer:
        """Return the ``i``-th random neighbour of ``arch`` under ``seed``."""
        options = self.neighbours(arch)
        return options[int(Stream.of(seed, self.name, str(arch), i, "mutate").integers(1, len(options))[0])]

    @property
    def choices(self) -> tuple[int, ...]:
        """Depth, embedding, then heads and ratio of each block that the deepest networks have."""
        return (len(self.depths), len(self.embeddings), *(len(self.heads), len(self.ratios)) * self.depths[-1])

    def choose(self, numbers: Sequence[int]) -> AutoFormer:
        """Return the architecture with these options; those of blocks beyond its depth decide nothing."""
        depth, embedding, *of_blocks = numbers
        pairs = zip(of_blocks[::2], of_blocks[1::2], strict=True)
        layers = tuple(Layer(self.heads[heads], self.ratios[ratio]) for heads, ratio in pairs)
        return AutoFormer(self.family, self.embeddings[embedding], layers[: self.depths[depth]])

    def key(self, arch: AutoFormer) -> str:
        """Return the text: no two architectures compute the same."""
        return str(arch)

    def size(self, arch: AutoFormer, dataset: str) -> Size:
        """Return parameters and multiply-accumulates of the network.

        Parameters are all there are, embeddings and layer norms included, as AZ-NAS counts them. Multiply-accumulates
        are those of the convolution, of linear layers (of every token; the classifier once), and of the attention's
        matrix products: queries with keys, weights with values, and each of the two with relative positions.
        """
        spec = self._dataset(dataset)
        e, patches = arch.embedding, GRID * GRID
        tokens = 1 + patches
        patch = PATCH * PATCH * spec.input_shape[0] * e
        total = Size(patch + e, patch * patches) + Size(tokens * e + e, 0)  # with positions and class token
        for layer in arch.layers:
            width, channels = hidden(e, layer.ratio), HEAD * layer.heads
            linear = [(e, 3 * channels), (channels, e), (e, width), (width, e)]
            weights = sum(inputs * outputs for inputs, outputs in linear)
            biases = sum(outputs for _, outputs in linear)
            positions = 4 * (2 * GRID + 2) * HEAD  # tables for rows and columns, of keys and values
            products = 4 * tokens * tokens * channels
            total += Size(weights + biases + positions + 2 * 2 * e, weights * tokens + products)
        return total + Size(2 * e + (e + 1) * spec.classes, e * spec.classes)

    def check_resolution(self, side: int) -> None:
        """Refuse a side of images that cannot be cut into patches, or into more than there are positions for."""
        grid_of(side, side)

    def slots(self, arch: AutoFormer, dataset: str) -> Slots:
        """Return the block maps, two of each block, and the layers."""
        blocks, layers = [], ["patch"]
        for place in range(len(arch.layers)):
            name = f"blocks.{place}"
            blocks += [f"{name}.attention", f"{name}.mlp"]
            layers += [f"{name}.attention.qkv", f"{name}.attention.proj", f"{name}.mlp.fc1", f"{name}.mlp.fc2"]
        return Slots(tuple(blocks), (*layers, "head"))

    def common_slots(self, dataset: str) -> None:
        """Return None: architectures have more or fewer blocks."""

    def correspondence(self, representative: AutoFormer, member: AutoFormer, dataset: str) -> dict[str, str]:
        """Return each slot for itself: no architecture shares its key.

        Raises:
            UsageError: these are two architectures.
        """
        if representative != member:
            raise UsageError(f"the architectures compute different functions: {representative} and {member}")
        return {slot: slot for slot in self.slots(member, dataset).layers}

    def build(self, arch: AutoFormer, dataset: str, *, full: bool = False) -> Built:
        """Build a network, whose weights are zero until initialised. Every layer influences the output.

        Its block maps are the tokens after each half of a block: attention, and perceptron.

        Args:
            arch: the architecture.
            dataset: one of `datasets`.
            full: the same either way.
        """
        model = Transformer(arch.embedding, arch.layers, self.whole, self._dataset(dataset))
        return Built(model, self.slots(arch, dataset).blocks)

    def _dataset(self, name: str) -> Dataset:
        if name not in self.datasets:
            raise unknown_name("dataset", name, self.datasets)
        return self.datasets[name]


def _require(what: str, got: float, allowed: tuple[float, ...]) -> None:
    if got not in allowed:
        raise UsageError(f"its {what} must be one of {', '.join(f'{one:g}' for one in allowed)}, got {got:g}")


TINY = AutoFormerSpace("tiny", SuperNetwork(256, 14, 4), (192, 216, 240), (12, 13, 14), (3, 4), (3.5, 4.0))
SMALL = AutoFormerSpace("small", SuperNetwork(448, 14, 7), (320, 384, 448), (12, 13, 14), (5, 6, 7), (3.0, 3.5, 4.0))
BASE = AutoFormerSpace("base", SuperNetwork(640, 16, 10), (528, 576, 624), (14, 15, 16), (9, 10), (3.0, 3.5, 4.0))

SPACES = (TINY, SMALL, BASE)
