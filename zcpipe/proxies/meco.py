"""MeCo (Jiang et al., NeurIPS 2023): how far the channels of every map are from being dependent, on one noise image.

As the published code does, every call of every module counts: containers too, which repeat what their last layer gives,
so the score depends on how a network is divided into modules. The networks of zcpipe's spaces have other containers
than the published ones, and no dead layers, so scores are to be compared within zcpipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zcpipe.errors import UnsupportedError, is_out_of_memory
from zcpipe.ops import covariance, image_format, symmetric_eigenvalues
from zcpipe.ops.layout import needs_other_layout
from zcpipe.ops.philox import Stream
from zcpipe.proxies.base import CustomStatistic, Network, Proxy, Recipe, only
from zcpipe.spaces.layers import computes_as

_PIXELS = 64  # of the noise image's rows and columns, whatever the data set's


def meco(network: Network) -> list[float]:
    """Return the sum over module calls of the smallest eigenvalue of the correlation matrix of the output's channels.

    The network runs in train mode on one input of standard normals: images of 64 x 64 pixels with the channels of its
    inputs, anything else in the shape of its inputs. Channels are the first dimension after the batch's (tokens, where
    there are some) and correlate over all others; those that are constant count as uncorrelated to themselves, too, so
    vectors and maps with dead channels give 0.

    Returns:
        The sum; NaN where an output is not finite.

    Raises:
        UnsupportedError: an input is not of floats, or the network fails on images of 64 x 64 pixels, as one that has
            weights for each position does.
    """
    outputs = _Outputs()
    noise = _noise(network)
    handles = [module.register_forward_hook(outputs.see) for module in network.model.modules()]
    try:
        with torch.no_grad():
            network.model(*noise)
    except Exception as error:
        resized = any(a.shape[1:] != b.shape[1:] for a, b in zip(noise, network.inputs, strict=True))
        if not resized or is_out_of_memory(error) or needs_other_layout(str(error)):
            raise
        raise UnsupportedError(
            f"meco feeds images of {_PIXELS} x {_PIXELS} pixels, which this network does not take"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    values = smallest_eigenvalues([correlations(moments) for moments in outputs.covariances])
    return [outputs.flaw + sum(times * value for times, value in zip(outputs.times, values, strict=True))]


def correlations(covariances: Tensor) -> Tensor:  # [C, C] -> [C, C] float64
    """Return the correlation matrix of a covariance matrix, with zeros for channels that are constant."""
    scales = covariances.diagonal().rsqrt()
    scales = scales.masked_fill(covariances.diagonal() == 0, 0.0)
    return scales[:, None] * covariances * scales


def smallest_eigenvalues(matrices: Sequence[Tensor]) -> list[float]:  # [C, C] each, symmetric
    """Return the smallest eigenvalue of each matrix."""
    return [float(eigenvalues[0]) for eigenvalues in symmetric_eigenvalues(matrices)]


class _Outputs:
    """What the outputs of modules have to tell, as they come; what need not be measured again is counted."""

    def __init__(self) -> None:
        self.covariances: list[Tensor] = []
        self.times: list[int] = []  # how many calls a covariance stands for
        self.flaw = 0.0  # NaN as soon as an output is not finite
        self._last: tuple[Tensor, int] | None = None  # the output that the last covariance is of, and its version

    def see(self, module: nn.Module, arguments: Any, output: Any) -> None:  # noqa: ANN401
        """Measure a module's output; a forward hook."""
        value = output[0] if isinstance(output, (tuple, list)) and output else output
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2 or len(value) == 0:
            return
        known = value if not _only_rescales(module) or not arguments else arguments[0]
        if self._is_last(known) or self._is_last(value):
            self.times[-1] += 1
            self._last = value, _version(value)
            return
        channels = value.shape[1]
        if value[0].numel() <= channels * channels:  # C rows of at most C numbers: their deviations are dependent
            self.flaw += float(value.sum() * 0)
            self._last = None
            return
        image = value.ndim == 4
        self.covariances.append(covariance(value[:1] if image else value[0].reshape(channels, -1).T))
        self.times.append(1)
        self._last = value, _version(value)

    def _is_last(self, value: object) -> bool:
        """Whether this is the last output, which nobody has changed in place since."""
        if self._last is None or not isinstance(value, Tensor):
            return False
        last, version = self._last
        return value is last and _version(value) == version


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # those of inference mode do not change


def _only_rescales(module: nn.Module) -> bool:
    """Whether a module scales and shifts each channel: the eigenvalues of the correlation matrix stay the same."""
    if not isinstance(module, _BatchNorm) or not module.training:
        return False
    if not computes_as(module, _BatchNorm, nn.SyncBatchNorm):  # there may be an activation in it
        return False
    return module.weight is None or bool((module.weight != 0).all())


def _noise(network: Network) -> list[Tensor]:
    if not all(tensor.is_floating_point() for tensor in network.inputs):
        raise UnsupportedError("meco feeds the network with normal noise, and its inputs are integers")
    return [_noise_like(tensor, network.stream(f"meco:{i}")) for i, tensor in enumerate(network.inputs)]


def _noise_like(tensor: Tensor, stream: Stream) -> Tensor:  # [N, ...] -> [1, ...]
    if tensor.ndim != 4:
        return stream.normal_(torch.empty_like(tensor[:1]))
    shape = (1, tensor.shape[1], _PIXELS, _PIXELS)
    image = torch.empty(shape, dtype=tensor.dtype, device=tensor.device, memory_format=image_format(tensor.device))
    return stream.normal_(image)


PROXIES = (
    Proxy(
        name="meco",
        direction="higher",
        scope="function",
        cost="cheap",
        recipe=Recipe(init="default", inputs="noise", norm="batch"),
        statistics=(CustomStatistic("meco", "", "network", meco),),
        reduce=only("meco"),
        unit="",
        formula="sum over module calls of the smallest eigenvalue of the correlation matrix of the output's channels",
        paper="Jiang et al., MeCo: Zero-Shot NAS with One Data and Single Forward Pass, NeurIPS 2023",
    ),
)
