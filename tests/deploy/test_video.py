"""Videos in, annotated videos and detections with their times out."""

from __future__ import annotations

import json
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

import doublehead
from doublehead.deploy.video import detect_video

FRAMES, RATE = 12, 10


@pytest.fixture(scope="session")
def predictor(checkpoint):
    return doublehead.load(checkpoint, "cpu")


def picture(number, size=(70, 49)):
    """Red above, blue below, with a bar that moves."""
    array = np.zeros((size[1], size[0], 3), np.uint8)
    array[: size[1] // 2] = (220, 30, 30)
    array[size[1] // 2 :] = (30, 30, 220)
    array += np.random.default_rng(number).integers(0, 30, array.shape, np.uint8)  # a stream with some bytes to a frame
    array[:, 4 * number : 4 * number + 8] = 200
    return Image.fromarray(array)


def film(path, rotation=0, times=None):
    """A short film; with faststart, so that a copy cut short still opens; key frames every four."""
    with av.open(path, "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream("libx264", rate=RATE, options={"g": "4"})
        stream.width, stream.height, stream.pix_fmt = 70, 50, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(FRAMES):
            frame = av.VideoFrame.from_image(picture(number, (70, 50)))
            frame.pts, frame.time_base = (times or range(0, 100 * FRAMES, 100))[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def frames(path):
    with av.open(path) as container:
        return [(frame.time, frame.to_image()) for frame in container.decode(video=0)]


def colour(image, place):
    return max(zip(image.resize((2, 2)).getpixel(place), ("red", "green", "blue"), strict=True))[1]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_an_annotated_copy_and_json_with_every_frame(checkpoint, predictor, tmp_path, command, name):
    times = [0, 100, 200, 250, 300, 350, 600, 700, 800, 900, 1000, 1500]  # uneven, as telephones film
    path, output = film(tmp_path / name, times=times), tmp_path / "out"
    outcome = command("predict", checkpoint, path, "-o", output, "--score", 0.1, "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"{FRAMES} frames are in clip.mp4 and clip.json in {output}\n"
    assert sorted(file.name for file in output.iterdir()) == ["clip.json", "clip.mp4"]
    assert [time for time, _ in frames(output / "clip.mp4")] == pytest.approx([t / 1000 for t in times], abs=1e-3)
    coco = COCO(output / "clip.json")
    images = coco.loadImgs(coco.getImgIds())
    assert [image["frame"] for image in images] == list(range(FRAMES))
    assert [image["seconds"] for image in images] == pytest.approx([t / 1000 for t in times], abs=1e-3)
    assert [image["file_name"] for image in images][:2] == [f"{path}/000000", f"{path}/000001"]
    for image, (_, shown), (_, drawn) in zip(images, frames(path), frames(output / "clip.mp4"), strict=True):
        assert (image["width"], image["height"]) == shown.size == drawn.size
        found = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
        assert [one["score"] for one in found] == pytest.approx(predictor.predict(shown).above(0.1).scores, abs=1e-3)
        assert np.abs(np.asarray(shown, float) - np.asarray(drawn, float)).max() > 60  # boxes are drawn


def test_only_json(checkpoint, tmp_path, command):
    path = film(tmp_path / "clip.mp4")
    outcome = command("predict", checkpoint, path, "-o", tmp_path / "out", "--format", "coco", "--device", "cpu")
    assert outcome.out == f"{FRAMES} frames are in clip.json in {tmp_path / 'out'}\n"
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["clip.json"]


@pytest.mark.parametrize(
    ("rotation", "size", "red"),
    [(0, (70, 50), (0, 0)), (90, (50, 70), (0, 1)), (-90, (50, 70), (1, 0)), (180, (70, 50), (1, 1))],
)
def test_frames_are_turned_upright(predictor, tmp_path, rotation, size, red):
    """Red is above in the file; turned by 90 degrees anticlockwise it is on the left."""
    path = film(tmp_path / "clip.mp4", rotation)
    first = next(detect_video(predictor, path))
    assert first.detections.image.size == size
    opposite = (1 - red[0], 1 - red[1])
    assert (colour(first.detections.image, red), colour(first.detections.image, opposite)) == ("red", "blue")


@pytest.mark.parametrize("harm", ["cut", "hole"])
def test_what_was_done_of_a_broken_video_is_kept(checkpoint, tmp_path, command, harm):
    path = film(tmp_path / "clip.mp4")
    data = bytearray(path.read_bytes())
    middle = (data.index(b"mdat") + len(data)) // 2
    if harm == "cut":
        del data[middle:]
    else:
        data[middle:-100] = bytes(len(data) - 100 - middle)
    path.write_bytes(data)
    outcome = command("predict", checkpoint, path, "-o", tmp_path / "out", "--device", "cpu")
    done = len(frames(tmp_path / "out" / "clip.mp4"))
    assert 1 <= done < FRAMES
    assert outcome.sentence.startswith(f"{path}: ends early")
    assert outcome.sentence.endswith(f"; the {done} frames before it are saved")
    assert len(json.loads((tmp_path / "out" / "clip.json").read_text())["images"]) == done


def test_no_video_is_named_and_the_others_are_done(checkpoint, tmp_path, command):
    bad, good, namesake = tmp_path / "bad.mp4", film(tmp_path / "good.mp4"), film(tmp_path / "good.mkv")
    bad.write_text("no video")
    outcome = command("predict", checkpoint, bad, good, namesake, "-o", tmp_path / "out", "--device", "cpu")
    assert outcome.sentence.startswith(f"{bad}: is not a video that can be read")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "good-2.json",
        "good-2.mp4",
        "good.json",
        "good.mp4",
    ]


def test_mistakes(checkpoint, tmp_path, command, monkeypatch):
    path = film(tmp_path / "clip.mp4")
    before = path.read_bytes()
    outcome = command("predict", checkpoint, path, "-o", tmp_path, "--device", "cpu")
    assert outcome.sentence == f"{tmp_path}: holds the video to predict on; give another --output"
    assert path.read_bytes() == before
    words = ("predict", checkpoint, path, "-o", tmp_path / "out", "--device", "cpu")
    assert command(*words, "--format", "parquet").sentence.startswith("videos need --format pictures or coco")
    assert command(*words, "photo.jpg").sentence.startswith("videos need --format pictures or coco")
    monkeypatch.setitem(sys.modules, "av", None)
    assert command(*words).sentence.endswith("pip install 'doublehead[video]'")


def test_detections_go_into_a_tracker(predictor, tmp_path):
    trackers = pytest.importorskip("trackers", exc_type=ImportError)
    tracker = trackers.ByteTrackTracker(track_activation_threshold=0.1, high_conf_det_threshold=0.1)
    ids = set()
    for frame in detect_video(predictor, film(tmp_path / "clip.mp4"), score=0.1):
        tracked = tracker.update(frame.detections[:2].to_supervision())
        assert set(tracked.data["class_name"]) <= {"cat", "dog"}
        ids |= set(tracked.tracker_id) - {-1}
    assert ids
