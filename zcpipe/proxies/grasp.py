"""GraSP as a zero-cost proxy (Wang et al., ICLR 2020; Abdelfattah et al., ICLR 2021): gradient flow and curvature.

Of each layer, -<w, (H g)> with g the loss's gradient of all layers' weights and H the loss's Hessian with respect to
them; biases and norm layers are held constant. One forward and one backward give it without forming H g: along the
weights w + t g, with g constant, let z = w(t) * x be a layer's output without bias and D = dL/dt at t = 0. Then

    <w, (H g)> = <w, dD/dw> = sum(z dD/dz) + sum(u dD/du),    u = w * dx/dt,    dz/dt = u + g * x,

so a forward that carries values and tangents, and a backward of D that asks for gradients at layer outputs only. That
D must equal |g|^2 shows that no operation on the way has lost its tangent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm as _AnyBatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from zcpipe.errors import UnsupportedError, is_out_of_memory
from zcpipe.ops import available, avg_pool3x3, generators, product_sums
from zcpipe.proxies.base import CustomStatistic, Network, PairForward, Proxy, tensor_of, total
from zcpipe.proxies.saliency import PAPER, RECIPE
from zcpipe.spaces.layers import is_avg_pool3x3, is_batch_norm, recurrent_gradients, recurrent_weights_kept

_CONVOLUTIONS = {kind.forward for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)}
_NORMS = (_AnyBatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm)
# Operations of a forward whose tangents tests have differentiated again; see `_KnownOperations`.
_KNOWN = frozenset(
    """
    _adaptive_avg_pool2d _efficientzerotensor _has_same_storage_numel _new_zeros_with_same_feature_meta _safe_softmax
    _softmax _to_copy _unsafe_view abs add addmm alias all amax as_strided_ avg_pool2d avg_pool3x3 baddbmm
    batch_norm_train batch_norm_train_backward bernoulli_ bmm cat clamp clone constant_pad_nd convolution copy_ detach
    div div_ elu elu_backward embedding empty empty_like eq exp expand fill_ gather ge gelu gelu_backward gt hardswish
    hardswish_backward hardtanh hardtanh_backward index_select is_same_size le leaky_relu leaky_relu_backward
    lift_fresh log log1p logical_and_ lt masked_fill max_pool2d_with_indices mean mish mm mul neg new_empty new_zeros
    permute
    pixel_shuffle pow reciprocal reflection_pad2d relu repeat replication_pad2d roll rsqrt rsub scalar_tensor select
    sgn sigmoid sigmoid_backward silu slice softplus softplus_backward split split_with_sizes sqrt squeeze stack sub
    sub_ sum t tanh tanh_backward threshold_backward to transpose unbind unsqueeze upsample_bilinear2d
    upsample_nearest2d view where zeros zeros_like
    """.split()  # noqa: SIM905 - a hundred quoted names would read worse
)
# How far D may be from |g|^2, which g was computed separately from, relative to it.
_AGREEMENT = {torch.float32: 1e-2, torch.float64: 1e-6}


def curvatures(network: Network) -> list[float]:
    """Return -<w, (H g)> of each layer.

    Networks with an operation that knows no tangents go through two backward passes instead.
    """
    weights = list(network.layers.values())
    if not weights:
        raise UnsupportedError("the network has no convolution or linear layer")
    gradients = [gradient.detach() for gradient in network.gradients.gradients]
    found = None
    recurrent = recurrent_gradients(network.model.modules(), weights[0].device)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), recurrent:  # the others have no second derivatives
        try:
            if all(weight.dtype in _AGREEMENT for weight in weights):
                found = _Tangents(network, weights, gradients).run()
        except RuntimeError as error:
            # torch's word for operations without tangents, or tangents without gradients; a fused step's for images
            # that the network has changed in place.
            if is_out_of_memory(error):
                raise
        if found is None:
            found = _twice_backward(network, weights, gradients)
    return [-value for value in found]


class _Tangents:
    """The pass that carries tangents."""

    def __init__(self, network: Network, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        self._network = network
        self._weights = [weight.detach().requires_grad_() for weight in weights]
        self._gradients = gradients
        self._places = {id(weight): i for i, weight in enumerate(weights)}
        self._products: list[list[Tensor]] = [[] for _ in weights]
        # What layers' outputs depend on, so that the backward reaches every one of them.
        self._anchor = torch.zeros((), requires_grad=True)

    def run(self) -> list[float] | None:
        """Return <w, (H g)> of each layer; None if a tangent got lost."""
        recurrent = recurrent_weights_kept(self._network.model.modules())
        with recurrent, forward_ad.dual_level(), self._swapped(), _known_operations():
            output, tangent = _pair(_output(self._network))
            if tangent is None:
                return None
        # Outside, where no tangents go along. The loss may be anybody's function: twice backward through it.
        loss = self._network.loss(output, self._network.targets)
        (at_output,) = torch.autograd.grad(loss, output, create_graph=True)
        slope = (at_output * tangent).sum()
        if not self._is_squared_norm(slope.detach()):
            return None
        # Weights also count where something else than their layer uses them.
        _, *direct = torch.autograd.grad(slope, [self._anchor, *self._weights], allow_unused=True)
        found = []
        for weight, gradient, products in zip(self._weights, direct, self._products, strict=True):
            terms = products if gradient is None else [*products, (weight.detach().double() * gradient).sum()]
            found.append(float(torch.stack(terms).sum()) if terms else 0.0)
        return found

    def _is_squared_norm(self, slope: Tensor) -> bool:
        squares = sum(float(gradient.double().square().sum()) for gradient in self._gradients)
        # A batch so bad that nothing is finite has no curvature either; let the values say so.
        return not abs(float(slope) - squares) > _AGREEMENT[slope.dtype] * squares

    @contextmanager
    def _swapped(self) -> Iterator[None]:
        """Give weights their tangents, and layers forwards that use them well, to be called as torch's are."""
        duals = [_dual(w, g) for w, g in zip(self._weights, self._gradients, strict=True)]
        fused = self._fused()
        held: list[tuple[nn.Module, str, nn.Parameter]] = []
        swapped: list[nn.Module] = []
        try:
            for module in self._network.model.modules():
                forward = None if "forward" in vars(module) else fused.get(module) or self._forward(module)
                if forward is not None:
                    vars(module)["forward"] = forward
                    swapped.append(module)
                for name, parameter in module._parameters.items():
                    if parameter is not None and id(parameter) in self._places:
                        held.append((module, name, parameter))
                        module._parameters[name] = duals[self._places[id(parameter)]]  # type: ignore[assignment]
            yield
        finally:
            for module, name, parameter in held:
                module._parameters[name] = parameter
            for module in swapped:
                del vars(module)["forward"]

    def _fused(self) -> dict[nn.Module, Callable[[Tensor], Tensor]]:
        """Return the forwards of modules whose layers are fused."""
        weights: list[Tensor] = list(self._network.layers.values())
        directions = dict(zip(weights, self._gradients, strict=True))
        pairs = self._network.pair_forwards(directions, dict(zip(weights, self._products, strict=True)), self._anchor)
        return {module: _fused_forward(pair, module.forward) for module, pair in pairs.items()}

    def _forward(self, module: nn.Module) -> Callable[[Tensor], Tensor] | None:
        weight = module._parameters.get("weight")
        if type(module).forward in _CONVOLUTIONS and id(weight) in self._places:
            convolve: Callable[..., Tensor] = module._conv_forward  # type: ignore[assignment]
            return self._layer(module, lambda x, w: convolve(x, w, None))
        if type(module).forward is nn.Linear.forward and id(weight) in self._places:
            return self._layer(module, F.linear)
        if is_batch_norm(module) and available():
            return _on_images(partial(_batch_norm, module), _composed_norm(module))
        if type(module) is nn.Hardsigmoid:  # torch knows no second derivative of it
            return lambda input: (input + 3).clamp(0, 6) / 6
        if is_avg_pool3x3(module):
            return _on_images(lambda x, u: (avg_pool3x3(x), avg_pool3x3(u)), module.forward)
        return _composed_norm(module) if _is_plain_norm(module) else None

    def _layer(self, module: nn.Module, apply: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Return the forward of a layer that is linear in its weight."""
        place = self._places[id(module._parameters["weight"])]
        weight, gradient = self._weights[place].detach(), self._gradients[place]
        bias: Tensor | None = module._parameters.get("bias")
        shift = bias
        if bias is not None and isinstance(module, nn.modules.conv._ConvNd):
            shift = bias.view(-1, *[1] * len(module.kernel_size))

        def forward(input: Tensor) -> Tensor:
            value, tangent = _pair(input)
            u = None if tangent is None else apply(tangent, weight)
            z, u = _tapped(apply(value, weight), u, self._anchor, self._products[place])
            slope = apply(value, gradient)
            return _dual(z if shift is None else z + shift, slope if u is None else u + slope)

        return forward


class _UnknownOperationError(RuntimeError):
    """An operation whose tangents nobody has compared with two backward passes."""


class _KnownOperations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, operations that are not known to be right raise.

    torch can differentiate tangents backward that hold intermediate results constant: those of its normalisations do,
    and are wrong without a word.
    """

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        """Run an operation if it is known."""
        if func.overloadpacket.__name__ not in _KNOWN:
            raise _UnknownOperationError(str(func))
        return func(*args, **(kwargs or {}))


def _known_operations() -> _KnownOperations:
    return _KnownOperations()  # type: ignore[no-untyped-call]


def _pair(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return a tensor's value and tangent."""
    value, tangent = forward_ad.unpack_dual(x)  # type: ignore[no-untyped-call]
    return value, tangent


def _dual(value: Tensor, tangent: Tensor) -> Tensor:
    dual: Tensor = forward_ad.make_dual(value, tangent)  # type: ignore[no-untyped-call]
    return dual


class _Tap(torch.autograd.Function):
    """Nothing, but for the products of what passes with its gradients, which are kept."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        z: Tensor,
        u: Tensor | None,
        anchor: Tensor,
        products: list[Tensor],
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.products = products
        ctx.save_for_backward(z, u)
        return z.view_as(z), None if u is None else u.view_as(u)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None]:  # noqa: ANN401
        for value, gradient in zip(ctx.saved_tensors, gradients, strict=True):
            if gradient is not None:
                ctx.products.append(_product_sum(value, gradient))
        return gradients[0], gradients[1], None, None


def _tapped(z: Tensor, u: Tensor | None, anchor: Tensor, products: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    z, u = _Tap.apply(z, u, anchor, products)  # type: ignore[no-untyped-call]
    return z, u


class _BatchNorm(torch.autograd.Function):
    """Train-mode batch norm of values x and tangents u, to y and v = J u, J being the (symmetric) Jacobian."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,  # [N, C, H, W]
        u: Tensor,  # [N, C, H, W]
        weight: Tensor | None,  # [C]
        bias: Tensor | None,  # [C]
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        with torch._C._AutoDispatchBelowAutograd():
            y, mean, invstd = torch.ops.zcpipe.batch_norm_train(x, weight, bias, None, eps, False)
        v, u_normed, u_sum = _apply_jacobian(u, x, weight, bias, mean, invstd)
        ctx.save_for_backward(x, u, y, v, weight, bias, mean, invstd, u_normed, u_sum)
        return y, v

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        gy: Tensor | None,  # [N, C, H, W]
        gv: Tensor | None,  # [N, C, H, W]
    ) -> tuple[Tensor | None, ...]:
        x, u, y, v, weight, bias, mean, invstd, u_normed, u_sum = ctx.saved_tensors
        gx = None if gy is None else _apply_jacobian(gy, x, weight, bias, mean, invstd)[0]
        if gv is None:
            return gx, None, None, None, None
        gu, gv_normed, gv_sum = _apply_jacobian(gv, x, weight, bias, mean, invstd)
        # The gradient of <gv, J(x) u>: with a, b the means of u and u x^, c, d those of gv and gv x^,
        # -invstd (b gu + d v) - invstd^2 (mean(gv u) - a c - b d) weight x^.
        count = x.numel() // x.shape[1]
        a, b, c, d = (sums.double() / count for sums in (u_sum, u_normed, gv_sum, gv_normed))
        scale = -invstd.square() * (product_sums(u, gv).sum(0) / count - a * c - b * d)
        gx = torch.zeros_like(x) if gx is None else gx
        for factor, images in ((-invstd * b, gu), (-invstd * d, v), (scale, y)):
            gx.addcmul_(images, factor.to(x.dtype)[:, None, None])
        if bias is not None:  # y holds it beside weight x^
            gx.sub_((scale * bias).to(x.dtype)[:, None, None])
        return gx, gu, None, None, None


def _batch_norm(norm: nn.BatchNorm2d, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    y, v = _BatchNorm.apply(x, u, norm.weight, norm.bias, norm.eps)  # type: ignore[no-untyped-call]
    return y, v


def _apply_jacobian(
    g: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, invstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return J g and for each channel the sums of g times the normalised images and of g."""
    with torch._C._AutoDispatchBelowAutograd():
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.zcpipe.batch_norm_train_backward(
            g, x, weight, bias, mean, invstd, False
        )
    return found


def _on_images(
    pair: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], original: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """Return a forward that treats float images and their tangents as a pair, and leaves all else to the original."""

    def forward(input: Tensor) -> Tensor:
        value, tangent = _pair(input)
        if tangent is None or input.ndim != 4 or input.dtype not in _AGREEMENT or input.numel() <= input.shape[1]:
            return original(input)
        return _dual(*pair(value, tangent))

    return forward


def _fused_forward(pair: PairForward, original: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(*given: Tensor, **named: Tensor) -> Tensor:
        (x,) = given or named.values()  # chains have torch's name for it, cells their own
        with _disable_current_modes():  # no tangents of torch's go along inside
            found = pair(*_pair(x))
        return original(x) if found is None else _dual(*found)

    return forward


def _twice_backward(network: Network, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[float]:
    """Return <w, (H g)> of each layer as the published code does: by the gradient of <g, dL/dw>."""
    wanted = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_()
        loss = network.loss(_output(network), network.targets)
        found = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
        terms = [(g * d).sum() for g, d in zip(gradients, found, strict=True) if d is not None and d.requires_grad]
        if not terms:
            return [0.0] * len(weights)
        curved = torch.autograd.grad(torch.stack(terms).sum(), weights, allow_unused=True)
    finally:
        for weight, before in zip(weights, wanted, strict=True):
            weight.requires_grad_(before)
    return [0.0 if c is None else float(_product_sum(w, c)) for w, c in zip(weights, curved, strict=True)]


def _output(network: Network) -> Tensor:
    # The state in which the pass of the first gradient began: what dropout drops must be the same.
    generators.restart()
    return tensor_of(network.model(*network.inputs))


def _product_sum(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.detach(), b.detach()
    if a.ndim in (2, 3, 4) and a.dtype in _AGREEMENT:
        return product_sums(a, b).sum()
    return (a.double() * b.double()).sum()


def _is_plain_norm(module: nn.Module) -> bool:
    stock = isinstance(module, _NORMS) and type(module).__module__.startswith("torch.nn.modules.")
    return stock and not getattr(module, "track_running_stats", False)


def _composed_norm(module: Any) -> Callable[[Tensor], Tensor]:  # noqa: ANN401
    """Return the forward of a normalisation by what it is given, made of operations whose tangents have gradients."""
    eps: float = module.eps

    def forward(input: Tensor) -> Tensor:
        x = input
        if isinstance(module, nn.LayerNorm):
            dims = tuple(range(-len(module.normalized_shape), 0))
            y = _normalised(x, dims, eps)
            return _affine(y, module.weight, module.bias)
        if isinstance(module, nn.GroupNorm):
            y = _normalised(x.reshape(len(x), module.num_groups, -1), (2,), eps).reshape(x.shape)
        else:
            dims = (0, *range(2, x.ndim)) if isinstance(module, _AnyBatchNorm) else tuple(range(2, x.ndim))
            y = _normalised(x, dims, eps)
        shape = (-1, *[1] * (x.ndim - 2))
        return _affine(y, *(None if p is None else p.view(shape) for p in (module.weight, module.bias)))

    return forward


def _normalised(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


PROXIES = (
    Proxy(
        name="grasp",
        direction="higher",
        scope="function",
        cost="second-order",
        recipe=RECIPE,
        statistics=(CustomStatistic("grasp", "", "layer", curvatures, blind=True),),
        reduce=total("grasp"),
        unit="",
        formula="-sum of w (H g) over all weights, g the loss's gradient and H its Hessian with respect to them",
        paper="Wang et al., GraSP, ICLR 2020; as a proxy: " + PAPER,
        targets=True,
    ),
)
