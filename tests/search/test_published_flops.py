"""Budgets as they were published: of the FLOPs that the searches of ZenNAS and AZ-NAS count."""

import pyarrow.parquet as pq
import pytest

from zcpipe.errors import DataError, UsageError
from zcpipe.run import RunSpec
from zcpipe.search.aznas import FLOPS, HISTORY, PICKS, AzNasSpec, aznas_search
from zcpipe.search.costs import FRONT
from zcpipe.spaces import PublishedFlops, get_space

MBV2 = get_space("mbv2")


def spec(space="mbv2", **fields):
    dataset = next(iter(get_space(space).datasets))
    run = RunSpec(space=space, dataset=dataset, proxies=("params", "macs"))  # which cost nothing
    return AzNasSpec.model_validate({"run": run, "budget": 40, "batch": 8, "population": 10, **fields})


@pytest.mark.parametrize(("flops", "layers"), [(450_000_000, 14), (600_000_000, 14), (1_000_000_000, 16)])
def test_every_candidate_is_within_the_published_budget(flops, layers, tmp_path):
    aznas_search(spec(max_flops=flops, max_layers=layers), tmp_path / "s")
    history = pq.read_table(tmp_path / "s" / HISTORY)
    archs = [MBV2.parse(text) for text in history["arch"].to_pylist()]
    counted = [MBV2.published_flops(arch, "imagenet") for arch in archs]
    assert len(archs) == 40 and max(counted) <= flops
    assert history[FLOPS].to_pylist() == counted
    assert all(MBV2.num_layers(arch) <= layers for arch in archs)
    assert FLOPS in pq.read_schema(tmp_path / "s" / FRONT).names


def test_picks_have_the_published_count():
    (pick,) = aznas_search(spec(max_flops=450_000_000)).picks()
    assert pick[FLOPS] == MBV2.published_flops(MBV2.parse(pick["arch"]), "imagenet") <= 450_000_000


def test_spaces_without_such_a_count(tmp_path):
    assert not isinstance(get_space("nasbenchmacro"), PublishedFlops)
    with pytest.raises(UsageError, match="nasbenchmacro has no published count of FLOPs; limit max_macs"):
        spec("nasbenchmacro", max_flops=100)
    aznas_search(spec("nasbenchmacro"), tmp_path / "s")
    assert FLOPS not in pq.read_schema(tmp_path / "s" / PICKS).names


def test_a_budget_that_nothing_meets():
    with pytest.raises(DataError, match=r"none of [\d,]+ proposals in mbv2 has at most 1,000 published FLOPs"):
        aznas_search(spec(max_flops=1000))
