"""Small convolutional networks with whatever per-sample gradients may trip over, and how to score them."""

import torch
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

import zcpipe


class Convnet(nn.Module):
    """Convolutions that are plain, strided, grouped, depthwise, dilated and perhaps shared; a residual sum in place."""

    def __init__(self, width, bias, affine, shared=False):
        super().__init__()

        def norm(channels):
            return nn.BatchNorm2d(channels, affine=affine)

        self.stem, self.stem_norm = nn.Conv2d(3, 2 * width, 3, 2, 1, bias=bias), norm(2 * width)
        self.grouped, self.grouped_norm = (
            nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2, bias=bias),
            norm(2 * width),
        )
        self.depthwise = nn.Conv2d(2 * width, 2 * width, (3, 1), padding=(1, 0), groups=2 * width, bias=bias)
        self.dilated = nn.Conv2d(2 * width, 3, 2, (1, 2), dilation=2, bias=bias)
        self.shared, self.last = shared, nn.Conv2d(3, 3, 1, bias=bias)
        self.point, self.act = nn.Conv2d(3, 3, 1, bias=bias), nn.ReLU(inplace=True)
        self.norm, self.head = norm(3), nn.Linear(3, 4)

    def forward(self, x):
        x = self.stem_norm(self.stem(x))
        y = self.grouped_norm(self.grouped(self.act(x)))
        y += self.depthwise(x)
        y = self.point(self.dilated(y))
        y = y + (self.point if self.shared else self.last)(self.act(self.norm(y)))
        return self.head(y.mean((2, 3)))


class Unfollowed(nn.Module):
    """A network whose forward autograd does not see."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.head = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)

    @torch.no_grad()
    def forward(self, x):
        return self.head(self.act(self.first(x)))


convnets = st.builds(Convnet, st.integers(1, 3), st.booleans(), st.booleans(), st.booleans())


def draw(model, seed, samples=5):
    """Give a model weights and statistics, and make a batch for it, in float64."""
    generator = torch.Generator().manual_seed(seed)
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5, generator=generator)
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 2, generator=generator)
    x = torch.randn(samples, 3, 9, 9, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 4, (samples,), generator=generator)


def layers(model):
    return {f"{n}.weight": m.weight for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def functional(model, training):
    """The network as a function of its parameters and a batch, without running statistics when training."""
    model.train(training)
    own = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    buffers = dict(model.named_buffers())

    def call(parameters, x):
        for module in own:
            module.track_running_stats = not training
        try:
            return functional_call(model, (parameters, buffers), (x,))
        finally:
            for module in own:
                module.track_running_stats = True

    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return call, {name: parameter.detach() for name, parameter in model.named_parameters()}


def score(model, x, y, name):
    """The value, and the statistic per layer where there is one."""
    scores = zcpipe.score(model, x, y, [name])
    assert scores.status == "ok", scores.failures
    return scores[name], scores.statistics.get(f"{name}@layer")
