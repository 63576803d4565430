"""Spaces are found by name, a wrong name is helped, and what an installed package offers is examined."""

import pytest
from plugin_spaces import package_installed, plugins_installed

import zcpipe
from zcpipe.errors import CapabilityError, UsageError
from zcpipe.search.algorithms import methods
from zcpipe.spaces import get_space, list_spaces
from zcpipe.truth import readers

SPACE = """
from dataclasses import dataclass

from zcpipe.spaces import Dataset


class Plain:
    name = "plain"
    datasets = {"tiny": Dataset("tiny", (3, 8, 8), 4)}
    paper = "mine"
    def parse(self, text): ...
    def sample(self, seed, i): ...
    def mutate(self, arch, seed, i): ...
    def neighbours(self, arch): ...
    def key(self, arch): ...
    def size(self, arch, dataset): ...
    def slots(self, arch, dataset): ...
    def common_slots(self, dataset): ...
    def correspondence(self, representative, member, dataset): ...
    def build(self, arch, dataset, *, full=False): ...


"""


def test_nasbench201_is_installed():
    assert "nasbench201" in zcpipe.list_spaces()
    assert zcpipe.get_space("nasbench201").name == "nasbench201"


def test_unknown_space_names_the_near_one():
    with pytest.raises(UsageError, match="did you mean nasbench201"):
        zcpipe.get_space("nasbench210")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("OFFERED = 3", r"offers 3 \(my_nas:OFFERED\), but its name must be a text, got None"),
        ("OFFERED = 'nas'", "offers 'nas' .* its name must be a text, got None"),
        ("OFFERED = Plain", r"a space must be an instance; write Plain\(\)"),
        ("OFFERED = (Plain(), Plain)", r"a space must be an instance; write Plain\(\)"),
        ("Plain.name = ''; OFFERED = Plain()", "its name must be made of .* with / between them, got ''"),
        ("Plain.name = '../../up'; OFFERED = Plain()", r"its name must be made of .*, got '../../up'"),
        ("Plain.name = 'a/b c:d'; OFFERED = Plain()", "its name must be made of .*, got 'a/b c:d'"),
        ("Plain.name = '/a'; OFFERED = Plain()", "its name must be made of .*, got '/a'"),
        ("Plain.name = 'a\\n'; OFFERED = Plain()", "its name must be made of"),
        ("del Plain.datasets; OFFERED = Plain()", "'plain' .* its datasets must map names to .*Dataset.*, got None"),
        ("Plain.datasets = {}; OFFERED = Plain()", "its datasets must map names .*, at least one, got {}"),
        ("Plain.datasets = {'a': 1}; OFFERED = Plain()", r"its datasets\['a'\] must be a zcpipe.*Dataset, got 1"),
        ("Plain.datasets = {'a': Dataset('a', (3, 8), 4)}; OFFERED = Plain()", r"input_shape must be .*, got \(3, 8\)"),
        ("Plain.datasets = {'a': Dataset('a', (3, 8, 8), 0)}; OFFERED = Plain()", r"classes must be .*, got 0"),
        ("Plain.paper = None; OFFERED = Plain()", "its paper must be a text that is not empty, got None"),
        ("del Plain.key; OFFERED = Plain()", r"it must have a method key \(zcpipe.spaces.base.Space\), got None"),
        ("OFFERED = dataclass(Plain)()", "it must be hashable, got TypeError: unhashable .* needs frozen=True"),
        ("Plain.__len__ = lambda self: 3; OFFERED = Plain()", "to be enumerated, or none, and lacks __getitem__"),
        ("Plain.paper = property(lambda self: 1 / 0); OFFERED = Plain()", "cannot be examined: ZeroDivisionError: "),
        ("raise SystemExit(3)", r"'my_nas' for zcpipe.spaces but cannot be imported \(SystemExit: 3\)"),
    ],
)
def test_what_is_no_space_is_refused_by_one_line(source, said, tmp_path):
    with (
        package_installed(tmp_path, "zcpipe.spaces", SPACE + source),
        pytest.raises(CapabilityError, match=said) as refused,
    ):
        list_spaces()
    assert str(refused.value).startswith("the installed package 'my-nas' offers ")
    assert "mend or uninstall" in str(refused.value) and "\n" not in str(refused.value)


def test_a_sound_space_and_those_of_this_package_are_taken(tmp_path):
    with package_installed(tmp_path, "zcpipe.spaces", SPACE + "OFFERED = dataclass(frozen=True)(Plain)()"):
        assert get_space("plain").paper == "mine"
    with plugins_installed():
        assert {"hazards", "nds/resnext-a"} <= {*list_spaces()}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("OFFERED = 3", "a reader must be a zcpipe.truth.Reader"),
        ("from zcpipe.truth import Reader; OFFERED = Reader('a b', 'mine', print)", "its name must be .*, got 'a b'"),
        ("from zcpipe.truth import Reader; OFFERED = Reader('mine', '', print)", "its title must be .*, got ''"),
        ("from zcpipe.truth import Reader; OFFERED = Reader('mine', 'mine', 3)", "its read must be a function, got 3"),
    ],
)
def test_what_is_no_reader_is_refused(source, said, tmp_path):
    with package_installed(tmp_path, "zcpipe.truth", source), pytest.raises(CapabilityError, match=said):
        readers()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("OFFERED = 3", "an algorithm must be a class .*, not an instance"),
        ("class OFFERED: name = 'mine'; takes = ()", r"its takes must be a frozenset .*, got \(\)"),
        ("class OFFERED: name = 'mine'; takes = frozenset(); paper = 'mine'", "it must have a method model_dump"),
    ],
)
def test_what_is_no_algorithm_is_refused(source, said, tmp_path):
    with package_installed(tmp_path, "zcpipe.search.algorithms", source), pytest.raises(CapabilityError, match=said):
        methods()
