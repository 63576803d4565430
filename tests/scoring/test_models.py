"""Networks of all kinds are scored, or the row says per proxy why not."""

import dataclasses

import pytest
import torch
from torch import nn

import zcpipe
from zcpipe.errors import UnsupportedError, UsageError
from zcpipe.proxies import get_proxy

ALL = zcpipe.list_proxies()
LABELS = torch.arange(8) % 4


class ResidualMlp(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.stem, self.head = nn.Linear(12, 16), nn.Linear(16, 4)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(depth))

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = x + 0.1 * layer(x)
        return self.head(x)


class Bottleneck(nn.Module):
    """A torchvision-style residual block."""

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False, groups=2)
        self.bn2, self.bn3 = nn.BatchNorm2d(width), nn.BatchNorm2d(4 * width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += self.downsample(x)
        return self.relu(y)


def resnet():
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    return nn.Sequential(
        stem,
        Bottleneck(8, 4, 1),
        Bottleneck(16, 8, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 4),
    )


class Vit(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.position = nn.Parameter(torch.zeros(1, 16, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x):
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.encoder(tokens)).mean(1))


class LstmClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.lstm, self.head = nn.Embedding(20, 8), nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, tokens):
        return self.head(self.lstm(self.embed(tokens))[0][:, -1])


def images():
    return torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


CASES = {
    "mlp": (lambda: ResidualMlp(200), lambda: images().flatten(1)[:, :12], ["stem", "layers.0", "layers.199"]),
    "resnet": (resnet, images, ["0", "1", "2"]),
    "vit": (Vit, images, ["encoder.layers.0", "encoder.layers.1"]),
    "lstm": (LstmClassifier, lambda: torch.arange(8 * 6).view(8, 6) % 20, ["embed", "head"]),
}
# What these networks cannot have, and why; everything else must be a number.
MISSING = {
    "mlp": {},
    "resnet": {},
    "vit": {"fisher": "is not computed by a module", "nwot": "no ReLU", "linear_regions": "no ReLU", "swap": "no ReLU"},
    "lstm": {
        "jacob_cov": "integers",
        "epe_nas": "integers",
        "nwot": "no ReLU",
        "fisher": "is not computed by a module",
    },
}


@pytest.mark.parametrize("case", CASES)
def test_every_proxy_has_a_value_or_a_reason(case):
    torch.manual_seed(0)
    build, inputs, blocks = CASES[case]
    scores = zcpipe.score(build(), inputs(), LABELS, ALL, blocks=blocks, unsupported="skip")
    reasons = {failure.proxy: failure.message for failure in scores.failures}
    for proxy in ALL:
        assert (scores[proxy] is None) == (proxy in reasons)
    for proxy, reason in MISSING[case].items():
        if proxy in ALL:
            assert reason in reasons[proxy]
    for proxy in {"grad_norm", "snip", "plain", "params"} & set(ALL):
        assert scores[proxy] is not None
    nodes = scores.nodes.to_pylist()
    assert {"layer", "block"} <= {node["node"] for node in nodes}


def test_attention_and_recurrence_are_layers_of_their_own():
    scores = zcpipe.score(Vit(), images(), LABELS, "grad_norm", unsupported="skip")
    names = [node["name"] for node in scores.nodes.to_pylist()]
    assert "encoder.layers.0.self_attn.in_proj_weight" in names
    assert "encoder.layers.1.self_attn.out_proj" in names
    scores = zcpipe.score(LstmClassifier(), CASES["lstm"][1](), LABELS, "grad_norm")
    assert [node["name"] for node in scores.nodes.to_pylist()] == ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "head"]
    assert all(node["grad_norm"] > 0 for node in scores.nodes.to_pylist())


def test_weights_that_no_rule_knows_are_said_or_left_out():
    with pytest.raises(UnsupportedError, match=r"no rule knows the weights position of the model itself \(Vit\)"):
        zcpipe.score(Vit(), images(), LABELS, "snip")
    with pytest.warns(UserWarning, match="no rule knows"):
        warned = zcpipe.score(Vit(), images(), LABELS, "snip", unsupported="warn")
    assert warned["snip"] > 0


def test_weights_that_zen_cannot_draw_are_named():
    for model, parameter in [
        (Vit(), "parameter 'position' of the model itself, a Vit"),
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.PReLU()), "parameter 'weight' of layer '2' of type PReLU"),
    ]:
        with pytest.raises(UnsupportedError, match=r"zen.* draws all weights anew, and has no rule for") as raised:
            zcpipe.score(model, images(), LABELS, "zen")
        assert parameter in str(raised.value) and "zcpipe.score" not in str(raised.value)


def test_proxies_that_a_network_cannot_have_raise_unless_told_otherwise():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 4))
    with pytest.raises(UnsupportedError, match="no ReLU"):
        zcpipe.score(model, images(), LABELS, "nwot")
    assert zcpipe.score(model, images(), LABELS, "nwot", unsupported="skip").status == "error"


def test_several_inputs_and_a_loss_of_ones_own():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 3), nn.Embedding(7, 3)

        def forward(self, x, tokens):
            return self.a(x) * self.b(tokens), "and more"

    x, tokens, y = torch.randn(8, 5), torch.arange(8) % 7, torch.randn(8, 3)
    model = Two()
    scores = zcpipe.score(model, (x, tokens), y, "grad_norm,jacob_cov", loss=nn.functional.mse_loss)
    model.zero_grad()
    nn.functional.mse_loss(model(x, tokens)[0], y).backward()
    assert scores["grad_norm"] == pytest.approx(float(model.a.weight.grad.norm()), rel=1e-5)
    assert scores["jacob_cov"] is not None


def test_shared_modules_count_once_with_all_their_gradient():
    shared = nn.Linear(6, 6, bias=False)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(6, 4))
    x = torch.randn(8, 6)
    scores = zcpipe.score(model, x, LABELS, "grad_norm")
    nn.functional.cross_entropy(model(x), LABELS).backward()
    expected = shared.weight.grad.norm() + model[3].weight.grad.norm()
    assert scores["grad_norm"] == pytest.approx(float(expected), rel=1e-5)
    assert [node["name"] for node in scores.nodes.to_pylist()] == ["0", "3"]


class Siding(nn.Module):
    """One layer that the output depends on, and two that it does not: one runs for nothing, one does not run."""

    def __init__(self):
        super().__init__()
        self.f, self.g, self.h = (nn.Linear(12, 4) for _ in range(3))

    def forward(self, x):
        self.g(x)
        return self.f(x)


def test_layers_that_the_output_does_not_depend_on_do_not_count():
    x, model = images().flatten(1)[:, :12], Siding()
    names = ["num_layers", "vkdnw", "l2_norm"]
    scores, alone = zcpipe.score(model, x, proxies=names), zcpipe.score(model.f, x, proxies=names)
    assert scores["num_layers"] == 1
    assert scores["vkdnw"] == alone["vkdnw"]
    assert scores["l2_norm"] > alone["l2_norm"]  # whose definition counts all
    assert scores.statistics["num_layers@layer"].tolist() == [1, 0, 0]
    assert (scores.statistics["l2_norm@layer"] > 0).all()


def test_frozen_layers_that_the_output_depends_on_count():
    x, model = images().flatten(1)[:, :12], ResidualMlp(2)
    free = zcpipe.score(model, x, proxies="num_layers,vkdnw")
    model.requires_grad_(False)
    assert dict(zcpipe.score(model, x, proxies="num_layers,vkdnw")) == dict(free)
    assert free["num_layers"] == 4
    with torch.no_grad():
        assert dict(zcpipe.score(model, x, proxies="num_layers,vkdnw")) == dict(free)


SMALL = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 4), nn.ReLU(), nn.Linear(4, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": None}, "snip needs labels: pass targets"),
        ({"targets": LABELS + 1}, r"targets must lie in 0 .. 3, got 1 .. 4"),
        ({"targets": LABELS[:5]}, "tensor of 8 entries"),
        ({"targets": LABELS.float()}, "integer class numbers"),
        ({"targets": "snip"}, "name proxies as proxies='snip'"),
        ({"loss": lambda output, targets: output}, "loss must return one number"),
        ({"loss": lambda output, targets: 3.0}, "loss must return one number"),
        ({"unsupported": "ignore"}, "unsupported must be"),
        ({"protocol": "both"}, "protocol must be"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(UsageError, match=message):
        zcpipe.score(SMALL, images(), **{"targets": LABELS, "proxies": "snip", **options})


def test_what_is_no_network_and_what_are_no_inputs_are_named():
    with pytest.raises(UsageError, match=r"the model must be a torch\.nn\.Module, got NoneType"):
        zcpipe.score(None, images(), proxies="params")
    with pytest.raises(UsageError, match=r"the model must be a torch\.nn\.Module, got str"):
        zcpipe.initialise("resnet")
    with pytest.raises(UsageError, match="inputs must be torch tensors, got NoneType"):
        zcpipe.score(SMALL, None, proxies="params")


@pytest.mark.parametrize(
    ("build", "inputs", "message"),
    [
        (resnet, lambda: images()[:, :2], "the model fails on these inputs: RuntimeError: .* to have 3 channels"),
        (resnet, lambda: images().mul(9).byte(), "the model fails on these inputs: RuntimeError: .*Byte"),
        (resnet, lambda: images().double(), "check their shape and dtype$"),
        (resnet, lambda: (images(), images()), "the model fails on these inputs: TypeError"),
        (LstmClassifier, lambda: torch.full((8, 6), 20), "the model fails on these inputs: IndexError"),
        (lambda: resnet().half(), images, "score in float32: call model.float()"),
        (lambda: resnet().to("meta"), images, "meta device"),
        (resnet, lambda: images().to("meta"), "meta device"),
    ],
)
def test_a_network_that_cannot_run_on_its_inputs_is_the_callers_to_hear(build, inputs, message):
    proxies = ["grad_norm", "synflow", "params"]
    with pytest.raises(UsageError, match=message) as raised:
        zcpipe.score(build(), inputs(), LABELS, proxies)
    assert "\n" not in str(raised.value)
    scores = zcpipe.score(build(), inputs(), LABELS, proxies, unsupported="skip")
    assert scores["grad_norm"] is None and scores["params"] > 0
    assert next(f.message for f in scores.failures if f.proxy == "grad_norm") == str(raised.value)


def test_a_network_of_half_precision_is_told_what_to_do():
    for model in (resnet().half(), resnet().bfloat16()):
        with pytest.raises(UsageError, match=r"score in float32: call model.float\(\)"):
            zcpipe.score(model, images().to(model[5].weight.dtype), LABELS, ["expressivity"], blocks=["0", "1"])


def test_a_loss_that_raises_is_the_callers_to_hear():
    def broken(output, targets):
        raise KeyError("no such class")

    with pytest.raises(UsageError, match="the loss fails: KeyError: 'no such class'"):
        zcpipe.score(SMALL, images(), LABELS, "snip,nwot", loss=broken)
    scores = zcpipe.score(SMALL, images(), LABELS, "snip,nwot", loss=broken, unsupported="skip")
    assert (scores.status, scores["snip"]) == ("partial", None)
    assert [f.message for f in scores.failures] == ["the loss fails: KeyError: 'no such class'"]


def test_a_failure_that_is_a_proxys_own_stays_a_result(monkeypatch):
    def broken(statistics):
        raise ZeroDivisionError("no")

    snip = dataclasses.replace(get_proxy("snip"), reduce=broken)
    monkeypatch.setattr("zcpipe.scoring.score.resolve", lambda names: (snip,))
    scores = zcpipe.score(SMALL, images(), LABELS, "snip")
    assert [f.message for f in scores.failures] == ["ZeroDivisionError: no"]


def test_a_model_without_parameters_says_so():
    with pytest.raises(UnsupportedError, match="no convolution or linear layer"):
        zcpipe.score(nn.Flatten(), images(), LABELS, "snip")


def test_a_model_that_returns_no_tensor_says_so():
    class Odd(nn.Module):
        def forward(self, x):
            return {"logits": x}

    with pytest.raises(UsageError, match="must return a tensor of floats"):
        zcpipe.score(Odd(), images(), LABELS, "jacob_cov")


def test_nan_in_the_network_fails_the_proxies_not_the_call():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 4))
    nn.init.constant_(model[1].weight, float("nan"))
    scores = zcpipe.score(model, images(), LABELS, "snip,params")
    assert scores.status == "error"
    assert scores.failures[0].kind == "nonfinite"


def test_parameters_are_counted_where_no_forward_can_count_the_rest():
    class OwnTensor(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.scale = nn.Linear(768, 4), torch.ones(4)  # no buffer: stays behind on the CPU

        def forward(self, x):
            return self.head(x.flatten(1)) * self.scale

    scores = zcpipe.score(OwnTensor(), images(), proxies="params,macs")
    assert scores["params"] == 768 * 4 + 4
    assert scores["macs"] is None


class OnGraph(nn.Module):
    """A layer over a sparse matrix, as graph networks have."""

    def __init__(self, writes):
        super().__init__()
        self.register_buffer("edges", torch.eye(8).to_sparse())
        self.head, self.writes = nn.Linear(5, 4), writes

    def forward(self, x):
        if self.writes:
            self.edges.mul_(2)
        return torch.sparse.mm(self.edges, self.head(x))


@pytest.mark.parametrize("writes", [False, True])
def test_sparse_buffers_are_kept_and_put_back(writes):
    model, x = OnGraph(writes), torch.randn(8, 5)
    scores = zcpipe.score(model, x, LABELS, "snip,jacob_cov")
    dense = nn.Sequential(nn.Linear(5, 4))
    dense[0].load_state_dict(model.head.state_dict())
    if not writes:
        assert dict(scores) == pytest.approx(dict(zcpipe.score(dense, x, LABELS, "snip,jacob_cov")))
    assert torch.equal(model.edges.to_dense(), torch.eye(8))


@pytest.mark.parametrize("make", [torch.jit.script, lambda model: torch.jit.trace(model, torch.ones(8, 3, 8, 8))])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_torchscript_is_refused_and_left_as_it_was(make):
    model = make(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 4)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    for proxies in ("jacob_cov", "macs"):
        with pytest.raises(UsageError, match=r"the model is TorchScript, .*; score what it was made from"):
            zcpipe.score(model, torch.ones(8, 3, 8, 8), proxies=proxies)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
