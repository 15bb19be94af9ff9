"""VoTT's JSON, of projects or of single images, to records."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from doublehead.common.errors import DoubleheadError, brief
from doublehead.data.folder import Folder, split_of_file
from doublehead.data.objects import POLYGONS, Item, NotMine, Splits, Thing, corner_and_size, gather, image_in, size_of
from doublehead.data.records import Findings
from doublehead.data.text import dicts, head_has, read_json

Entry = dict[str, Any]

_BOX = ("left", "top", "width", "height")
_NOT_VISITED = 0


def find_vott(folder: Folder) -> Splits | NotMine | None:
    """Splits of JSON files with `assets`, or else with an `asset` each: by the files' folders or names, else one."""
    found: list[tuple[str, Entry]] = []
    single: list[tuple[str, Entry]] = []
    for file in folder.of_kind(".json", partial(head_has, marks=['"asset"', '"regions"'])):
        content = read_json(folder.path(file))
        if isinstance(content, dict) and isinstance(content.get("assets"), dict):
            found += [(file, asset) for asset in dicts(list(content["assets"].values()))]
        elif isinstance(content, dict) and "asset" in content:
            single.append((file, content))
    return gather(folder, ((split_of_file(file), (file, asset)) for file, asset in found or single), _items)


def _items(folder: Folder, assets: list[tuple[str, Entry]], findings: Findings) -> Iterator[Item]:
    for file, entry in assets:
        path = folder.path(file)
        with findings.collect("images that cannot be used"):
            asset = entry["asset"] if isinstance(entry.get("asset"), dict) else {}
            name, size = image_in(asset, "name", f"{path}: an asset"), asset.get("size")
            where = f"{path}: `{name}`"
            if asset.get("state") == _NOT_VISITED:
                findings.warn("images without annotations skipped", where)
                continue
            pixels = size_of(size.get("width"), size.get("height")) if isinstance(size, dict) else None
            item = Item([name], where, Path(file).parent.as_posix(), pixels)
            for region in dicts(entry.get("regions")):
                with findings.collect("boxes that cannot be read"):
                    item.things += _things(region, where)
            yield item


def _things(region: Entry, where: str) -> list[Thing]:
    """The objects of a region, one for each of its tags."""
    tags = region.get("tags")
    labels = [tag for tag in tags if isinstance(tag, str) and tag.strip()] if isinstance(tags, list) else []
    if not labels:
        raise DoubleheadError(f"{where} has a region without `tags`: {brief(region)}")
    box = corner_and_size(region.get("boundingBox"), _BOX, f"{where}: `boundingBox` of `{labels[0]}`")
    reduced = "" if region.get("type") == "RECTANGLE" else POLYGONS
    return [Thing(label, box, reduced=reduced) for label in labels]
