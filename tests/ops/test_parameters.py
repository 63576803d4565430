"""parameter_statistics: sums over every layer's weights and gradients, in double precision."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zcpipe.errors import UsageError
from zcpipe.ops import ParameterStatistics, parameter_statistics
from zcpipe.ops.parameters import _parameter_statistics

SHAPES = [(16, 3, 3, 3), (32, 16, 3, 3), (64, 32, 1, 1), (24, 1, 5, 5), (10, 64), (7,), (), (3, 0, 2), (300, 257)]


def transposed(t):
    order = list(reversed(range(t.ndim)))
    return t.permute(order).contiguous().permute(order)


FORMS = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t.contiguous(),
    "transposed": transposed,
    "every other": lambda t: torch.stack([t, t], -1)[..., 0],
    "inner": lambda t: torch.nn.functional.pad(t, (1, 2) * t.ndim)[(slice(1, -2),) * t.ndim],
}
DIMENSIONS = st.lists(st.sampled_from([0, 1, 2, 3, 5, 9, 16, 33]), max_size=5)


def normal(shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def layers(dtype=torch.float32):
    weights = [normal(shape, dtype, seed=i) for i, shape in enumerate(SHAPES)]
    return weights, [normal(shape, dtype, seed=100 + i) for i, shape in enumerate(SHAPES)]


def by_definition(weights, grads):
    table = []
    for w, g in zip(weights, grads, strict=True):
        w, g = w.double().numpy().ravel(), g.double().numpy().ravel()
        table.append([np.sum(g * g), np.sum(g * w), np.sum(np.abs(g * w)), np.sum(w * w)])
    return torch.tensor(table, dtype=torch.float64)


def assert_near(got, weights, grads):
    """Compare each sum with that of its terms' magnitudes: products may cancel."""
    exact = by_definition(weights, grads)
    scale = exact.clone()
    scale[:, 1] = exact[:, 2]
    table = torch.stack(tuple(got), 1)
    assert table.dtype == torch.float64 and table.shape == exact.shape
    assert ((table - exact).abs() <= 1e-14 * scale).all()


def test_known_values():
    weights = [torch.tensor([[1.0, -2.0], [3.0, 0.0]]), torch.tensor([5.0]).double()]
    grads = [torch.tensor([[2.0, 1.0], [-1.0, 4.0]]), torch.tensor([-3.0]).double()]
    got = parameter_statistics(weights, grads)
    assert isinstance(got, ParameterStatistics)
    assert got.squared_gradients.tolist() == [22, 9]
    assert got.products.tolist() == [-3, -15]
    assert got.magnitudes.tolist() == [7, 15]
    assert got.squared_weights.tolist() == [14, 25]


@pytest.mark.parametrize("form", sorted(FORMS))
def test_equals_the_twin_and_the_definition(native, dtype, form):
    weights, grads = ([FORMS[form](t) for t in tensors] for tensors in layers(dtype))
    assert_near(parameter_statistics(weights, grads), weights, grads)
    assert_near(_parameter_statistics(weights, grads).unbind(1), weights, grads)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=DIMENSIONS,
    weight_form=st.sampled_from(sorted(FORMS)),
    grad_form=st.sampled_from(sorted(FORMS)),
    single=st.booleans(),
    seed=st.integers(0, 99),
)
def test_strides_change_no_bit(native, shape, weight_form, grad_form, single, seed):
    dtype = torch.float32 if single else torch.float64
    w, g = normal(shape, dtype, seed), normal(shape, dtype, seed + 100)
    got = parameter_statistics([FORMS[weight_form](w)], [FORMS[grad_form](g)])
    assert all(torch.equal(a, b) for a, b in zip(got, parameter_statistics([w], [g]), strict=True))
    assert_near(got, [w], [g])


def test_expanded_tensors():
    w, g = normal((1, 5, 1)).expand(40, 5, 33), normal((40, 1, 1)).expand(40, 5, 33)
    assert_near(parameter_statistics([w], [g]), [w], [g])


def test_a_layer_does_not_depend_on_the_others():
    weights, grads = layers()
    together = torch.stack(parameter_statistics(weights, grads), 1)
    alone = [torch.stack(parameter_statistics([w], [g]), 1) for w, g in zip(weights, grads, strict=True)]
    assert torch.equal(together, torch.cat(alone))


def test_dtypes_may_differ_between_layers():
    singles, doubles = layers(torch.float32), layers(torch.float64)
    weights, grads = (a + b for a, b in zip(singles, doubles, strict=True))
    assert_near(parameter_statistics(weights, grads), weights, grads)


def test_nothing_overflows_float32():
    w = torch.full((1000,), 3e38)
    assert parameter_statistics([w], [-w]).products.item() == pytest.approx(-9e79, rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("position", [0, 127, 999, 40_000])
def test_no_value_that_is_not_finite_is_lost(bad, position):
    w, g = normal((40_001,)), normal((40_001,), seed=1)
    g[position] = bad
    got = parameter_statistics([w, w], [g, w])
    assert [column.isfinite().tolist() for column in got] == [[False, True]] * 3 + [[True, True]]


def test_no_layers_and_no_elements_give_zeros():
    assert all(column.shape == (0,) and column.dtype == torch.float64 for column in parameter_statistics([], []))
    empty = [torch.zeros(0), torch.zeros(3, 0, 2)]
    assert all(column.tolist() == [0, 0] for column in parameter_statistics(empty, empty))


def test_gradients_are_not_asked_for(dtype):
    w, g = normal((4, 3), dtype).requires_grad_(), normal((4, 3), dtype, 1).requires_grad_()
    assert not any(column.requires_grad for column in parameter_statistics([w], [g]))


def test_opcheck(native, dtype):
    weights, grads = layers(dtype)
    grads = [transposed(g) for g in grads]
    torch.library.opcheck(torch.ops.zcpipe.parameter_statistics.default, (weights, grads))


def test_meta_tensors_give_meta_tensors():
    w = [torch.empty(6, 3, device="meta"), torch.empty(4, device="meta")]
    assert all(column.is_meta and column.shape == (2,) for column in parameter_statistics(w, w))


def test_the_number_of_threads_changes_nothing(native):
    weights, grads = layers()
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(torch.stack(parameter_statistics(weights * 3, grads * 3)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


W = torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("weights", "grads", "message"),
    [
        ([W, W], [W], "^grads: got 1 tensors, expected 2 as in weights"),
        ([W, W.half()], [W, W], r"^weights\[1\]: got torch.float16, expected "),
        ([W], [None], r"^grads\[0\]: got NoneType, expected a tensor"),
        ([W], [W.T], r"^grads\[0\]: got shape \(3, 4\), expected \(4, 3\) as weights\[0\]"),
        ([W, W], [W, W.double()], r"^grads\[1\]: got torch.float64 on cpu, expected the weight's torch.float32"),
        ([W], [W.to("meta")], r"^grads\[0\]: got torch.float32 on meta, expected the weight's torch.float32 on cpu"),
        ([W, W.to("meta")], [W, W.to("meta")], r"^weights\[1\]: got device meta, expected cpu as weights\[0\]"),
    ],
    ids=["count", "dtype", "no tensor", "shape", "pair's dtype", "pair's device", "device"],
)
def test_a_wrong_argument_is_named(weights, grads, message):
    with pytest.raises(UsageError, match=message):
        parameter_statistics(weights, grads)


def test_direct_calls_are_guarded_too(native):
    op = torch.ops.zcpipe.parameter_statistics
    with pytest.raises(RuntimeError, match="grads: expected as many tensors as weights"):
        op([W, W], [W])
    with pytest.raises(RuntimeError, match="weights: got Half, expected float32 or float64"):
        op([W.half()], [W.half()])
    with pytest.raises(RuntimeError, match="grads: expected the dtypes of weights"):
        op([W], [W.double()])
    with pytest.raises(RuntimeError, match="grads: expected the shapes of weights"):
        op([W], [W.T])
