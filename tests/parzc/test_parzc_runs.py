"""Features of real tables: values that are known without the table stand where the coordinates say."""

import numpy as np
import pytest
from torch import nn

from zcpipe import initialise, open_table
from zcpipe.parzc.features import Encoder, token_layout
from zcpipe.parzc.spec import FeatureSpec
from zcpipe.run import RunSpec, Sample, run
from zcpipe.spaces import get_space, slot_of

SPACES = ("nasbench101", "nasbench201", "nds/darts", "nds/resnet", "nasbenchmacro")


@pytest.fixture(scope="module", params=SPACES)
def scored(request, tmp_path_factory):
    """A table of four architectures of a space."""
    out = tmp_path_factory.mktemp("table")
    spec = RunSpec(
        space=request.param,
        dataset="cifar10",
        proxies=("l2_norm", "num_layers", "expressivity", "trainability"),
        selection=Sample(n=4),
        batch_size=2,
        resolution=16,
    )
    assert run(spec, out).failed == 0
    return open_table(out)


def networks(table):
    space = get_space(table.identity["space"])
    for text in table.to_arrow(["arch"])["arch"].to_pylist():
        arch = space.parse(text)
        yield space, arch, space.build(arch, "cifar10", full=True).model


def weighted(space, arch, model):
    slots = set(space.slots(arch, "cifar10").layers)
    for path, layer in model.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            yield slot_of(path, slots), layer


def norms_by_slot(space, arch, model):
    """What l2_norm@layer is of each slot, from the weights that the run drew."""
    initialise(model, init="default", seed=0, space=space.name, scope=space.key(arch), repeat=0)
    return {slot: layer.weight.detach().norm().item() for slot, layer in weighted(space, arch, model)}


def standardised(rows, names):
    raw = np.array([[row.get(name, 0.0) for name in names] for row in rows])
    spread = raw.std(axis=0)
    return (raw - raw.mean(axis=0)) / np.where(np.ptp(raw, axis=0) > 0, spread, np.inf)


def test_values_of_layers_stand_at_their_slots(scored):
    norms = [norms_by_slot(*network) for network in networks(scored)]
    encoder = Encoder.fit(scored, FeatureSpec(statistics=["l2_norm@layer"], encoding="zscore"))
    slots = [coordinate.slot for coordinate in encoder.coordinates]
    # Slots of operations without weights hold 0 in spaces whose architectures share their slots.
    assert set().union(*norms) <= set(slots)
    encoded = encoder.encode(scored)
    assert encoded.usable.all()
    np.testing.assert_allclose(encoded.x, standardised(norms, slots), rtol=1e-3, atol=1e-4)


def test_packed_values_are_those_of_live_layers_in_order(scored):
    encoder = Encoder.fit(scored, FeatureSpec(statistics=["l2_norm@layer"], encoding="minmax", alignment="packed"))
    x = encoder.encode(scored).x
    longest = 0
    for row, (space, arch, model) in zip(x, networks(scored), strict=True):
        norms = norms_by_slot(space, arch, model)
        live = [slot for slot, _ in weighted(space, arch, space.build(arch, "cifar10").model)]
        values = np.array([norms[slot] for slot in live])
        expected = (values - values.min()) / np.ptp(values)
        np.testing.assert_allclose(row[: len(live)], expected, rtol=1e-4, atol=1e-5)
        assert not row[len(live) :].any()
        longest = max(longest, len(live))
    assert x.shape[1] == longest


def test_blocks_stand_with_the_layers_inside_them(scored):
    spec = FeatureSpec(
        statistics=["num_layers@layer", "expressivity@block", "trainability@block"], proxies=["params"], encoding="log"
    )
    encoder = Encoder.fit(scored, spec)
    x = encoder.encode(scored).x
    blocks = [set(space.slots(arch, "cifar10").blocks) for space, arch, _ in networks(scored)]
    groups: dict[str, set[str]] = {}
    for coordinate in encoder.coordinates:
        groups.setdefault(coordinate.group, set()).add(coordinate.column)
    for block in set.union(*blocks):
        assert "expressivity@block" in groups[block]
    assert "num_layers@layer" in groups["stem"] and "trainability@block" not in groups["stem"]
    layout = token_layout(encoder.coordinates)
    assert sorted(layout[layout >= 0].tolist()) == list(range(len(encoder.coordinates)))
    assert len(layout) == len(groups)
    assert encoder.coordinates[layout[0][layout[0] >= 0][0]].group == "stem"
    assert [encoder.coordinates[at].column for at in layout[-1] if at >= 0] == ["params"]
    assert np.isfinite(x).all()


def test_the_values_of_a_block_are_the_lists_own(scored):
    encoder = Encoder.fit(scored, FeatureSpec(statistics=["trainability@block"], encoding="zscore"))
    lists = scored.to_arrow(["trainability@block"])["trainability@block"].to_pylist()
    later = [space.slots(arch, "cifar10").blocks[1:] for space, arch, _ in networks(scored)]
    rows = [dict(zip(names, values, strict=True)) for names, values in zip(later, lists, strict=True)]
    finite = [at for at, c in enumerate(encoder.coordinates) if all(np.isfinite(row.get(c.slot, 0.0)) for row in rows)]
    x = encoder.encode(scored).x[:, finite]
    names = [encoder.coordinates[at].slot for at in finite]
    np.testing.assert_allclose(x, standardised(rows, names), rtol=1e-3, atol=1e-4)
