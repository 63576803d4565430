"""What stages of studies are kept under: what a table holds, so that rows that were computed anew make them anew."""

import pyarrow as pa
import pytest


class Held:
    """As much of a table as is asked for."""

    def __init__(self, **changed):
        columns = {
            "arch": ["a", "b", "c"],
            "seconds": [0.1, 0.2, 0.3],
            "failures": [[], [{"proxy": "snip", "kind": "error", "message": "no"}], []],
            "snip": [1.0, None, 3.0],
            "params": [1, 2, 3],
            "snip@layer": [[1.0, 2.0], None, [3.0]],
            **changed,
        }
        self.table = pa.table(columns)
        self.schema = self.table.schema

    def to_arrow(self, names):
        return self.table.select(names)


def test_seconds_do_not_count(study):
    contents = study("study").contents
    assert contents(Held()) == contents(Held(seconds=[9.0, 9.0, 9.0]))


@pytest.mark.parametrize(
    "changed",
    [
        {"snip": [1.0, 2.0, 3.0]},
        {"snip": [None, 1.0, 3.0]},
        {"params": [1, 2, 4]},
        {"arch": ["a", "b", "d"]},
        {"failures": [[], [], []]},
        {"snip@layer": [[1.0], None, [2.0, 3.0]]},
        {"snip@layer": [[1.0, 2.0], [], [3.0]]},
    ],
)
def test_values_do(study, changed):
    contents = study("study").contents
    assert contents(Held()) != contents(Held(**changed))
