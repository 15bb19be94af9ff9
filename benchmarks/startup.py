"""Start-up: time and memory of commands that do next to nothing, each in a process of its own, in turn.

python -m benchmarks.startup
python -m benchmarks.startup --source ../another-checkout/src
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from rich.table import Table

from doublehead.common.console import Console

PREPARE = """
from pathlib import Path
from doublehead.common.categories import Categories
from doublehead.data.synthetic import scene, synthesize
from doublehead.model.checkpoint import save_checkpoint
from doublehead.model.detector import Detector
from doublehead.model.presets import preset

config = preset("double-head-tiny")
save_checkpoint(Path("model.safetensors"), config, Categories(("a",), (1,)), Detector(config, 1).state_dict(), {})
scene().save("photo.jpg")
synthesize("data", {"train": 20, "val": 10})
"""

MAIN = ("-c", "from doublehead.cli import main; main()")
TORCH = "import torch, torchvision"
CASES: dict[str, tuple[str, ...]] = {
    TORCH: ("-c", TORCH),
    "doublehead --version": (*MAIN, "--version"),
    "doublehead --help": (*MAIN, "--help"),
    "doublehead train --help": (*MAIN, "train", "--help"),
    "doublehead train, a wrong path": (*MAIN, "train", "gone", "--model", "double-head-tiny"),
    "doublehead check, 30 images": (*MAIN, "check", "data"),
    "doublehead predict, one photo": (*MAIN, "predict", "model.safetensors", "photo.jpg"),
}


def measure(words: tuple[str, ...], folder: Path, environment: dict[str, str]) -> tuple[float, float, float]:
    """Seconds on the clock, seconds of the CPU and the peak of the resident memory in MB of one process."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, _, used = os.wait4(process.pid, 0)
    return time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="folder of the package to measure; else the one that is installed")
    parser.add_argument("--repeats", type=int, default=7, help="rounds; each measures every case once")
    asked = parser.parse_args()
    environment = os.environ | ({"PYTHONPATH": str(asked.source.resolve())} if asked.source else {})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-c", PREPARE], cwd=folder, env=environment, check=True)
        rounds = [
            {case: measure(words, folder, environment) for case, words in CASES.items()} for _ in range(asked.repeats)
        ]
    table = Table("command", "seconds", "CPU seconds", "peak MB")
    for case in CASES:
        seconds, cpu, memory = (median(figures) for figures in zip(*(row[case] for row in rounds), strict=True))
        table.add_row(case, f"{seconds:.2f}", f"{cpu:.2f}", f"{memory:.0f}")
    Console.out(table)


if __name__ == "__main__":
    main()
