"""studies/make_tiles.py as a user runs it."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from doublehead.data.dataset import open_dataset

SCRIPT = Path(__file__).parents[3] / "studies" / "make_tiles.py"


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *map(str, words)], check=False, capture_output=True, text=True)


def test_tiles_show_every_pixel_once_and_their_boxes_lie_where_the_objects_were(dataset, tmp_path) -> None:
    assert run(dataset, tmp_path / "tiles", "--side", 40).returncode == 0
    before, after = open_dataset(dataset).read("train"), open_dataset(tmp_path / "tiles").read("train")
    assert after.categories.names == before.categories.names
    found = {record.path.stem: record for record in after.records}
    for record in before.records:
        image, whole = np.asarray(Image.open(record.path).convert("RGB")), np.zeros((record.height, record.width, 3))
        kept = []
        for y in range(0, record.height, 40):
            for x in range(0, record.width, 40):
                tile = found.pop(f"{record.path.stem}_{x}_{y}")
                whole[y : y + 40, x : x + 40] += np.asarray(Image.open(tile.path))
                corner, shown = np.array([x, y, x, y]), tile.boxes[~tile.crowd]
                kept += (shown + corner).tolist()
                assert (shown >= 0).all()
                assert (shown <= [tile.width, tile.height] * 2).all()
        np.testing.assert_array_equal(whole, image)
        whole_boxes = [
            box for box in record.boxes.tolist() if all(box[i] // 40 == (box[i + 2] - 1e-3) // 40 for i in (0, 1))
        ]
        assert all(any(np.allclose(box, one, atol=1e-3) for one in kept) for box in whole_boxes)
    assert not found


def test_what_shows_less_than_half_of_an_object_is_a_crowd(tmp_path) -> None:
    (tmp_path / "data").mkdir()
    Image.new("RGB", (100, 50)).save(tmp_path / "data/a.png")
    (tmp_path / "data/boxes.csv").write_text("image,xmin,ymin,xmax,ymax,class\na.png,40,10,70,30,tree\n")
    assert run(tmp_path / "data", tmp_path / "tiles", "--side", 50).returncode == 0
    left, right = sorted(open_dataset(tmp_path / "tiles").read("all").records, key=lambda record: record.path.name)
    np.testing.assert_allclose(left.boxes, [[40, 10, 50, 30]])
    np.testing.assert_allclose(right.boxes, [[0, 10, 20, 30]])
    assert (left.crowd.tolist(), right.crowd.tolist()) == ([True], [False])


def test_an_image_that_only_its_annotation_file_holds_is_cut(tmp_path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (60, 40)).save(file, "PNG")
    shape = {"label": "tree", "points": [[5, 5], [20, 30]], "shape_type": "rectangle"}
    about = {"imagePath": "a.png", "imageData": base64.b64encode(file.getvalue()).decode(), "imageHeight": 40}
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.json").write_text(json.dumps({"shapes": [shape], "imageWidth": 60, **about}))
    done = run(tmp_path / "data", tmp_path / "tiles", "--side", 40)
    assert done.returncode == 0, done.stderr
    assert len(open_dataset(tmp_path / "tiles").read("all").records) == 2


def test_a_side_without_pixels_is_refused(dataset, tmp_path) -> None:
    done = run(dataset, tmp_path / "tiles", "--side", 0)
    assert done.returncode == 2
    assert "--side" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_without_a_dataset_is_named(tmp_path) -> None:
    done = run(tmp_path, tmp_path / "tiles")
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr
    assert "Traceback" not in done.stderr
