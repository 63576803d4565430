"""A space that breaks its promises: one line names it, what it was asked and what it returned, and nothing is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from plugin_spaces import package_installed

from zcpipe.spaces.classes import key_classes
from zcpipe.table import open_table

Command = Callable[..., tuple[int, str, str]]

SOURCE = """
from zcpipe_hazards import Endless, Hazards, Member

from zcpipe.spaces import Size


def refuse(*_):
    raise ValueError("no")


class Faulty({base}):
    name = "faulty"
    {fault}


OFFERED = Faulty()
"""
PLAIN = ("--space", "faulty", "--dataset", "tiny", "--batch-size", "4")
ALL = ("run", *PLAIN, "--proxies", "params", "-q")
SAMPLE = (*ALL, "--sample", "3")
SEARCH = ("search", *PLAIN, "--algorithm", "aznas", "--scores", "live", "--budget", "4")
DRAW = (*SEARCH, "--proposals", "random")


def told_of(zcpipe: Command, base: str, fault: str, command: tuple[str, ...], directory: Path) -> tuple[int, str]:
    key_classes.cache_clear()
    source = SOURCE.format(base=base, fault=fault)
    with package_installed(directory / "package", "zcpipe.spaces", source):
        code, _, told = zcpipe(*command, "--out", directory / "out")
    return code, told


@pytest.mark.parametrize(
    ("base", "fault", "command", "said"),
    [
        ("Hazards", "key = lambda *_: 7", ALL, "the key of its architecture 0: TypeError: key returned 7, which is no"),
        ("Endless", "key = lambda *_: 7", SAMPLE, "the key of member-0: TypeError: key returned 7, which is no text"),
        ("Hazards", "all_keys = lambda _: [1] * 24", ALL, "all its keys: TypeError: key returned 1, which is no text"),
        ("Hazards", "all_keys = lambda _: ['a']", ALL, "all its keys: ValueError: all_keys returned 1 for 24 arch"),
        (
            "Hazards",
            "index = lambda *_: 24",
            SAMPLE,
            "index of its random architecture 0: ValueError: index returned 24",
        ),
        ("Hazards", "index = lambda *_: -1", SAMPLE, "index returned -1, but the space has 24 architectures"),
        ("Hazards", "index = lambda *_: 'a'", SAMPLE, "TypeError: index returned 'a', which is no whole number"),
        ("Hazards", "sample = refuse", SAMPLE, "the index of its random architecture 0: ValueError: no"),
        ("Hazards", "__getitem__ = refuse", ALL, "the key of its architecture 0: ValueError: no"),
        ("Hazards", "__len__ = refuse", ALL, "its length: ValueError: no"),
        ("Hazards", "__len__ = lambda _: 0", ALL, "its length: ValueError: __len__ returned 0"),
        (
            "Hazards",
            "common_slots = refuse",
            ALL,
            "the slots that its networks for tiny have in common: ValueError: no",
        ),
        ("Hazards", "common_slots = lambda *_: 3", ALL, "TypeError: common_slots returned 3, neither Slots nor None"),
        (
            "Endless",
            "mutate = lambda *_: None",
            SEARCH,
            "a mutation of member-0: ValueError: mutate returned None, which",
        ),
        ("Hazards", "mutate = lambda *_: Member(99)", SEARCH, "which is no member: 'member-99' is not a member"),
        (
            "Endless",
            "sample = lambda *_: None",
            DRAW,
            "its random architecture 0: ValueError: sample returned None, whi",
        ),
        ("Endless", "parse = refuse", DRAW, "its random architecture 0: ValueError: no"),
        ("Endless", "parse = lambda *_: Member(7)", DRAW, "sample returned member-0, which parse reads as member-7"),
        ("Hazards", "index = lambda *_: 7", DRAW, "ValueError: index returned 7, where member-7 is"),
        ("Hazards", "__len__ = refuse", DRAW, "its length: ValueError: no"),
    ],
)
def test_is_told_in_one_line_and_leaves_nothing(
    base: str, fault: str, command: tuple[str, ...], said: str, zcpipe: Command, tmp_path: Path
) -> None:
    code, told = told_of(zcpipe, base, fault, command, tmp_path)
    assert told.startswith("error: the space faulty cannot give ") and told.count("\n") == 1, told
    assert said in told and "; mend the space" in told
    assert code == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("key = lambda *_: 7", "TypeError: key returned 7, which is no text"),
        (
            "size = lambda *_: Size(1.5, 2)",
            "TypeError: size returned Size(params=1.5, macs=2), which is no Size of whol",
        ),
        ("size = lambda *_: None", "which is no Size of whole numbers"),
    ],
)
def test_what_is_known_of_a_listed_architecture_alone_ends_as_a_row(
    fault: str, said: str, zcpipe: Command, tmp_path: Path
) -> None:
    listed = tmp_path / "listed.txt"
    listed.write_text("member-3\n")
    code, _ = told_of(zcpipe, "Endless", fault, (*ALL, "--archs", str(listed)), tmp_path)
    (row,) = open_table(tmp_path / "out").to_arrow().to_pylist()
    assert code == 3 and row["status"] == "error" and row["arch"] == "member-3"
    assert any(said in failure["message"] for failure in row["failures"])


@pytest.mark.parametrize("proposals", ["random", "evolution"])
def test_a_table_of_scores_whose_texts_the_space_no_longer_reads(
    proposals: str, zcpipe: Command, tmp_path: Path
) -> None:
    assert told_of(zcpipe, "Hazards", "", (*ALL, "--proxies", "aznas"), tmp_path / "table")[0] == 0
    table = tmp_path / "table" / "out"
    command = ("search", "--space", "faulty", "--algorithm", "aznas", "--scores", str(table), "--budget", "4")
    code, told = told_of(zcpipe, "Hazards", "parse = refuse", (*command, "--proposals", proposals), tmp_path)
    assert code == 1 and told.count("\n") == 1 and "; mend the space" in told
    assert told.startswith("error: the space faulty cannot give ")
    assert not (tmp_path / "out").exists()
