"""The images of a step whose loss is not finite, kept to be looked at."""

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
    """Write a rank's images as the model got them, once plain and once with their boxes, and a JSON that says all.

    Args:
        folder: where to; made if need be.
        rank: of the process, a part of the files' names.
        images: uint8 (3, H, W) each.
        targets: `boxes` (N, 4) xyxy, `labels` (N,) and `index` of the record, of each.
        records: of the split.
        losses: by name.

    Raises:
        Fault: they cannot be written.
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
