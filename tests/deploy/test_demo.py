"""`doublehead demo`: the bundled detector, and the page that shows it."""

from __future__ import annotations

import json
import re
import urllib.request

from serving import command_serving

import doublehead
from doublehead.data.synthetic import CLASSES, synthesize
from doublehead.deploy.demo import WEIGHTS


def test_the_bundled_detector_is_small_and_finds_shapes_it_has_not_seen(tmp_path):
    assert WEIGHTS.stat().st_size < 6e6
    data = synthesize(tmp_path / "shapes", {"test": 30}, seed=99, lengths=(16, 160))
    metrics = doublehead.evaluate(WEIGHTS, data, "test", device="cpu").metrics
    assert metrics["AP50"] > 0.85


def test_the_page_answers_with_boxes():
    with command_serving("demo", "--no-browser") as (_, line):
        address = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert address, line
        with urllib.request.urlopen(f"{address[0]}/", timeout=60) as page:
            assert b"<html" in page.read()
        with urllib.request.urlopen(f"{address[0]}/sample", timeout=60) as sample:
            picture = sample.read()
        request = urllib.request.Request(f"{address[0]}/v1/detect", picture, {"Content-Type": "image/jpeg"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.load(answer)["images"][0]["detections"]
        assert len(found) >= 3
        assert {one["name"] for one in found} <= set(CLASSES)
