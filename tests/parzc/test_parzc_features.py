import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parzc_tables import proxy, some, statistic, table

from zcpipe.errors import DataError, UsageError
from zcpipe.parzc.features import Coordinate, Encoder, token_layout
from zcpipe.parzc.spec import FeatureSpec
from zcpipe.spaces import get_space

SLOTS = ("stem", "cells.0.layers.0", "cells.0.layers.1", "classifier")
SNIP, SYNFLOW = statistic("snip@layer", SLOTS), statistic("synflow@layer", SLOTS, "ln")
LIVE = statistic("num_layers@layer", SLOTS)
ENTROPY = statistic("expressivity@block", ("stem", "cells.0"), "nat")
PARAMS = proxy("params")
CELL = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|{}~2|"

VALUES = st.sampled_from([-math.inf, -2.0, 0.0, 0.25, 1.0, 3.0, math.inf, math.nan])
ROWS = st.lists(
    st.tuples(
        st.none() | st.lists(VALUES, min_size=4, max_size=4),
        st.none() | st.lists(VALUES, min_size=4, max_size=4),
        st.none() | st.lists(VALUES, min_size=2, max_size=2),
        st.none() | VALUES,
        st.sampled_from(["none", "nor_conv_1x1"]),
    ),
    min_size=1,
    max_size=8,
)
SPECS = st.builds(
    FeatureSpec,
    statistics=st.sampled_from([("snip@layer",), ("expressivity@block", "synflow@layer", "snip@layer")]),
    proxies=st.sampled_from([(), ("params",)]),
    encoding=st.sampled_from(["minmax", "log", "rank", "live-rank", "zscore"]),
    alignment=st.sampled_from(["slots", "packed"]),
    graph=st.booleans(),
)


def of_rows(rows):
    snip, synflow, entropy, params, last = zip(*rows, strict=True)
    columns = {SNIP: snip, SYNFLOW: synflow, ENTROPY: entropy, PARAMS: params}
    return table(columns, archs=[CELL.format(operation) for operation in last])


def whole(row, spec):
    asked = [row[0], *row[1:3] * (len(spec.statistics) > 1), [row[3]] if spec.proxies else []]
    return all(values is not None and None not in values and not np.isnan(values).any() for values in asked)


@given(ROWS, SPECS, st.data())
def test_features_of_any_rows(rows, spec, data):
    population = of_rows(rows)
    usable = [whole(row, spec) for row in rows]
    if not any(usable):
        with pytest.raises(DataError, match="no row of the table has all that the features need"):
            Encoder.fit(population, spec)
        return
    encoder = Encoder.fit(population, spec)
    x = encoder.encode(population)
    assert x.x.dtype == np.float32 and x.x.shape == (len(rows), len(encoder.coordinates))
    assert x.usable.tolist() == usable and np.isfinite(x.x).all() and not x.x[~x.usable].any()

    at_once, encoded = Encoder.fit_encode(population, spec)
    assert at_once.record() == encoder.record()
    assert all(np.array_equal(tensor, at_once.tensors()[name]) for name, tensor in encoder.tensors().items())
    np.testing.assert_array_equal(encoded.x, x.x)
    np.testing.assert_array_equal(encoded.usable, x.usable)

    taken = data.draw(st.lists(st.integers(0, len(rows) - 1)))
    of_some = encoder.encode(some(population, taken))
    np.testing.assert_array_equal(of_some.x, x.x[taken])
    np.testing.assert_array_equal(of_some.usable, x.usable[taken])

    again = Encoder.restore(json.loads(json.dumps(encoder.record())), encoder.tensors())
    assert again.coordinates == encoder.coordinates and again.spec == spec
    np.testing.assert_array_equal(again.encode(population).x, x.x)

    # Rows that are not usable might as well not be there.
    alone = Encoder.fit(some(population, np.flatnonzero(usable)), spec)
    assert alone.coordinates == encoder.coordinates
    np.testing.assert_array_equal(alone.encode(population).x, x.x)


def features(columns, **spec):
    population = table(columns)
    encoder = Encoder.fit(population, FeatureSpec(**spec))
    return encoder, encoder.encode(population).x.tolist()


def test_slots_keep_their_places_and_packed_values_move_to_the_front():
    columns = {
        SNIP: [[1, 0, 2, 5], [1, 3, 0, 2], [4, 0, 0, 2]],
        ENTROPY: [[1, 0], [2, 4], [0, 3]],
    }
    spec = {"statistics": ["snip@layer", "expressivity@block"], "encoding": "minmax"}
    encoder, x = features(columns, **spec)
    assert encoder.coordinates == (
        Coordinate("snip@layer", "stem", "stem"),
        Coordinate("snip@layer", "cells.0.layers.0", "cells.0"),
        Coordinate("snip@layer", "cells.0.layers.1", "cells.0"),
        Coordinate("snip@layer", "classifier", "classifier"),
        Coordinate("expressivity@block", "stem", "stem"),
        Coordinate("expressivity@block", "cells.0", "cells.0"),
    )
    third = np.float32(1 / 3)
    assert x == [[np.float32(0.2), 0, np.float32(0.4), 1, 1, 0], [third, 1, 0, 2 * third, 0, 1], [1, 0, 0, 0.5, 0, 1]]

    encoder, x = features(columns, **spec, alignment="packed")
    assert [c.slot for c in encoder.coordinates] == ["layer.0", "layer.1", "layer.2", "block.0", "block.1"]
    assert x == [[0, 0.25, 1, 1, 0], [0, 1, 0.5, 0, 1], [1, 0, 0, 0, 1]]


def test_minmax_scales_what_the_table_holds():
    """Logarithms as such, and in slots the 0 of a dead layer with them; docs/parzc.md says so."""
    columns = {SYNFLOW: [[-2, 0, 2, 6]]}
    spec = {"statistics": ["synflow@layer"], "encoding": "minmax"}
    assert features(columns, **spec)[1] == [[0, 0.25, 0.5, 1]]
    assert features(columns, **spec, alignment="packed")[1] == [[0, 0.5, 1]]


def test_a_token_of_packed_values_is_a_place_among_the_live_nodes():
    columns = {SNIP: [[1, 0, 2, 5], [1, 3, 0, 2]], SYNFLOW: [[1, 0, 3, 9], [1, 1, 0, 1]], PARAMS: [1, 2]}
    spec = {"statistics": ["snip@layer", "synflow@layer"], "proxies": ["params"], "alignment": "packed"}
    encoder, _ = features(columns, **spec)
    assert token_layout(encoder.coordinates).tolist() == [[0, 3], [1, 4], [2, 5], [6, -1]]


def test_which_layers_live_the_table_says_where_it_can():
    snip = {SNIP: [[1, 0, 2, 5]]}
    told = snip | {LIVE: [[1, 1, 0, 1]]}
    spec = {"statistics": ["snip@layer"], "encoding": "minmax", "alignment": "packed"}
    assert features(snip, **spec)[1] == [[0, 0.25, 1]]
    encoder, x = features(told, **spec)
    assert x == [[np.float32(0.2), 0, 1]]
    with pytest.raises(UsageError, match=r"the table lacks num_layers@layer; .*--proxies num_layers"):
        encoder.encode(table(snip))


def test_a_layer_that_any_statistic_sees_lives():
    columns = {SNIP: [[1, 0, 2, 5]], SYNFLOW: [[1, 3, 0, 0]]}
    spec = {"statistics": ["snip@layer", "synflow@layer"], "encoding": "minmax", "alignment": "packed"}
    third = np.float32(1 / 3)
    assert features(columns, **spec)[1] == [[np.float32(0.2), 0, np.float32(0.4), 1, third, 1, 0, 0]]


def test_proxies_and_the_graph_follow_the_statistics():
    archs = [CELL.format("none"), CELL.format("avg_pool_3x3")]
    population = table({SNIP: [[1, 2, 3, 4]] * 2, PARAMS: [10, 30]}, archs=archs)
    encoder = Encoder.fit(population, FeatureSpec(proxies=["params"], graph=True, encoding="minmax"))
    x = encoder.encode(population).x
    assert encoder.coordinates[0] == Coordinate("params", "", "")
    assert x[:, 0].tolist() == [0, 1]
    for row, last in zip(x, ("none", "avg_pool_3x3"), strict=True):
        chosen = [encoder.coordinates[at].slot for at in np.flatnonzero(row[1:]) + 1]
        assert chosen == [
            *("0-1=nor_conv_3x3", "0-2=none", "1-2=skip_connect", "0-3=none", "1-3=none"),
            f"2-3={last}",
        ]
    assert x.max() == 1


def test_logarithms_are_not_taken_of_logarithms():
    columns = {SNIP: [[1, 2, 3, 400], [2, 3, 4, 5], [9, 9, 9, 9]]}
    columns[SYNFLOW] = columns[SNIP]
    spec = {"statistics": ["snip@layer", "synflow@layer"]}
    log, plain = (np.array(features(columns, **spec, encoding=encoding)[1]) for encoding in ("log", "zscore"))
    np.testing.assert_array_equal(log[:, 4:], plain[:, 4:])
    assert not np.allclose(log[:, :4], plain[:, :4])


DARTS = get_space("nds/darts")
ARCHS = [DARTS.sample(0, i) for i in range(6)]


def own_slots(statistic_of, dataset="cifar10"):
    """A table in which each value says which architecture and slot it is of."""
    values = [[float(100 * i + j + 1) for j in range(len(statistic_of(a)))] for i, a in enumerate(ARCHS)]
    return values, [dict(zip(statistic_of(a), v, strict=True)) for a, v in zip(ARCHS, values, strict=True)]


@pytest.mark.parametrize(
    ("name", "slots"),
    [
        ("snip@layer", lambda arch: DARTS.slots(arch, "cifar10").layers),
        ("expressivity@block", lambda arch: DARTS.slots(arch, "cifar10").blocks),
        ("trainability@block", lambda arch: DARTS.slots(arch, "cifar10").blocks[1:]),
    ],
)
def test_slots_that_differ_are_aligned_by_name(name, slots):
    values, at = own_slots(slots)
    population = table({statistic(name): values}, "nds/darts", list(map(str, ARCHS)))
    encoder = Encoder.fit(population, FeatureSpec(statistics=[name], encoding="minmax"))
    x = encoder.encode(population).x
    assert {c.slot for c in encoder.coordinates} == set().union(*at)
    for row, of_row in zip(x, at, strict=True):
        expected = np.array([of_row.get(c.slot, 0.0) for c in encoder.coordinates])
        low, high = expected.min(), expected.max()
        np.testing.assert_allclose(row, (expected - low) / (high - low), rtol=1e-6)


@pytest.mark.parametrize("alignment", ["slots", "packed"])
@pytest.mark.parametrize("encoding", ["minmax", "live-rank"])
def test_rows_with_places_that_the_population_has_not(alignment, encoding):
    """They are not usable, and the others are encoded as if they were alone."""
    slots = [DARTS.slots(arch, "cifar10").layers for arch in ARCHS]
    values, _ = own_slots(lambda arch: DARTS.slots(arch, "cifar10").layers)
    values[0] = None
    population = table({statistic("snip@layer"): values}, "nds/darts", list(map(str, ARCHS)))
    spec = FeatureSpec(statistics=["snip@layer"], alignment=alignment, encoding=encoding)
    first = [1, 2] if alignment == "slots" else np.argsort(list(map(len, slots[1:])))[:3] + 1
    encoder = Encoder.fit(some(population, first), spec)
    known = {c.slot for c in encoder.coordinates}
    if alignment == "slots":
        expected = {row: next((slot for slot in slots[row] if slot not in known), "") for row in range(1, 6)}
    else:
        expected = {row: f"layer.{len(known)}" if len(slots[row]) > len(known) else "" for row in range(1, 6)}
    expected = {row: slot for row, slot in expected.items() if slot}
    assert 0 < len(expected) < 4
    encoded = encoder.encode(population)
    assert encoded.unknown == expected
    assert np.flatnonzero(encoded.usable).tolist() == [row for row in range(1, 6) if row not in expected]
    assert not encoded.x[~encoded.usable].any()
    alone = encoder.encode(some(population, np.flatnonzero(encoded.usable)))
    np.testing.assert_array_equal(encoded.population, alone.x)
    assert not alone.unknown
    with pytest.raises(DataError, match=f"has the slot .*, which no .* and all {len(expected)} rows have such; train"):
        encoder.encode(some(population, list(expected)))


def test_lists_that_are_not_those_of_the_network():
    population = table({statistic("snip@layer"): [[1.0, 2.0]]}, "nds/darts", [str(ARCHS[0])])
    with pytest.raises(DataError, match=f"snip@layer has 2 values for {re.escape(str(ARCHS[0]))}, whose network has"):
        Encoder.fit(population, FeatureSpec(statistics=["snip@layer"]))


def test_an_empty_table():
    population = table({SNIP: [[1, 2, 3, 4], [1, 2, 4, 3]], PARAMS: [1, 2]})
    empty = table({SNIP: [], PARAMS: []})
    for alignment in ("slots", "packed"):
        for encoding in ("minmax", "log", "rank", "live-rank", "zscore"):
            spec = FeatureSpec(statistics=["snip@layer"], proxies=["params"], encoding=encoding, alignment=alignment)
            encoder = Encoder.fit(population, spec)
            assert encoder.encode(empty).x.shape == (0, 5)
            with pytest.raises(DataError, match="no rows"):
                Encoder.fit(empty, spec)


def test_bad_input():
    plain = table({SNIP: [[1, 2, 3, 4]], PARAMS: [1]})
    with pytest.raises(UsageError, match=r"lacks zico@layer; `zcpipe run \.\.\. --proxies zico --out DIR` adds it"):
        Encoder.fit(plain, FeatureSpec(statistics=["zico@layer", "snip@layer"]))
    with pytest.raises(UsageError, match=r"lacks fisher@layer, resolution@block, zen; .*--proxies fisher,stage_exp"):
        Encoder.fit(plain, FeatureSpec(statistics=["fisher@layer", "resolution@block"], proxies=["zen"]))
    with pytest.raises(UsageError, match="unknown statistic 'snip@layers'; did you mean snip@layer"):
        Encoder.fit(plain, FeatureSpec(statistics=["snip@layers"]))
    with pytest.raises(UsageError, match="unknown proxy 'snip@layer'"):
        Encoder.fit(plain, FeatureSpec(proxies=["snip@layer"]))
    encoder = Encoder.fit(plain, FeatureSpec(statistics=["snip@layer"]))
    with pytest.raises(DataError, match="of the space nasbench101, the features are of nasbench201"):
        encoder.encode(table({SNIP: [[1, 2, 3, 4]]}, space="nasbench101"))
    with pytest.raises(UsageError, match="lacks snip@layer"):
        encoder.encode(table({PARAMS: [1]}))
    with pytest.raises(DataError, match="no record of features"):
        Encoder.restore({"spec": encoder.record()["spec"]}, encoder.tensors())
    with pytest.raises(DataError, match="the array values is missing"):
        Encoder.restore(encoder.record(), {})


def test_the_column_that_failed_most_is_named():
    failed = table({SNIP: [None, [1, 2, 3, 4], None], PARAMS: [1, math.nan, 1]})
    with pytest.raises(DataError, match="snip@layer failed or is missing in 2 of 3 rows"):
        Encoder.fit(failed, FeatureSpec(statistics=["snip@layer"], proxies=["params"]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "statistics, proxies or the graph"),
        ({"statistics": ["a", "a"]}, "statistics: got a, a, expected names that differ"),
        ({"proxies": ["a"], "encoding": "ranks"}, "encoding: .*'ranks'"),
        ({"proxies": ["a"], "width": 1}, "width: "),
    ],
)
def test_specs_that_mean_nothing(fields, message):
    with pytest.raises(UsageError, match=f"^invalid features: .*{message}"):
        FeatureSpec(**fields)
