"""Which device a run computes on: always explicit in its spec."""

from __future__ import annotations

import torch

from zcpipe.errors import UsageError


def resolve_device(name: str) -> str:
    """Turn what a user says into an explicit device.

    Args:
        name: ``auto`` (the first GPU if there is one), ``cpu``, ``cuda`` (the first) or ``cuda:<i>``.

    Raises:
        UsageError: another name.
    """
    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        return "cuda:0"
    kind, separator, number = name.partition(":")
    if name == "cpu" or (kind == "cuda" and separator and number.isdecimal()):
        return name
    raise UsageError(f"unknown device {name!r}; give auto, cpu, cuda or cuda:<i>")
