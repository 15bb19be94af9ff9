"""Choices of `predict`: names alone, so that `--help` can list them without importing implementations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from doublehead.common.errors import DoubleheadError
from doublehead.common.model_files import CHECKPOINT, EXPORTED

PICTURES = "pictures"
ANNOTATORS = {
    "voc": "doublehead.deploy.annotations:Voc",
    "yolo": "doublehead.deploy.annotations:Yolo",
    "cvat": "doublehead.deploy.annotations:Cvat",
    "label-studio": "doublehead.deploy.annotations:LabelStudio",
}
"""Formats of annotation tools, with the import path of each `Annotator`."""
FORMATS = (PICTURES, "parquet", "coco", *ANNOTATORS)
ENGINES = ("plain", "ray")


def models_and_sources(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate models, recognised by file extension or published name, from the image sources that follow them.

    Raises:
        DoubleheadError: there are no image sources.
    """
    from doublehead.model.interop.published import PUBLISHED  # here: `--help` does not need it

    def is_model(word: str) -> bool:
        return Path(word).suffix.lower() in (CHECKPOINT, *EXPORTED) or (word in PUBLISHED and not Path(word).exists())

    first, *others = words
    models = [first, *takewhile(is_model, others)]
    if len(models) == len(words):
        raise DoubleheadError("only models are given; add the images to predict on")
    return models, list(words[len(models) :])
