"""The synflow family's pass: absolute weights, one image of ones, gradients of the sum of all outputs, in float64.

The numbers grow with depth beyond what float64 holds: 600 convolutions are enough. So a plain pass is tried first, and
where it comes near the limits another one follows, in which every tensor carries an exponent of its own
(`_Scaled`). Its gradients need no exponents: with weights and activations that are not negative, what a tensor and its
gradient multiply to is a part of the output, and that is of moderate size once its exponent is set apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.overrides import TorchFunctionMode

from zcpipe.errors import UnsupportedError
from zcpipe.proxies.base import Gradients, tensor_of
from zcpipe.scoring.guard import attributes_kept
from zcpipe.scoring.layers import weights_of
from zcpipe.spaces.layers import computes_as

# Without these a network is what its layers make it; `nn.modules.batchnorm._NormBase` has all batch and instance norms.
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
# Those that do nothing but normalise; a subclass may have a forward that does more, such as an activation.
_STOCK_NORMS = (_BatchNorm, nn.SyncBatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
# The plain pass counts where all outputs of layers lie between: then so do gradients, with room to spare.
_SMALLEST, _LARGEST = 1e-120, 1e120


def absolute_gradients(
    model: nn.Module, modules: Mapping[str, nn.Module], inputs: Sequence[Tensor], norm: str
) -> Gradients:
    """Return the absolute weights of all layers and the gradients of the sum of all outputs with respect to them.

    Parts of the gradient that are smaller than its largest by a factor of 1e-300 may be zero.

    Args:
        model: the network, in train mode; as before afterwards.
        modules: all that is in it, as ``dict(model.named_modules())``.
        inputs: positional inputs, [N, ...] each, which give the shapes. Floats are replaced by one sample of ones;
            integers, such as tokens, have no ones of that kind: their first sample stays.
        norm: "drop": normalisation layers do nothing, but for what else a forward of their own does, such as an
            activation; "batch": they normalise by the statistics of the one sample.

    Returns:
        Float64 weights and gradients in the order of ``modules()``, zero where the output does not depend on a weight.

    Raises:
        UnsupportedError: there is no layer; or norms are to be dropped, and one has a forward of its own that does not
            normalise by a function of torch's, such as ``F.batch_norm``.
    """
    first = [x[:1] if not x.is_floating_point() else torch.ones_like(x[:1], dtype=torch.float64) for x in inputs]
    layers = list(weights_of(modules).values())
    if not layers:
        raise UnsupportedError("the network has no convolution or linear layer")
    with (
        attributes_kept(modules.values()),
        _absolute(modules, drop_norms=norm == "drop") as replaced,
        torch.enable_grad(),
    ):
        weights = [replaced[id(weight)].requires_grad_() for weight in layers]
        outputs: list[Tensor] = []
        total = _run(model, modules, first, outputs.append).sum()
        gradients = _gradients(total, weights)
        if _is_moderate([total, *outputs]):
            return Gradients([w.detach() for w in weights], gradients)
        del total, outputs, gradients
        scaled = _run(model, modules, [_scaled(x) for x in first], _scaled).sum()
        exponent = _exponent_of(scaled)
        gradients = _gradients(_plain(scaled), weights)
    return Gradients([w.detach() for w in weights], gradients, exponent * math.log(2))


def _run(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    inputs: Sequence[Tensor],
    on_output: Callable[[Tensor], Tensor | None],
) -> Tensor:
    """Run the model; what modules with parameters return goes through `on_output`, which may replace it."""

    def hook(_module: nn.Module, _arguments: object, output: object) -> Tensor | None:
        return on_output(output) if isinstance(output, Tensor) else None

    handles = []
    try:
        for module in modules.values():
            if module._parameters and not isinstance(module, _NORMS):
                handles.append(module.register_forward_hook(hook))
        return tensor_of(model(*inputs))
    finally:
        for handle in handles:
            handle.remove()


def _scaled(x: Tensor) -> Tensor:
    return x if isinstance(x, _Scaled) or not x.is_floating_point() else _Scaled.of(x, 0)


def _gradients(total: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    if not total.requires_grad:
        return [torch.zeros_like(weight.detach()) for weight in weights]
    return list(torch.autograd.grad(total, weights, allow_unused=True, materialize_grads=True))


def _is_moderate(values: Sequence[Tensor]) -> bool:
    largest = torch.stack(torch._foreach_norm([v.detach() for v in values if v.numel()], math.inf))
    return bool(((largest > _SMALLEST) & (largest < _LARGEST)).all())


@contextmanager
def _absolute(modules: Mapping[str, nn.Module], drop_norms: bool) -> Iterator[dict[int, Tensor]]:
    """Put absolute float64 values in the place of parameters and buffers; gives what by the original's identity."""
    replaced: dict[int, Tensor] = {}
    held: list[tuple[Any, dict[str, Any]]] = []  # dictionaries of modules, and what was in them

    def absolute(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or not tensor.is_floating_point():
            return tensor
        if id(tensor) not in replaced:
            # Channels last, should they be, would be slower for a single image in float64.
            replaced[id(tensor)] = tensor.detach().double().abs().contiguous()
        return replaced[id(tensor)]

    try:
        for name, module in modules.items():
            if drop_norms and isinstance(module, _NORMS):
                stock = computes_as(module, *_STOCK_NORMS)
                forward = _unchanged if stock else _not_normalised(name, module)
                held.append((vars(module), {"forward": vars(module).get("forward")}))
                vars(module)["forward"] = forward
                if stock:
                    continue
            containers: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for container in containers:
                if container:
                    held.append((container, dict(container)))
                    container.update({name: absolute(tensor) for name, tensor in container.items()})
        yield replaced
    finally:
        for container, before in reversed(held):
            container.update(before)
            if before.get("forward", container) is None:
                del container["forward"]


def _unchanged(*given: Tensor, **named: Tensor) -> Tensor:
    return (*given, *named.values())[0]  # norms have no one name for it


def _not_normalised(name: str, norm: nn.Module) -> Callable[..., Any]:
    """Return the forward that a norm has of its own, without the normalisation in it."""
    original = norm.forward

    def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        with _WithoutNorms() as mode:
            output = original(*args, **kwargs)
        if not mode.met:
            raise UnsupportedError(
                f"norm layer {name or 'the model itself'} ({type(norm).__name__}) cannot be left out: its forward is "
                "its own and does not normalise by a function of torch's"
            )
        return output

    return forward


class _WithoutNorms(TorchFunctionMode):
    """Inside, torch's functions that normalise do nothing."""

    met = False  # whether there was one

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run a function that does not normalise."""
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in _NORMALISING:
            self.met = True
            x: Tensor = args[0] if args else kwargs["input"]
            return x.clone()  # the forward may go on to compute in it
        result = func(*args, **kwargs)
        if name in _CASTS and isinstance(result, Tensor) and result.is_floating_point():
            return args[0] if args[0].is_floating_point() else result.double()  # norms of half precision use float32
        return result


_NORMALISING = frozenset(("batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"))
_CASTS = frozenset(("bfloat16", "float", "half", "to", "type", "type_as"))


class _Scaled(Tensor):
    """A tensor times two to an exponent: values far beyond what float64 holds.

    Operations that positive factors pass through keep the exponent, sums bring both to one, products add them up. All
    others get the values themselves, infinite or zero where float64 has no other words for them.
    """

    exponent: int

    @staticmethod
    def of(mantissa: Tensor, exponent: int) -> _Scaled:
        """Make one whose largest mantissa is near 1."""
        largest = float(mantissa.detach().abs().max()) if mantissa.numel() else 0.0
        if 0 < largest < math.inf:
            shift = math.frexp(largest)[1]
            if abs(shift) > 30:
                mantissa, exponent = _times_power(mantissa, -shift), exponent + shift
        scaled = mantissa.as_subclass(_Scaled)
        scaled.exponent = exponent
        return scaled

    @classmethod
    def __torch_function__(
        cls,
        func: Any,  # noqa: ANN401
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run a function of scaled tensors."""
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if name in _PRODUCTS:
                return _wrapped(func(*_map(_plain, args), **kwargs), sum(map(_exponent_of, args)))
            if name in _SUMS:
                return _sum(func, args, kwargs)
            passes = name in _HOMOGENEOUS or (name == "pad" and not any((*args[3:], kwargs.get("value"))))
            if name == "__get__" or (passes and not any(map(_is_scaled, _tensors((args[1:], kwargs))))):
                return _homogeneous(name, func, args, kwargs)
            if name.endswith("_") and not name.endswith("__"):
                raise UnsupportedError(f"the network is too deep for float64 and computes in place ({name})")
            return func(*_map(_value, args), **_map(_value, kwargs))


_PRODUCTS = frozenset(("mul", "__mul__", "__rmul__", "matmul", "__matmul__", "bmm"))
_SUMS = frozenset(("add", "__add__", "__radd__", "sub", "__sub__", "rsub", "__rsub__", "cat", "concat", "stack"))
_HOMOGENEOUS = frozenset(
    """
    __getitem__ __len__ adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d avg_pool1d avg_pool2d avg_pool3d chunk clone contiguous conv1d conv2d conv3d detach dim div
    dropout expand flatten interpolate is_contiguous is_floating_point leaky_relu linear max_pool1d max_pool2d
    max_pool3d mean movedim numel permute pixel_shuffle relu relu_ reshape select size split squeeze stride sum
    transpose unbind unflatten unsqueeze view
    """.split()  # noqa: SIM905 - quoted they would read worse
)
_WITH_BIAS = frozenset(("conv1d", "conv2d", "conv3d", "linear"))


def _homogeneous(name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    """Run a function that a positive factor of its first argument passes through, but for a bias."""
    exponent, first, rest = _exponent_of(args[0]), _plain(args[0]), args[1:]
    if name in _WITH_BIAS:
        bias = rest[1] if len(rest) > 1 else kwargs.pop("bias", None)
        result = _wrapped(func(first, rest[0], None, *rest[2:], **kwargs), exponent)
        if bias is None:
            return result
        pixels = [1] * (0 if name == "linear" else rest[0].ndim - 2)
        return _sum(torch.add, (result, bias.view(-1, *pixels)), {})
    return _wrapped(func(first, *rest, **kwargs), exponent)


def _sum(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    """Run a function that adds tensors up or puts them beside each other: all get the largest exponent."""
    exponent = max((_exponent_of(t) for t in _tensors(args) if bool(_plain(t.detach()).any())), default=0)
    return _wrapped(func(*_map(lambda t: _mantissa(t, exponent), args), **kwargs), exponent)


def _wrapped(result: Any, exponent: int) -> Any:  # noqa: ANN401
    """Give an exponent to the tensors of a result, and leave answers such as sizes alone."""
    return _map(lambda t: _Scaled.of(t, exponent) if t.is_floating_point() else t, result)


def _map(of: Callable[[Tensor], Any], values: Any) -> Any:  # noqa: ANN401
    """Apply a function to the tensors in values."""
    if isinstance(values, Tensor):
        return of(values)
    if type(values) in (tuple, list):
        return type(values)(_map(of, value) for value in values)
    return {key: _map(of, value) for key, value in values.items()} if type(values) is dict else values


def _tensors(values: Any) -> list[Tensor]:  # noqa: ANN401
    found: list[Tensor] = []
    _map(found.append, values)
    return found


def _is_scaled(value: object) -> bool:
    return isinstance(value, _Scaled)


def _plain(t: Tensor) -> Tensor:
    return t.as_subclass(Tensor)


def _exponent_of(value: object) -> int:
    return value.exponent if isinstance(value, _Scaled) else 0


def _mantissa(t: Tensor, exponent: int) -> Tensor:
    """Return what, times two to the exponent, is the tensor."""
    return _times_power(_plain(t), _exponent_of(t) - exponent)


def _value(t: Tensor) -> Tensor:
    return _times_power(_plain(t), _exponent_of(t)) if isinstance(t, _Scaled) else t


def _times_power(x: Tensor, exponent: int) -> Tensor:
    """Multiply by two to a power of any size."""
    exponent = min(max(exponent, -3000), 3000)  # further out everything is zero or infinite
    while exponent:
        step = min(max(exponent, -1000), 1000)
        x, exponent = x * 2.0**step, exponent - step
    return x
