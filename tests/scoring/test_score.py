"""``zcpipe.score`` equals the published values, works on any module, and leaves it untouched."""

import json
import math

import numpy as np
import pytest
import torch
from networks import assert_untouched, fingerprint
from torch import nn

import zcpipe
from zcpipe.errors import UnsupportedError, UsageError
from zcpipe.ops.philox import Stream

SPACE = zcpipe.get_space("nasbench201")
NETWORKS = [f"arch{i:02d}" for i in range(0, 24, 2)]
MAPS = [(16, 16, 32, 32)] * 2 + [(16, 32, 16, 16)] * 2 + [(16, 64, 8, 8)] * 2


def reference(data, name):
    """A reference network with its published weights, batch and values."""
    values = json.loads(data("reference/values.json").read_text())["values"][name]
    built = SPACE.build(SPACE.parse(values["arch_str"]), "cifar10", cells_per_stage=1)
    model = zcpipe.initialise(built.model)
    weights = {key: torch.from_numpy(array) for key, array in np.load(data(f"reference/{name}.npz")).items()}
    own = dict(model.named_parameters())
    assert all(key in weights for key, parameter in own.items() if parameter.ndim > 1)
    model.load_state_dict({key: weights[key] for key in weights if key in own}, strict=False)
    return model, torch.from_numpy(np.load(data("reference/batch16.npz"))["x"]), values["aznas_f64"]


def published_probes():
    """The probes of the reference run: drawn in float32, last pair first."""
    torch.manual_seed(777)
    return [(torch.bernoulli(torch.full(shape, 0.5)) - 0.5) * 2 for shape in reversed(MAPS[1:])][::-1]


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_published_values_in_float64(data, name):
    model, x, published = reference(data, name)
    scores = zcpipe.score(model.double(), x.double(), proxies="aznas", probes=published_probes())
    assert scores.status == "ok"
    assert {key: scores[key] for key in published} == pytest.approx(published, rel=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_published_values_in_float32(data, name):
    model, x, published = reference(data, name)
    scores = zcpipe.score(model, x, proxies="aznas", probes=published_probes())
    assert scores["expressivity"] == pytest.approx(published["expressivity"], rel=1e-5)
    assert scores["progressivity"] == pytest.approx(published["progressivity"], rel=1e-5)
    assert scores["trainability"] == pytest.approx(published["trainability"], rel=1e-4)


def test_own_probes_have_the_mean_of_independent_ones(data):
    """Trainability under our Philox probes and under torch's Bernoulli probes: equal means (Welch, 5 sigma)."""
    model, x, _ = reference(data, "arch12")
    generator = torch.Generator().manual_seed(5)
    ours, theirs = [], []
    for seed in range(30):
        ours.append(zcpipe.score(model, x, proxies="trainability", seed=seed)["trainability"])
        probes = [torch.randint(0, 2, shape, generator=generator).float() * 2 - 1 for shape in MAPS[1:]]
        theirs.append(zcpipe.score(model, x, proxies="trainability", probes=probes)["trainability"])
    error = math.sqrt(np.var(ours, ddof=1) / 30 + np.var(theirs, ddof=1) / 30)
    assert abs(np.mean(ours) - np.mean(theirs)) < 5 * error
    assert 0.3 < np.std(ours) / np.std(theirs) < 3


def cell_scores(index, **options):
    built = SPACE.build(SPACE[index], "cifar10")
    model = zcpipe.initialise(built.model)
    x = torch.empty(4, 3, 32, 32)
    Stream.of(0, "", "test", 0, "x").normal_(x)
    return zcpipe.score(model, x, proxies="aznas", **options)


def test_disconnected_cell_is_data_not_a_crash():
    index = next(i for i in range(len(SPACE)) if SPACE.key(SPACE[i]) == "0")
    scores = cell_scores(index)
    assert scores.status == "ok"
    assert scores["expressivity"] == scores["progressivity"] == -math.inf
    assert scores["trainability"] == pytest.approx(-999_998 * 15 / 17, abs=20)
    assert np.isneginf(scores.statistics["expressivity@block"]).sum() == 17  # the stem alone is alive


def test_identity_cell_is_worst_in_trainability():
    index = next(i for i in range(len(SPACE)) if SPACE.key(SPACE[i]) == "x")
    scores = cell_scores(index)
    assert scores["trainability"] == -math.inf
    assert scores.status == "ok"
    assert math.isfinite(scores["expressivity"])


def test_flags_of_a_class_work_like_those_of_a_module():
    class InPlace(nn.Module):
        inplace = True

        def forward(self, x):
            return nn.functional.relu(x, inplace=self.inplace)

    x = torch.randn(2, 3, 7, 7)
    torch.manual_seed(1)
    convolutions = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(2)]
    ours, plain = (
        zcpipe.score(nn.Sequential(convolutions[0], act, convolutions[1]), x, proxies="aznas", blocks=["0", "1", "2"])
        for act in (InPlace(), nn.ReLU())
    )
    assert ours.status == "ok"
    assert ours.values_by_name == plain.values_by_name


def test_model_is_untouched_when_its_forward_fails():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(5, 2)).eval()
    x = torch.randn(2, 3, 8, 8)
    before = fingerprint(model)
    scores = zcpipe.score(model, x, proxies="aznas", blocks=["0", "1"], unsupported="skip")
    assert_untouched(model, before)
    assert scores.status == "error"
    assert scores["expressivity"] is None
    assert scores.failures[0].message.startswith("the model fails on these inputs: RuntimeError: ")
    with pytest.raises(UsageError):
        zcpipe.score(model, x, proxies="aznas", blocks=["0", "1"])
    assert_untouched(model, before)


def test_token_maps_and_vectors_are_blocks_too():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

        def forward(self, x):
            return self.b(self.a(x))

    scores = zcpipe.score(Tokens(), torch.randn(4, 5, 6), proxies="expressivity,trainability", blocks=["a", "b"])
    assert scores.status == "ok", scores.failures


def test_non_finite_activations_fail_with_a_reason():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    with torch.no_grad():
        model[1].weight.fill_(1e38)
    scores = zcpipe.score(model, torch.randn(2, 3, 8, 8), proxies="expressivity,params", blocks=["0", "1"])
    assert scores.status == "error"
    assert scores["expressivity"] is None
    assert scores.failures[0].kind == "nonfinite"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"blocks": None}, "pass blocks="),
        ({"blocks": ["0"]}, "at least two"),
        ({"blocks": ["0", "0"]}, "at least two different"),
        ({"blocks": ["0", "nope"]}, "no module named 'nope'"),
        ({"blocks": ["0", "1"], "probes": []}, "expected 1, got 0"),
    ],
)
def test_bad_arguments_are_named(options, says):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    with pytest.raises(UsageError, match=says):
        zcpipe.score(model, torch.randn(2, 3, 8, 8), proxies="aznas", **options)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_inputs_are_named(bad):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    with pytest.raises(UsageError, match="NaN or infinite"):
        zcpipe.score(model, torch.full((2, 3, 8, 8), bad), blocks=["0", "1"])
    with pytest.raises(UsageError, match="at least one sample"):
        zcpipe.score(model, torch.empty(0, 3, 8, 8), blocks=["0", "1"])


def test_blocks_in_the_wrong_order_are_named():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    before = fingerprint(model)
    with pytest.raises(UsageError, match="expected '1', got '0'"):
        zcpipe.score(
            model, torch.randn(2, 3, 8, 8, generator=torch.Generator()), proxies="expressivity", blocks=["1", "0"]
        )
    assert_untouched(model, before)


def test_a_failing_statistic_costs_only_the_proxies_that_read_it():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3))  # 8 x 8 to 6 x 6: no integer multiple
    scores = zcpipe.score(model, torch.randn(2, 3, 8, 8), proxies="aznas", blocks=["0", "1"], unsupported="skip")
    assert scores.status == "partial"
    assert scores["trainability"] is None
    assert scores["expressivity"] is not None
    assert [failure.proxy for failure in scores.failures] == ["trainability"]
    assert "integer multiples" in scores.failures[0].message


@pytest.mark.parametrize("error", [KeyError("a"), AttributeError("b"), MemoryError("c")])
def test_whatever_a_forward_raises_is_a_failure_with_its_reason(error):
    class Broken(nn.Module):
        def forward(self, x):
            raise error

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Broken())
    options = {"proxies": "expressivity", "blocks": ["0", "1"]}
    scores = zcpipe.score(model, torch.randn(2, 3, 8, 8), **options, unsupported="skip")
    assert scores["expressivity"] is None
    assert type(error).__name__ in scores.failures[0].message
    assert scores.status == ("memory" if isinstance(error, MemoryError) else "error")
    if isinstance(error, MemoryError):
        assert zcpipe.score(model, torch.randn(2, 3, 8, 8), **options).status == "memory"
    else:
        with pytest.raises(UsageError, match=f"the model fails on these inputs: {type(error).__name__}"):
            zcpipe.score(model, torch.randn(2, 3, 8, 8), **options)


def test_inference_mode_is_refused_and_inference_inputs_work():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    with torch.inference_mode():
        x = torch.randn(2, 3, 8, 8)
        with pytest.raises(UsageError, match="inference_mode"):
            zcpipe.score(model, x, blocks=["0", "1"])
    assert zcpipe.score(model, x, blocks=["0", "1"]).status == "ok"
    with torch.no_grad():
        assert zcpipe.score(model, x, blocks=["0", "1"]).status == "ok"


def test_maps_that_are_neither_images_nor_tokens_are_refused():
    sequence = nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), nn.Conv1d(8, 8, 3, padding=1))
    with pytest.raises(UsageError, match="1-d convolution"):
        zcpipe.score(sequence, torch.randn(4, 3, 32), proxies="expressivity", blocks=["0", "1"])
    volume = nn.Sequential(nn.Conv3d(3, 4, 3, padding=1), nn.Conv3d(4, 4, 3, padding=1))
    with pytest.raises(UsageError, match="block maps must be"):
        zcpipe.score(volume, torch.randn(2, 3, 4, 4, 4), proxies="expressivity", blocks=["0", "1"])


def test_dropout_draws_the_same_every_time():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Sequential(nn.Dropout(0.5), nn.Conv2d(4, 4, 3, padding=1)))
    x = torch.randn(4, 3, 8, 8)
    first, second = (zcpipe.score(model, x, blocks=["0", "1"]).values_by_name for _ in range(2))
    assert first == second


def test_own_buffers_of_a_batch_norm_subclass_are_restored():
    class Counting(nn.BatchNorm2d):
        def __init__(self, channels):
            super().__init__(channels)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Counting(4))
    zcpipe.score(model, torch.randn(2, 3, 8, 8), proxies="expressivity", blocks=["0", "1"])
    assert model[1].calls == 0


def test_running_statistics_that_a_forward_writes_by_itself_are_restored():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

        def forward(self, x):
            norm = self.norm
            norm.num_batches_tracked += 1
            x = nn.functional.batch_norm(self.conv(x), norm.running_mean, norm.running_var, training=True)
            norm.running_var = 2 * norm.running_var
            return self.head(x.mean((2, 3)))

    model = nn.Sequential(Normed(), nn.Identity())
    model.register_buffer("table", torch.arange(6.0).view(2, 3))
    before, content = dict(model.named_buffers()), {name: b.clone() for name, b in model.named_buffers()}
    assert zcpipe.score(model, torch.randn(4, 3, 8, 8), torch.arange(4) % 3, "snip").status == "ok"
    torch.testing.assert_close(dict(model.named_buffers()), content, rtol=0, atol=0)
    assert all(buffer is before[name] for name, buffer in model.named_buffers())


def test_lazy_layers_are_refused_and_stay_lazy():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.Conv2d(4, 4, 3))
    with pytest.raises(UsageError, match="lazy"):
        zcpipe.score(model, torch.randn(2, 3, 8, 8), proxies="params,expressivity", blocks=["0", "1"])
    assert isinstance(model[0], nn.LazyConv2d)


def test_params_and_macs_of_any_module():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 5))
    scores = zcpipe.score(model, torch.randn(2, 3, 8, 8), proxies="params,macs")
    assert scores["params"] == 216 + 16 + 8 * 36 * 5 + 5
    assert scores["macs"] == 216 * 36 + 8 * 36 * 5


class _Keeping(nn.Module):
    """Keeps an average of its inputs the usual way: another tensor in the buffer's place."""

    inplace = True

    def __init__(self):
        super().__init__()
        self.register_buffer("average", torch.zeros(()))
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        self.average = 0.9 * self.average + 0.1 * x.mean()
        return self.conv(x)


class _Fixed(_Keeping):
    @property
    def inplace(self):
        return True


@pytest.mark.parametrize("kind", [_Keeping, _Fixed])
def test_buffers_put_in_place_of_others_and_flags_of_classes_are_put_back(kind):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), kind())
    before, attributes = model[1].average, set(vars(model[1]))
    assert zcpipe.score(model, torch.randn(4, 3, 8, 8), blocks=["0", "1"]).status == "ok"
    assert model[1].average is before and before == 0
    assert set(vars(model[1])) == attributes


@pytest.mark.parametrize("block", ["1.0", "1.1", "1.2", "1"])
def test_a_block_may_lie_inside_a_chain(block):
    chain = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), chain)
    assert zcpipe.score(model, torch.randn(4, 3, 8, 8), blocks=["0", block]).status == "ok"


def test_automatic_casting_is_the_callers_affair():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    x = torch.randn(4, 3, 8, 8)
    plain = zcpipe.score(model, x, blocks=["0", "1"])
    with torch.autocast("cpu", torch.bfloat16):
        assert dict(zcpipe.score(model, x, blocks=["0", "1"])) == dict(plain)


def test_a_network_that_fails_is_a_result_where_that_is_asked_for():
    chain = nn.Sequential(nn.ReLU(), nn.Conv2d(5, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), chain)
    options = {"proxies": "expressivity,params", "blocks": ["0", "1"]}
    scores = zcpipe.score(model, torch.randn(4, 3, 8, 8), **options, unsupported="skip")
    assert scores.status == "error" and "channels" in scores.failures[0].message
    assert scores["params"] is not None
    with pytest.warns(UserWarning, match="the model fails on these inputs"):
        zcpipe.score(model, torch.randn(4, 3, 8, 8), **options, unsupported="warn")


def test_what_is_no_tensor_and_no_sequence_is_named():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    with pytest.raises(UsageError, match="inputs must be torch tensors, got ndarray"):
        zcpipe.score(model, [np.zeros((2, 3, 8, 8))], blocks=["0", "1"])
    with pytest.raises(UsageError, match="blocks must be a sequence of module names, got the text '01'"):
        zcpipe.score(model, torch.randn(2, 3, 8, 8), blocks="01")
    mixed = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten())
    options = {"proxies": "trainability", "blocks": ["0", "1"]}
    with pytest.raises(UnsupportedError, match="maps of one kind"):
        zcpipe.score(mixed, torch.randn(2, 3, 8, 8), **options)
    failure = zcpipe.score(mixed, torch.randn(2, 3, 8, 8), **options, unsupported="skip").failures[0]
    assert "maps of one kind" in failure.message
