"""Which axis of a block's three-dimensional map holds the channels: tokens [N, T, C], or a 1-d convolution's [N, C, L].

The map itself does not say, but the layers that ran before it do: 1-d convolutions, norms and pools put channels
second, linear layers and their like last. What has been moved since is known by its sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from zcpipe.errors import UsageError

_SEQUENCES = (
    nn.Conv1d,
    nn.ConvTranspose1d,
    nn.BatchNorm1d,
    nn.InstanceNorm1d,
    nn.MaxPool1d,
    nn.AvgPool1d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveAvgPool1d,
)
_TOKENS = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)


class Axes:
    """What the layers that have run say of where channels lie. Models without 1-d layers are not watched.

    Args:
        modules: the model and all that is in it, as ``dict(model.named_modules())``.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        kinds = {kind for kind in set(map(type, modules.values())) if issubclass(kind, _SEQUENCES)}
        self._watched = [m for m in modules.values() if isinstance(m, (*_SEQUENCES, *_TOKENS))] if kinds else []
        # Channels and length of the last map [N, C, L]; None if a layer of tokens has run since, or nothing at all.
        self._last: tuple[int, int] | None = None

    def watch(self) -> list[RemovableHandle]:
        """Hook the layers; to be called before blocks are hooked, which may be such layers themselves."""
        return [module.register_forward_hook(self._see, with_kwargs=True) for module in self._watched]

    def check(self, name: str, module: nn.Module, output: Tensor) -> None:
        """Refuse what a block returned unless it is a map whose channels lie where scoring reads them.

        Raises:
            UsageError: it is [N, C, L], or may as well be.
        """
        if output.ndim != 3 or not self._watched:
            return
        in_sequence, in_tokens = self._orders(output)
        if in_sequence and not in_tokens:
            raise UsageError(f"block {name!r} returns a 1-d convolution's map [N, C, L]; only tokens [N, T, C] fit")
        square = output.shape[1] == output.shape[2] and any(isinstance(part, _SEQUENCES) for part in module.modules())
        if in_sequence or not in_tokens or square:
            raise UsageError(
                f"block {name!r} returns a map of shape {tuple(output.shape)} after a 1-d convolution, which may be "
                "[N, C, L] as well as tokens [N, T, C]; only the latter fit: name blocks that end in a linear layer or "
                "norm of tokens, or give inputs of another length"
            )

    def _see(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:  # noqa: ANN401
        if isinstance(module, _SEQUENCES):
            if isinstance(output, Tensor) and output.ndim == 3:
                self._last = output.shape[1], output.shape[2]
            return
        x = next(iter((*arguments, *named.values())), None)
        along_length = isinstance(x, Tensor) and x.ndim == 3 and self._orders(x) == (True, False)
        # A linear layer may run along the length of a map: channels stay second.
        self._last = (output.shape[1], output.shape[2]) if along_length else None

    def _orders(self, x: Tensor) -> tuple[bool, bool]:
        """Whether the sizes of a map fit [N, C, L], and whether they fit [N, T, C]."""
        if self._last is None:
            return False, True
        channels, length = self._last
        return x.shape[1] == channels or x.shape[2] == length, x.shape[1] == length or x.shape[2] == channels
