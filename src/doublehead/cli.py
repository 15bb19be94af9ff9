"""The command line: one function per command, each of which hands over to the package.

Commands import what they need themselves: torch, numpy and pydantic take seconds, for which neither `--help` nor a
mistyped path should wait.
"""

from __future__ import annotations

import gc
import os.path
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

import doublehead
from doublehead.common.errors import DoubleheadError
from doublehead.common.memory import keep_freed_memory
from doublehead.common.source import run_benchmark
from doublehead.deploy.choices import ENGINES, FORMATS, models_and_sources
from doublehead.evaluation.budget import BINS, FULL, QUICK
from doublehead.model.interop import PROGRAMS
from doublehead.training.recipes import RECIPES
from doublehead.training.recorders import LOGGERS
from doublehead.training.signals import Interrupted

APP: dict[str, Any] = {
    "no_args_is_help": True,
    "add_completion": False,
    "rich_markup_mode": None,  # rich doubles the time that `--help` takes
    "context_settings": {"max_content_width": 120},
}

app = typer.Typer(
    help="Double-Head R-CNN: detectors with one head that classifies and one that localises.",
    pretty_exceptions_enable=False,
    **APP | {"add_completion": True},
)


@contextmanager
def _imports() -> Iterator[None]:
    """Import without looking for garbage: there is none, and each look at all that torch brings takes 0.3 seconds.

    The process then belongs to a command, so it keeps freed memory.
    """
    if "torch" in sys.modules:
        yield
        return
    keep_freed_memory()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # what was imported stays, and is not looked at again
        gc.enable()


def require_data(path: str | None) -> None:
    """Refuse a path without a dataset before torch is imported."""
    if path is not None and not os.path.exists(os.path.expanduser(path)):
        from doublehead.data.dataset import open_dataset

        open_dataset(path)


def require_weights(*paths: str) -> None:
    """Refuse a path without a file before torch is imported."""
    if not all(map(os.path.isfile, paths)):
        from doublehead.model.interop.published import require_known

        for path in paths:
            require_known(path)


Device = Annotated[str, typer.Option(help="Device: auto, cpu, cuda or a card such as cuda:1.")]
Weights = Annotated[
    str,
    typer.Argument(
        help="Checkpoint, such as a run's best.safetensors, published name, or exported file.",
    ),
]
Data = Annotated[str, typer.Argument(help="Dataset folder or YAML.")]
Precision = Annotated[
    str, typer.Option(help="Number format: fp32, bf16, fp16, or auto (bf16 where the device is faster in it).")
]
Batch = Annotated[int, typer.Option(help="Images per batch.", min=1)]
Options = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Inference option, such as score_threshold=0.3; repeatable."),
]
Model = Annotated[str | None, typer.Option(help="Preset or checkpoint; default: double-head-fused-lite.")]
Recipe = Annotated[str | None, typer.Option(help=f"Recipe: {', '.join(RECIPES)}; default: chosen by the model.")]
ConfigFile = Annotated[Path | None, typer.Option(help="YAML with any settings, such as a run's config.yaml.")]
Log = Annotated[list[str] | None, typer.Option(metavar="NAME", help=f"Also log to {', '.join(LOGGERS)}; repeatable.")]

Tiles = Annotated[int | None, typer.Option(metavar="PIXELS", help="Cut larger images into tiles of this size.", min=32)]
Overlap = Annotated[
    float | None, typer.Option(help="Minimum overlap of neighbouring tiles, as a share; default: 0.2.", max=0.9)
]


def inference_settings(
    options: list[str] | None, tiles: int | None = None, overlap: float | None = None
) -> dict[str, Any]:
    """What --set says, and the inference options that have flags of their own."""
    from doublehead.config import parse_settings

    flags = {"tiles": tiles, "overlap": overlap}
    return parse_settings(options or []) | {name: value for name, value in flags.items() if value is not None}


def main() -> None:
    """Run a command. A user's mistake ends in one sentence and exit code 2, Ctrl-C in 130."""
    try:
        app()
    except (DoubleheadError, OSError) as error:  # OSError: a full disk, a folder that may not be written
        sys.stderr.write(f"error: {error}\n")  # in one piece: torchrun's processes all write at once, unbuffered
        sys.exit(2)
    except (Interrupted, KeyboardInterrupt):
        sys.exit(130)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(doublehead.__version__)
        raise typer.Exit


@app.command()
def models(
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures to this file.")] = None,
) -> None:
    """List presets and published models with parameters, cost, AP and licence."""
    with _imports():
        from doublehead.common.console import Console
        from doublehead.model import listing

    listed, published = listing.listed_presets(), listing.listed_published()
    Console.out(listing.presets_table(listed), listing.published_table(published))
    if json:
        listing.write_json(json, listed, published)


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(help="Weights of MMDetection, detectron2, torchvision or the authors; or a checkpoint.")
    ],
    destination: Annotated[
        Path, typer.Argument(help="Checkpoint to write; with --to, a .pth or .safetensors for that program.")
    ],
    to: Annotated[str | None, typer.Option(help=f"Write a checkpoint for {', '.join(PROGRAMS)}.")] = None,
    categories: Annotated[
        Path | None,
        typer.Option(help="COCO annotation file with the model's classes; default: those of the weights, or COCO's."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Model setting, such as model.rpn.anchor_sizes=[16,32,64,128,256]; repeatable.",
        ),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Write 16-bit weights: half the size.")] = False,
) -> None:
    """Convert weights of other libraries to a checkpoint, or a checkpoint to theirs."""
    with _imports():
        from doublehead.config import parse_settings
        from doublehead.model.interop import convert as interop

    if to and half:
        raise DoubleheadError("--half writes a doublehead checkpoint: omit --to")
    if to:
        interop.convert_back(source, destination, to)
        print(f"{destination} holds the weights for {to}")
    else:
        found = interop.convert(source, destination, categories, parse_settings(settings or []), half)
        print(f"{destination} holds {found}")


@app.command()
def synthesize(
    directory: Annotated[Path, typer.Argument(help="Empty or new folder.")],
    train: Annotated[int, typer.Option(help="Training images.", min=1)] = 800,
    val: Annotated[int, typer.Option(help="Validation images.", min=0)] = 60,
    test: Annotated[int, typer.Option(help="Test images.", min=0)] = 100,
    seed: Annotated[int, typer.Option(help="Random seed.", min=0)] = 0,
    size: Annotated[tuple[int, int], typer.Option(metavar="W H", help="Image size, in pixels.")] = (320, 240),
    objects: Annotated[tuple[int, int], typer.Option(metavar="MIN MAX", help="Shapes per image.")] = (3, 12),
    lengths: Annotated[
        tuple[float, float], typer.Option(metavar="MIN MAX", help="Longer side of a shape, in pixels.")
    ] = (12, 160),
) -> None:
    """Generate a COCO dataset: shapes to detect among fragments of shapes."""
    from doublehead.common.console import Console
    from doublehead.data import synthetic

    counts = {split: count for split, count in {"train": train, "val": val, "test": test}.items() if count}
    with Console().progress("drawing", sum(counts.values())) as advance:
        synthetic.synthesize(directory, counts, seed, size, advance, objects, lengths)
    print(f"{sum(counts.values())} images are in {directory}")


@app.command()
def check(
    data: Data,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a page with histograms and suspect images to this folder.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all findings to this file.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Preset or checkpoint that boxes are checked against; default: double-head-fused-lite."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Setting as in train, such as data.split=[70,20,10]; repeatable."
        ),
    ] = None,
) -> None:
    """Find errors and suspects in a dataset. Exit code 1 if training or evaluation would fail."""
    from doublehead.common.console import Console
    from doublehead.config import parse_settings
    from doublehead.data.inspection import inspect
    from doublehead.model.presets import SMALL_DATA_MODEL
    from doublehead.training.recipes import resolve

    name, said = model or SMALL_DATA_MODEL, parse_settings(settings or [])
    inspection = inspect(data, True, name, resolve(name, settings=said), said)
    if inspection.note:
        print(inspection.note)
    if inspection.rows:
        Console.out(inspection.table())
    if json:
        inspection.write_json(json)
    if report:
        from doublehead.data.page import write_page

        print(f"the page is {write_page(inspection, report)}")
    if inspection.advice and inspection.advice.reasons:
        print("\n".join(inspection.advice.reasons))
        print(f"try: {inspection.advice.command(data)}")
    print(inspection.verdict)
    raise typer.Exit(1 if inspection.errors else 0)


@app.command("to-coco")
def to_coco(
    data: Annotated[str, typer.Argument(help="Dataset in any format: its folder or YAML.")],
    output: Annotated[Path, typer.Argument(help="Empty or new folder.")],
    link: Annotated[bool, typer.Option("--link", help="Link to the images instead of copying them.")] = False,
) -> None:
    """Convert a dataset of any format to COCO."""
    from doublehead.data.to_coco import write_coco

    for split in write_coco(data, output, link, progress=True):
        print(f"{split.name}: {len(split.records)} images")


@app.command()
def train(
    data: Annotated[
        str | None,
        typer.Argument(help="Dataset folder, or a YAML that names its splits."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Preset (see `doublehead models`), or a checkpoint or published name to start from; "
            "default: double-head-fused-lite."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Run folder; default: a new one in runs.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Pretrained backbone that replaces the model's: resnet50, or any timm model.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", help="Detector from which backbone, FPN, RPN and matching heads are taken."),
    ] = None,
    recipe: Recipe = None,
    config: ConfigFile = None,
    device: Annotated[str | None, typer.Option(help="Device: auto, cpu, cuda or a card such as cuda:1.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as train.epochs=10; repeatable."),
    ] = None,
    log: Log = None,
) -> None:
    """Train a detector on annotated images."""
    require_data(data)
    with _imports():
        from doublehead.config import parse_settings
        from doublehead.training import start

    said = parse_settings(settings or [])
    start.train(
        data,
        model,
        output,
        recipe=recipe,
        config=config,
        device=device,
        settings=said,
        backbone=backbone,
        from_=source,
        log=log or (),
    )


@app.command()
def augment(
    data: Data,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Output file (.html, .png or .jpg), or a folder for index.html.")
    ] = Path("augmentation.html"),
    model: Model = None,
    recipe: Recipe = None,
    config: ConfigFile = None,
    images: Annotated[int, typer.Option(help="Images to show.", min=1)] = 6,
    epochs: Annotated[int, typer.Option(help="Epochs to show per image.", min=1)] = 3,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as data.augment=strong.")
    ] = None,
) -> None:
    """Draw a contact sheet of augmented training images with their boxes."""
    require_data(data)
    with _imports():
        from doublehead.config import parse_settings
        from doublehead.data.sheet import contact_sheet
        from doublehead.training.recipes import resolve

    said = {"data.path": data} | parse_settings(settings or [])
    resolved = resolve(model, recipe, config, said)
    print(f"the sheet is {contact_sheet(resolved, output, images, epochs)}")


@app.command("find-lr")
def find_learning_rate(
    data: Data,
    model: Model = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for sweep.csv and sweep.png.")] = Path(
        "learning-rate"
    ),
    steps: Annotated[int, typer.Option(help="Maximum steps; the sweep ends when the loss diverges.", min=20)] = 100,
    lowest: Annotated[float | None, typer.Option(help="First rate; default: train.lr / 1000.")] = None,
    highest: Annotated[float | None, typer.Option(help="Last rate; default: train.lr * 100.")] = None,
    recipe: Recipe = None,
    config: ConfigFile = None,
    device: Device = "auto",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as train.batch_size=8.")
    ] = None,
) -> None:
    """Suggest a learning rate from the loss of a temporary model at rising rates."""
    require_data(data)
    with _imports():
        from doublehead.config import parse_settings
        from doublehead.training.rate_finder import find_rate
        from doublehead.training.recipes import resolve

    said = {"data.path": data, "train.device": device} | parse_settings(settings or [])
    resolved = resolve(model, recipe, config, said)
    print(find_rate(resolved, output, steps, lowest, highest).words())
    print(f"the sweep is in {output}")


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    other_data: Annotated[bool, typer.Option("--other-data", help="Resume even if the data has changed.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Setting to change, such as train.epochs=60; repeatable."),
    ] = None,
    log: Log = None,
) -> None:
    """Resume an interrupted run, or continue a finished one with more epochs."""
    with _imports():
        from doublehead.config import parse_settings
        from doublehead.training import start

    start.resume(run, other_data, settings=parse_settings(settings or []), log=log or ())


@app.command("study")
def compare_variants(
    plan: Annotated[Path, typer.Argument(help="YAML with the rows to compare, such as studies/variants.yaml.")],
    data: Annotated[
        list[str], typer.Argument(metavar="DATA...", help="One dataset, or several to pool: folders or YAML files.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the study; an existing one is resumed.")],
    shard: Annotated[str, typer.Option(metavar="I/N", help="Run every N-th run, starting with the I-th.")] = "1/1",
    baseline: Annotated[
        str | None, typer.Option(metavar="ROW", help="Row to compare with; default: the plan's baseline.")
    ] = None,
    rows: Annotated[
        list[str] | None, typer.Option("--row", metavar="ROW", help="Run and compare only this row; repeatable.")
    ] = None,
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", metavar="SEED", help="Run and compare only this seed; repeatable.")
    ] = None,
    classes: Annotated[
        list[str] | None, typer.Option("--class", metavar="CLASS", help="Compare this class's AP too; repeatable.")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Split to evaluate; default: the plan's.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Setting for every run; repeatable.")
    ] = None,
) -> None:
    """Train variants with several seeds and compare them: means, deviations, paired differences."""
    for one in data:
        require_data(one)
    with _imports():
        from doublehead.common.console import Console
        from doublehead.config import parse_settings
        from doublehead.training.study.pooled import pool
        from doublehead.training.study.study import study_all

    said = parse_settings(settings or [])
    part = {"baseline": baseline, "rows": rows or (), "seeds": seeds or (), "classes": classes or (), "split": split}
    found = study_all(plan, data, output, settings=said, shard=shard, **part)
    if found is None:
        return
    compared = found | ({output: pool(found)} if len(found) > 1 else {})
    for folder, comparison in compared.items():
        comparison.save(folder)
        Console.out(comparison.table())
        try:
            comparison.draw(folder)
        except DoubleheadError as error:
            print(f"no picture drawn: {error}")
        print(f"{comparison.NAME}.md, .csv and .png are in {folder}")


@app.command()
def evaluate(
    weights: Annotated[
        list[str], typer.Argument(help="One or more checkpoints, published names or exported files to compare.")
    ],
    data: Annotated[str, typer.Argument(help="Dataset folder or YAML, as the last argument.")],
    split: Annotated[str, typer.Option(help="Split to evaluate.")] = "val",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the report; default: beside the first weights.")
    ] = None,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Evaluate several models as one fused ensemble.")
    ] = False,
    tiles: Tiles = None,
    overlap: Overlap = None,
    batch_size: Batch = 4,
    device: Device = "auto",
    precision: Precision = "fp32",
    options: Options = None,
) -> None:
    """Evaluate models on annotated images: AP, thresholds, confusions, calibration; as a page, JSON and CSV."""
    require_weights(*weights)
    require_data(data)
    with _imports():
        from doublehead.common.console import Console
        from doublehead.evaluation.report.run import report

    said = inference_settings(options, tiles, overlap)
    models = [weights] if ensemble and len(weights) > 1 else weights
    done = report(models, data, split, output, batch_size, device=device, precision=precision, settings=said)
    if done:
        Console.out(*done.tables)
        print("\n".join(done.words))


@app.command()
def calibrate(
    weights: Annotated[str, typer.Argument(help="Checkpoint, such as a run's best.safetensors, or published name.")],
    data: Data,
    split: Annotated[str, typer.Option(help="Split to fit on; not the training split.")] = "val",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Checkpoint to write; default: NAME-calibrated beside the weights."),
    ] = None,
    batch_size: Batch = 4,
    device: Device = "auto",
) -> None:
    """Calibrate scores: fit a temperature per head and write a new checkpoint."""
    require_weights(weights)
    require_data(data)
    with _imports():
        from doublehead.evaluation.calibrate import calibrate as fit

    print(fit(weights, data, split, output, batch_size, device=device, progress=True))


@app.command()
def analyze(
    weights: Annotated[
        list[str],
        typer.Argument(help="One or more checkpoints or published names to compare."),
    ],
    data: Annotated[str, typer.Argument(help="Dataset folder or YAML, as the last argument.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the report.")] = Path("analysis"),
    split: Annotated[str, typer.Option(help="Split to analyse.")] = "val",
    full: Annotated[
        bool, typer.Option("--full", help="Use the paper's budget: all objects, 14000 windows each.")
    ] = False,
    objects: Annotated[
        int | None, typer.Option(help=f"Objects to place windows around; default: {QUICK.objects}.", min=1)
    ] = None,
    windows: Annotated[
        int | None, typer.Option(help=f"Windows per object; default: {QUICK.windows}.", min=BINS)
    ] = None,
    images: Annotated[
        int | None, typer.Option(help=f"Images to detect objects in; default: at most {QUICK.images}.", min=1)
    ] = None,
    batch_size: Batch = 4,
    device: Device = "auto",
    options: Options = None,
) -> None:
    """Show where models lose AP, in classification or localisation, and how their heads differ."""
    require_weights(*weights)
    require_data(data)
    with _imports():
        from doublehead.config import parse_settings
        from doublehead.evaluation.analysis.analyze import analyze as compare_heads
        from doublehead.evaluation.analysis.words import found

    asked = (FULL if full else QUICK).changed(images, objects, windows)
    said = parse_settings(options or [])
    result = compare_heads(weights, data, split, output, asked, batch_size, device=device, progress=True, settings=said)
    print("\n".join(f"{topic}: {sentence}" for topic, sentence in found(result)))
    print(f"the report is {output / 'index.html'}")


@app.command()
def suggest(
    weights: Annotated[str, typer.Argument(help="Checkpoint, such as a run's best.safetensors, or published name.")],
    data: Annotated[str, typer.Argument(help="Dataset folder or YAML, or a folder of images without labels.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the page and tables.")] = Path(
        "suggestions"
    ),
    split: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Split to examine; repeatable; default: all.")
    ] = None,
    batch_size: Batch = 4,
    device: Device = "auto",
    precision: Precision = "fp32",
    options: Options = None,
) -> None:
    """List labels that are likely wrong, and the unlabelled images that are most useful for training."""
    require_weights(weights)
    require_data(data)
    with _imports():
        from doublehead.common.console import Console
        from doublehead.config import parse_settings
        from doublehead.evaluation.suggest import report
        from doublehead.evaluation.suggest.run import suggest as look

    said = parse_settings(options or [])
    found = look(weights, data, split or (), batch_size, None, device, precision, said, progress=True)
    report.write_suggestions(found, output)
    if found.splits:
        Console.out(found.table())
    print("\n".join((*report.summary(found), *report.next_steps(found))))
    print(f"the page is {output / report.PAGE}")


@app.command()
def predict(
    weights: Weights,
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Images, folders, globs such as 'photos/*.jpg', tars, Parquet files; or videos. "
            "Several models before them form an ensemble."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Output folder.")] = Path("predictions"),
    form: Annotated[str, typer.Option("--format", help=f"Output format: {', '.join(FORMATS)}.")] = FORMATS[0],
    score: Annotated[
        float | None,
        typer.Option(help="Minimum score; default: the threshold stored in the weights, or 0.5.", min=0, max=1),
    ] = None,
    batch_size: Batch = 4,
    device: Device = "auto",
    precision: Precision = "fp32",
    column: Annotated[str | None, typer.Option(help="Column of Parquet files that holds the images.")] = None,
    part_size: Annotated[
        int, typer.Option(help="Images per part; an interruption loses at most one part.", min=1)
    ] = 500,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Process every N-th part, starting with the I-th.")] = "1/1",
    engine: Annotated[str, typer.Option(help=f"Engine: {' or '.join(ENGINES)}.")] = ENGINES[0],
    workers: Annotated[int, typer.Option(help="Ray processes that hold a model.", min=1)] = 1,
    tiles: Tiles = None,
    overlap: Overlap = None,
    options: Options = None,
) -> None:
    """Detect objects in images, videos, or archives of any size."""
    models, images = models_and_sources([weights, *sources])
    require_weights(*models)
    with _imports():
        from doublehead.deploy.predict import predict as detect_in

    done = detect_in(
        models,
        images,
        output,
        format=form,
        score=score,
        batch_size=batch_size,
        device=device,
        precision=precision,
        column=column,
        part_size=part_size,
        shard=shard,
        engine=engine,
        workers=workers,
        settings=inference_settings(options, tiles, overlap),
    )
    print(done.words)
    if done.fault:
        raise DoubleheadError(done.fault)


@app.command()
def serve(
    weights: Annotated[
        list[str], typer.Argument(help="Checkpoint, published name or exported file; several make an ensemble.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 accepts other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: any free one.", min=0, max=65535)] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="DOUBLEHEAD_API_KEY", help="Require this key; preferably set the environment variable."),
    ] = None,
    batch_size: Batch = 4,
    batch_wait: Annotated[float, typer.Option(help="Milliseconds to wait for a batch to fill.")] = 1,
    queue: Annotated[int, typer.Option(help="Maximum images waiting; further ones get 503.")] = 64,
    max_megabytes: Annotated[float, typer.Option(help="Maximum megabytes of a request.")] = 20,
    max_megapixels: Annotated[float, typer.Option(help="Maximum megapixels of all images of a request.")] = 40,
    max_images: Annotated[int, typer.Option(help="Maximum images per request.")] = 16,
    timeout: Annotated[float, typer.Option(help="Seconds to receive a request, and again to answer it.")] = 30,
    formats: Annotated[
        str, typer.Option(help="Accepted image formats; gif and tiff may be added.")
    ] = "jpeg,png,webp,bmp",
    sample: Annotated[Path | None, typer.Option(help="Sample image of the page; default: a generated one.")] = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    tiles: Tiles = None,
    overlap: Overlap = None,
    options: Options = None,
) -> None:
    """Serve a model over HTTP, with a page at /."""
    require_weights(*weights)
    with _imports():
        from doublehead.deploy.server.settings import make_settings
        from doublehead.deploy.server.start import serve as start_server

    settings = make_settings(
        host=host,
        port=port,
        api_key=api_key,
        batch_size=batch_size,
        batch_wait=batch_wait,
        queue=queue,
        max_megabytes=max_megabytes,
        max_megapixels=max_megapixels,
        max_images=max_images,
        timeout=timeout,
        formats=formats,
        sample=sample,
    )
    start_server(weights, settings, device, precision, inference_settings(options, tiles, overlap))


@app.command()
def demo(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: any free one.", min=0, max=65535)] = 8000,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
    device: Device = "auto",
) -> None:
    """Open a page with the bundled detector of generated shapes: no data, training or download."""
    with _imports():
        from doublehead.deploy.demo import demo as start_demo

    start_demo(host, port, device, browser)


@app.command()
def export(
    weights: Annotated[
        str,
        typer.Argument(help="Checkpoint, such as a run's best.safetensors, or published name."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Output file: .onnx, .xml (and .bin) for OpenVINO, or .tflite.")
    ],
    format: Annotated[
        str | None, typer.Option(help="onnx, openvino or litert; default: by the file extension.")
    ] = None,
    owners: Annotated[
        int | None,
        typer.Option(help="Maximum proposals passed to the box-only head.", min=1),
    ] = None,
    int8: Annotated[
        str | None, typer.Option(metavar="DATA", help="Quantise with training images of this dataset; OpenVINO only.")
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(help="Images for the comparison with the checkpoint: files, folders, globs; repeatable."),
    ] = None,
    static: Annotated[
        tuple[int, int] | None, typer.Option(metavar="W H", help="Static shapes, for images of this size in pixels.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per run of a file with static shapes; default: 1.", min=1)
    ] = None,
    target: Annotated[str | None, typer.Option(help="tensorrt: check that TensorRT reads the file.")] = None,
    options: Options = None,
) -> None:
    """Export a detector to ONNX, OpenVINO or LiteRT and compare it with its checkpoint."""
    require_weights(weights)
    with _imports():
        from doublehead.config import parse_settings
        from doublehead.deploy import export as deployment

    said = parse_settings(options or [])
    print(deployment.export(weights, output, format, owners, int8, images or (), said, static, batch_size, target))


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    options_metavar="WHAT ...",
)
def benchmark(context: typer.Context) -> None:
    """Measure time and memory against torchvision's Faster R-CNN. Needs a checkout of the source."""
    run_benchmark(context.args)


if __name__ == "__main__":
    main()
