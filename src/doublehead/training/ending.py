"""Summary of a finished run: outcome, files, and commands for the next steps."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from doublehead.config import Config
from doublehead.training.run import RunFolder


def say_done(run: RunFolder, config: Config, outcome: str, say: Callable[[str], object]) -> None:
    """Print the files of a run and the commands for the next steps.

    Args:
        run: run folder.
        config: config of the run.
        outcome: short description of how the run ended.
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
