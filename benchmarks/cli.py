"""`doublehead benchmark`: one function per command, which imports what it needs itself."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from doublehead.cli import APP, Batch, Data, Device, Precision, Weights, require_data, require_weights

if TYPE_CHECKING:
    from rich.table import Table

benchmark = typer.Typer(help="Time and memory beside torchvision's Faster R-CNN.", **APP)

Size = Annotated[str, typer.Option(metavar="HxW", help="Height x width of the images in pixels.")]
Repeats = Annotated[int, typer.Option(help="Rounds; each measures every case once.", min=1)]
Threads = Annotated[int | None, typer.Option(help="Threads on the CPU. Default: torch's own choice.", min=1)]
Cases = Annotated[list[str] | None, typer.Option(metavar="NAME", help="Part of the name of a case wanted; repeatable.")]
Owners = Annotated[int, typer.Option(help="Proposals per image that own a candidate detection.", min=0)]
Backbone = Annotated[str, typer.Option(help="Body of all models: resnet50, resnet101, ...")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there too.")]


@benchmark.command("inference")
def benchmark_inference(
    size: Size = "800x1216",
    batch: Batch = 1,
    owners: Owners = 100,
    repeats: Repeats = 7,
    threads: Threads = None,
    device: Device = "auto",
    cases: Cases = None,
    json: Json = None,
) -> None:
    """Images to detections, with untrained weights; each case in turn, several rounds, in one process."""
    from benchmarks.inference import inference
    from benchmarks.measure import BenchmarkSettings

    settings = BenchmarkSettings(size, batch, repeats, threads, device, tuple(cases or ()))
    report = inference(settings, owners)
    _show(report.table(), report.to_json(), json)


@benchmark.command("formats")
def benchmark_formats(
    size: Size = "800x1216",
    owners: Owners = 100,
    repeats: Repeats = 7,
    threads: Threads = None,
    cases: Cases = None,
    backbone: Backbone = "resnet50",
    json: Json = None,
) -> None:
    """As inference, for exported files: ONNX, OpenVINO, OpenVINO in int8, and torchvision's own ONNX."""
    from benchmarks.formats import FILES
    from benchmarks.inference import inference
    from benchmarks.measure import BenchmarkSettings

    settings = BenchmarkSettings(size, 1, repeats, threads, "cpu", tuple(cases or ()))
    report = inference(settings, owners, {"backbone": {"name": backbone}}, FILES)
    _show(report.table(), report.to_json() | {"command": "benchmark formats"}, json)


@benchmark.command("profile")
def benchmark_profile(
    size: Size = "800x1216",
    batch: Batch = 1,
    owners: Owners = 100,
    repeats: Repeats = 7,
    threads: Threads = None,
    device: Device = "auto",
    cases: Cases = None,
    json: Json = None,
) -> None:
    """Time each part of inference, beside the least that its FLOPs and bytes would take on this machine."""
    from benchmarks.measure import BenchmarkSettings
    from benchmarks.profiling import profile

    settings = BenchmarkSettings(size, batch, repeats, threads, device, tuple(cases or ()))
    report = profile(settings, owners)
    _show(report.table(), report.to_json(), json)


@benchmark.command("training")
def benchmark_training(
    size: Size = "480x640",
    batch: Batch = 2,
    positives: Annotated[int, typer.Option(help="Proposals per image that match an object, of 512 sampled.")] = 64,
    repeats: Repeats = 7,
    threads: Threads = None,
    device: Device = "auto",
    cases: Cases = None,
    json: Json = None,
) -> None:
    """One training step: losses, gradients, SGD; each case in turn, several rounds, in one process."""
    from benchmarks.measure import BenchmarkSettings
    from benchmarks.training import training

    settings = BenchmarkSettings(size, batch, repeats, threads, device, tuple(cases or ()))
    report = training(settings, positives)
    _show(report.table(), report.to_json(), json)


@benchmark.command("owners")
def benchmark_owners(
    weights: Weights,
    data: Data,
    split: Annotated[str, typer.Option(help="Which split to look at.")] = "val",
    batch_size: Batch = 4,
    device: Device = "auto",
    json: Json = None,
) -> None:
    """Count the proposals per image that own a candidate detection: what staged inference costs in real images."""
    require_weights(weights)
    require_data(data)
    from benchmarks.owners import count_owners

    counts = count_owners(weights, data, split, batch_size, device)
    print(counts.text())
    _write(counts.to_json(), json)


@benchmark.command("export")
def benchmark_export(
    weights: Annotated[list[str], typer.Argument(help="A checkpoint, then what was exported of it.")],
    data: Annotated[str, typer.Argument(help="The dataset's folder or YAML: always the last.")],
    split: Annotated[str, typer.Option(help="Which split to measure.")] = "val",
    repeats: Repeats = 3,
    threads: Threads = None,
    json: Json = None,
) -> None:
    """A checkpoint beside its exported files: time, AP and detections on the same images, one by one, on the CPU."""
    require_weights(*weights)
    require_data(data)
    from benchmarks.exports import compare_exports

    report = compare_exports(weights, data, split, repeats, threads)
    _show(report.table(), report.to_json(), json)


@benchmark.command("floor")
def benchmark_floor(
    weights: Weights,
    data: Data,
    split: Annotated[str, typer.Option(help="Which split to look at.")] = "val",
    repeats: Repeats = 3,
    device: Device = "auto",
    precision: Precision = "fp32",
    json: Json = None,
) -> None:
    """Of a model whose scores are fused: the AP and time that roi.score_floor costs and spares."""
    require_weights(weights)
    require_data(data)
    from benchmarks.floor import floor, table

    results = floor(weights, data, split, repeats=repeats, device=device, precision=precision)
    _show(table(results), {"command": "benchmark floor", "rows": results}, json)


@benchmark.command("tiles")
def benchmark_tiles(
    weights: Weights,
    data: Data,
    split: Annotated[str, typer.Option(help="Which split to look at.")] = "val",
    tiles: Annotated[int, typer.Option(metavar="PIXELS", help="Side of a tile.", min=32)] = 800,
    overlap: Annotated[float, typer.Option(help="Share of a tile that the next one also covers.", max=0.9)] = 0.2,
    mosaic: Annotated[int, typer.Option(metavar="N", help="Put N x N images together into each.", min=1)] = 1,
    detections: Annotated[int, typer.Option(help="Maximum detections per image.", min=1)] = 1000,
    threads: Threads = None,
    device: Device = "auto",
    json: Json = None,
) -> None:
    """Large images whole, in tiles, and through supervision's InferenceSlicer: AP, doubles, time and memory."""
    require_weights(weights)
    require_data(data)
    from benchmarks.tiles import Tiling, compare_tiles

    report = compare_tiles(weights, data, split, Tiling(tiles, overlap), mosaic, detections, threads, device)
    _show(report.table(), report.to_json(), json)


@benchmark.command("plant")
def benchmark_plant(
    data: Data,
    output: Annotated[Path, typer.Argument(help="An empty or new folder.")],
    share: Annotated[float, typer.Option(help="Share of the boxes with an error.", min=0, max=1)] = 0.05,
    seed: Annotated[int, typer.Option(help="Another seed, other errors.", min=0)] = 0,
) -> None:
    """Write a dataset with label errors planted in it: classes, places, missing and spurious boxes."""
    require_data(data)
    from benchmarks.planted import counts, plant

    print(f"{output}: planted {counts(plant(data, output, share, seed))}")


@benchmark.command("suspects")
def benchmark_suspects(
    weights: Annotated[list[str], typer.Argument(help="Checkpoints trained on the data.")],
    data: Annotated[str, typer.Argument(help="A folder that `benchmark plant` wrote: always the last.")],
    split: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Look at this split; repeatable. Default: all.")
    ] = None,
    batch_size: Batch = 4,
    device: Device = "auto",
    json: Json = None,
) -> None:
    """Count the planted label errors at the top of what `suggest` lists, as many places as there are errors."""
    require_weights(*weights)
    require_data(data)
    from benchmarks.planted import recover, recovered_table

    rows = recover(weights, data, batch_size, device, split or ())
    _show(recovered_table(rows), {"command": "benchmark suspects", "rows": [vars(row) for row in rows]}, json)


@benchmark.command("rival")
def benchmark_rival(
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder.")],
    steps: Annotated[int, typer.Option(help="Optimiser steps.", min=1)],
    model: Annotated[str, typer.Option(help="Preset that gives backbone, image size and recipe.")] = "double-head-lite",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Setting as in train; repeatable.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Train torchvision's Faster R-CNN as `train` trains a preset, and evaluate it on the test split."""
    require_data(data)
    from benchmarks.rival import train_rival
    from doublehead.config import parse_settings

    found = train_rival(data, output, steps, model, device, parse_settings(settings or []))
    figures = ", ".join(f"{name} {value:.3f}" for name, value in found["metrics"].items())
    print(f"{output}: {figures} after {steps} steps of {found['seconds_per_step']:.2f} s")


@benchmark.command("compare")
def benchmark_compare(
    data: Data,
    folders: Annotated[list[Path], typer.Argument(help="Finished runs, of `rival` or of a study; the baseline first.")],
    split: Annotated[str, typer.Option(help="Which split to look at.")] = "test",
    json: Json = None,
) -> None:
    """Compare the detections of finished runs on one split: AP, and its difference to the first with an interval."""
    require_data(data)
    from benchmarks.rival import compare, compared_table

    rows = compare(data, folders, split)
    _show(compared_table(rows), {"command": "benchmark compare", "rows": [asdict(row) for row in rows]}, json)


def _show(table: Table, values: dict[str, Any], json: Path | None) -> None:
    from doublehead.common.console import Console

    Console.out(table)
    _write(values, json)


def _write(values: dict[str, Any], json: Path | None) -> None:
    if json:
        from benchmarks.report import write_json

        write_json(values, json)
