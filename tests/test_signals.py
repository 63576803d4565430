"""Signals that ask for the end: none is lost, whoever swallows the exception that it raises first."""

import signal
import sys
import threading
import time
from contextlib import suppress

import pytest

from zcpipe import signals
from zcpipe.progress import rows_done
from zcpipe.run import Range, RunSpec, run
from zcpipe.run.events import Planned
from zcpipe.signals import require_going_on, terminable, undisturbed

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
        while True:  # without a look: the signal comes again
            time.sleep(0.01)


@BOTH
def test_who_asks_again_is_obeyed_at_once_even_within_an_import(tmp_path, monkeypatch, number):
    (tmp_path / "slow_module.py").write_text(f"import signal\nfor _ in 'ab':\n    signal.raise_signal({int(number)})\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt), terminable():
        import slow_module  # noqa: F401

        pytest.fail("the import went on")
    time.sleep(0.2)  # nothing comes later


def test_afterwards_all_is_as_it_was():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with terminable():
        swallow(signal.SIGTERM)
    require_going_on()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@BOTH
def test_what_must_not_be_disturbed_is_done_first(number):
    done = []
    with pytest.raises(KeyboardInterrupt), terminable():
        with undisturbed():
            signal.raise_signal(number)
            done.append(1)
        pytest.fail("it went on")
    assert done == [1]


def test_a_signal_that_nobody_was_told_of_is_told_at_the_end():
    with pytest.raises(KeyboardInterrupt), terminable(), suppress(KeyboardInterrupt), undisturbed():
        signal.raise_signal(signal.SIGTERM)
        raise KeyboardInterrupt  # of something else


def test_a_thread_is_neither_heard_nor_poisoned():
    """A thread that shows its progress does not keep the main thread's interruption."""
    begun, end, saw = threading.Event(), threading.Event(), []

    def show():
        with rows_done("testing") as progress:
            begun.set()
            end.wait(60)
            progress(1, 3)
            saw.append("all")

    thread = threading.Thread(target=show)
    thread.start()
    begun.wait(60)
    with pytest.raises(KeyboardInterrupt), terminable():
        signal.raise_signal(signal.SIGTERM)
    require_going_on()
    end.set()
    thread.join()
    assert saw == ["all"]


def test_handlers_are_put_back_although_another_signal_comes_meanwhile(monkeypatch):
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    real = signals._handle

    def handle(each, handler):
        real(each, handler)
        if each is signal.SIGTERM:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), terminable():
        monkeypatch.setattr(signals, "_handle", handle)
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before
    require_going_on()


def test_one_that_ends_inside_another_loses_nothing():
    with pytest.raises(KeyboardInterrupt), terminable():
        with rows_done("testing"):
            swallow(signal.SIGTERM)
        require_going_on()


@BOTH
def test_what_is_ignored_stays_ignored(number):
    before = signal.signal(number, signal.SIG_IGN)
    with terminable():
        signal.raise_signal(number)
        require_going_on()
    signal.signal(number, before)
