"""What a run computes, and which part of that is the identity of its table."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from zcpipe.errors import DataError, UsageError, first_fault
from zcpipe.inputs import NOISE, content_of, parse
from zcpipe.spaces import get_space
from zcpipe.spaces.base import Architecture, ReadsEntries, Space
from zcpipe.table.schema import canonical

_LARGEST = 256 << 20  # bytes of a file of architectures; those of NAS-Bench-101, the largest space to list, have 30 MB


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class All(_Frozen):
    """The whole of an enumerable space."""

    kind: Literal["all"] = "all"


class Range(_Frozen):
    """The members of an enumerable space from index ``start`` to before ``stop``."""

    kind: Literal["range"] = "range"
    start: int
    stop: int


class Sample(_Frozen):
    """The first ``n`` random draws under the run's seed."""

    kind: Literal["sample"] = "sample"
    n: int


class Archs(_Frozen):
    """Architectures by their texts; blank texts are skipped, so that positions are line numbers in ``source``."""

    kind: Literal["archs"] = "archs"
    texts: tuple[str, ...]
    source: str = ""  # the file they come from, for messages

    @classmethod
    def from_file(cls, path: Path) -> Archs:
        """Read one text per line. A pipe is a file, too: what another command prints can be given in its place.

        Raises:
            DataError: the file cannot be read, has no end, or is not text.
        """
        try:
            with path.open("rb") as file:
                content = file.read(_LARGEST + 1)
        except OSError as error:
            raise DataError(
                f"cannot read {path}: {(error.strerror or str(error)).lower()}; name a text file"
            ) from error
        if len(content) > _LARGEST:
            raise DataError(f"{path} has more than {_LARGEST >> 20} MiB; give one architecture per line")
        try:
            texts = tuple(content.decode("utf-8-sig").splitlines())  # some editors begin a file with a mark
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text; give one architecture per line") from error
        return cls(texts=texts, source=os.fsencode(path).decode(errors="replace"))

    @classmethod
    def from_official(cls, path: Path, space: Space[Architecture]) -> tuple[Archs, tuple[str, ...]]:
        """Read a benchmark's own JSON file, or a directory of them.

        Returns:
            The architectures, each once, and the data sets on which they were trained; none where a file does not say.

        Raises:
            UsageError: the space's benchmark has no such files.
            DataError: a file is damaged or foreign; file and entry are named.
        """
        if not isinstance(space, ReadsEntries):
            raise UsageError(f"{space.name} has no official JSON files; make {path} text, one architecture per line")
        entries = space.entries(path)
        datasets = {entry.dataset for entry in entries}
        texts = tuple(dict.fromkeys(str(entry.arch) for entry in entries))
        listed = cls(texts=texts, source=os.fsencode(path).decode(errors="replace"))
        known = {dataset for dataset in datasets if dataset is not None}
        return listed, tuple(sorted(known)) if known == datasets else ()


Selection = Annotated[All | Range | Sample | Archs, Field(discriminator="kind")]


class RunSpec(_Frozen):
    """Everything that decides which rows a run computes and what they are.

    Names of proxies are resolved (no groups) and the device is explicit. The selection, the proxies, the device and
    the size of shards are not part of the identity: they may differ from one run on a table to the next.

    ``inputs`` is ``noise`` or KIND:PATH (see `zcpipe.inputs`). Of such a file the identity holds the kind and
    ``inputs_content``, which names the images and labels that the run takes from it, wherever it lies. It is read from
    the file when the spec is made, unless it is given: then the file is held against it when it is used.

    ``resolution`` is the side of the images that are scored where it is not the data set's own. Counts (params, macs)
    stay those of the data set's images.

    How many classes a shard has a table keeps from its first run on; by default that run's size decides
    (`zcpipe.run.work.sized`).

    Raises:
        UsageError: a field is missing, unknown or out of its range; one line says which.
        DataError: the file of inputs is missing, damaged or foreign, or does not fit the data set.
    """

    space: str
    dataset: str
    proxies: tuple[str, ...] = Field(min_length=1)
    selection: Selection = All()
    batch_size: int = Field(default=64, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**64)
    repeats: int = Field(default=1, ge=1)
    protocol: Literal["paper", "fused"] = "paper"
    inputs: str = NOISE
    inputs_content: str = ""
    resolution: int | None = Field(default=None, ge=1)
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda:\d+)$")
    classes_per_shard: int | None = Field(default=None, ge=1)

    @model_validator(mode="wrap")
    @classmethod
    def _in_one_line(cls, data: Any, handler: ModelWrapValidatorHandler[RunSpec]) -> RunSpec:  # noqa: ANN401
        try:
            spec = handler(data)
        except ValidationError as error:
            raise UsageError(f"invalid run: {first_fault(error)}") from None
        if spec.resolution is not None and spec.resolution == _own_resolution(spec):
            object.__setattr__(spec, "resolution", None)  # one run, one identity
        if spec.inputs != NOISE and not spec.inputs_content:
            object.__setattr__(spec, "inputs_content", content_of(spec))  # frozen from here on
        return spec

    @classmethod
    def of(cls, identity: Mapping[str, Any], proxies: Sequence[str]) -> RunSpec:
        """Return a spec of an `identity`, such as a table's. The place of its images, which it does not know, is none.

        Raises:
            UsageError: as `RunSpec`.
        """
        recipe = dict(identity["recipe"])
        _, _, content = recipe["inputs"].partition(":")
        fields = {name: identity[name] for name in ("space", "dataset", "seed")}
        return cls.model_validate({**fields, **recipe, "inputs_content": content, "proxies": tuple(proxies)})

    def identity(self) -> dict[str, Any]:
        """Return what all rows of one table share."""
        recipe = {name: getattr(self, name) for name in ("protocol", "batch_size", "inputs", "repeats")}
        if self.inputs != NOISE:
            recipe["inputs"] = f"{parse(self.inputs)[0]}:{self.inputs_content}"
        if self.resolution is not None:
            recipe["resolution"] = self.resolution
        return {"space": self.space, "dataset": self.dataset, "recipe": recipe, "seed": self.seed}

    def identity_hash(self) -> str:
        """Return a hexadecimal digest of the identity."""
        return hashlib.blake2b(canonical(self.identity()).encode(), digest_size=16).hexdigest()

    def default_out(self) -> Path:
        """Return where the table goes unless the user says otherwise."""
        return Path("runs") / f"{self.space.replace('/', '-')}-{self.identity_hash()[:8]}"

    def for_workers(self) -> str:
        """Return the spec as JSON for whom units are given: without the selection, which may be long."""
        return self.model_copy(update={"selection": All()}).model_dump_json()

    def record(self) -> dict[str, Any]:
        """Return the spec for a table's metadata: a long list of architectures by its digest only."""
        record: dict[str, Any] = self.model_dump(mode="json")
        if isinstance(self.selection, Archs):
            digest = hashlib.blake2b("\n".join(self.selection.texts).encode(), digest_size=16).hexdigest()
            record["selection"] = {"kind": "archs", "lines": len(self.selection.texts), "digest": digest}
        return record


def _own_resolution(spec: RunSpec) -> int | None:
    """Return the side of the data set's images, None where the space has no such data set."""
    dataset = get_space(spec.space).datasets.get(spec.dataset)
    return None if dataset is None else dataset.input_shape[1]
