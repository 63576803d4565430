import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from zcpipe.errors import UsageError
from zcpipe.parzc.bayesian import BayesianLinear, kl, mean_weights
from zcpipe.parzc.mabn import MABN, PublishedMABN, grouped, segments

FEATURES = 37


def paper(**sizes):
    return MABN(FEATURES, **({"dim": 12, "depth": 2, "token_hidden": 5, "channel_hidden": 9} | sizes))


def published(**sizes):
    return PublishedMABN(FEATURES, **({"size": 64, "dim": 12, "depth": 2} | sizes))


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


both = pytest.mark.parametrize("make", [paper, published])


@both
def test_vectors_become_numbers(make):
    network = make()
    for n in (0, 1, 5):
        predicted = network(torch.randn(n, FEATURES))
        assert (predicted.shape, predicted.dtype) == ((n,), torch.float32)


@both
def test_non_contiguous_vectors(make):
    network, x = make().eval(), torch.randn(FEATURES, 4)
    with mean_weights(network):
        torch.testing.assert_close(network(x.T), network(x.T.contiguous()))


@both
def test_rows_do_not_meet(make):
    network, x = make().eval(), torch.randn(5, FEATURES)
    with mean_weights(network):
        torch.testing.assert_close(network(x)[2:3], network(x[2:3]))


@both
def test_it_is_uncertain_in_evaluation_and_certain_with_its_means(make):
    network, x = make().eval(), torch.randn(5, FEATURES)
    assert not torch.equal(network(x), network(x))
    with mean_weights(network):
        assert torch.equal(network(x), network(x))


def test_with_a_small_rho_its_weights_are_plain():
    network, x = paper(rho=-30.0).eval(), torch.randn(4, FEATURES)
    drawn = network(x)
    assert torch.equal(network(x), drawn)
    with mean_weights(network):
        assert torch.equal(network(x), drawn)
    network.kl(0.1).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


@both
def test_every_parameter_learns(make):
    network = make(dropout=0.0)
    network(torch.randn(8, FEATURES)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@both
def test_every_coordinate_counts(make):
    network, x = make().eval(), torch.randn(3, FEATURES, requires_grad=True)
    with mean_weights(network):
        network(x).sum().backward()
    assert (x.grad != 0).all()


@both
def test_kl_is_that_of_its_two_bayesian_layers(make):
    network = make()
    layers = [module for module in network.modules() if isinstance(module, BayesianLinear)]
    assert len(layers) == 2
    assert network.kl(0.3).item() == pytest.approx(sum(layer.kl(0.3).item() for layer in layers))
    assert network.kl(0.3) == kl(network, 0.3)


@both
def test_vectors_of_another_length(make):
    for shape in [(2, FEATURES + 1), (FEATURES,), (2, 3, FEATURES)]:
        with pytest.raises(UsageError, match=r"x: got shape .*, expected \[n, 37\]"):
            make()(torch.zeros(shape))


def test_the_published_form_never_mixes_tokens():
    """A token's features before the mean do not depend on another token, bit for bit."""
    network, tokens = published().eval(), torch.randn(3, 4, 16)
    changed = tokens.clone()
    changed[:, 2] += 1
    with mean_weights(network):
        before, after = network.mixed(tokens), network.mixed(changed)
        same = (before == after).all(dim=(0, 2))
        assert same.tolist() == [True, True, False, True]
        order = [2, 0, 3, 1]
        torch.testing.assert_close(network.mixed(tokens[:, order]), before[:, order])


def test_the_papers_form_mixes_tokens():
    network, tokens = paper().eval(), torch.randn(3, 3, 16)
    changed = tokens.clone()
    changed[:, 1] += 1
    with mean_weights(network):
        before, after = network.mixed(tokens), network.mixed(changed)
        assert not (before == after).all(dim=2).any()
        order = [2, 0, 1]
        assert not torch.allclose(network.mixed(tokens[:, order]), before[:, order], atol=1e-3)


def norm(values, layer):
    centred = values - values.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + 1e-5).sqrt() * layer.weight + layer.bias


def mixed(values, layers):
    first, last = layers[0], layers[3]
    return nn.functional.gelu(values @ first.weight.T + first.bias) @ last.weight.T + last.bias


def test_the_papers_form_against_its_formulas():
    network, x = paper(depth=1).eval(), torch.randn(2, FEATURES)
    block = network.blocks[0]

    filled = torch.cat([x, torch.zeros(2, 3 * 16 - FEATURES)], dim=1).reshape(2, 3, 16)
    u = filled @ network.enter.mean.T
    u = u + mixed(norm(u, block.token_norm).transpose(1, 2), block.token_mixing).transpose(1, 2)
    u = u + mixed(norm(u, block.channel_norm), block.channel_mixing)
    expected = (norm(u, network.norm).mean(1) @ network.head.mean.T).squeeze(1)
    with mean_weights(network):
        torch.testing.assert_close(network(x), expected)


def test_the_published_form_against_its_formulas():
    network, x = published(depth=1).eval(), torch.randn(2, FEATURES)
    block, (bayesian, narrowing, _, last) = network.blocks[0], network.head
    u = (x @ network.cut.weight.T + network.cut.bias).reshape(2, 4, 16) @ network.enter.mean.T
    u = u + mixed(norm(u, block.wide_norm), block.wide)
    u = u + mixed(norm(u, block.narrow_norm), block.narrow)
    pooled = norm(u, network.norm).mean(1)
    expected = (pooled @ bayesian.mean.T @ narrowing.weight.T @ last.weight.T).squeeze(1)
    with mean_weights(network):
        torch.testing.assert_close(network(x), expected)


def test_the_published_form_has_the_published_layers():
    """Counted by hand: the cut and the feed-forwards have biases, the Bayesian layers and the head have none."""
    size, dim, depth = 48, 20, 3
    network = published(size=size, dim=dim, depth=depth)
    feed_forwards = sum(2 * dim * hidden + hidden + dim for hidden in (4 * dim, dim // 2))
    count = (FEATURES + 1) * size + 2 * 16 * dim + depth * (feed_forwards + 4 * dim) + 2 * dim
    count += 2 * dim * dim + dim * dim // 2 + dim // 2
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    assert network.tokens(torch.zeros(2, FEATURES)).shape == (2, 3, 16)


def test_the_published_sizes_are_the_defaults():
    with torch.device("meta"):
        network = PublishedMABN(58)
    assert network.cut.weight.shape == (752, 58)
    assert network.enter.mean.shape == (1600, 16)
    assert len(network.blocks) == 5
    assert {module.p for module in network.modules() if isinstance(module, nn.Dropout)} == {0.18}


@pytest.mark.parametrize("size", [0, 8, 765])
def test_the_published_tokens_have_16_values(size):
    with pytest.raises(UsageError, match="expected a multiple of 16"):
        published(size=size)


def test_a_layout_says_what_makes_a_token():
    layout = np.array([[3, 1, -1], [0, -1, -1]])
    network = MABN(4, layout, dim=8)
    tokens = network.tokens(torch.tensor([[10.0, 11.0, 12.0, 13.0]]))
    assert tokens.tolist() == [[[13.0, 11.0, 0.0], [10.0, 0.0, 0.0]]]


def test_a_layout_is_kept_with_the_weights():
    layout = np.array([[3, 1, -1], [0, 2, -1]])
    network, other = MABN(4, layout, dim=8).eval(), MABN(4, layout[::-1].copy(), dim=8).eval()
    other.load_state_dict(network.state_dict())
    x = torch.randn(3, 4)
    with mean_weights(network), mean_weights(other):
        assert torch.equal(network(x), other(x))


@pytest.mark.parametrize(
    ("layout", "complaint"),
    [
        (np.array([0, 1]), r"got int64 of shape \(2,\)"),
        (np.array([[0.0, 1.0]]), "got float64"),
        (np.empty((0, 3), dtype=np.int64), r"shape \(0, 3\)"),
        (np.array([[0, 4]]), r"from 0 to 4, expected -1 \(none\) to 3"),
        (np.array([[0, -2]]), "from -2 to 0"),
    ],
)
def test_layouts_that_mean_nothing(layout, complaint):
    with pytest.raises(UsageError, match=complaint):
        MABN(4, layout)


@given(st.integers(1, 100), st.integers(1, 40))
def test_segments_hold_every_coordinate_once_in_order(features, width):
    layout = segments(features, width)
    assert layout.shape[1] == width
    assert layout[layout >= 0].tolist() == list(range(features))
    assert (layout[:-1] >= 0).all()
    assert layout[-1, 0] >= 0


@given(st.lists(st.sampled_from(["", "stem", "cells.0", "cells.1"]), min_size=1, max_size=20))
def test_groups_hold_every_coordinate_once_with_its_like(groups):
    layout = grouped(groups)
    tokens = [row[row >= 0].tolist() for row in layout]
    assert sorted(layout[layout >= 0]) == list(range(len(groups)))
    assert [groups[token[0]] for token in tokens] == list(dict.fromkeys(groups))
    assert all(groups[i] == groups[token[0]] for token in tokens for i in token)
    assert all(token == sorted(token) for token in tokens)
    assert layout.shape[1] == max(map(len, tokens))


def test_nothing_to_make_tokens_of():
    with pytest.raises(UsageError, match="groups: got none"):
        grouped([])
    with pytest.raises(UsageError, match="got 0 and 16"):
        segments(0)
