"""Console output of commands: lines, and progress bars with the time left. Only the first rank prints."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.cells import cell_len, chop_cells
from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

EVERY = 60.0
"""Seconds between two lines on a run's progress where there is no terminal."""


def shorten(text: str, limit: int) -> str:
    """Cut the middle out of each word that takes more than `limit` columns of a console; wide characters take two."""

    def cut(word: re.Match[str]) -> str:
        whole, half = word[0], (limit - 1) // 2
        if cell_len(whole) <= limit:
            return whole
        return f"{chop_cells(whole, half)[0]}…{chop_cells(whole[::-1], half)[0][::-1]}"

    return re.sub(r"\S+", cut, text)


class _Panel(Progress):
    """Bars, and lines of text below them."""

    lines: Sequence[str] = ()

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield from (Text(line, style="dim", overflow="ellipsis", no_wrap=True) for line in self.lines)


class Console:
    """Prints only if `leads`."""

    def __init__(self, leads: bool = True) -> None:
        self.leads = leads
        self.rich = RichConsole(stderr=True, highlight=False, soft_wrap=True, emoji=False)
        self._bars: _Panel | None = None

    @staticmethod
    def out(*things: RenderableType) -> None:
        """Print tables, the result of a command, to standard output."""
        RichConsole(highlight=False).print(*things)

    def say(self, text: str) -> None:
        """Print a line, above the bars if some are up."""
        if self.leads:
            self.rich.print(text, markup=False)

    def show(self, table: RenderableType) -> None:
        """Print a table among the lines."""
        if self.leads:
            self.rich.print(table, soft_wrap=False)

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Callable[..., None]]:
        """A bar; call what is given with how many are done (1 if not said)."""
        with self._up() as bars:
            task = bars.add_task(title, total=total)
            try:
                yield lambda count=1: bars.advance(task, count)
            finally:
                bars.remove_task(task)

    @contextmanager
    def training(self, total: int, done: int) -> Iterator[Callable[[int, list[str]], None]]:
        """The panel of a run: a bar, and lines below it.

        Call what is given with the step and the lines. Without a terminal they are printed once a minute.
        """
        with self._up() as bars:
            task = bars.add_task("training", total=total, completed=done)
            said = time.monotonic()

            def show(step: int, lines: list[str]) -> None:
                nonlocal said
                bars.lines = lines
                bars.update(task, completed=step)
                if not self.rich.is_terminal and time.monotonic() - said > EVERY:
                    said = time.monotonic()
                    left = bars.tasks[0].time_remaining
                    times = "" if left is None else f", about {left / 60:.0f} minutes left"
                    self.say(f"step {step} of {total}: {'; '.join(lines)}{times}")

            try:
                yield show
            finally:
                bars.lines = []

    @contextmanager
    def _up(self) -> Iterator[_Panel]:
        """The bars on the screen, shared by whatever runs inside."""
        if self._bars is not None:
            yield self._bars
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        # Without a terminal the bars would leave one stray line in the log.
        with _Panel(*columns, console=self.rich, disable=not self.leads or not self.rich.is_terminal) as bars:
            self._bars = bars
            try:
                yield bars
            finally:
                self._bars = None
