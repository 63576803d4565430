"""One forward with all its sweeps gives what each pass alone gives, and what published code gave."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import zcpipe
from zcpipe.scoring.plan import plan, recipe_of

SPACE = zcpipe.get_space("nasbench201")
NETWORKS = [f"arch{i:02d}" for i in range(0, 24, 2)]
PUBLISHED = {
    "grad_norm": "grad_norm",
    "snip": "snip",
    "plain": "plain",
    "fisher": "fisher",
    "jacob_cov": "jacov",
    "epe_nas": "epe_nas",
}


def reference(data, name):
    """A reference network with its weights, the batch, and the published values."""
    values = json.loads(data("reference/values.json").read_text())["values"][name]
    model = SPACE.build(SPACE.parse(values["arch_str"]), "cifar10", cells_per_stage=1).model
    weights = {key: torch.from_numpy(array) for key, array in np.load(data(f"reference/{name}.npz")).items()}
    zcpipe.initialise(model).load_state_dict(weights, strict=False)
    batch = np.load(data("reference/batch16.npz"))
    return model, torch.from_numpy(batch["x"]), torch.from_numpy(batch["y"]), values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_published_values(data, name, dtype):
    """Signed, cancelling sums are held to the sum of absolute terms."""
    model, x, y, values = reference(data, name)
    scores = zcpipe.score(model.to(dtype), x.to(dtype), y, tuple(PUBLISHED))
    published = values["naslib_f32" if dtype == torch.float32 else "naslib_f64"]
    for ours, theirs in PUBLISHED.items():
        tolerance = 1e-4 if dtype == torch.float32 else 1e-6
        scale = scores["snip"] if ours == "plain" else abs(published[theirs])
        assert abs(scores[ours] - published[theirs]) <= tolerance * scale, ours


@pytest.mark.parametrize("name", NETWORKS[:4])
def test_fused_values_are_those_of_passes_of_their_own(data, name):
    """With the weights and the batch given there is nothing that fusing could change but the order of sums."""
    model, x, y, _ = reference(data, name)
    proxies = ("aznas", *PUBLISHED)
    model, x = model.double(), x.double()
    apart = zcpipe.score(model, x, y, proxies)
    fused = zcpipe.score(model, x, y, proxies, protocol="fused")
    for proxy in apart:
        assert fused[proxy] == pytest.approx(apart[proxy], rel=1e-9), proxy
    for column, values in apart.statistics.items():
        np.testing.assert_allclose(fused.statistics[column], values, rtol=1e-9, atol=1e-12)


def test_fused_shares_one_forward():
    proxies = zcpipe.proxies.resolve(["aznas", *PUBLISHED])
    assert [one.kind for group in plan(proxies) for one in group.passes] == ["sweeps", "blocks"]
    assert [one.kind for group in plan(proxies, "fused") for one in group.passes] == ["sweeps"]
    assert {recipe_of(p, "fused").init for p in proxies if p.recipe} == {"kaiming_normal"}


class OverwritesInPlace(nn.Module):
    """Changes a layer's output after the layer is done with it."""

    def __init__(self, channels, inplace):
        super().__init__()
        # Not under the name inplace: passes switch such a flag off.
        self.conv, self.overwrites = nn.Conv2d(channels, channels, 3, padding=1), inplace

    def forward(self, x):
        return nn.functional.relu(self.conv(x), inplace=self.overwrites)


@pytest.mark.parametrize("protocol", ["paper", "fused"])
def test_outputs_that_the_network_overwrites_are_kept(protocol):
    scores = []
    for inplace in (False, True):
        torch.manual_seed(0)
        body = [OverwritesInPlace(3, inplace), OverwritesInPlace(3, inplace)]
        model = nn.Sequential(*body, nn.Flatten(), nn.Linear(3 * 36, 4))
        x = torch.randn(4, 3, 6, 6)
        proxies = ["fisher", "grad_norm", "expressivity", "trainability"]
        scores.append(zcpipe.score(model, x, torch.arange(4), proxies, blocks=["0.conv", "1"], protocol=protocol))
    if protocol == "fused":
        for name, value in scores[0].items():
            assert scores[1][name] == pytest.approx(value, rel=1e-6)
    else:
        assert scores[1]["fisher"] == pytest.approx(scores[0]["fisher"], rel=1e-6)


def test_a_layer_that_the_output_does_not_need_has_gradient_0():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle, self.never = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            self.idle(x)
            return self.used(x)

    scores = zcpipe.score(Idle(), torch.randn(5, 4), torch.arange(5) % 3, ["grad_norm", "fisher"])
    for name in ("grad_norm@layer", "fisher@layer"):
        assert scores.statistics[name][0] > 0
        assert scores.statistics[name][1:].tolist() == [0, 0]


def test_what_dead_layers_would_change_is_taken_without_them():
    names = ["nwot", "num_layers", "l2_norm", "grad_norm", "grasp"]
    groups = plan(zcpipe.proxies.resolve(names))
    full = {proxy.name: group.full for group in groups for proxy in group.proxies}
    assert full == {"nwot": True, "grad_norm": True, "grasp": True, "l2_norm": True, "num_layers": False}


class TestUnusualForwards:
    """Found by a reviewer: each once gave a wrong value, another proxy's failure, or a changed input."""

    Y = torch.arange(8) % 4

    def test_a_forward_that_writes_to_its_input_changes_nothing(self):
        class Writes(nn.Module):
            def __init__(self):
                super().__init__()
                self.head = nn.Linear(6, 4)

            def forward(self, x):
                x.mul_(2)
                return self.head(x)

        model, x = Writes(), torch.randn(8, 6)
        before = x.clone()
        together = zcpipe.score(model, x, self.Y, ["snip", "jacob_cov", "grad_norm_global", "zico"])
        assert torch.equal(x, before)
        for name in together:
            assert zcpipe.score(model, x, self.Y, name)[name] == together[name]

    @pytest.mark.parametrize("protocol", ["paper", "fused"])
    def test_blocks_whose_maps_are_overwritten_are_measured_before(self, protocol):
        class Net(nn.Module):
            def __init__(self, inplace):
                super().__init__()
                self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
                self.head, self.overwrites = nn.Linear(4, 4), inplace

            def forward(self, x):
                x = nn.functional.relu(self.a(x), inplace=self.overwrites)
                x = nn.functional.relu(self.b(x), inplace=self.overwrites)
                return self.head(x.mean((2, 3)))

        scores = []
        for inplace in (False, True):
            torch.manual_seed(0)
            model, x = Net(inplace), torch.randn(8, 3, 6, 6)
            names = ["aznas", "linear_regions", "fisher"]
            scores.append(
                zcpipe.score(model, x, self.Y, names, blocks=["a", "b"], protocol=protocol, unsupported="skip")
            )
        assert scores[0]["expressivity"] is not None
        for name, value in scores[0].items():
            assert scores[1][name] == (value if value is None else pytest.approx(value, rel=1e-6)), name

    def test_dropout_draws_the_same_in_a_second_forward(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.drop, self.head = nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 4)

            def forward(self, x):
                return self.head(self.drop(nn.functional.relu(self.a(x), inplace=True)))

        torch.manual_seed(0)
        model, x = Net(), torch.randn(8, 6)
        together = zcpipe.score(model, x, self.Y, ["snip", "fisher", "grasp"])
        for name in together:
            assert zcpipe.score(model, x, self.Y, name)[name] == pytest.approx(together[name], rel=1e-5)

    def test_one_sweep_that_fails_costs_its_own_statistics(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.matrix, self.relu = nn.Parameter(torch.randn(6, 4)), nn.ReLU()

            def forward(self, x):
                return self.relu(x @ self.matrix) + x[:, :4]

        scores = zcpipe.score(Net(), torch.randn(8, 6), self.Y, ["snip", "nwot", "jacob_cov"], unsupported="skip")
        assert [name for name in scores if scores[name] is None] == ["snip"]
        assert scores.failures[0].message == "the network has no convolution or linear layer"

    def test_inputs_of_one_dimension_are_rows_of_one(self):
        class Timed(nn.Module):
            def __init__(self):
                super().__init__()
                self.head = nn.Linear(6, 4)

            def forward(self, x, t):
                return self.head(x * t[:, None])

        scores = zcpipe.score(Timed(), (torch.randn(8, 6), torch.rand(8)), self.Y, ["snip", "jacob_cov"])
        assert scores.status == "ok"

    def test_tied_layers_all_count_in_fisher(self):
        torch.manual_seed(0)
        shared = nn.Linear(6, 6)
        twin = nn.Linear(6, 6)
        twin.weight, twin.bias = shared.weight, shared.bias
        x, head = torch.randn(8, 6), nn.Linear(6, 4)
        tied = nn.Sequential(shared, nn.ReLU(), twin, head)
        twice = nn.Sequential(shared, nn.ReLU(), shared, head)
        values = [zcpipe.score(model, x, self.Y, "fisher")["fisher"] for model in (tied, twice)]
        assert values[0] == pytest.approx(values[1], rel=1e-6)

    def test_layers_that_see_samples_one_by_one_have_no_fisher(self):
        class OneByOne(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

            def forward(self, x):
                return self.head(torch.stack([self.conv(one) for one in x]).mean((2, 3)))

        scores = zcpipe.score(OneByOne(), torch.randn(8, 3, 6, 6), self.Y, ["fisher", "snip"], unsupported="skip")
        assert scores["snip"] > 0
        assert scores.failures[0].kind == "unsupported"

    def test_fan_in_of_transposed_convolutions_is_that_of_an_output(self):
        model = nn.Sequential(nn.ConvTranspose2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
        x = torch.randn(8, 3, 5, 5)
        scores = zcpipe.score(model, x, self.Y, "fisher")
        z = model[0](x)
        z.retain_grad()
        nn.functional.cross_entropy(model[1:](z), self.Y).backward()
        saliency = (z * z.grad).sum((2, 3)).square().mean(0).sum() / 2
        assert scores.statistics["fisher@layer"][0] == pytest.approx(float(saliency.detach()) * 27, rel=1e-5)

    def test_maps_of_1d_convolutions_are_refused_in_every_pass(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b, self.head = nn.Conv1d(3, 4, 3), nn.Conv1d(4, 4, 3), nn.Linear(4, 4)

            def forward(self, x):
                return self.head(self.b(self.a(x)).mean(2))

        for options in ({"proxies": ["aznas"]}, {"proxies": ["aznas", "snip"], "protocol": "fused"}):
            with pytest.raises(zcpipe.errors.UsageError, match="1-d convolution's map"):
                zcpipe.score(Net(), torch.randn(8, 3, 20), self.Y, blocks=["a", "b"], **options)

    def test_labels_that_do_not_fit_raise_whatever_reads_them(self):
        model = nn.Sequential(nn.Linear(6, 4))
        for proxy in ("snip", "zico", "gradsign", "grasp", "grad_norm_global"):
            with pytest.raises(zcpipe.errors.UsageError, match="targets must lie in"):
                zcpipe.score(model, torch.randn(8, 6), self.Y + 9, proxy)

    def test_weights_that_a_recipe_cannot_draw_cost_its_proxies_alone(self):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
        scores = zcpipe.score(model, torch.randn(8, 3, 6, 6), self.Y, ["snip", "zen"], unsupported="skip")
        assert scores["snip"] > 0
        assert scores["zen"] is None
        assert scores.failures[0].kind == "unsupported"

    def test_layers_may_be_called_by_keyword(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
                self.head = nn.Linear(4, 4)

            def forward(self, x):
                return self.head(self.relu(input=self.norm(input=self.conv(input=x))).mean((2, 3)))

        scores = zcpipe.score(Net(), torch.randn(8, 3, 6, 6), self.Y, ["snip", "nwot", "fisher"])
        assert scores.status == "ok"
