"""DSS: synaptic diversity of attentions and saliency of perceptrons, against a plain computation."""

import math

import pytest
import torch
from torch import nn

import zcpipe
from zcpipe import get_space
from zcpipe.errors import UnsupportedError
from zcpipe.run import RunSpec, Sample, run
from zcpipe.table import open_table


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.proj((q @ k.transpose(1, 2)).softmax(-1) @ v)


class Vit(nn.Module):
    def __init__(self, width=12):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.position = nn.Embedding(4, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = Attention(width)
        self.fc1, self.fc2 = nn.Linear(width, 30), nn.Linear(30, width)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position.weight
        x = x + self.attention(self.norms[0](x))
        x = x + self.fc2(nn.functional.gelu(self.fc1(self.norms[1](x))))
        return self.head(x.mean(1))


def plain(model, diverse, salient):
    """Publish the score as TF-TAS's formula has it, by autograd."""
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    names = [*diverse, *salient]
    weights = [model.get_parameter(name) for name in names]
    gradients = dict(
        zip(names, torch.autograd.grad(model(torch.ones(1, 3, 8, 8).double()).sum(), weights), strict=True)
    )
    total = sum(
        float(
            torch.linalg.matrix_norm(gradients[name], "nuc")
            * torch.linalg.matrix_norm(model.get_parameter(name), "nuc")
        )
        for name in diverse
    )
    return total + sum(float((gradients[name] * model.get_parameter(name)).abs().sum()) for name in salient)


@pytest.mark.parametrize("seed", range(3))
def test_is_the_published_sum(seed):
    torch.manual_seed(seed)
    model, x = Vit(), torch.randn(3, 3, 8, 8)
    scores = zcpipe.score(model, x, proxies="dss")
    expected = plain(
        model,
        ["attention.qkv.weight", "attention.proj.weight"],
        ["fc1.weight", "fc2.weight", "head.weight"],
    )
    assert scores["dss"] == pytest.approx(math.log(expected), rel=1e-9)
    nodes = {node["name"]: node["dss"] for node in scores.nodes.to_pylist()}
    assert list(nodes) == ["patch", "attention.qkv", "attention.proj", "fc1", "fc2", "head"]
    assert nodes["patch"] == -math.inf  # a convolution


def test_knows_torchs_own_attention():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 4)

        def forward(self, x):
            return self.b((x + self.a(x, x, x)[0]).mean(1))

    torch.manual_seed(0)
    model, x = Net(), torch.randn(2, 5, 6)
    scores = zcpipe.score(model, x, proxies="dss")
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    model(torch.ones(1, 5, 6).double()).sum().backward()
    a, b = model.a, model.b
    nuclear = [torch.linalg.matrix_norm(t, "nuc") for w in (a.in_proj_weight, a.out_proj.weight) for t in (w, w.grad)]
    expected = nuclear[0] * nuclear[1] + nuclear[2] * nuclear[3] + (b.weight * b.weight.grad).abs().sum()
    assert scores["dss"] == pytest.approx(math.log(float(expected)), rel=1e-9)


def test_is_refused_without_attention():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU())
    with pytest.raises(UnsupportedError, match="no module's class has a name that ends in Attention"):
        zcpipe.score(model, torch.randn(2, 3, 2, 2), proxies="dss")


def test_on_autoformer_attention_is_each_blocks_qkv_and_proj(tmp_path):
    space = get_space("autoformer/tiny")
    how = {"space": space.name, "dataset": "cifar100", "proxies": ("dss",), "batch_size": 1, "resolution": 16}
    run(RunSpec(**how, selection=Sample(n=1)), tmp_path / "t")
    (row,) = open_table(tmp_path / "t").to_arrow().to_pylist()
    arch = space.parse(row["arch"])
    model = space.build(arch, "cifar100").model
    zcpipe.initialise(model, space=space.name, init="default")
    assert row["dss"] == zcpipe.score(model, torch.zeros(1, 3, 16, 16), proxies="dss")["dss"]
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    model(torch.ones(1, 3, 16, 16).double()).sum().backward()
    total = 0.0
    for name, weight in model.named_parameters():
        if name.endswith(("qkv.weight", "proj.weight")):
            total += float(torch.linalg.svdvals(weight).sum() * torch.linalg.svdvals(weight.grad).sum())
        elif name.endswith(("fc1.weight", "fc2.weight", "head.weight")):
            total += float((weight * weight.grad).abs().sum())
    assert row["dss"] == pytest.approx(math.log(total), rel=1e-9)
