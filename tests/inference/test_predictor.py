"""From images of any kind to detections, in Python and from the command line."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

import doublehead
from doublehead.common.errors import DoubleheadError
from doublehead.deploy.bulk.sources import find_files


@pytest.fixture(scope="module")
def predictor(trained):
    return doublehead.load(trained / "best.safetensors", device="cpu")


@pytest.fixture
def photos(dataset, tmp_path):
    """Three photographs: two side by side, one deeper; and a text."""
    files = sorted((dataset / "test").iterdir())
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for file, name in zip(files, ("a.jpg", "b.jpg", "more/a.jpg"), strict=True):
        shutil.copy(file, tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def test_every_kind_of_image_gives_the_same_detections(predictor, photos):
    path = photos / "a.jpg"
    picture = Image.open(path)
    array = np.array(picture)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    expected = predictor.predict(path)
    assert len(expected)
    assert expected.image.size == picture.size
    for image in (str(path), picture, array, tensor, array / 255, tensor / 255):
        assert predictor.predict(image) == expected


def test_one_image_gives_detections_and_several_a_list(predictor, photos):
    paths = [photos / "a.jpg", photos / "b.jpg", photos / "more/a.jpg"]
    found = predictor.predict(paths, batch_size=2)
    assert isinstance(found, list)
    for several, path in zip(found, paths, strict=True):
        one = predictor.predict(path)
        assert isinstance(one, doublehead.Detections)
        assert np.allclose(several.boxes, one.boxes, atol=1e-2)
        assert np.allclose(several.scores, one.scores, atol=1e-4)
    assert predictor.predict([]) == []


def test_grey_and_transparent_images(predictor, photos):
    colour = Image.open(photos / "a.jpg")
    grey = colour.convert("L")
    expected = predictor.predict(grey.convert("RGB"))
    for image in (grey, np.array(grey), np.array(grey)[:, :, None], torch.from_numpy(np.array(grey))[None]):
        assert predictor.predict(image) == expected
    solid = colour.convert("RGBA")
    for image in (solid, np.array(solid)):
        assert predictor.predict(image) == predictor.predict(colour)


def test_boxes_lie_in_the_original_image(predictor):
    found = predictor.predict(Image.effect_noise((333, 500), 90))
    assert len(found)
    assert (found.boxes >= 0).all()
    assert (found.boxes <= [333, 500, 333, 500]).all()
    assert found.boxes.max() > 100  # and not in the network's 64 by 96


def test_collections_of_any_kind_give_a_list(predictor, photos):
    a, b = photos / "a.jpg", photos / "b.jpg"
    assert Image.open(a).size == Image.open(b).size
    expected = [predictor.predict(a), predictor.predict(b)]
    stack = np.stack([np.array(Image.open(path)) for path in (a, b)])
    tensors = torch.from_numpy(stack).permute(0, 3, 1, 2)
    for images in ((a, b), iter([a, b]), (path for path in (a, b)), {a: 1, b: 2}.keys(), np.array([str(a), str(b)])):
        assert predictor.predict(images, batch_size=1) == expected
    for images in (stack, stack.transpose(0, 3, 1, 2), tensors, tensors.permute(0, 2, 3, 1), tensors / 255):
        assert predictor.predict(images, batch_size=1) == expected
    assert predictor.predict(stack[:1]) == predictor.predict([a]) == expected[:1]
    assert predictor.predict(()) == predictor.predict(stack[:0]) == []


def test_the_image_at_fault_is_numbered(predictor, photos):
    with pytest.raises(DoubleheadError, match=r"images\[2\]: None was given"):
        predictor.predict([photos / "a.jpg", photos / "b.jpg", None], batch_size=1)
    with pytest.raises(DoubleheadError, match="batch_size is 0"):
        predictor.predict(photos / "a.jpg", batch_size=0)


def test_files_folders_and_globs_are_found_once_each(photos, monkeypatch):
    a, b, deep = photos / "a.jpg", photos / "b.jpg", photos / "more" / "a.jpg"
    assert list(find_files([str(photos)])) == [a, b, deep]
    assert list(find_files([str(b), str(photos)])) == [b, a, deep]
    assert list(find_files([str(photos / "*.jpg")])) == [a, b]
    assert list(find_files([str(photos / "**/a.jpg")])) == [a, deep]
    monkeypatch.chdir(photos)
    assert [str(path) for path in find_files(["?.jpg"])] == ["a.jpg", "b.jpg"]
    (photos / "x[1].jpg").touch()
    assert [str(path) for path in find_files(["x[1].jpg"])] == ["x[1].jpg"]


@pytest.mark.parametrize("source", ["none.jpg", "*.png", "empty"])
def test_a_source_without_images_is_named(photos, source):
    (photos / "empty").mkdir()
    with pytest.raises(DoubleheadError, match="no image found there"):
        list(find_files([str(photos / source)]))


def test_predict_writes_pictures_and_a_coco_file(trained, dataset, photos, tmp_path, command):
    output = tmp_path / "out"
    outcome = command("predict", trained / "best.safetensors", photos, "-o", output, "--score", 0.05, "--device", "cpu")
    assert outcome.code == 0
    assert outcome.out.endswith(f"images\npredictions.json and 3 pictures are in {output}\n")
    assert sorted(file.name for file in output.iterdir()) == ["a-2.jpg", "a.jpg", "b.jpg", "predictions.json"]
    assert Image.open(output / "b.jpg").size == Image.open(photos / "b.jpg").size
    coco = COCO(output / "predictions.json")
    truth = COCO(dataset / "annotations" / "instances_test.json")
    names = {category["id"]: category["name"] for category in truth.loadCats(truth.getCatIds())}
    assert {c["id"]: c["name"] for c in coco.loadCats(coco.getCatIds())} == names  # the dataset's own ids
    files = {image["id"]: image["file_name"] for image in coco.loadImgs(coco.getImgIds())}
    assert sorted(files.values()) == sorted(str(path) for path in photos.rglob("*.jpg"))
    annotations = coco.loadAnns(coco.getAnnIds())
    assert annotations
    assert all(a["score"] >= 0.05 and a["category_id"] in names for a in annotations)
    predictor = doublehead.load(trained / "best.safetensors", device="cpu")
    for number, file in files.items():
        expected = predictor.predict(file).above(0.05)
        boxes = [a["bbox"] for a in annotations if a["image_id"] == number]
        assert np.allclose(boxes, [d["bbox"] for d in expected.to_coco(number)], atol=0.05)


def test_an_unreadable_image_is_named_and_the_others_are_done(trained, photos, tmp_path, command):
    bad = photos / "b.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    output = tmp_path / "out"
    outcome = command("predict", trained / "best.safetensors", photos, "-o", output, "--device", "cpu")
    assert outcome.sentence.startswith(f"1 of 3 images could not be read: {bad}: ")
    assert {file.name for file in output.iterdir()} == {"a.jpg", "a-2.jpg", "predictions.json"}
    assert len(json.loads((output / "predictions.json").read_text())["images"]) == 2


def test_photographs_are_never_written_over(trained, photos, command):
    before = (photos / "a.jpg").read_bytes()
    outcome = command("predict", trained / "best.safetensors", photos / "a.jpg", "-o", photos)
    assert outcome.sentence == f"{photos}: holds images to predict on; give another --output"
    assert (photos / "a.jpg").read_bytes() == before
