"""Whatever a proxy raises costs that proxy alone, also what would end the process; a Ctrl-C costs everything."""

from dataclasses import replace

import pytest
import torch
from plugin_spaces import package_installed, plugins_installed

import zcpipe
from zcpipe.errors import UsageError
from zcpipe.proxies import get_proxy, resolve
from zcpipe.run import Range, RunSpec, run
from zcpipe.scoring.measure import Batch, measure
from zcpipe.scoring.score import _Given
from zcpipe.table import open_table

MODEL = torch.nn.Sequential(
    torch.nn.Conv2d(3, 4, 3, padding=1),
    torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3, padding=1)),
    torch.nn.Flatten(),
    torch.nn.Linear(256, 4),
)


class Gone(BaseException):
    """Neither an error nor a Ctrl-C."""


def raising(error):
    def function(*_):
        raise error

    return function


def broken(name, field, error):
    """A proxy of another name, of which one function raises: its reduction, or one of its statistic."""
    proxy = get_proxy(name)
    if field == "reduce":
        return replace(proxy, name="broken", reduce=raising(error))
    statistic = replace(proxy.statistics[0], name="broken", **{field: raising(error)})
    return replace(proxy, name="broken", statistics=(statistic,))


def measured(proxies):
    def probe(block, output):
        return torch.ones_like(output)

    batch = Batch([torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))], torch.arange(4))
    return measure(_Given(MODEL, batch, ("0", "1"), probe, None, 0), proxies, "fused")


KINDS = [
    ("expressivity", "moments", "expressivity"),  # the block pass
    ("expressivity", "finish", "expressivity"),
    ("trainability", "moments", "expressivity"),
    ("expressivity", "moments", "snip"),  # sweeps
    ("trainability", "finish", "snip"),
    ("snip", "of", "plain"),
    ("fisher", "moments", "snip"),
    ("jacob_cov", "of", "snip"),
    ("nwot", "moments", "snip"),
    ("synflow", "of", "synflow_bn"),  # the pass of absolute weights
    ("l2_norm", "of", "num_layers"),  # weights
    ("grasp", "measure", "snip"),  # passes of its own
    ("snip", "reduce", "plain"),
    ("params", "reduce", "macs"),  # counts
]


@pytest.mark.parametrize(("name", "field", "sound"), KINDS)
@pytest.mark.parametrize("error", [SystemExit(3), Gone("on purpose"), KeyError("other")])
def test_what_a_proxy_raises_costs_it_alone(name, field, sound, error):
    result = measured([broken(name, field, error), get_proxy(sound)])
    assert [(f.proxy, f.kind, f.message) for f in result.failures] == [
        ("broken", "error", f"{type(error).__name__}: {error}")
    ]
    assert result.scores == {"broken": None, sound: measured([get_proxy(sound)]).scores[sound]}


@pytest.mark.parametrize(("name", "field", "sound"), KINDS)
def test_an_interruption_is_not_a_failure(name, field, sound):
    with pytest.raises(KeyboardInterrupt):
        measured([broken(name, field, KeyboardInterrupt()), get_proxy(sound)])


def test_a_network_that_exits_is_a_fault_that_score_names():
    class Exits(torch.nn.Module):
        def forward(self, x):
            raise SystemExit(3)

    model = torch.nn.Sequential(Exits(), *MODEL)
    with pytest.raises(UsageError, match="SystemExit: 3"):
        zcpipe.score(model, torch.ones(2, 3, 8, 8), proxies="synflow")


SOURCE = """
from dataclasses import replace

from zcpipe.proxies.aznas import RECIPE
from zcpipe.proxies.base import CustomStatistic, Proxy


def leave(network):
    raise SystemExit(0)


OFFERED = Proxy.of(CustomStatistic("leaving", "", "network", leave), recipe=RECIPE, formula="none", paper="none")
"""


@pytest.mark.parametrize("workers", [None, 1])
def test_a_proxy_that_exits_ends_as_failures_of_rows(workers, tmp_path):
    spec = RunSpec(
        space="hazards", dataset="tiny", proxies=("leaving", "params"), batch_size=4, selection=Range(start=0, stop=4)
    )
    with plugins_installed(), package_installed(tmp_path / "package", "zcpipe.proxies", SOURCE):
        assert resolve("leaving")
        assert run(spec, tmp_path / "table", workers=workers).by_status == {"error": 4}
        rows = open_table(tmp_path / "table").to_arrow(["failures", "params"]).to_pylist()
    assert rows[0]["failures"] == [{"proxy": "leaving", "kind": "error", "message": "SystemExit: 0"}]
    assert all(row["params"] for row in rows)


def test_a_space_that_exits_ends_as_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("HAZARDS", '{"2": "leave"}')
    spec = RunSpec(space="hazards", dataset="tiny", proxies=("params", "l2_norm"), selection=Range(start=0, stop=4))
    with plugins_installed():
        assert run(spec, tmp_path).by_status == {"ok": 2, "error": 2}
        assert open_table(tmp_path).to_arrow()["failures"][2].as_py()[0]["message"] == "SystemExit: 5"


def test_where_a_failure_comes_from_is_shown_once_if_asked_for(monkeypatch, capsys):
    shared = get_proxy("expressivity").statistics[0]
    shared = replace(shared, name="broken", moments=raising(KeyError("other")))
    readers = [replace(get_proxy("expressivity"), name=name, statistics=(shared,)) for name in ("first", "second")]
    for name, field, _ in KINDS:
        chosen = readers if (name, field) == ("expressivity", "moments") else [broken(name, field, KeyError("other"))]
        monkeypatch.delenv("ZCPIPE_DEBUG", raising=False)
        assert measured(chosen).failures and capsys.readouterr().err == ""
        monkeypatch.setenv("ZCPIPE_DEBUG", "1")
        assert measured(chosen).failures
        shown = capsys.readouterr().err
        assert shown.count("Traceback") == 1 and shown.endswith("KeyError: 'other'\n"), (name, field)
        assert "test_failing_proxies.py" in shown and "in function" in shown


@pytest.mark.parametrize("workers", [None, 1])
def test_a_run_shows_where_proxies_and_spaces_fail(workers, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HAZARDS", '{"2": "raise"}')
    monkeypatch.setenv("ZCPIPE_DEBUG", "1")
    spec = RunSpec(
        space="hazards", dataset="tiny", proxies=("leaving",), batch_size=4, selection=Range(start=0, stop=4)
    )
    with plugins_installed(), package_installed(tmp_path / "package", "zcpipe.proxies", SOURCE):
        run(spec, tmp_path / "table", workers=workers)
    shown = capsys.readouterr().err
    assert shown.count("Traceback") == 2
    assert "my_nas.py" in shown and "in leave\n" in shown
    assert "zcpipe_hazards" in shown and "ValueError: told to raise for member-2" in shown
