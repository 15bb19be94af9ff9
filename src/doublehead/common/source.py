"""What lies in a checkout of the source and not in the installed package."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from doublehead.common.errors import DoubleheadError


def run_benchmark(words: Sequence[str]) -> None:
    """Run a command of the `benchmarks` folder.

    Raises:
        DoubleheadError: neither the package's own checkout nor the current folder holds `benchmarks`.
    """
    for root in (Path(__file__).parents[3], Path.cwd()):
        # Both, or a `benchmarks` folder of another project would be run.
        if all((root / part / "cli.py").is_file() for part in ("benchmarks", "src/doublehead")):
            sys.path.insert(0, str(root))
            break
    else:
        raise DoubleheadError(
            "`doublehead benchmark` needs a checkout of the source, not the installed package: clone the repository "
            "and run the command there"
        )
    importlib.import_module("benchmarks.cli").benchmark(list(words), prog_name="doublehead benchmark")
