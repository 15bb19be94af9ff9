"""What a finished run says: how it went, what it wrote, and the commands for what comes next."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from doublehead.config import Config
from doublehead.training.run import RunFolder


def say_done(run: RunFolder, config: Config, outcome: str, say: Callable[[str], object]) -> None:
    """Say what a run has written and what to do with it.

    Args:
        run: its folder.
        config: of the run.
        outcome: how it went, in a few words.
        say: prints a line.
    """
    say(f"{outcome}; everything is in {run.path}:")
    for path in sorted(run.path.iterdir()):
        say(f"  {path}")
    best = shlex.quote(str(run.best))
    say("next:")
    if config.data.path:  # a dataset of Python objects has no place on a command line
        data = shlex.quote(config.data.path)
        say(f"  doublehead evaluate {best} {data} --split {config.data.val_split or 'test'}")
        say(f"  doublehead analyze {best} {data}")
    say(f"  doublehead predict {best} 'photos/*.jpg' -o predictions")
    length = "epochs" if config.train.epochs else "steps"
    more = 2 * (config.train.epochs or config.train.steps or 1)
    if config.data.path:
        say(f"  doublehead resume {shlex.quote(str(run.path))} --set train.{length}={more:g}")
