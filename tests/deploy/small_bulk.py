"""Models and images small enough to run through in bulk."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from doublehead.common.categories import Categories
from doublehead.model.checkpoint import save_checkpoint
from doublehead.model.detector import Detector
from doublehead.training.recipes import resolve
from small import SMALL

CATEGORIES = Categories(("cat", "dog"), (7, 17))


def untrained(path: Path) -> Path:
    """A model of two classes that finds something nearly everywhere."""
    torch.manual_seed(0)
    settings = SMALL | {"model.roi.score_threshold": 0.01, "model.roi.detections": 5, "data.path": "x"}
    config = resolve("double-head-tiny", None, None, settings).model
    model = Detector(config, len(CATEGORIES))
    save_checkpoint(path, config, CATEGORIES, model.state_dict(), {"step": 3, "best": 0.25})
    return path


def jpeg(seed: int) -> bytes:
    """A small picture of noise, of a size and shape by its seed."""
    random = np.random.default_rng(seed)
    height, width = random.integers(40, 90, 2)
    coarse = Image.fromarray(random.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    file = io.BytesIO()
    coarse.resize((int(width), int(height)), Image.Resampling.NEAREST).save(file, "JPEG")
    return file.getvalue()


def folder_of(path: Path, many: int) -> Path:
    path.mkdir(parents=True)
    for number in range(many):
        (path / f"{number:04}.jpg").write_bytes(jpeg(number))
    return path


def tar_of(path: Path, many: int) -> Path:
    """As WebDataset has it: each image with its annotation beside it."""
    with tarfile.open(path, "w") as tar:
        for number in range(many):
            for suffix, data in ((".jpg", jpeg(number)), (".json", b"{}")):
                member = tarfile.TarInfo(f"set/{number:04}{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path
