"""What `predict` can be asked for: names alone, so that `--help` lists them without what does the work."""

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
"""Formats of annotation tools, and where to import the `Annotator` of each from."""
FORMATS = (PICTURES, "parquet", "coco", *ANNOTATORS)
ENGINES = ("plain", "ray")


def models_and_sources(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell the models of an ensemble from the images that follow them: by their files' endings, or as published.

    Raises:
        DoubleheadError: no images follow.
    """
    from doublehead.model.interop.published import PUBLISHED  # here: `--help` does not need it

    def is_model(word: str) -> bool:
        return Path(word).suffix.lower() in (CHECKPOINT, *EXPORTED) or (word in PUBLISHED and not Path(word).exists())

    first, *others = words
    models = [first, *takewhile(is_model, others)]
    if len(models) == len(words):
        raise DoubleheadError("only models are given; add the images to predict on")
    return models, list(words[len(models) :])
