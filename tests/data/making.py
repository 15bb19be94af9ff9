"""Tiny images and annotation files, for tests to make their datasets of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(path: Path, width: int = 40, height: int = 30, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def coco(
    file: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]], categories: list[dict[str, Any]]
) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def image(number: int, **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number}.png", "width": 40, "height": 30, **more}


def box(number: int, image_id: int, category: int, bbox: list[float], **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image_id, "category_id": category, "bbox": bbox, **more}


def xml(objects: str, filename: str = "", size: str = "<width>40</width><height>30</height>") -> str:
    return f"<annotation><filename>{filename}</filename><size>{size}</size>{objects}</annotation>"


def thing(name: str, *edges: float, difficult: int = 0) -> str:
    tags = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), edges, strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{tags}</bndbox></object>"


def yolo(root: Path, labels: dict[str, str | None], text: str = "train: images\nnames: [cat, dog]\n") -> Path:
    """A YOLO dataset of one split: label texts by image name; None: no label file."""
    for name, lines in labels.items():
        picture(root / "images" / f"{name}.png")
        if lines is not None:
            (root / "labels").mkdir(exist_ok=True)
            (root / "labels" / f"{name}.txt").write_text(lines)
    (root / "data.yaml").write_text(text)
    return root
