"""What a run has to do to a table: which of its groups of columns compute what was asked, and which is new."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from zcpipe.errors import CapabilityError, DataError
from zcpipe.proxies import list_proxies
from zcpipe.run.spec import RunSpec
from zcpipe.run.work import Progress, WorkList, plan, silent, sized
from zcpipe.scoring.columns import COUNTS, Column
from zcpipe.scoring.rows import ClassScorer
from zcpipe.table.groups import Group, find_groups, next_group
from zcpipe.table.new import require_outside
from zcpipe.table.place import Place, locate
from zcpipe.table.schema import Header
from zcpipe.table.store import check_identity, scan


@dataclass(frozen=True)
class Job:
    """One group that a run adds rows to, in all of the group's own columns."""

    spec: RunSpec
    group: Group
    exists: bool

    def kept(self, retry_errors: bool) -> NDArray[np.int64]:
        """Return the indices of the rows that are there and not computed again."""
        if not self.exists:
            return np.empty(0, np.int64)
        return scan(self.group.directory, self.group.header).kept(retry_errors)


@dataclass(frozen=True)
class Plan:
    """A run fitted to what is in its directory.

    Attributes:
        out: the table's directory.
        found: the table and its groups, as they are; nothing where there is no table.
        base: the header of the table, that which is there or that which will be made.
        jobs: in the order in which they are done, the table itself first.
        work: the rows of the selection, the same for every job.
    """

    out: Place
    found: Sequence[Group]
    base: Header
    jobs: Sequence[Job]
    work: WorkList

    @property
    def groups(self) -> list[Group]:
        """The table and its groups, as they will be."""
        return [*self.found, *(job.group for job in self.jobs if not job.exists)]

    def done(self, retry_errors: bool) -> NDArray[np.int64]:
        """Return the indices of the rows of the selection of which nothing is to be computed."""
        return reduce(np.intersect1d, [job.kept(retry_errors) for job in self.jobs], self.work.indices)


def prepare(spec: RunSpec, out: str | Place | None, progress: Progress = silent) -> Plan:
    """Fit a spec to the table that is already there, if any, and plan its rows.

    Each proxy is computed in the group that holds it, the table itself before the others, and what none holds in a
    group of its own. A group that holds none of the proxies is left as it is. ``progress`` is told (architectures drawn
    so far, architectures to draw).

    Raises what `zcpipe.run.run` raises before it computes.
    """
    out = locate(spec.default_out() if out is None else out)
    found = find_groups(out)
    if not found:
        require_outside(out)
        spec = sized(spec)
        group = Group(out, Header(ClassScorer(spec).columns, spec.record(), spec.identity()))
        return Plan(out, found, group.header, [Job(spec, group, exists=False)], plan(spec, progress))
    base = found[0].header
    check_identity(out, base.identity, spec.identity())
    jobs, asked = [], dict.fromkeys(spec.proxies)
    for group in found:
        held = asked.keys() & {*group.proxies, *COUNTS}  # counts are in every table
        if held:
            asked = {name: None for name in asked if name not in held}
            adopted = _adopt(spec, group.header, group.header.spec["proxies"])
            _check_installed(group)
            _check_same_columns(group, ClassScorer(adopted).columns)
            jobs.append(Job(adopted, group, exists=True))
    if asked:
        further = _adopt(spec, base, tuple(asked))
        header = Header(ClassScorer(further).columns, further.record(), further.identity())
        jobs.append(Job(further, Group(next_group(out), header), exists=False))
    return Plan(out, found, base, jobs, plan(jobs[0].spec, progress))


def _adopt(spec: RunSpec, header: Header, proxies: Sequence[str]) -> RunSpec:
    """Return a spec with the proxies of a group and the table's size of shards, by which rows share a network."""
    own = {"proxies": proxies, "classes_per_shard": header.spec["classes_per_shard"]}
    return RunSpec.model_validate({**spec.model_dump(), **own})


def _check_installed(group: Group) -> None:
    """New rows of a group have all of its proxies, also those that the run does not ask for."""
    if absent := sorted(set(group.proxies) - {*list_proxies()}):
        raise CapabilityError(
            f"the table {group.directory} has columns of proxies that are not installed here ({', '.join(absent)}); "
            "install their package, or score into another --out"
        )


def _check_same_columns(group: Group, computed: Sequence[Column]) -> None:
    """A group cannot grow by rows of other columns, as a later version of a proxy might make them."""
    there, here = ({column.name: asdict(column) for column in columns} for columns in (group.header.columns, computed))
    changed = [f"{name} is there only in one" for name in there.keys() ^ here.keys()]
    for name in there.keys() & here.keys():
        differing = [key for key, value in there[name].items() if here[name][key] != value]
        changed += [f"{key} of {name} is {there[name][key]!r} there and {here[name][key]!r} here" for key in differing]
    if changed:
        raise DataError(
            f"the table {group.directory} was made by proxies that have changed since ({min(changed)}); "
            "score into another --out"
        )
