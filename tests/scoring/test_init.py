"""Initialisation: the recipe's distribution, a function of its names alone, and nothing left to chance."""

import math

import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn.utils import parametrizations

import zcpipe
from zcpipe.errors import UsageError
from zcpipe.ops.philox import Stream
from zcpipe.spaces.layers import Shared


def model(device="cpu"):
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, device=device), nn.BatchNorm2d(64, device=device), nn.Linear(500, 40, device=device)
    )


def test_kaiming_normal_fan_in():
    net = zcpipe.initialise(model())
    assert net[0].weight.std().item() == pytest.approx(math.sqrt(2 / 27), rel=0.05)
    assert net[2].weight.std().item() == pytest.approx(math.sqrt(2 / 500), rel=0.02)
    assert net[2].weight.mean().item() == pytest.approx(0, abs=0.002)
    assert not net[0].bias.any()
    assert (net[1].weight == 1).all()
    assert not net[1].bias.any()


def test_weights_depend_on_seed_scope_repeat_and_name_alone():
    first = zcpipe.initialise(model(), seed=1, scope="a").state_dict()
    torch.manual_seed(99)
    again = zcpipe.initialise(model("meta"), seed=1, scope="a").state_dict()
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    for other in ({"seed": 2, "scope": "a"}, {"seed": 1, "scope": "b"}, {"seed": 1, "scope": "a", "repeat": 1}):
        assert not torch.equal(zcpipe.initialise(model(), **other)[0].weight, first["0.weight"])


@pytest.mark.parametrize("first", ["linear", "table"])
def test_a_weight_of_two_names_is_drawn_by_its_last(first):
    layers = {"linear": nn.Linear(6, 5, bias=False), "table": nn.Embedding(5, 6)}
    layers["table"].weight = layers["linear"].weight
    net = nn.ModuleDict({name: layers[name] for name in sorted(layers, reverse=first == "table")})
    last = "table" if first == "linear" else "linear"
    stream = Stream.of(3, "", "a", 0, f"weight:{last}")
    single = torch.empty(5, 6)
    expected = stream.normal_(single) if last == "table" else stream.uniform_(single).mul_(1 / math.sqrt(6))
    assert torch.equal(zcpipe.initialise(net, init="default", seed=3, scope="a")["linear"].weight, expected)


def shares_transposed():
    encoder, decoder = nn.Linear(6, 5), nn.Linear(5, 6)
    decoder.weight.data = encoder.weight.data.t()
    return nn.Sequential(encoder, decoder)


def shares_with_a_table():
    linear, table = nn.Linear(6, 5, bias=False), nn.Embedding(5, 6, padding_idx=0)
    table.weight.data = linear.weight.data
    return nn.Sequential(linear, table)


def shares_a_column():
    wide, narrow = nn.Linear(6, 5), nn.Linear(3, 5)
    narrow.weight.data = wide.weight.data[:, :3]
    return nn.Sequential(wide, narrow)


def shares_with_a_normal():
    linear, attention = nn.Linear(6, 5, bias=False), nn.MultiheadAttention(6, 2, add_bias_kv=True)
    attention.bias_k.data = linear.weight.data[:1].unsqueeze(0)
    return nn.Sequential(linear, attention)


@pytest.mark.parametrize("make", [shares_transposed, shares_with_a_table, shares_a_column, shares_with_a_normal])
def test_of_layers_that_share_memory_the_last_counts(make):
    net, apart = make(), make()
    for parameter in apart.parameters():
        parameter.data = torch.empty(parameter.shape)
    zcpipe.initialise(net, init="default", scope="s")
    zcpipe.initialise(apart, init="default", scope="s")
    assert all(map(torch.equal, net[1].parameters(), apart[1].parameters()))


def test_the_parameter_of_a_wrong_dtype_is_named():
    with pytest.raises(UsageError, match=r"^1\.weight: got torch.float16, expected torch.float32 or torch.float64"):
        zcpipe.initialise(nn.Sequential(nn.ReLU(), nn.Linear(3, 3).half()))


def test_statistics_that_are_no_buffers_are_reset_on_the_meta_device():
    class Plain(nn.Module):
        def reset_running_stats(self):
            self.mean = torch.zeros(3)

    net = nn.Sequential(nn.Conv2d(3, 3, 3, device="meta"), Plain())
    assert zcpipe.initialise(net)[1].mean.device.type == "cpu"


def test_global_random_state_is_untouched():
    before = torch.get_rng_state()
    net = zcpipe.get_space("nasbench201").build(zcpipe.get_space("nasbench201")[5], "cifar10").model
    zcpipe.initialise(net)
    assert torch.equal(torch.get_rng_state(), before)


class Tied(nn.Module):
    """Weights, a bias and norms' buffers that two or three modules hold together."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 6), nn.Linear(6, 9)
        self.first, self.second, self.third = (nn.Linear(6, 6) for _ in range(3))
        self.norm, self.other = nn.BatchNorm1d(6), nn.BatchNorm1d(6)
        self.lstm, self.again = nn.LSTM(6, 6), nn.LSTM(6, 6)
        self.head.weight = self.embed.weight
        self.third.weight = self.second.weight = self.first.weight
        self.third.bias = self.first.bias
        self.other.running_mean = self.norm.running_mean
        self.again.weight_ih_l0 = self.lstm.weight_ih_l0

    def forward(self, x):
        x = self.third(self.second(self.first(self.embed(x))))
        x = self.other(self.norm(self.again(self.lstm(x)[0])[0].mean(1)))
        return self.head(x)


@pytest.mark.parametrize("init", ["default", "kaiming_normal"])
def test_what_modules_of_a_meta_model_share_they_share_afterwards(init):
    def initialised(device):
        torch.manual_seed(0)
        with torch.device(device):
            net = Tied()
        if init == "kaiming_normal":  # which draws no embeddings and no recurrent layers
            net.embed, net.lstm, net.again = nn.Linear(6, 9, device=device), nn.Identity(), nn.Identity()
            net.head.weight = net.embed.weight
        return zcpipe.initialise(net, init=init, seed=2)

    net, expected = initialised("meta"), initialised("cpu")
    assert net.third.weight is net.second.weight is net.first.weight
    assert net.third.bias is net.first.bias and net.second.bias is not net.first.bias
    assert net.head.weight is net.embed.weight and net.other.running_mean is net.norm.running_mean
    assert [name for name, _ in net.named_parameters()] == [name for name, _ in expected.named_parameters()]
    for (name, got), (_, wanted) in zip(net.state_dict().items(), expected.state_dict().items(), strict=True):
        assert torch.equal(got, wanted), name
    if init == "default":
        tokens = torch.randint(9, (4, 5))
        assert torch.equal(net(tokens), expected(tokens))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("init", ["default", "kaiming_normal", "normal"])
def test_a_layer_without_inputs_has_nothing_to_draw(init):
    layer = zcpipe.initialise(nn.Linear(0, 4), init=init)
    assert layer.weight.shape == (4, 0) and not layer.bias.any()


def test_layers_without_a_rule_are_refused_where_memory_would_show_through():
    with pytest.raises(UsageError, match="ConvTranspose2d"):
        zcpipe.initialise(nn.Sequential(nn.ConvTranspose2d(3, 3, 3, device="meta")))
    holder = nn.Sequential(nn.Conv2d(3, 3, 3, device="meta"))
    holder.register_buffer("table", torch.arange(3, device="meta"))
    with pytest.raises(UsageError, match="'table'"):
        zcpipe.initialise(holder)


def test_layers_without_a_rule_keep_their_weights_unless_strict():
    net = nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    before = net[1].weight.clone(), net[2].weight.clone()
    with pytest.raises(UsageError, match="'1' of type ConvTranspose2d"):
        zcpipe.initialise(net, strict=True)
    assert torch.equal(net[2].weight, before[1])
    zcpipe.initialise(net)
    assert torch.equal(net[1].weight, before[0])
    assert not torch.equal(net[2].weight, before[1])


def spectral():
    return torch.nn.utils.spectral_norm(nn.Conv2d(2, 2, 3))


def weight_normed():
    return parametrizations.weight_norm(nn.Conv2d(2, 2, 3))


class Scaled(nn.Conv2d):
    """A convolution with a parameter more than its kind."""

    def __init__(self):
        super().__init__(2, 2, 3)
        self.gain = nn.Parameter(torch.full((2,), 3.0))


@pytest.mark.parametrize("init", ["kaiming_normal", "normal", "default"])
@pytest.mark.parametrize(
    ("make", "refused"),
    [
        (spectral, "'weight_orig' of layer '0' of type Conv2d"),
        (weight_normed, "'original0' of layer '0.parametrizations.weight'"),
        (Scaled, "'gain' of layer '0' of type Scaled"),
    ],
)
def test_what_a_weight_is_computed_from_has_no_rule(make, refused, init):
    """Such a layer has a weight to write to, which is no parameter and may share memory with one."""
    net = nn.Sequential(make())
    before = {name: p.clone() for name, p in net.named_parameters()}
    with pytest.raises(UsageError, match=refused):
        zcpipe.initialise(net, init=init, strict=True)
    zcpipe.initialise(net, init=init)
    drawn = {"0.bias", "0.weight"}
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters() if name not in drawn)
    assert not torch.equal(net[0].bias, before["0.bias"])


@pytest.mark.parametrize("layer", [nn.PReLU(), nn.Embedding(3, 3), nn.Bilinear(2, 2, 2), nn.LSTM(2, 2)])
def test_normal_refuses_the_layers_it_has_no_rule_for(layer):
    with pytest.raises(UsageError, match=f"'0' of type {type(layer).__name__}"):
        zcpipe.initialise(nn.Sequential(layer), init="normal", strict=True)


def test_strict_needs_no_rule_for_integers_and_for_weights_that_another_layer_fills():
    net = nn.ModuleList([nn.Embedding(3, 4), nn.Linear(4, 3)])
    net[0].weight = net[1].weight
    net.table = nn.Parameter(torch.arange(3), requires_grad=False)
    zcpipe.initialise(net, init="normal", strict=True)
    assert torch.equal(net.table, torch.arange(3))


@pytest.mark.parametrize("make", [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
def test_normal_draws_transposed_convolutions(make):
    layer = zcpipe.initialise(make(20, 30, 3, groups=2), init="normal", strict=True)
    assert stats.kstest(layer.weight.detach().flatten().numpy(), "norm").pvalue > 1e-3
    assert not layer.bias.any()


@pytest.mark.parametrize("init", ["kaiming_normal", "normal", "default"])
@pytest.mark.parametrize("norm", [nn.RMSNorm(3), nn.InstanceNorm2d(3, affine=True), nn.SyncBatchNorm(3)])
def test_every_norm_is_the_identity(norm, init):
    for parameter in norm.parameters():
        nn.init.constant_(parameter, 5.0)
    zcpipe.initialise(norm, init=init, strict=True)
    assert (norm.weight == 1).all()
    assert not getattr(norm, "bias", torch.zeros(1)).any()


def test_a_model_of_inference_mode_is_refused():
    with torch.inference_mode():
        net = nn.Sequential(nn.Linear(3, 3))
    with torch.inference_mode():
        zcpipe.initialise(net)
    for _ in range(2):  # as it is, and with ordinary memory in its parameters
        with pytest.raises(UsageError, match=r"torch.inference_mode\(\) cannot be drawn anew"):
            zcpipe.initialise(net)
        for parameter in net.parameters():
            parameter.data = parameter.data.clone()


def test_kaiming_normal_never_changes():
    """Tables of earlier versions depend on its bits."""
    net = zcpipe.initialise(nn.Sequential(nn.Conv2d(2, 2, 1)), seed=3, space="s", scope="k")
    expected = Stream.of(3, "s", "k", 0, "weight:0").normal_(torch.empty(2, 2, 1, 1)).mul_(1.0)
    assert torch.equal(net[0].weight, expected)


def test_normal_is_zen_nas():
    net = zcpipe.initialise(model(), init="normal")
    for layer in (net[0], net[2]):
        assert stats.kstest(layer.weight.detach().flatten().numpy(), "norm").pvalue > 1e-3
        assert not layer.bias.any()
    assert (net[1].weight == 1).all() and not net[1].bias.any()


LAYERS = {
    "linear": lambda: nn.Linear(50, 400),
    "convolution": lambda: nn.Conv2d(8, 40, 3, groups=2),
    "without bias": lambda: nn.Conv1d(8, 400, 3, bias=False),
    "transposed": lambda: nn.ConvTranspose2d(40, 16, 3),
    "batch norm": lambda: nn.BatchNorm2d(7),
    "layer norm": lambda: nn.LayerNorm(7),
    "layer norm without bias": lambda: nn.LayerNorm(7, bias=False),
    "rms norm": lambda: nn.RMSNorm(7),
    "plain norm": lambda: nn.InstanceNorm2d(7),
    "instance norm": lambda: nn.InstanceNorm2d(7, affine=True),
    "embedding": lambda: nn.Embedding(60, 40, padding_idx=3),
    "lstm": lambda: nn.LSTM(30, 40, num_layers=2, bidirectional=True, proj_size=20),
    "gru cell": lambda: nn.GRUCell(30, 40),
    "attention": lambda: nn.MultiheadAttention(40, 4, add_bias_kv=True),
    "attention of other sizes": lambda: nn.MultiheadAttention(40, 4, kdim=30, vdim=20, bias=False),
    "prelu": lambda: nn.PReLU(5, init=0.1),
    "transformer": lambda: nn.TransformerEncoderLayer(40, 4, 90),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_default_has_the_distribution_of_torchs_constructors(make):
    """Every parameter against torch's own: constants equal, random ones of one distribution (Kolmogorov-Smirnov)."""
    torch.manual_seed(0)
    theirs = [dict(make().named_parameters()) for _ in range(20)]
    with torch.device("meta"):
        layer = make()
    ours = dict(zcpipe.initialise(layer, init="default").named_parameters())
    assert ours.keys() == theirs[0].keys()
    for name, parameter in ours.items():
        values = parameter.detach().flatten()
        others = torch.cat([their[name].detach().flatten() for their in theirs])
        if len(values.unique()) <= 2:
            assert set(values.tolist()) == set(others.tolist()), name
        else:
            assert stats.kstest(values.numpy(), others.numpy()).pvalue > 1e-3, name


def test_default_gives_every_parameter_numbers_of_its_own():
    net = zcpipe.initialise(nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9)), init="default", seed=1)
    drawn = [row for parameter in net.parameters() for row in parameter.view(-1, 9)]
    assert len({tuple(row.tolist()) for row in drawn}) == len(drawn)
    again = zcpipe.initialise(nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9)), init="default", seed=1)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def test_an_unknown_recipe_is_named():
    with pytest.raises(UsageError, match="unknown init 'kaiming'; did you mean kaiming_normal"):
        zcpipe.initialise(model(), init="kaiming")


def sharing(rows, columns):
    """A layer whose weight is a part of a matrix of 7 x 6."""
    net = nn.Sequential(nn.Linear(columns, rows))
    net[0].shared = {"weight": Shared((7, 6), "normal", 0.5), "bias": 0.0}
    return net


@pytest.mark.parametrize("init", ["default", "kaiming_normal"])
@pytest.mark.parametrize("shape", [(7, 6), (3, 6), (7, 5), (2, 1)])
def test_a_part_of_a_shared_tensor_is_its_first_rows_and_columns(init, shape):
    whole = Stream.of(4, "s", "", 2, "weight:0").normal_(torch.empty(7, 6)) * 0.5
    for scope in ("one", "another"):
        layer = zcpipe.initialise(sharing(*shape), init=init, seed=4, space="s", scope=scope, repeat=2)[0]
        assert torch.equal(layer.weight, whole[: shape[0], : shape[1]])
        assert not layer.bias.any()


def test_a_recipe_that_is_a_definition_does_not_share():
    own = zcpipe.initialise(sharing(3, 4), init="normal", scope="a")[0].weight
    assert torch.equal(own, Stream.of(0, "", "a", 0, "weight:0").normal_(torch.empty(3, 4)))


def test_what_a_sharing_layer_does_not_name_is_refused():
    net = nn.Sequential(nn.Linear(4, 3, device="meta"))
    net[0].shared = {"weight": Shared((7, 6), "uniform", 1.0)}
    with pytest.raises(UsageError, match="no initialisation rule for parameter 'bias' of layer '0'"):
        zcpipe.initialise(net)
