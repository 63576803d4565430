"""NDS (Radosavovic et al., ICCV 2019): nine sub-spaces, each under its name (``nds/darts``), and ``nds``, all of them.

An architecture is one of a sub-space, and the first word of its text says of which. Draws of ``nds`` are uniform over
the sub-spaces, whatever their sizes; mutations stay within one. `zcpipe.spaces.genotypes` and `zcpipe.spaces.anynet`
describe the sub-spaces, `zcpipe.spaces.nds_files` the official files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from zcpipe.errors import UsageError, unknown_name
from zcpipe.ops.philox import Stream
from zcpipe.spaces.anynet import ANYNET_SPACES
from zcpipe.spaces.base import Built, Dataset, Entry, Size, Slots, Verification
from zcpipe.spaces.genotypes import GENOTYPE_SPACES, GenotypeSpace
from zcpipe.spaces.nds_files import Family, Progress, read
from zcpipe.spaces.nds_verify import verify

# A cast, for a protocol's attributes can be set, and those of frozen spaces cannot.
FAMILIES = cast(tuple[Family, ...], (*GENOTYPE_SPACES, *ANYNET_SPACES))

PAPER = "Radosavovic et al., On Network Design Spaces for Visual Recognition, ICCV 2019"

Network = Any
"""An architecture: of whichever class its sub-space has."""


class NdsSpace:
    """One or all of the sub-spaces.

    Args:
        name: the space's name.
        families: the sub-spaces.
    """

    def __init__(self, name: str, families: tuple[Family, ...]) -> None:
        self.name = name
        self.families = {family.family: family for family in families}
        self.datasets: Mapping[str, Dataset] = families[0].datasets
        self.paper = families[0].paper if len(families) == 1 else PAPER

    def parse(self, text: str) -> Network:
        """Read an architecture, whose first word is the name of its sub-space without ``nds/``.

        Raises:
            UsageError: the text is no architecture of this space; the message says where it goes wrong.
        """
        word = next(iter(text.split(maxsplit=1)), "")
        if word not in self.families:
            reason = unknown_name("sub-space", word, self.families)
            raise UsageError(f"malformed network {text!r:.120}: {reason}")
        return self.families[word].parse(text)

    def sample(self, seed: int, i: int) -> Network:
        """Return the ``i``-th random architecture under ``seed``, of those that were drawn for CIFAR-10."""
        return self.sample_for("cifar10", seed, i)

    def sample_for(self, dataset: str, seed: int, i: int) -> Network:
        """Return the ``i``-th random architecture under ``seed``, of those that were drawn for a data set."""
        families = list(self.families.values())
        stream = Stream.of(seed, self.name, "", i, "sub-space")
        at = int(stream.integers(1, len(families))[0]) if len(families) > 1 else 0
        return families[at].sample(seed, i, dataset)

    def mutate(self, arch: Network, seed: int, i: int) -> Network:
        """Return the ``i``-th random neighbour of ``arch`` under ``seed``, of the same sub-space."""
        return self._of(arch).mutate(arch, seed, i)

    def neighbours(self, arch: Network) -> list[Network]:
        """Return every architecture of the same sub-space one elementary change away."""
        return self._of(arch).neighbours(arch)

    def key(self, arch: Network) -> str:
        """Return the key that the sub-space gives; ResNeXt-A and ResNeXt-B share the keys of shared networks."""
        return self._of(arch).key(arch)

    def size(self, arch: Network, dataset: str) -> Size:
        """Return parameters and multiply-accumulates of the full architecture."""
        return self._of(arch).size(arch, dataset)

    def slots(self, arch: Network, dataset: str) -> Slots:
        """Return the nodes of the full architecture's network."""
        return self._of(arch).slots(arch, dataset)

    def common_slots(self, dataset: str) -> None:
        """Return None: depths differ."""

    def correspondence(self, representative: Network, member: Network, dataset: str) -> Mapping[str, str]:
        """Say which layer of one architecture is which of another with the same key."""
        return self._of(member).correspondence(representative, member, dataset)

    def build(self, arch: Network, dataset: str, *, full: bool = False) -> Built:
        """Build the network; see `zcpipe.spaces.base.Space.build`."""
        return self._of(arch).build(arch, dataset, full=full)

    def entries(self, path: Path, progress: Progress | None = None) -> list[Entry]:
        """Read official files; see `zcpipe.spaces.nds_files.read`."""
        return read(path, self.families, progress)

    def verify(self, path: Path, progress: Progress | None = None) -> Verification:
        """Build the networks of official files and compare their counts; see `zcpipe.spaces.nds_verify`."""
        return verify(self.entries(path), self.families, progress)

    def _of(self, arch: Network) -> Family:
        return self.families[arch.family]


class NdsCellSpace(NdsSpace):
    """One of the sub-spaces of cells."""

    def __init__(self, family: GenotypeSpace) -> None:
        super().__init__(family.name, (cast(Family, family),))
        self.cell_codes = family.cell_codes
        self.cell_code = family.cell_code


NDS = NdsSpace("nds", FAMILIES)
SPACES = (
    *map(NdsCellSpace, GENOTYPE_SPACES),
    *(NdsSpace(family.name, (cast(Family, family),)) for family in ANYNET_SPACES),
    NDS,
)
