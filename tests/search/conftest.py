"""A table of 64 real cells of NAS-Bench-201 that are one another's neighbours, with a truth file."""

import itertools
import math
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zcpipe import open_table
from zcpipe.run import Archs, RunSpec, run
from zcpipe.spaces.nasbench201 import Cell

PROXIES = ("synflow", "snip", "expressivity", "progressivity", "trainability", "complexity")


@pytest.fixture(autouse=True)
def no_lines_of_progress(monkeypatch):
    """However busy the machine is, commands tell only what they tell of what was found."""
    monkeypatch.setattr("zcpipe.progress.LINE_SECONDS", math.inf)


@pytest.fixture(scope="session")
def searched(tmp_path_factory):
    """The table's directory."""
    place = tmp_path_factory.mktemp("search") / "table"
    cells = [Cell(edges) for edges in itertools.product(("skip_connect", "nor_conv_3x3"), repeat=6)]
    spec = RunSpec(
        space="nasbench201",
        dataset="cifar10",
        proxies=PROXIES,
        selection=Archs(texts=tuple(map(str, cells))),
        batch_size=2,
        resolution=8,
    )
    assert run(spec, place).failed == 0
    return place


@pytest.fixture(scope="session")
def grown(searched, tmp_path_factory):
    """That table with l2_norm, which was run on the first 24 rows alone and failed on none."""
    place = tmp_path_factory.mktemp("grown") / "table"
    shutil.copytree(searched, place)
    texts = open_table(searched).to_arrow(["arch"])["arch"].to_pylist()
    spec = RunSpec(
        space="nasbench201",
        dataset="cifar10",
        proxies=("l2_norm",),
        selection=Archs(texts=tuple(texts[:24])),
        batch_size=2,
        resolution=8,
    )
    assert run(spec, place).failed == 0
    return place


@pytest.fixture(scope="session")
def truth(searched):
    """Columns: val and test grow with the size, noisily; err falls; hole lacks the first row; hours are seconds."""
    rows = open_table(searched).to_arrow(["arch", "params"])
    noise = np.random.default_rng(0).normal(size=len(rows))
    val = np.log(rows["params"].to_numpy()) + 0.1 * noise
    table = pa.table(
        {
            "arch": rows["arch"],
            "val": val,
            "test": val + 0.1 * noise[::-1],
            "err": -val,
            "hole": pa.array([None, *val[1:]], pa.float64()),
            "hours": np.full(len(rows), 3600.0),
        }
    )
    field = table.schema.field("err").with_metadata({"direction": "lower"})
    table = table.set_column(table.schema.get_field_index("err"), field, table["err"])
    path = searched.parent / "truth.parquet"
    pq.write_table(table, path)
    return path
