"""What is wrong before any proxy has a part in it: a network that cannot run on its batch, a loss that fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from zcpipe.errors import UsageError, is_out_of_memory, reason_of
from zcpipe.ops.layout import contiguous_images, needs_other_layout
from zcpipe.proxies.base import Proxy, tensor_of
from zcpipe.scoring.arithmetic import plain_arithmetic
from zcpipe.scoring.guard import untouched
from zcpipe.scoring.measure import Failure, Measurement, Subject, measure
from zcpipe.scoring.network import ScoredNetwork
from zcpipe.scoring.plan import Protocol

_NO_NUMBERS = (
    "the model or its inputs are on the meta device, where only params and macs can be counted; zcpipe.initialise "
    "gives a model memory and weights"
)
_HALVES = (torch.float16, torch.bfloat16)


def measure_given(
    subject: Subject, network: ScoredNetwork, proxies: Sequence[Proxy], protocol: Protocol
) -> tuple[Measurement, str | None]:
    """Measure a network that somebody brought, and tell his faults from those of proxies.

    Where proxies fail, the network's plain forward and the loss are tried by themselves. If they fail as well, that is
    the reason of all failures that it explains.

    Args:
        subject: the network as `measure` takes it.
        network: the same network and its batch.
        proxies: what to compute.
        protocol: see `zcpipe.scoring.plan.plan`.

    Returns:
        What was measured, and what is wrong with network, batch or loss, if anything is.

    Raises:
        UsageError: see `measure`.
    """
    if any(tensor.is_meta for tensor in [*network.model.parameters(), *network.model.buffers(), *network.inputs]):
        result = measure(subject, [proxy for proxy in proxies if not proxy.statistics], protocol)
        passed = [proxy.name for proxy in proxies if proxy.statistics]
        result.failures += [Failure(name, "error", _NO_NUMBERS) for name in passed]
        result.scores = {proxy.name: result.scores.get(proxy.name) for proxy in proxies}
        return result, _NO_NUMBERS if passed else None
    result = measure(subject, proxies, protocol)
    named = {proxy.name: proxy for proxy in proxies}
    found: dict[tuple[bool, bool], str | None] = {}
    for i, failure in enumerate(result.failures):
        if failure.kind not in ("error", "unsupported"):
            continue
        proxy = named[failure.proxy]
        how = (proxy.recipe is None or proxy.recipe.norm != "running", proxy.targets)
        if how not in found:
            found[how] = _fault(network, *how)
            if needs_other_layout(found[how] or ""):
                with contiguous_images():
                    found[how] = _fault(network, *how)
        if found[how] is not None:
            result.failures[i] = replace(failure, kind="error", message=str(found[how]))
    return result, next((fault for fault in found.values() if fault is not None), None)


def _fault(network: ScoredNetwork, training: bool, with_loss: bool) -> str | None:
    """Say why the plain forward, or the loss of what it returns, fails; None if both work or memory runs out."""
    with untouched(network.modules, training=training), plain_arithmetic(network.inputs[0].device):
        try:
            output = network.model(*network.inputs)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if is_out_of_memory(error):
                return None
            half = any(parameter.dtype in _HALVES for parameter in network.model.parameters())
            mend = "score in float32: call model.float()" if half else "check their shape and dtype"
            return f"the model fails on these inputs: {reason_of(error)}; {mend}"
        if not with_loss:
            return None
        try:
            with torch.no_grad():
                network.loss(tensor_of(output), network.targets)
        except KeyboardInterrupt:
            raise
        except UsageError:
            return None  # it says itself what is wrong, and has been raised if it was met
        except BaseException as error:
            return None if is_out_of_memory(error) else f"the loss fails: {reason_of(error)}"
    return None
