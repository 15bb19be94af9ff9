"""Bulk prediction measured: killed on the way, nothing is lost or done twice; speed and memory of each way to run it.

    python -m benchmarks.bulk --images 20000 --json benchmarks/results/bulk.json

Images are generated, 96x72, in one tar; the model is untrained and small, so that the machinery is what is measured.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow.parquet as pq
import torch
import typer
from PIL import Image
from rich.table import Table

from benchmarks.report import write_json
from doublehead.common.categories import Categories
from doublehead.common.console import Console
from doublehead.model.checkpoint import save_checkpoint
from doublehead.model.detector import Detector
from doublehead.training.recipes import resolve

EVERY = 0.5  # seconds between two looks at memory
PARTS = 5  # of a run, whose peaks of memory are told apart


@dataclass(frozen=True)
class BulkTiming:
    """One way to do all images, measured."""

    way: str
    seconds: float
    images_per_second: float
    first_part_after: float  # seconds until the first part was there: the start
    peaks_mib: list[int]  # the largest memory in each fifth of the time after that


def make_images(path: Path, images: int) -> None:
    """A tar of JPEGs, each with rectangles of its own."""
    with tarfile.open(path, "w") as tar, Console().progress("drawing", images) as advance:
        for number in range(images):
            random = np.random.default_rng(number)
            array = np.full((72, 96, 3), random.integers(0, 255, 3), np.uint8)
            for x, y, width, height in random.integers((0, 0, 10, 10), (80, 60, 50, 40), (4, 4)):
                array[y : y + height, x : x + width] = random.integers(0, 255, 3)
            file = io.BytesIO()
            Image.fromarray(array).save(file, "JPEG")
            member = tarfile.TarInfo(f"{number:08}.jpg")
            member.size = file.tell()
            file.seek(0)
            tar.addfile(member, file)
            advance()


def make_model(path: Path, side: int) -> None:
    """Untrained and narrow, with an input of `side` pixels: what it finds does not matter."""
    torch.manual_seed(0)
    settings = {
        "data.path": "none",
        "model.input.short_side": side,
        "model.input.long_side": 2 * side,
        "model.fpn.channels": 16,
        "model.fc_head.width": 32,
        "model.conv_head.width": 32,
        "model.conv_head.bottleneck_width": 16,
        "model.conv_head.non_local_width": 16,
        "model.rpn.before_nms_inference": 50,
        "model.rpn.proposals_inference": 20,
        "model.roi.detections": 10,
        "model.roi.score_threshold": 0.01,
    }
    config = resolve("double-head-tiny", None, None, settings).model
    categories = Categories(("one", "two", "three"), (1, 2, 3))
    save_checkpoint(path, config, categories, Detector(config, len(categories)).state_dict(), {})


class Bulk:
    """The commands on these images."""

    def __init__(self, folder: Path, images: int, part_size: int) -> None:
        self.folder, self.images, self.part_size = folder, images, part_size
        self.tar, self.weights = folder / "images.tar", folder / "model.safetensors"

    def start(self, output: Path, *words: str, threads: int = 1) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "doublehead.cli", "predict", self.weights, self.tar, "-o", output]
        command += ["--format", "parquet", "--part-size", self.part_size, "--score", "0.1", "--device", "cpu"]
        command += ["--batch-size", "16", *words]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        return subprocess.Popen([*map(str, command)], env=environment, stdout=subprocess.DEVNULL)

    def require_each_once(self, output: Path) -> None:
        names = Counter(
            name for path in parts(output) for name in pq.read_table(path, columns=["name"])["name"].to_pylist()
        )
        assert names == Counter(f"{self.tar}/{number:08}.jpg" for number in range(self.images)), "not each image once"


def parts(output: Path) -> list[Path]:
    return sorted(output.glob("part-*.parquet"))


def kill_on_the_way(bulk: Bulk, kills: int) -> dict[str, int]:
    """Kill a run at equal distances, and let it end. Returns how many parts stood at each kill."""
    output, total, stood = bulk.folder / "killed", -(-bulk.images // bulk.part_size), {}
    for kill in range(1, kills + 1):
        process = bulk.start(output)
        while len(parts(output)) < total * kill // (kills + 1):
            assert process.poll() is None, "ended before it was killed"
            time.sleep(0.01)
        time.sleep(np.random.default_rng(kill).uniform(0, 1))  # anywhere in a part
        process.send_signal(signal.SIGKILL)
        process.wait()
        stood[f"kill {kill}"] = len(parts(output))
    assert bulk.start(output).wait() == 0
    bulk.require_each_once(output)
    return stood


def measure(bulk: Bulk, way: str, start: Callable[[Path], list[subprocess.Popen[bytes]]]) -> BulkTiming:
    output = bulk.folder / way.replace(" ", "-").replace(",", "")
    began, first, seen = time.monotonic(), 0.0, list[tuple[float, int]]()
    processes = start(output)
    while any(process.poll() is None for process in processes):
        time.sleep(EVERY)
        now = time.monotonic() - began
        if not first and parts(output):
            first = now
        if first:
            seen.append((now, sum(memory(process.pid) for process in processes)))
    seconds = time.monotonic() - began
    assert all(process.returncode == 0 for process in processes)
    bulk.require_each_once(output)
    edges = np.linspace(first, seconds, PARTS + 1)
    spans = pairwise(edges)
    peaks = [max((m for at, m in seen if low <= at <= high), default=0) >> 20 for low, high in spans]
    return BulkTiming(way, round(seconds, 1), round(bulk.images / seconds, 1), round(first, 1), peaks)


def memory(process: int) -> int:
    """Bytes of a process and all below it; what several share is counted once."""
    try:
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        own = next(int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith("Pss:"))
        return own + sum(memory(child) for child in children(process))
    except (OSError, StopIteration):  # it has ended meanwhile
        return 0


def children(process: int) -> Iterator[int]:
    for task in Path(f"/proc/{process}/task").iterdir():
        yield from map(int, (task / "children").read_text().split())


def main(
    images: Annotated[int, typer.Option(help="How many to make.")] = 20000,
    kills: Annotated[int, typer.Option(help="Of the first run.")] = 3,
    part_size: Annotated[int, typer.Option(help="Images in a part.")] = 250,
    side: Annotated[int, typer.Option(help="Short side of the model's input in pixels.")] = 64,
    folder: Annotated[Path, typer.Option(help="For images and outputs; removed first.")] = Path("bulk-benchmark"),
    to: Annotated[Path | None, typer.Option("--json", help="Write the figures there too.")] = None,
) -> None:
    """Kill and resume a bulk run; then measure each way to run it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    bulk = Bulk(folder, images, part_size)
    make_images(bulk.tar, images)
    make_model(bulk.weights, side)
    stood = kill_on_the_way(bulk, kills)
    shard = [("--shard", f"{i}/2") for i in (1, 2)]
    runs = [
        measure(bulk, "one process, one thread", lambda output: [bulk.start(output)]),
        measure(bulk, "one process, two threads", lambda output: [bulk.start(output, threads=2)]),
        measure(bulk, "two shards", lambda output: [bulk.start(output, *words) for words in shard]),
        measure(bulk, "Ray, two workers", lambda output: [bulk.start(output, "--engine", "ray", "--workers", "2")]),
    ]
    same = all(
        path.read_bytes() == (folder / "one-process-one-thread" / path.name).read_bytes()
        for way in ("killed", "two-shards", "Ray-two-workers")
        for path in parts(folder / way)
    )
    table = Table("way", "s", "images/s", "start, s", f"peak in each {PARTS}th of the time, MiB")
    for run in runs:
        cells = (run.way, f"{run.seconds:.0f}", f"{run.images_per_second:.1f}", f"{run.first_part_after:.0f}")
        table.add_row(*cells, " ".join(map(str, run.peaks_mib)))
    Console.out(table)
    print(f"{images} images, each once after {kills} kills, at which so many parts stood: {json.dumps(stood)}")
    print(f"killed, two shards and Ray wrote the bytes of one process: {'yes' if same else 'no'}")
    if to:
        write_json({"images": images, "kills": stood, "same": same, "runs": [asdict(run) for run in runs]}, to)


if __name__ == "__main__":
    typer.run(main)
