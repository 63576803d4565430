"""What a space says must not depend on the process that asks: answers that depend on hashes are found."""

from plugin_spaces import package_installed, plugins_installed

from zcpipe import get_space
from zcpipe.scoring.space_check import check_space
from zcpipe.scoring.space_elsewhere import compare_processes
from zcpipe.scoring.space_findings import Findings

SOURCE = """
import os
import sys

from zcpipe_hazards import Hazards, Member

from zcpipe.spaces import Slots

print("a space may print")


def place(text, among=10**6):
    return hash(text) % among


class Mine(Hazards):
    name = "mine"
    {fault}


OFFERED = Mine()
"""
BY_HASH = """
    key = lambda self, arch: str(place(str(arch)))
    sample = lambda self, seed, i: Member(place(str(i)))
    mutate = lambda self, arch, seed, i: Member(place(str(arch)))
    neighbours = lambda self, arch: [Member(int(text)) for text in {str(n) for n in range(30)}]
    slots = lambda *_: Slots(tuple({str(n) for n in range(30)}), ())
    common_slots = lambda *_: Slots((), tuple({str(n) for n in range(30)}))

    def build(self, arch, dataset, *, full=False):
        built = super().build(arch, dataset, full=full)
        for name in {str(n) for n in range(30)}:
            built.model.register_parameter(name, next(built.model.parameters()))
        return built
"""


def findings_of(directory, fault):
    found = Findings()
    with plugins_installed(), package_installed(directory, "zcpipe.spaces", SOURCE.format(fault=fault)):
        compare_processes(get_space("mine"), "tiny", ["member-1", "member-7"], found)
    return found.problems


def test_each_answer_that_depends_on_hashes_is_found(tmp_path):
    found = findings_of(tmp_path, BY_HASH)
    first = {(one.kind, one.message.split(" is not the same")[0]) for one in found if one.architecture == "member-1"}
    assert first == {
        ("key", "its key"),
        ("moves", "mutate(arch, 0, 0)"),
        ("moves", "neighbours(arch)"),
        ("layers", "its slots"),
        ("build", "its network"),
    }
    assert {one.kind for one in found if one.architecture is None} == {"sample", "layers"}


def test_a_space_that_keeps_its_word_has_no_problem(tmp_path):
    assert findings_of(tmp_path, "pass") == ()


def test_what_another_process_cannot_import_is_a_problem(tmp_path):
    fault = "if os.environ.get('PYTHONHASHSEED') == '1': sys.exit('not here')"
    (found,) = findings_of(tmp_path, fault)
    assert found.kind == "space" and "asking it in another process raises" in found.message
    assert "not here" in found.message


def test_a_space_that_raises_is_not_reported_twice(tmp_path):
    assert findings_of(tmp_path, "key = lambda self, arch: 1 / 0") == ()


def test_a_space_that_is_not_installed_is_asked_here_alone():
    space = type("Mine", (type(get_space("nasbenchmacro")),), {"name": "nasbenchmacro"})()
    found = Findings()
    compare_processes(space, "no data set", ["no text"], found)
    assert found.problems == ()


def test_a_check_of_an_installed_space_asks_other_processes(tmp_path):
    fault = "key = lambda self, arch: str(place(str(arch)))"
    with plugins_installed(), package_installed(tmp_path, "zcpipe.spaces", SOURCE.format(fault=fault)):
        found = check_space(get_space("mine"), 2).problems
    assert any(one.kind == "key" and "in every process" in one.message for one in found)
