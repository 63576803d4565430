"""Progress where there is no terminal: a line now and then, and not one for every step."""

import pytest

from zcpipe.progress import trainings_done


def test_lines_say_how_much_is_done_and_what_is_left(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr("zcpipe.progress.LINE_SECONDS", 0.0)
    with trainings_done("evaluating") as update:
        update(0, 8)
        update(2, 8)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("evaluating: 25%, ")
    assert said[0].endswith(" s left")


def test_what_was_made_ready_before_the_first_is_no_rate(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr("zcpipe.progress.LINE_SECONDS", 0.0)
    with trainings_done("evaluating") as update:
        update(2, 8)
        update(4, 8)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "evaluating: 25%"
    assert second.startswith("evaluating: 50%, ") and second.endswith(" s left")


def test_quick_work_says_nothing(capsys):
    with trainings_done("evaluating") as update:
        for done in range(9):
            update(done, 8)
    assert capsys.readouterr().err == ""
