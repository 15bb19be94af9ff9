"""Static shapes: valid options, the fixed input, and the images that fill it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from doublehead.common.errors import DoubleheadError
from doublehead.inference.canvas import Canvas
from doublehead.model.detector import Detector

TARGETS = ("tensorrt",)

SMALLEST = 64
"""Minimum side of the image, in pixels; pictures for the comparison are drawn at its size."""


def require_options(
    output: Path, static: tuple[int, int] | None, batch_size: int | None, target: str | None, int8: str | Path | None
) -> None:
    """Reject combinations of `export` options that do not work.

    Raises:
        DoubleheadError: names the option.
    """
    if target is not None and target not in TARGETS:
        raise DoubleheadError(f"--target {target}: is not known; use {' or '.join(TARGETS)}")
    if target and output.suffix.lower() != ".onnx":
        raise DoubleheadError(f"{output}: TensorRT reads ONNX; give a file that ends in .onnx")
    if static is None:
        if output.suffix.lower() == ".tflite":
            raise DoubleheadError(
                f"{output}: LiteRT needs static shapes; add --static and your images' width and height"
            )
        if option := f"--target {target}" if target else f"--batch-size {batch_size}" if batch_size else None:
            raise DoubleheadError(f"{option}: needs static shapes; add --static and your images' width and height")
        return
    if min(static) < SMALLEST:
        raise DoubleheadError(f"--static {static[0]} {static[1]}: give width and height in pixels, {SMALLEST} or more")
    if int8:
        raise DoubleheadError(f"{output}: int8 needs shapes that are not static; leave out --static or --int8")


def canvas_of(model: Detector, weights: str | Path, static: tuple[int, int], batch_size: int) -> Canvas:
    """Input of a model's file with static shapes.

    Args:
        model: the detector.
        weights: its name in errors.
        static: width and height of the images, in pixels.
        batch_size: images per run.

    Raises:
        DoubleheadError: the model's sizes depend on the image.
    """
    if model.config.roi.score_floor:
        raise DoubleheadError(
            f"{weights}: how many proposals pass roi.score_floor is not known beforehand, so shapes cannot be static; "
            "add --set score_floor=0"
        )
    width, height = static
    return Canvas.of_images(height, width, model.config.input, model.backbone.body.multiple, batch_size)


def filling(pictures: Sequence[Tensor], model: Detector, canvas: Canvas) -> list[Tensor]:
    """Images that the checkpoint pads to the size of the canvas; in others, padding would change the detections.

    Raises:
        DoubleheadError: there are none.
    """
    config, multiple = model.config.input, model.backbone.body.multiple
    own = [Canvas.of_images(p.shape[-2], p.shape[-1], config, multiple, canvas.batch) for p in pictures]
    found = [picture for picture, size in zip(pictures, own, strict=True) if size == canvas]
    if not found:
        raise DoubleheadError(
            f"--images: the model resizes none of them to {canvas.width} x {canvas.height}, the size that --static "
            "fixes; give images of that shape, or leave out --images"
        )
    return found
