"""The contact sheet of what training sees."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

import doublehead.data.sheet as sheet
from doublehead.data.loader import Key, training_dataset
from doublehead.data.sheet import contact_sheet
from doublehead.training.recipes import resolve
from small import flags

SETTINGS = {"model.input.short_side": 64, "model.input.long_side": 96, "data.augment": "strong", "train.seed": 5}


def test_a_page_shows_each_image_as_it_is_and_in_each_epoch(dataset, tmp_path, command):
    page = tmp_path / "new" / "sheet.html"
    words = ["augment", dataset, "-o", page, "--model", "double-head-tiny", "--images", 3, "--epochs", 2]
    outcome = command(*words, *flags(SETTINGS))
    assert (outcome.code, str(page) in outcome.out) == (0, True)
    text = page.read_text()
    assert text.count("<img ") == 3 * (1 + 2)
    assert "http" not in re.sub(r"data:[^\"]*", "", text)  # it needs no other file
    for word in ("as it is", "epoch 1: ", "epoch 2: ", "mosaic", "copy_paste"):
        assert word in text


@pytest.mark.parametrize("name", ["sheet.png", "sheet.jpg", "folder"])
def test_the_name_of_the_page_says_what_it_is(dataset, tmp_path, name):
    config = resolve("double-head-tiny", settings=SETTINGS | {"data.path": str(dataset)})
    written = contact_sheet(config, tmp_path / name, images=2, epochs=1)
    if name == "folder":
        assert written == tmp_path / "folder" / "index.html"
    else:
        picture = Image.open(written)
        assert picture.format == {"png": "PNG", "jpg": "JPEG"}[name[-3:]]
        assert np.asarray(picture).std() > 10
    assert [path.name for path in written.parent.iterdir()] == [written.name]


def test_it_shows_what_training_gets(dataset, tmp_path, monkeypatch):
    """The very images and boxes of those epochs, and the steps that changed them."""
    config = resolve("double-head-tiny", settings=SETTINGS | {"data.path": str(dataset)})
    shown = []
    draw = sheet._shown
    monkeypatch.setattr(sheet, "_shown", lambda sample, *rest: shown.append((sample, rest[1])) or draw(sample, *rest))
    contact_sheet(config, tmp_path / "a.html", images=2, epochs=3)
    split = sheet.open_dataset(str(dataset)).read("train")
    expected = training_dataset(split, config)
    keys = [key for index in (0, len(split.records) - 1) for key in (None, *(Key(epoch, index) for epoch in range(3)))]
    assert len(keys) == len(shown)
    for key, ((image, boxes, labels), caption) in zip(keys, shown, strict=True):
        if key is None:
            assert caption == "as it is"
            continue
        again, target = expected[key]
        assert image.equal(again)
        assert boxes.equal(target["boxes"])
        assert labels.equal(target["labels"])
        assert caption.startswith(f"epoch {key.epoch + 1}: ")


def test_mistakes_are_told_in_one_sentence(dataset, tmp_path, command):
    for words, said in [
        (["nowhere"], "nowhere"),
        ([dataset, "--set", "data.augment=heavy"], "unknown preset `heavy`"),
        ([dataset, "--set", "data.augment.use=absent.module:f"], "absent.module:f cannot be imported"),
        ([dataset, "--set", "data.train_split=third"], "third"),
    ]:
        assert said in command("augment", *words, "-o", tmp_path / "x.html").sentence
    assert not list(tmp_path.iterdir())
