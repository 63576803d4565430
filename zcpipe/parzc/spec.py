"""Which columns of a table a predictor sees, and in which form."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator

from zcpipe.errors import UsageError, first_fault

Encoding = Literal["minmax", "log", "rank", "live-rank", "zscore"]
Alignment = Literal["slots", "packed"]


class FeatureSpec(BaseModel):
    """What features are made of; see `zcpipe.parzc.encodings` for the encodings, `zcpipe.parzc.features` for the rest.

    Attributes:
        statistics: list columns of a table, such as ``snip@layer``.
        proxies: its scalar columns, ``params`` and ``macs`` among them.
        encoding: what becomes of the values. "minmax" is after ParZC's, see `zcpipe.parzc.encodings`.
        alignment: "slots": a coordinate is a place in the network; "packed": the live nodes first, after ParZC's.
        graph: whether the operations of the cell are features, one-hot, where the space offers them.

    Raises:
        UsageError: a field is unknown or out of its range, a name comes twice, or there is nothing to make features of.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    statistics: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
    encoding: Encoding = "live-rank"
    alignment: Alignment = "slots"
    graph: bool = False

    @model_validator(mode="wrap")
    @classmethod
    def _in_one_line(cls, data: Any, handler: ModelWrapValidatorHandler[FeatureSpec]) -> FeatureSpec:  # noqa: ANN401
        try:
            spec = handler(data)
        except ValidationError as error:
            raise UsageError(f"invalid features: {first_fault(error)}") from None
        for field in ("statistics", "proxies"):
            names: tuple[str, ...] = getattr(spec, field)
            if len(set(names)) < len(names):
                raise UsageError(f"invalid features: {field}: got {', '.join(names)}, expected names that differ")
        if not (spec.statistics or spec.proxies or spec.graph):
            raise UsageError("invalid features: expected statistics, proxies or the graph, got none of them")
        return spec
