"""What a run shows: a panel on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console as RichConsole

from doublehead.common import console as module
from doublehead.common.console import Console


def on(terminal: bool) -> tuple[Console, io.StringIO]:
    console, screen = Console(), io.StringIO()
    console.rich = RichConsole(file=screen, force_terminal=terminal, width=60, soft_wrap=True, highlight=False)
    return console, screen


def test_a_terminal_shows_bar_and_lines_and_nothing_is_left_of_the_lines():
    console, screen = on(terminal=True)
    with console.training(8, 0) as show:
        show(3, ["epoch 0.4 of 1.0", "loss 1.250 " + "x" * 100])
        console._bars.refresh()
        shown = screen.getvalue()
        assert "3/8" in shown
        assert "epoch 0.4 of 1.0" in shown
        assert "loss 1.250" in shown
        assert "x" * 60 not in shown  # long lines end in an ellipsis rather than wrap
        with console.progress("measuring", 2) as advance:
            advance()
            console._bars.refresh()
        assert "measuring" in screen.getvalue().removeprefix(shown)
    end = screen.getvalue()
    assert "loss" not in end[end.rindex("training") :]


def test_without_a_terminal_there_is_a_line_a_minute(monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, 10.0, 61.0, 61.0, 70.0, 130.0, 130.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock, 130.0))
    console, screen = on(terminal=False)
    with console.training(8, 0) as show:
        for step in (1, 2, 3, 4):
            show(step, [f"epoch {step / 4}", "loss 1.250"])
    lines = screen.getvalue().splitlines()
    assert [line.split(",")[0].split(" left")[0] for line in lines] == [
        "step 2 of 8: epoch 0.5; loss 1.250",
        "step 4 of 8: epoch 1.0; loss 1.250",
    ]


def test_other_processes_say_nothing(capsys: pytest.CaptureFixture[str]):
    with Console(leads=False).training(8, 0) as show:
        show(1, ["epoch 0.1"])
    assert capsys.readouterr() == ("", "")
