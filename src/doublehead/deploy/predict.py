"""`doublehead predict`: drawn images, files of detections, and videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from doublehead.common.console import Console
from doublehead.common.errors import DoubleheadError
from doublehead.common.files import free_name
from doublehead.config import USUAL_DECISION
from doublehead.deploy.annotations import annotate
from doublehead.deploy.bulk import run as bulk
from doublehead.deploy.bulk.pictures import predict_pictures
from doublehead.deploy.bulk.sources import Listing, find_files
from doublehead.deploy.bulk.worker import Work
from doublehead.deploy.choices import ANNOTATORS, FORMATS, PICTURES
from doublehead.deploy.video import VIDEO_SUFFIXES, count_frames, predict_video
from doublehead.inference.predictor import Predictor, decision_threshold, load


@dataclass(frozen=True)
class Done:
    """Result of `predict`."""

    words: str  # where it is, in sentences
    fault: str | None = None  # what could not be done, after all else was


def predict(
    weights: Sequence[str],
    sources: Sequence[str],
    output: Path,
    *,
    format: str = PICTURES,
    score: float | None = None,
    batch_size: int = 4,
    device: str = "auto",
    precision: str = "fp32",
    column: str | None = None,
    part_size: int = 500,
    shard: str = "1/1",
    engine: str = "plain",
    workers: int = 1,
    settings: Mapping[str, Any] | None = None,
) -> Done:
    """Detect objects in images or videos, and write the results in the given format, with a progress bar.

    Args:
        weights: checkpoint, published name or exported file; several form an ensemble.
        sources: image files, folders, globs, tars, Parquet files; or videos.
        output: output folder.
        format: pictures, with predictions.json; parquet or coco, for any number of images; or voc, yolo, cvat or
            label-studio, for correction in an annotation tool.
        score: minimum score; None: the weights' decision threshold, else 0.5.
        batch_size: images per forward pass.
        device: auto, cpu, cuda or a card such as cuda:1.
        precision: as in `load`.
        column: column of Parquet files with the images.
        part_size: images per part; an interruption loses at most one part.
        shard: i/n processes every n-th part, starting with the i-th.
        engine: plain, or ray.
        workers: number of Ray workers.
        settings: inference options by name; see `config.InferenceOptions`.

    Raises:
        DoubleheadError: an argument is invalid, or the work could not be done.
    """
    if format not in FORMATS:
        raise DoubleheadError(f"--format {format}: is unknown; use {', '.join(FORMATS)}")
    alone = (shard, engine) == ("1/1", "plain")
    if format in (PICTURES, *ANNOTATORS) and not alone:
        raise DoubleheadError("--shard and --engine need --format parquet or coco")
    if workers > 1 and engine != "ray":
        raise DoubleheadError("--workers needs --engine ray; without Ray, distribute the work with --shard")
    score = _least_score(weights, settings) if score is None else score
    videos = [Path(source).suffix.lower() in VIDEO_SUFFIXES for source in sources]
    if any(videos):
        if not all(videos) or format not in (PICTURES, "coco") or not alone:
            raise DoubleheadError("videos need --format pictures or coco, without images, --shard and --engine")
        return _predict_videos(load(weights, device, precision, settings), sources, output, format, score, batch_size)
    listing = Listing.of(sources, part_size, column)
    if format in ANNOTATORS:
        return _annotate(load(weights, device, precision, settings), listing, output, format, score, batch_size)
    if format != PICTURES:
        work = Work(tuple(weights), output, format, score, batch_size, device, precision, dict(settings or {}))
        return Done(str(bulk.predict_bulk(work, listing, shard, engine, workers, progress=True)))
    predictor, parts = load(weights, device, precision, settings), [part for _, part in listing.chosen(lambda _: True)]
    with Console().progress("predicting", sum(listing.sizes)) as advance:
        written = predict_pictures(predictor, parts, output, score, batch_size, advance)
    return Done(
        f"{written.waited:.0%} of the time went into waiting for images\n"
        f"predictions.json and {written.done} picture{'' if written.done == 1 else 's'} are in {output}",
        _unread(written.faults, listing),
    )


def _annotate(predictor: Predictor, listing: Listing, output: Path, format: str, score: float, batch_size: int) -> Done:
    parts = [part for _, part in listing.chosen(lambda _: True)]
    with Console().progress("predicting", sum(listing.sizes)) as advance:
        done, faults = annotate(predictor, parts, output, format, score, batch_size, advance)
    return Done(f"annotations of {done} images, to be corrected, are in {output}", _unread(faults, listing))


def _unread(faults: list[str], listing: Listing) -> str | None:
    if not faults:
        return None
    return f"{len(faults)} of {sum(listing.sizes)} images could not be read: {'; '.join(faults[:10])}"


def _least_score(weights: Sequence[str], settings: Mapping[str, Any] | None) -> float:
    """Decision threshold of the weights, which is printed, or the default. Ensembles have no threshold of their own."""
    brought = decision_threshold(weights[0], settings) if len(weights) == 1 else None
    if brought is None:
        return USUAL_DECISION
    Console().say(
        f"showing detections with a score of at least {brought:.2f}, the decision threshold; --score changes it"
    )
    return brought


def _predict_videos(
    predictor: Predictor, sources: Sequence[str], output: Path, format: str, score: float, batch_size: int
) -> Done:
    console, taken, words, faults = Console(), set[str](), list[str](), list[str]()
    for path in find_files(sources):
        name = free_name(path.stem, taken)
        try:
            with console.progress(path.name, count_frames(path)) as advance:
                written = predict_video(predictor, path, output, name, score, batch_size, format == PICTURES, advance)
        except DoubleheadError as error:
            faults.append(str(error))
            continue
        files = f"{name}.mp4 and {name}.json" if format == PICTURES else f"{name}.json"
        words.append(f"{written.frames} frames are in {files} in {output}")
        faults += [written.fault] if written.fault else []
    return Done("\n".join(words), "; ".join(faults) or None)
