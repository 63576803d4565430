"""Signals that ask for the end: none is lost, whoever swallows the exception that it raises first."""

import signal
import sys
from contextlib import suppress

import pytest

from zcpipe.progress import rows_done
from zcpipe.run import Range, RunSpec, run
from zcpipe.run.events import Planned
from zcpipe.signals import require_going_on, terminable

BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


@pytest.fixture(autouse=True)
def _python_handles_interruptions():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it for what runs behind them
    yield
    signal.signal(signal.SIGINT, before)


def swallow(number):
    """Be told to end as pyarrow is while it imports pandas."""
    with suppress(KeyboardInterrupt):
        signal.raise_signal(number)


@BOTH
def test_a_run_ends_that_was_told_to_where_nobody_listened(tmp_path, number):
    spec = RunSpec(
        space="nasbench201", dataset="cifar10", selection=Range(start=0, stop=9), batch_size=2, proxies=("params",)
    )
    heard = []

    def on_event(event):
        heard.append(event)
        if isinstance(event, Planned):
            swallow(number)

    with pytest.raises(KeyboardInterrupt), terminable():
        run(spec, str(tmp_path / "t"), on_event=on_event)
    assert len(heard) == 1, "nothing was scored"
    assert run(spec, str(tmp_path / "t")).by_status == {"ok": 9}


@BOTH
def test_what_shows_progress_ends_likewise(number):
    with pytest.raises(KeyboardInterrupt), terminable(), rows_done("testing") as progress:
        progress(1, 3)
        swallow(number)
        progress(2, 3)


@BOTH
def test_an_import_is_not_interrupted(tmp_path, monkeypatch, number):
    (tmp_path / "told_to_end.py").write_text(f"import signal\nsignal.raise_signal({int(number)})\nwhole = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("told_to_end", None)
    with pytest.raises(KeyboardInterrupt), terminable():
        import told_to_end

        assert told_to_end.whole
        require_going_on()


def test_afterwards_all_is_as_it_was():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with terminable():
        swallow(signal.SIGTERM)
    require_going_on()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_one_that_ends_inside_another_loses_nothing():
    with pytest.raises(KeyboardInterrupt), terminable():
        with rows_done("testing"):
            swallow(signal.SIGTERM)
        require_going_on()


def test_what_is_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with terminable():
        signal.raise_signal(signal.SIGINT)
        require_going_on()
