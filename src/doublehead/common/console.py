"""What a command says: lines that last, and progress bars with the time left. Other ranks than the first are silent."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.cells import cell_len, chop_cells
from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def shorten(text: str, limit: int) -> str:
    """Cut the middle out of each word that takes more than `limit` columns of a console; wide characters take two."""

    def cut(word: re.Match[str]) -> str:
        whole, half = word[0], (limit - 1) // 2
        if cell_len(whole) <= limit:
            return whole
        return f"{chop_cells(whole, half)[0]}…{chop_cells(whole[::-1], half)[0][::-1]}"

    return re.sub(r"\S+", cut, text)


class Console:
    """Speaks only where `leads`."""

    def __init__(self, leads: bool = True) -> None:
        self.leads = leads
        self.rich = RichConsole(stderr=True, highlight=False, soft_wrap=True, emoji=False)
        self._bars: Progress | None = None

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
            task = bars.add_task(title, total=total, details="")
            try:
                yield lambda count=1: bars.advance(task, count)
            finally:
                bars.remove_task(task)

    @contextmanager
    def training(self, total: int, done: int) -> Iterator[Callable[[int, dict[str, float], float], None]]:
        """The bar of a run; call what is given with the step, its losses and the best AP, below 0 if unknown."""
        with self._up() as bars:
            task = bars.add_task("training", total=total, completed=done, details="")
            smooth: dict[str, float] = {}

            def show(step: int, losses: dict[str, float], best: float) -> None:
                for name, value in losses.items():
                    smooth[name] = 0.9 * smooth.get(name, value) + 0.1 * value
                parts = [f"{name} {value:.3f}" for name, value in smooth.items()]
                parts += [f"best AP {best:.3f}"] if best >= 0 else []
                bars.update(task, completed=step, details="  ".join(parts))

            yield show

    @contextmanager
    def _up(self) -> Iterator[Progress]:
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
            TextColumn("[dim]{task.fields[details]}"),
        )
        # Without a terminal the bars would leave one stray line in the log.
        with Progress(*columns, console=self.rich, disable=not self.leads or not self.rich.is_terminal) as bars:
            self._bars = bars
            try:
                yield bars
            finally:
                self._bars = None
