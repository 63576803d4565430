from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from zcpipe.errors import DataError, UsageError
from zcpipe.run import Archs, RunSpec, Sample


def spec(**fields: object) -> RunSpec:
    return RunSpec.model_validate({"space": "hazards", "dataset": "tiny", "proxies": ("params",), **fields})


def test_identity_is_space_dataset_recipe_and_seed() -> None:
    plain = spec()
    for same in (
        spec(proxies=("macs",)),
        spec(selection=Sample(n=3)),
        spec(device="cuda:1"),
        spec(classes_per_shard=3),
    ):
        assert same.identity_hash() == plain.identity_hash()
    others = [
        spec(**{name: value})
        for name, value in {
            "space": "x",
            "dataset": "x",
            "seed": 1,
            "batch_size": 8,
            "repeats": 2,
            "protocol": "fused",
        }.items()
    ]
    assert len({other.identity_hash() for other in (plain, *others)}) == 7


@pytest.mark.parametrize(
    "fields",
    [{}, {"batch_size": 8, "repeats": 2, "protocol": "fused", "seed": 7, "resolution": 12}, {"inputs": "npz"}],
)
def test_a_spec_of_an_identity_has_that_identity(fields: dict[str, object], tmp_path: Path) -> None:
    if "inputs" in fields:
        images = tmp_path / "images.npz"
        np.savez(images, images=np.zeros((80, 6, 6, 3), np.uint8), labels=np.arange(80) % 4)
        fields = {"inputs": f"npz:{images}"}
    identity = spec(**fields).identity()
    again = RunSpec.of(identity, ["macs"])
    assert again.identity() == identity and again.proxies == ("macs",)


def test_default_directory_never_changes_between_versions() -> None:
    assert spec().default_out() == Path("runs/hazards-6f747c21")


def test_spec_survives_json() -> None:
    for selection in (Sample(n=3), Archs(texts=("a", "", "b"))):
        assert RunSpec.model_validate_json(spec(selection=selection).model_dump_json()).selection == selection


def test_record_keeps_lists_of_architectures_as_a_digest() -> None:
    short, long = (spec(selection=Archs(texts=("a",) * n)).record() for n in (1, 100_000))
    assert short["selection"]["lines"] == 1
    assert len(str(long)) < len(str(short)) + 10
    assert short["selection"]["digest"] != long["selection"]["digest"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "batch_size: input should be greater than or equal to 1, got 0"),
        ({"seed": -1}, "seed: "),
        ({"repeats": 0}, "repeats: "),
        ({"protocol": "fast"}, "protocol: input should be 'paper' or 'fused', got 'fast'"),
        ({"device": "auto"}, "device: "),
        ({"proxies": ()}, "proxies: "),
        ({"colour": "red"}, "colour: extra inputs are not permitted"),
        ({"selection": {"kind": "none"}}, "selection: "),
        ({"space": None}, "space: "),
    ],
)
def test_invalid_fields_are_one_clear_line(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        spec(**fields)
    assert "\n" not in str(caught.value)


def test_architectures_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "archs.txt"
    file.write_text("a\n\nb\n")
    assert Archs.from_file(file) == Archs(texts=("a", "", "b"), source=str(file))
    file.write_text("a\nb", "utf-8-sig")
    assert Archs.from_file(file).texts == ("a", "b")
    odd = tmp_path / os.fsdecode(b"a\xffb")
    odd.write_text("a")
    assert spec(selection=Archs.from_file(odd)).model_dump_json()
    with pytest.raises(DataError, match="no such file"):
        Archs.from_file(tmp_path / "absent")
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        Archs.from_file(file)


def test_architectures_from_what_is_no_regular_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe is read to its end; what has none is refused."""
    read, write = os.pipe()
    os.write(write, b"a\r\nb\n")
    os.close(write)
    assert Archs.from_file(Path(f"/dev/fd/{read}")).texts == ("a", "b")
    os.close(read)
    monkeypatch.setattr("zcpipe.run.spec._LARGEST", 1 << 20)
    with pytest.raises(DataError, match=r"/dev/zero has more than 1 MiB; give one"):
        Archs.from_file(Path("/dev/zero"))
    with pytest.raises(DataError, match="is a directory"):
        Archs.from_file(tmp_path)


def test_workers_get_all_of_it_but_the_selection() -> None:
    listed = spec(selection=Archs(texts=("member-1",) * 100_000), batch_size=5)
    got = RunSpec.model_validate_json(listed.for_workers())
    assert got == spec(batch_size=5) and len(listed.for_workers()) < 1000
