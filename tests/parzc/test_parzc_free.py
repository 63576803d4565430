"""Training-free ParZC: the formulas on nodes written out by hand."""

import numpy as np
import pytest
from parzc_tables import statistic, table

from zcpipe.errors import DataError, UsageError
from zcpipe.parzc.free import Nodes, name_of, node_sums, rank_free
from zcpipe.rank import log_rank

SLOTS = ("stem", "cells.0.layers.0", "cells.0.layers.1", "classifier")
SNIP, SYNFLOW = statistic("snip@layer", SLOTS), statistic("synflow@layer", SLOTS, "ln")
LIVE = statistic("num_layers@layer", SLOTS)


def held(snip, live, synflow=None):
    return table({SNIP: snip, LIVE: live, SYNFLOW: synflow or [[0.0] * 4] * len(snip)})


def test_weights_go_by_the_position_among_live_nodes():
    one = held([[2.0, 0.0, 3.0, 5.0]], [[1.0, 0.0, 1.0, 1.0]])  # three live layers: 2, 3, 5
    sinusoidal = [(np.sin(0.1 * i) + 1) / 2 for i in range(3)]
    assert Nodes.of(one, "snip@layer").total("sinusoidal") == pytest.approx([np.dot(sinusoidal, [2, 3, 5])])
    assert Nodes.of(one, "snip@layer").total("decaying") == pytest.approx([2 + 3 * (2 / 3) ** 2 + 5 * (1 / 3) ** 2])


def test_minmax_is_within_the_architecture():
    one = held([[2.0, 0.0, 3.0, 5.0]], [[1.0, 0.0, 1.0, 1.0]])
    expected = 0 + (1 / 3) * (2 / 3) ** 2 + 1 * (1 / 3) ** 2
    assert Nodes.of(one, "snip@layer").total("decaying", "minmax") == pytest.approx([expected])


def test_logarithms_are_summed_as_what_they_are_of():
    values = [300.0, 299.0, 301.0, 290.0]  # of which exp leaves float32
    one = held([[1.0] * 4], [[1.0] * 4], [values])
    raw = np.exp(np.array(values) - 300)
    weights = ((4 - np.arange(4)) / 4) ** 2
    nodes = Nodes.of(one, "synflow@layer")
    assert nodes.total("decaying") == pytest.approx([np.log(weights @ raw) + 300])
    scaled = (raw - raw.min()) / (raw.max() - raw.min())
    assert nodes.total("decaying", "minmax") == pytest.approx([weights @ scaled], rel=1e-5)


def test_dead_and_missing_architectures():
    rows = held([[0.0] * 4, None, [1.0] * 4], [[0.0] * 4, [1.0] * 4, [1.0] * 4])
    snip, synflow = Nodes.of(rows, "snip@layer").total(), Nodes.of(rows, "synflow@layer").total()
    assert snip[0] == 0
    assert np.isnan(snip[1])
    assert snip[2] > 0
    assert synflow[0] == -np.inf


def test_every_variant_and_what_is_no_variant():
    rows = held([[1.0] * 4], [[1.0] * 4])
    assert len(node_sums(rows, ["snip@layer", "synflow@layer"])) == 2 * 2 * 2
    assert name_of("decaying", "minmax") == "parzc-decaying-minmax"
    with pytest.raises(UsageError, match=r"unknown weighting 'sinusoid'; did you mean sinusoidal"):
        Nodes.of(rows, "snip@layer").total("sinusoid")
    with pytest.raises(UsageError, match="unknown statistic 'snap@layer'"):
        Nodes.of(rows, "snap@layer")


def test_sums_of_several_statistics_are_aggregated_by_ranks():
    rows = held([[1.0, 2.0, 3.0, 4.0], [4.0] * 4, [0.5] * 4], [[1.0] * 4] * 3, [[1.0] * 4, [2.0] * 4, [3.0] * 4])
    names = ["snip@layer", "synflow@layer"]
    sums = {name: Nodes.of(rows, name).total() for name in names}
    population, ranked = rank_free(rows, "parzc-sinusoidal", ",".join(names), 2)
    scores = log_rank(sums, dict.fromkeys(names, "higher"))
    assert population == 3
    assert [(r.rank, r.index, r.score) for r in ranked] == [
        (place, i, scores[i]) for place, i in enumerate(np.argsort(-scores)[:2], start=1)
    ]
    with pytest.raises(UsageError, match="positive number"):
        rank_free(rows, "parzc-sinusoidal", None, 0)
    with pytest.raises(DataError, match=r"no architecture of the table has snip@layer"):
        rank_free(held([None], [[1.0] * 4]), "parzc-decaying", "snip@layer", 1)


def test_rank_takes_a_variant_for_a_method(zcpipe, directory):
    code, said, _ = zcpipe("rank", directory, "--method", "parzc-decaying", "--proxies", "snip@layer", "--top", 3)
    assert code == 0
    assert said.splitlines()[0].split("\t") == ["rank", "index", "arch", "parzc-decaying", "snip@layer"]
    assert len(said.splitlines()) == 4
    assert zcpipe("rank", directory, "--method", "parzc-sinusoidal-minmax")[0] == 0
    code, _, told = zcpipe("rank", directory, "--method", "parzc-sinusoidal", "--proxies", "snip")
    assert code == 2
    assert "unknown statistic 'snip'" in told
