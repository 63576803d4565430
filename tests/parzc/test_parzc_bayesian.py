import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from zcpipe.errors import UsageError
from zcpipe.parzc.bayesian import BayesianLinear, kl, mean_weights, one_draw


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def layer():
    return BayesianLinear(7, 5)


@pytest.fixture
def network():
    return nn.Sequential(BayesianLinear(7, 5), nn.ReLU(), nn.Linear(5, 4), nn.Sequential(BayesianLinear(4, 1)))


def test_it_starts_as_published(layer):
    assert layer.bias is None
    assert torch.equal(layer.rho, torch.full((5, 7), -5.0))
    assert layer.sigma()[0, 0].item() == pytest.approx(math.log(1 + math.exp(-5)))
    bound = 1 / math.sqrt(7)  # Kaiming-uniform of a = sqrt(5)
    means = BayesianLinear(7, 1000).mean
    assert 0.99 * bound < means.abs().max() <= bound
    assert means.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_it_maps_the_last_axis(layer):
    assert layer(torch.zeros(2, 3, 7)).shape == (2, 3, 5)
    assert layer(torch.zeros(0, 7)).shape == (0, 5)


@pytest.mark.parametrize("training", [True, False])
def test_each_forward_draws_one_weight_for_all_rows_in_either_mode(layer, training):
    layer.train(training)
    x = torch.ones(3, 7)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    torch.testing.assert_close(first[0], first[2])


def test_a_forward_is_mean_and_sigma_times_eps():
    layer = BayesianLinear(7, 5, bias=True, rho=0.3)
    nn.init.normal_(layer.bias)
    x = torch.randn(4, 7)
    torch.manual_seed(3)
    found = layer(x)
    torch.manual_seed(3)
    weight = layer.mean + torch.log1p(layer.rho.exp()) * torch.randn(5, 7)
    torch.testing.assert_close(found, x @ weight.T + layer.bias)


def test_draws_have_the_stated_moments():
    layer = BayesianLinear(3, 2, rho=1.0)
    draws = torch.stack([layer.draw() for _ in range(4000)]).detach()
    torch.testing.assert_close(draws.mean(0), layer.mean.detach(), atol=0.1, rtol=0)
    torch.testing.assert_close(draws.std(0), layer.sigma().detach(), atol=0, rtol=0.06)


def test_both_parameters_learn(layer):
    layer(torch.randn(4, 7)).square().sum().backward()
    assert layer.mean.grad.abs().min() > 0
    assert layer.rho.grad.abs().min() > 0


def test_with_its_mean_it_is_a_linear_layer(network):
    x = torch.randn(6, 7)
    first, _, second, (last,) = network
    state = torch.get_rng_state()
    with mean_weights(network):
        found = network(x)
        found.sum().backward()
    torch.testing.assert_close(found, second((x @ first.mean.T).relu()) @ last.mean.T)
    assert first.mean.grad is not None
    assert first.rho.grad is None
    assert torch.equal(torch.get_rng_state(), state)


def test_one_draw_holds_until_it_ends(network):
    x = torch.randn(6, 7)
    with one_draw(network):
        inside = network(x)
        assert torch.equal(network(x), inside)
        with mean_weights(network):
            assert not torch.equal(network(x), inside)
        assert torch.equal(network(x), inside)
    with one_draw(network):
        assert not torch.equal(network(x), inside)
    assert not torch.equal(network(x), network(x))


def test_an_exception_ends_it_too(network):
    with pytest.raises(ZeroDivisionError), mean_weights(network):
        _ = 1 / 0
    assert not torch.equal(network(torch.ones(1, 7)), network(torch.ones(1, 7)))


def test_what_is_fixed_is_no_parameter(network):
    names = [name for name, _ in network.named_parameters()]
    with mean_weights(network):
        assert [name for name, _ in network.named_parameters()] == names
        assert list(network.state_dict()) == names


@pytest.mark.parametrize("prior_sigma", [0.01, 0.1, 1.0, 3.0])
def test_kl_against_torch(prior_sigma):
    layer = BayesianLinear(7, 5, bias=True)
    nn.init.normal_(layer.rho, -2.0)
    prior = Normal(torch.tensor(0.0), torch.tensor(prior_sigma))
    expected = kl_divergence(Normal(layer.mean, layer.sigma()), prior).sum()
    torch.testing.assert_close(layer.kl(prior_sigma), expected)


def test_kl_of_the_prior_itself_is_nothing(layer):
    nn.init.zeros_(layer.mean)
    nn.init.constant_(layer.rho, math.log(math.expm1(0.2)))
    assert layer.kl(0.2).item() == pytest.approx(0, abs=1e-5)
    assert layer.kl(0.3).item() > 0.1


def test_kl_of_a_network_is_the_sum(network):
    assert kl(network, 0.5).item() == pytest.approx((network[0].kl(0.5) + network[3][0].kl(0.5)).item())
    assert kl(nn.Linear(2, 2), 0.5).item() == 0


def test_kl_in_double_precision_has_the_right_gradient():
    layer = BayesianLinear(3, 2).double()

    def divergence(mean, rho):
        return torch.func.functional_call(_Kl(layer), {"layer.mean": mean, "layer.rho": rho})

    assert torch.autograd.gradcheck(divergence, (layer.mean, layer.rho))


class _Kl(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self):
        return self.layer.kl(0.7)


@pytest.mark.parametrize("prior_sigma", [0.0, -1.0, math.inf, math.nan])
def test_the_prior_has_a_width(layer, prior_sigma):
    with pytest.raises(UsageError, match="prior_sigma: got"):
        layer.kl(prior_sigma)
