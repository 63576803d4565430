"""Predictors with parameters from JSON files, such as `zcpipe parzc tune` writes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from zcpipe.errors import DataError, UsageError
from zcpipe.parzc.predictors import Predictor, predictor
from zcpipe.parzc.protocol import Method, parse_methods
from zcpipe.parzc.spec import FeatureSpec
from zcpipe.untrusted.jsonfile import read_json

_LARGEST = 1 << 20  # bytes


def read_predictor(name: str, path: Path | None) -> Predictor:
    """Make a predictor, with the parameters of a file if one is given.

    Raises:
        UsageError: the file is of another predictor, or the predictor has no such parameters.
        DataError: the file cannot be read or holds no parameters.
    """
    if path is None:
        return predictor(name)
    owner, parameters = _read(path)
    if owner not in ("", name):
        raise UsageError(f"{path} has parameters of {owner}, not of {name}")
    with _named(path):
        return predictor(name, parameters)


def read_methods(names: Sequence[str], paths: Sequence[Path], spec: FeatureSpec) -> list[Method]:
    """Read what is to be evaluated, as `parse_methods`, with the parameters of files that say whose they are.

    Raises:
        UsageError: as `parse_methods`; a file does not say whose parameters it has, or nobody's who is evaluated, or
            two have those of one predictor.
        DataError: a file cannot be read or holds no parameters.
    """
    methods = parse_methods(names, spec)
    given = {}
    for path in paths:
        owner, parameters = _read(path)
        if owner not in (method.name for method in methods):
            raise UsageError(f"{path} has parameters of {owner or 'nobody'}, who is not among the methods")
        if owner in given:
            raise UsageError(f"{path} has parameters of {owner}, as another file has; give one file of each predictor")
        given[owner] = json.dumps(parameters, sort_keys=True)
        with _named(path):
            predictor(owner, parameters)
    return [replace(method, parameters=given.get(method.name, method.parameters)) for method in methods]


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say in which file a parameter is wrong."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    """Return whose parameters a file has, empty where it does not say, and the parameters."""
    found = read_json(path, "a JSON file of parameters, such as zcpipe parzc tune writes", _LARGEST)
    if isinstance(found, dict):
        owner, parameters = found.get("predictor", ""), found.get("parameters", found)
        if isinstance(owner, str) and isinstance(parameters, dict):
            return owner, parameters
    raise DataError(f"{path} holds no parameters; give a JSON object of them")
