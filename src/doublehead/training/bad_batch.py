"""Storage of the images of a step with a non-finite loss, for inspection."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from doublehead.common.files import writing
from doublehead.data.records import Record
from doublehead.inference.detections import draw_boxes


def keep_batch(
    folder: Path,
    rank: int,
    images: Sequence[Tensor],
    targets: Sequence[dict[str, Any]],
    records: Sequence[Record],
    losses: dict[str, float],
) -> None:
    """Write a rank's images as passed to the model, with and without boxes, and a JSON file with all details.

    Args:
        folder: output folder; created if missing.
        rank: rank of the process, part of the file names.
        images: uint8 (3, H, W).
        targets: per image `boxes` (N, 4) xyxy, `labels` (N,) and `index` of the record.
        records: records of the split.
        losses: losses by name.

    Raises:
        Fault: the files cannot be written.
    """
    entries = []
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for number, (image, target) in enumerate(zip(images, targets, strict=True)):
            picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
            boxes, labels = target["boxes"].cpu().numpy(), target["labels"].tolist()
            name = f"rank{rank}-{number}"
            picture.save(folder / f"{name}.png")
            draw_boxes(picture, boxes, labels).save(folder / f"{name}-boxes.png")
            file = str(records[target["index"]].path)
            entries.append({"picture": f"{name}.png", "file": file, "boxes": boxes.tolist(), "labels": labels})
        # NaN as Python's json writes it: these files are for people
        text = json.dumps({"losses": losses, "images": entries}, indent=1)
        (folder / f"rank{rank}.json").write_text(text, encoding="utf-8")
