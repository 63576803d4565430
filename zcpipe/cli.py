"""The command line: parses, calls one function of the package, prints. Data on stdout, everything else on stderr."""

from __future__ import annotations

import fnmatch
import io
import math
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Literal

import typer

import zcpipe
from zcpipe import cli_check, cli_search
from zcpipe.cli_parser import Commands
from zcpipe.cli_parzc import parzc_app
from zcpipe.cli_run import EXAMPLES, run
from zcpipe.cli_table import Json, TableDir, table_app
from zcpipe.errors import DataError, UsageError, ZcpipeError, debugging, unknown_name
from zcpipe.printing import counted, finite, number, print_grid, print_json, print_records, reasons_of

EXIT_CODES = """
Exit codes: 0 done; 1 internal error; 2 usage; 3 finished with failed or partial rows; 4 data or identity mismatch;
5 missing capability; 130 interrupted, finished shards are committed.
"""

app = typer.Typer(
    name="zcpipe",
    cls=Commands,
    help="Zero-cost proxies for whole architecture search spaces: tables, rankings, correlations.\n" + EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
truth_app = typer.Typer(no_args_is_help=True, help="Trained accuracies from the benchmarks' official files.")
spaces_app = typer.Typer()
app.add_typer(truth_app, name="truth")
app.add_typer(spaces_app, name="spaces")
app.command(epilog=EXAMPLES)(run)
app.command(epilog=cli_search.EXAMPLES)(cli_search.search)
spaces_app.command(epilog=cli_check.EXAMPLES)(cli_check.check)
app.add_typer(table_app)
app.add_typer(parzc_app, name="parzc")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"zcpipe {zcpipe.__version__}")
        raise typer.Exit


@app.command(epilog="Examples:\n\nzcpipe status runs/nasbench201-1f0c7a52\n\nzcpipe status runs/found --json")
def status(
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="A table made by zcpipe run, or its URI; or a search's directory.")
    ],
    as_json: Json = False,
) -> None:
    """Count a table's rows by outcome, or say how far a search is, also while a run or search is going on."""
    from zcpipe.table import status as read_status

    try:
        found = read_status(directory)
    except DataError:
        from zcpipe.search.status import is_search  # slow to import for who has tables only

        if not is_search(directory):
            raise
        cli_search.print_status(directory, as_json)
        return
    if as_json:
        print_json({**asdict(found), "missing": found.missing, "complete": found.complete})
        return
    identity = found.identity
    typer.echo(f"{found.path}: {identity['space']} on {identity['dataset']}, seed {identity['seed']}")
    state = "complete" if found.complete else f"{found.missing} to go"
    if found.missing and found.rows == found.planned:
        state = f"{found.missing} lack the proxies of a group"
    typer.echo(f"{found.rows} of {counted(found.planned, 'row')} in {counted(found.shards, 'shard')}: {state}")
    if len(found.groups) > 1:
        for group in found.groups:
            typer.echo(f"  {group.rows} of {group.planned} in {group.path}: {', '.join(group.proxies)}")
    typer.echo(", ".join(f"{count} {name}" for name, count in found.by_status.items()) or "no rows yet")
    for line in reasons_of(found.reasons):
        typer.echo(line)


@app.command(
    epilog="Examples:\n\nzcpipe rank runs/demo --top 10\n\nzcpipe rank runs/all --method vote\n\n"
    "zcpipe rank runs/demo --method linear --proxies expressivity,trainability"
)
def rank(
    directory: TableDir,
    method: Annotated[
        str,
        typer.Option(
            help="A name that zcpipe aggregates lists; or logrank, linear, vote or size_regularised, which take "
            "--proxies; or training-free ParZC, such as parzc-sinusoidal, which takes statistics as --proxies."
        ),
    ] = "logrank",
    proxies: Annotated[
        str | None, typer.Option(help="What to aggregate: proxies or groups. (default: the aggregate's own, or aznas)")
    ] = None,
    top: Annotated[int, typer.Option(help="How many of the best to print.")] = 10,
    as_json: Json = False,
) -> None:
    """Rank a table's architectures by an aggregate of proxies, over the population the table holds."""
    from zcpipe.parzc.free import VARIANTS, rank_free
    from zcpipe.rank import METHODS, NAMED
    from zcpipe.rank.population import rank_table
    from zcpipe.table import open_table

    if method not in (known := [*NAMED, *METHODS, *VARIANTS]):
        raise unknown_name("aggregate or method", method, known)
    rank_by = rank_free if method in VARIANTS else rank_table
    population, ranked = rank_by(open_table(directory), method, proxies, top)
    if as_json:
        print_json({"method": method, "population": population, "rows": [finite(asdict(row)) for row in ranked]})
        return
    names = list(ranked[0].proxies) if ranked else []
    cells = [
        [str(r.rank), str(r.index), r.arch, f"{r.score:.4f}", *(number(r.proxies[name]) for name in names)]
        for r in ranked
    ]
    print_grid(["rank", "index", "arch", method, *names], cells)
    typer.echo(f"{population} architectures ranked", err=True)


@app.command(
    epilog="Example: zcpipe correlate runs/nb201 --truth truth.parquet --target cifar10_test_200 "
    "--aggregate two=expressivity,trainability"
)
def correlate(
    directory: TableDir,
    truth: Annotated[Path, typer.Option(help="Parquet file with a text column 'arch' and the target.")],
    target: Annotated[str, typer.Option(metavar="COLUMN", help="Column of the truth file.")],
    aggregate: Annotated[
        list[str] | None, typer.Option(metavar="NAME=LIST", help="A further log-rank aggregate of proxies.")
    ] = None,
    bootstrap: Annotated[
        int | None, typer.Option(metavar="N", min=2, help="Give 95 % intervals, from N resamples of the architectures.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Correlate every proxy and aggregate with trained accuracies.

    Kendall's tau-b, Spearman's rho, and the share of pairs in the right order (pairs), a tie counting a half; of raw
    values, signed. For a vote pairs is what ICLR 2021 reports. Of the architectures with truth n have a value, failed
    have none, missing were not scored with these proxies.

    Truth that is the better the lower, such as a loss, is taken as it is: a good proxy is then below 0, and its pairs
    below a half.
    """
    from zcpipe.progress import resamples_done
    from zcpipe.rank.population import correlate_table, left_out, silent
    from zcpipe.table import open_table
    from zcpipe.truth import align, direction_of, read_truth

    asked = _aggregates(aggregate or [])
    table = open_table(directory)
    known = align(table.to_arrow(["arch"])["arch"].to_pylist(), read_truth(truth, target))
    try:
        lower = direction_of(truth, target) == "lower"
    except DataError as error:  # all is of raw values
        lower = False
        typer.echo(f"note: {error}", err=True)
    for name in left_out(table):
        typer.echo(f"{name} is left out: it compares every pair of {len(table)} architectures", err=True)
    with nullcontext(silent) if bootstrap is None else resamples_done("drawing") as progress:
        rows = correlate_table(table, known, target, asked, bootstrap, progress)
    lacking = sum(math.isnan(value) for value in known)
    if lacking:
        typer.echo(f"{lacking} of {len(known)} architectures have no truth in {truth}", err=True)
    if lower:
        typer.echo(f"{target} is the better the lower: so are kendall, spearman and pairs of a good proxy", err=True)
    if as_json:
        print_json({"target": target, "rows": [finite(asdict(row)) for row in rows]})
        return
    cells = [
        [r.name, *(f"{x:.4f}" for x in (r.kendall, r.spearman, r.pair_accuracy)), *map(str, (r.n, r.failed, r.missing))]
        for r in rows
    ]
    names = ["proxy", "kendall", "spearman", "pairs", "n", "failed", "missing"]
    if bootstrap is not None:
        names += ["kendall 95 %", "spearman 95 %"]
        for cell, r in zip(cells, rows, strict=True):
            bounds = ((r.kendall_low, r.kendall_high), (r.spearman_low, r.spearman_high))
            cell += [f"{low:.3f} to {high:.3f}" for low, high in bounds]
    print_grid(names, cells)


def _aggregates(options: Sequence[str]) -> dict[str, str]:
    parsed = {}
    for option in options:
        name, separator, proxies = option.partition("=")
        if not (name and separator and proxies):
            raise UsageError(f"--aggregate must be NAME=PROXY,PROXY..., got {option!r}")
        if name in parsed:
            raise UsageError(f"--aggregate names {name!r} twice; give one of them another name")
        parsed[name] = proxies
    return parsed


@truth_app.command("readers")
def truth_readers(as_json: Json = False) -> None:
    """List the benchmarks whose files can be imported."""
    from zcpipe.truth import readers

    print_records([{"name": one.name, "title": one.title} for one in readers().values()], as_json)


@truth_app.command(
    "import",
    epilog="Examples:\n\nzcpipe truth import nats NATS-tss-v1_0-3ffb9-simple --out truth.parquet\n\n"
    "zcpipe truth import nds nds_data --out nds.parquet",
)
def import_truth(
    name: Annotated[str, typer.Argument(metavar="READER", help="Whose files: see zcpipe truth readers.")],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The official file or directory.")],
    out: Annotated[Path, typer.Option(help="The Parquet file to make; nothing is overwritten.")],
    as_json: Json = False,
) -> None:
    """Turn a benchmark's official files into one Parquet file: a row per architecture, a column per accuracy."""
    from zcpipe.progress import bytes_read
    from zcpipe.truth import reader

    chosen = reader(name)
    with bytes_read(f"reading {path.name}") as progress:
        table = chosen.import_file(path, out, progress)
    if as_json:
        print_json({"out": str(out), "architectures": table.num_rows, "columns": table.column_names})
    else:
        typer.echo(f"{out}: {table.num_rows} architectures, columns {', '.join(table.column_names)}")


@spaces_app.callback(invoke_without_command=True)
def spaces(context: typer.Context, as_json: Json = False) -> None:
    """List the search spaces that are installed."""
    from zcpipe.spaces import EnumerableSpace, get_space, list_spaces
    from zcpipe.spaces.asked import length_of

    if context.invoked_subcommand is not None:
        return
    found = [get_space(name) for name in list_spaces()]
    records = [
        {
            "name": space.name,
            "architectures": length_of(space) if isinstance(space, EnumerableSpace) else None,
            "datasets": list(space.datasets),
            "paper": space.paper,
        }
        for space in found
    ]
    print_records(records, as_json)


@spaces_app.command(epilog="Example: zcpipe spaces verify nds nds_data/DARTS_in.json")
def verify(
    space: Annotated[str, typer.Argument(metavar="SPACE", help="A space whose files state counts, such as nds.")],
    path: Annotated[Path, typer.Argument(metavar="FILE", help="An official file, or a directory of them.")],
    as_json: Json = False,
) -> None:
    """Build every architecture of official files and compare its parameters and operations with the file's own.

    Exit code 4 where any differs.
    """
    from zcpipe.progress import networks_done
    from zcpipe.spaces import Verifies, get_space

    chosen = get_space(space)
    if not isinstance(chosen, Verifies):
        raise UsageError(f"{space} has no official files that state counts")
    with networks_done(f"verifying {path.name}") as progress:
        found = chosen.verify(path, progress)
    if as_json:
        print_json(asdict(found))
    else:
        typer.echo(
            f"{path}: {found.n} networks, {found.params_equal} with the file's parameters, "
            f"{found.macs_equal} with its operations"
        )
        for one in found.mismatches:
            typer.echo(
                f"{one['file']}, entry {one['entry']}: got {one['got']}, expected {one['expected']}: {one['arch']}"
            )
    if found.mismatches:
        raise typer.Exit(DataError.exit_code)


@app.command(
    epilog="Examples:\n\nzcpipe proxies 'syn*'\n\nzcpipe proxies --plan aznas,nasbench_suite_zero --protocol fused"
)
def proxies(
    pattern: Annotated[str, typer.Argument(metavar="GLOB", help="Shell-style pattern of names, or a group.")] = "*",
    plan: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Show the passes that these proxies or groups share.")
    ] = None,
    protocol: Annotated[
        Literal["paper", "fused"] | None, typer.Option(help="With --plan: whose recipes. (default: paper)")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the proxies that are installed: direction, scope, cost class, recipe, needs, formula and paper."""
    from zcpipe.proxies import describe, get_proxy, groups, list_proxies, resolve
    from zcpipe.scoring.plan import describe as describe_plan

    if plan is not None:
        if pattern != "*":
            raise UsageError(f"--plan names the proxies whose passes are shown; leave {pattern} out, or --plan")
        print_records(describe_plan(resolve(plan), protocol or "paper"), as_json)
        return
    if protocol is not None:
        raise UsageError("--protocol is for --plan NAMES: the list shows each proxy's own recipe")
    names = groups().get(pattern) or list_proxies(pattern)
    if not names:
        raise _no_match("proxy", pattern, [*list_proxies(), *groups()])
    short = ("name", "direction", "cost", "needs", "formula")
    print_records([describe(get_proxy(name)) for name in names], as_json, short)


@app.command(epilog="Example: zcpipe aggregates vote")
def aggregates(
    pattern: Annotated[str, typer.Argument(metavar="GLOB", help="Shell-style pattern of names.")] = "*",
    as_json: Json = False,
) -> None:
    """List the named aggregates: how each combines which proxies, and its paper. They are made on reading."""
    from zcpipe.rank import NAMED

    found = [NAMED[name] for name in NAMED if fnmatch.fnmatchcase(name, pattern)]
    if not found:
        raise _no_match("aggregate", pattern, NAMED)
    records = [{**asdict(entry), "proxies": list(entry.proxies)} for entry in found]
    print_records(records, as_json, ("name", "method", "proxies"))


def _no_match(kind: str, pattern: str, known: Iterable[str]) -> UsageError:
    if set(pattern) & set("*?["):
        return UsageError(f"no {kind} matches {pattern!r}; known: {', '.join(known)}")
    return unknown_name(kind, pattern, known)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Report versions, the native library, devices and threads."""
    from zcpipe.doctor import examine

    report = examine()
    if as_json:
        print_json(report)
        return
    for name, value in report.items():
        typer.echo(f"{name:16} {'-' if value is None else value}")


def _unwrap(part: typer.Typer) -> None:
    """Let help texts wrap where the terminal ends: typer keeps the line breaks of all paragraphs but the first."""
    for command in part.registered_commands:
        paragraphs = cleandoc(getattr(command.callback, "__doc__", None) or "").split("\n\n")
        command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


for _part in (app, truth_app, spaces_app, table_app, parzc_app):
    _unwrap(_part)


def main() -> None:
    """Run the command line; every error of ours ends in one line on stderr and its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be of any encoding
    try:
        app(prog_name="zcpipe")
    except ZcpipeError as error:
        typer.echo(f"error: {error}", err=True)
        if error.abrupt:
            sys.stdout.flush()
            os._exit(error.exit_code)
        sys.exit(error.exit_code)
    except SystemExit as end:  # typer has made that of an interruption that no command has told of
        if isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt):
            typer.echo("interrupted", err=True)
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # of our own output: everything else is a DataError by now
        typer.echo(f"error: {error.strerror or error}: {error.filename or 'standard output'}", err=True)
        sys.exit(DataError.exit_code)
    except Exception as error:  # the last line of defence: a bug must not look like a traceback
        if debugging():
            traceback.print_exc()
        what = f"{type(error).__name__}: {error}"
        typer.echo(f"internal error: {what}; ZCPIPE_DEBUG=1 shows where; please report it", err=True)
        sys.exit(1)
