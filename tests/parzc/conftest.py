"""A table of small architectures with labels, on disk and in memory, for what learns from tables."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zcpipe import open_table
from zcpipe.run import RunSpec, Sample, run

PROXIES = ("snip", "grad_norm", "synflow", "num_layers", "expressivity", "progressivity", "trainability", "complexity")


@pytest.fixture(scope="session")
def tables(tmp_path_factory):
    """Directories of two tables of cells of NAS-Bench-201 that differ in the seed of their weights alone, and a third
    of another recipe."""
    place = tmp_path_factory.mktemp("parzc")
    for name, seed, batch in (("one", 0, 2), ("two", 1, 2), ("other", 0, 3)):
        spec = RunSpec(
            space="nasbench201",
            dataset="cifar10",
            proxies=PROXIES,
            selection=Sample(n=48 if name == "one" else 12),
            batch_size=batch,
            resolution=16,
            seed=seed,
        )
        assert run(spec, place / name).failed == 0
    return place


@pytest.fixture(scope="session")
def directory(tables):
    return tables / "one"


@pytest.fixture(scope="session")
def truth(tables, directory):
    """A truth file: "test" and "val" grow with the parameters, with a little noise; other columns are of no use."""
    rows = open_table(directory).to_arrow(["arch", "params"])
    noise = np.random.default_rng(0).normal(size=len(rows))
    good = np.log(rows["params"].to_numpy()) + 0.05 * noise
    columns = {
        "arch": rows["arch"],
        "test": good,
        "val": good + 0.05 * noise[::-1],
        "few": pa.array([*good[:9], *[None] * (len(rows) - 9)]),
        "constant": np.full(len(rows), 90.0),
        "hours": -good,
    }
    table = pa.table(columns)
    field = table.schema.field("hours").with_metadata({"direction": "lower"})
    table = table.set_column(table.schema.get_field_index("hours"), field, table["hours"])
    pq.write_table(table, tables / "truth.parquet")
    return tables / "truth.parquet"
