"""What a forward keeps is gone after a pass, what a statistic replaces is put back, and threads take turns."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import zcpipe
from zcpipe.scoring import guard

TOKENS = torch.randn(6, 7, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6)


class Attention(nn.Module):
    """Makes its causal mask and a table of positions when it first runs, as attributes or as buffers."""

    def __init__(self, buffers):
        super().__init__()
        self.mix, self.out, self.buffers_ = nn.Linear(4, 12), nn.Linear(4, 4), buffers
        if not buffers:
            self.mask = None

    def forward(self, x):
        if not self.buffers_ and self.mask is None:
            self.mask, self.positions = self.tables(x)
        if self.buffers_ and not hasattr(self, "positions"):
            for name, table in zip(("mask", "positions"), self.tables(x), strict=True):
                self.register_buffer(name, table, persistent=False)
        q, k, v = self.mix(x + self.positions).chunk(3, -1)
        weights = (q @ k.transpose(1, 2)).masked_fill(~self.mask, -torch.inf).softmax(-1)
        return x + self.out(weights @ v)

    def tables(self, x):
        steps = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
        return steps[:, None] >= steps, torch.sin(steps)[:, None].expand(-1, 4)


def transformer(buffers):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), Attention(buffers), nn.Flatten(), nn.Linear(28, 6))


def weight_norm():
    torch.manual_seed(0)
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(nn.Linear(4, 4))
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(28, 6))


@pytest.mark.parametrize("make", [lambda: transformer(False), lambda: transformer(True), weight_norm])
@pytest.mark.parametrize("proxy", ["macs", "synflow", "synflow_bn", "snip", "vkdnw"])
def test_a_model_runs_afterwards_whatever_its_forward_keeps(make, proxy):
    model, other = make(), make()
    attributes = [vars(module).copy() for module in model.modules()]
    scores = zcpipe.score(model, TOKENS, LABELS, proxies=[proxy], unsupported="skip")
    assert scores.status == "ok", scores.failures
    for module, before in zip(model.modules(), attributes, strict=True):
        assert list(vars(module)) == list(before)
        assert all(vars(module)[name] is value for name, value in before.items())
    assert torch.equal(model(TOKENS), other(TOKENS))


@pytest.mark.parametrize("buffers", [False, True])
def test_scores_do_not_depend_on_the_order_of_proxies(buffers):
    names = ["macs", "synflow", "dss", "snip", "zen", "grasp", "vkdnw", "auto_prox", "gradsign"]
    scores = zcpipe.score(transformer(buffers), TOKENS, LABELS, proxies=names)
    assert scores.status == "ok", scores.failures
    model = transformer(buffers)
    for name in reversed(names):
        assert zcpipe.score(model, TOKENS, LABELS, proxies=[name])[name] == scores[name]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process")
def test_a_forked_process_does_not_wait_for_a_thread_that_it_has_not():
    """One that loads data, say, which some other thread starts while this one scores."""
    begun, end = threading.Event(), threading.Event()

    def score():
        with guard.untouched(dict(nn.Linear(1, 1).named_modules())):
            begun.set()
            end.wait(60)

    thread = threading.Thread(target=score)
    thread.start()
    begun.wait(60)
    child = os.fork()
    if not child:
        with guard.untouched(dict(nn.Linear(1, 1).named_modules())):
            os._exit(7)
    end.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_threads_that_score_do_not_draw_each_others_numbers():
    x, labels = torch.randn(8, 3, 8, 8), torch.arange(8) % 4
    nets = [nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 4)) for _ in range(2)]
    alone = [dict(zcpipe.score(net, x, labels, "grad_norm")) for net in nets]
    before = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(zcpipe.score, nets[i % 2], x, labels, "grad_norm") for i in range(40)]
        assert [dict(future.result()) for future in futures] == [alone[i % 2] for i in range(40)]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_embeddings_keep_weights_that_their_forwards_renormalise(kind):
    torch.manual_seed(0)
    model = nn.Sequential(kind(10, 4, max_norm=0.5), nn.Flatten(), nn.LazyLinear(6))
    tokens = torch.arange(12).view(6, 2) % 10
    model(tokens)  # makes the last layer
    with torch.no_grad():
        model[0].weight.mul_(3)
    before = model[0].weight.detach().clone()
    scores = zcpipe.score(model, tokens, LABELS, proxies=["grad_norm", "snip"])
    assert scores.status == "ok", scores.failures
    assert torch.equal(model[0].weight, before)
