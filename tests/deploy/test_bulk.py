"""Detections in many images: every source, every format, and nothing lost or done twice whatever stops the work."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools.coco import COCO
from small_bulk import folder_of, jpeg, tar_of

import doublehead
from doublehead.common.files import whole
from doublehead.deploy.bulk.sources import Listing, parts
from doublehead.deploy.choices import FORMATS

MANY = 10


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("bulk") / "photos", MANY)


@pytest.fixture
def bulk(checkpoint, command):
    """Run `predict` into Parquet in parts of four."""

    def run(source, output, *words, form="parquet"):
        common = ("--device", "cpu", "--score", 0.1, "--format", form, "--part-size", 4)
        return command("predict", checkpoint, source, "-o", output, *common, *words)

    return run


def table_of(path, rows, column="image", group=3):
    """Rows as Hugging Face's datasets have them where they are dicts, else plain bytes."""
    pq.write_table(pa.table({"id": list(range(len(rows))), column: rows}), path, row_group_size=group)
    return path


def read(folder):
    """All rows, as a reader of Parquet folders sees them."""
    return pq.read_table(folder).to_pylist()


def without_names(folder):
    return [{key: value for key, value in row.items() if key != "name"} for row in read(folder)]


def test_a_folder_to_parquet_holds_what_the_model_finds(checkpoint, photos, bulk, tmp_path):
    outcome = bulk(photos, tmp_path / "out", "--batch-size", 1)  # padding would exchange scores that are nearly equal
    assert outcome.code == 0
    assert outcome.out.endswith(f"images\ndetections of {MANY} images are in {tmp_path / 'out'}\n")
    names = ["_plan.json", *(f"part-00000{number}.parquet" for number in range(3))]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    rows = read(tmp_path / "out")
    assert [row["name"] for row in rows] == [str(path) for path in sorted(photos.iterdir())]
    model = doublehead.load(checkpoint, "cpu")
    for row in rows:
        assert (row["width"], row["height"]) == Image.open(row["name"]).size
        expected = model.predict(row["name"]).above(0.1)
        assert len(expected)
        assert row["class_names"] == expected.class_names
        assert {7: "cat", 17: "dog"}[row["category_ids"][0]] == row["class_names"][0]
        assert row["scores"] == pytest.approx(expected.scores, abs=1e-4)
        assert np.array(row["boxes"]) == pytest.approx(expected.boxes, abs=1e-2)
        assert row["fault"] is None


def test_tars_and_parquet_hold_the_same_images(photos, bulk, tmp_path):
    assert bulk(photos, tmp_path / "folder").code == 0
    expected = without_names(tmp_path / "folder")
    paths = [f"{number:04}.jpg" for number in range(MANY)]
    dicts = [{"bytes": jpeg(number), "path": path} for number, path in enumerate(paths)]
    sources = {
        tar_of(tmp_path / "a.tar", MANY): [f"set/{path}" for path in paths],
        table_of(tmp_path / "hf.parquet", dicts): paths,
        table_of(tmp_path / "plain.parquet", [d["bytes"] for d in dicts], "jpg", 10): [str(n) for n in range(MANY)],
    }
    for source, names in sources.items():
        output = tmp_path / source.stem
        assert bulk(source, output).code == 0
        assert without_names(output) == expected
        assert [row["name"] for row in read(output)] == [f"{source}/{name}" for name in names]


def test_coco_holds_the_same_as_parquet(photos, bulk, tmp_path):
    assert bulk(photos, tmp_path / "parquet").code == 0
    outcome = bulk(photos, tmp_path / "coco", form="coco")
    assert outcome.out.endswith(f"detections of {MANY} images are in {tmp_path / 'coco' / 'predictions.json'}\n")
    coco = COCO(tmp_path / "coco" / "predictions.json")
    rows = read(tmp_path / "parquet")
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == [row["name"] for row in rows]
    for number, row in enumerate(rows, 1):
        found = coco.loadAnns(coco.getAnnIds(imgIds=[number]))
        assert [one["score"] for one in found] == pytest.approx(row["scores"])
        assert [one["category_id"] for one in found] == row["category_ids"]
        assert [[x, y, x + w, y + h] for x, y, w, h in (one["bbox"] for one in found)] == [
            pytest.approx(box, abs=1e-3) for box in row["boxes"]
        ]
    assert (tmp_path / "coco" / "bad.jsonl").read_text() == ""


def test_bad_images_are_listed_and_passed_over(bulk, tmp_path):
    tar = tar_of(tmp_path / "a.tar", 1)
    good = {"bytes": jpeg(0), "path": None}
    bad = [
        {"bytes": jpeg(1)[:300], "path": "cut.jpg"},
        {"bytes": None, "path": "far.jpg"},
        {"bytes": b"", "path": None},
    ]
    table = table_of(tmp_path / "t.parquet", [good, *bad])
    (tmp_path / "broken.jpg").write_text("no image")
    sources = (tar, tmp_path / "broken.jpg")
    outcome = bulk(table, tmp_path / "out", *sources)
    assert outcome.code == 0
    assert outcome.out.endswith(
        "6 images are in " + f"{tmp_path / 'out'}; 4 of them could not be read: the column `fault` says why\n"
    )
    faults = {row["name"]: row["fault"] for row in read(tmp_path / "out")}
    assert [name for name, fault in faults.items() if not fault] == [f"{table}/0", f"{tar}/set/0000.jpg"]
    assert faults[f"{table}/cut.jpg"].startswith(f"{table}/cut.jpg: is damaged or cut short")
    assert "its row holds no bytes" in faults[f"{table}/far.jpg"]
    assert faults[str(tmp_path / "broken.jpg")].startswith(f"{tmp_path / 'broken.jpg'}: is not an image")
    assert bulk(table, tmp_path / "coco", *sources, form="coco").code == 0
    lines = (tmp_path / "coco" / "bad.jsonl").read_text().splitlines()
    assert {line["name"]: line["fault"] for line in map(json.loads, lines)} == {n: f for n, f in faults.items() if f}
    assert len(json.loads((tmp_path / "coco" / "predictions.json").read_text())["images"]) == 2


def test_two_shards_make_the_whole(photos, bulk, tmp_path):
    assert bulk(photos, tmp_path / "whole", form="coco").code == 0
    first = bulk(photos, tmp_path / "shared", "--shard", "2/2", form="coco")
    assert "1 of 3 parts" in first.out
    assert not (tmp_path / "shared" / "predictions.json").exists()
    assert bulk(photos, tmp_path / "shared", "--shard", "1/2", form="coco").code == 0
    for name in ("predictions.json", "bad.jsonl", "_plan.json"):
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_killed_again_and_again_every_image_is_there_once(checkpoint, photos, bulk, tmp_path):
    tar, output = tar_of(tmp_path / "many.tar", 60), tmp_path / "out"
    words = ["predict", checkpoint, photos, tar, "-o", output, "--device", "cpu", "--score", "0.1"]
    words += ["--format", "parquet", "--part-size", "4"]
    kills = 0
    while kills < 2:
        before = len(list(output.glob("part-*")))
        process = subprocess.Popen([sys.executable, "-m", "doublehead.cli", *map(str, words)])
        while process.poll() is None and len(list(output.glob("part-*"))) < before + 3:
            time.sleep(0.005)
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    done = {path: path.stat().st_mtime_ns for path in output.glob("part-*")}
    (output / ".writing" / "x").mkdir(parents=True)
    (output / ".writing" / "x" / "part-000009.parquet").write_bytes(b"half")  # what a kill leaves
    assert 6 <= len(done) < 18
    assert bulk(photos, output, tar).code == 0
    assert {path: path.stat().st_mtime_ns for path in done} == done  # none was done again
    assert Counter(row["name"] for row in read(output)) == Counter(
        [str(path) for path in photos.iterdir()] + [f"{tar}/set/{number:04}.jpg" for number in range(60)]
    )
    assert not (output / ".writing").exists()
    assert bulk(photos, tmp_path / "never", tar).code == 0
    assert read(output) == read(tmp_path / "never")


def test_a_shard_that_ends_leaves_alone_what_another_still_writes(photos, bulk, tmp_path):
    output = tmp_path / "out"
    (output / "parts").mkdir(parents=True)
    with whole(output / "predictions.json") as theirs, whole(output / "parts" / "part-000000.parquet") as part:
        theirs.write_text("{}")
        assert bulk(photos, output, form="coco").code == 0
        part.write_bytes((output / "parts" / "part-000000.parquet").read_bytes())
    assert (output / "predictions.json").read_text() == "{}"
    assert not list(output.rglob(".writing"))


def test_a_shard_may_begin_while_another_finishes_its_first_part(photos, bulk, tmp_path, monkeypatch):
    assert bulk(photos, tmp_path / "whole").code == 0
    output, exists = tmp_path / "out", Path.exists

    def and_then_another_shard_works(path, **words):
        answer = exists(path, **words)
        if path == output / "_plan.json":
            monkeypatch.setattr(Path, "exists", exists)
            for name in ("_plan.json", "part-000000.parquet"):
                shutil.copy(tmp_path / "whole" / name, output)
        return answer

    monkeypatch.setattr(Path, "exists", and_then_another_shard_works)
    assert bulk(photos, output).code == 0
    assert read(output) == read(tmp_path / "whole")


def test_a_part_that_is_there_is_not_done_again(photos, bulk, tmp_path, monkeypatch):
    assert bulk(photos, tmp_path / "out").code == 0
    monkeypatch.setattr("doublehead.deploy.bulk.worker.load", None)  # no model is needed any more
    outcome = bulk(photos, tmp_path / "out")
    assert outcome.out == f"detections of {MANY} images are in {tmp_path / 'out'}\n"


def test_a_folder_of_something_else_is_refused(checkpoint, photos, bulk, tmp_path, command):
    output = tmp_path / "out"
    assert bulk(photos, output).code == 0
    remedy = ": use the same to resume, or give another --output"
    assert bulk(photos, output, "--score", 0.2).sentence == f"{output}: was started with score 0.1, not 0.2{remedy}"
    other = bulk(photos, output, "--part-size", 5)
    assert other.sentence == f"{output}: was started with part size 4, not 5{remedy}"
    assert "other sources" in bulk(tar_of(tmp_path / "a.tar", MANY), output).sentence
    tampered = json.loads((output / "_plan.json").read_text()) | {"weights": "0"}
    (output / "_plan.json").write_text(json.dumps(tampered))
    assert bulk(photos, output).sentence == f"{output}: was started with other weights{remedy}"
    (output / "_plan.json").unlink()
    assert bulk(photos, output).sentence == f"{output}: has parts, but no _plan.json; give another --output"


def test_sources_that_change_meanwhile_are_noticed(tmp_path):
    folder = folder_of(tmp_path / "photos", 6)
    listing = Listing.of([str(folder)], 2)
    chosen = listing.chosen(lambda number: True)
    assert next(chosen)[0] == 0
    (folder / "0002a.jpg").write_bytes(jpeg(9))
    with pytest.raises(doublehead.DoubleheadError, match="changed meanwhile"):
        list(listing.chosen(lambda number: True))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: path.write_bytes(b"no tar" * 200), "is damaged, truncated or not an uncompressed tar"),
        (lambda path: tar_of(path, 0), "holds no image"),
    ],
)
def test_a_bad_tar_is_named_before_the_work_begins(photos, bulk, tmp_path, make, sentence):
    make(tmp_path / "a.tar")
    outcome = bulk(photos, tmp_path / "out", tmp_path / "a.tar")
    assert outcome.sentence.startswith(f"{tmp_path / 'a.tar'}: {sentence}")
    assert not (tmp_path / "out").exists()


def test_a_tar_cut_short_is_named(bulk, tmp_path):
    tar = tar_of(tmp_path / "a.tar", 4)
    tar.write_bytes(tar.read_bytes()[:2200])
    assert bulk(tar, tmp_path / "out").sentence.startswith(f"{tar}: is damaged, truncated or not an uncompressed tar")


def test_which_column_holds_the_images(bulk, tmp_path):
    one = [jpeg(0)]
    pq.write_table(pa.table({"front": one, "back": one, "id": [1]}), tmp_path / "t.parquet")
    table = tmp_path / "t.parquet"
    assert bulk(table, tmp_path / "o").sentence.endswith(
        "several columns may hold the images; choose one with --column: front, back"
    )
    assert bulk(table, tmp_path / "o", "--column", "id").sentence.startswith(f"{table}: has no column `id` of bytes")
    assert bulk(table, tmp_path / "o", "--column", "back").code == 0
    pq.write_table(pa.table({"id": [1]}), table)
    assert bulk(table, tmp_path / "p").sentence.startswith(f"{table}: has no column `image` of bytes")
    table.write_bytes(b"PAR1 no")
    assert bulk(table, tmp_path / "p").sentence.startswith(f"{table}: is damaged or not a Parquet file")


def test_mistakes_in_the_options(photos, bulk, tmp_path):
    output = tmp_path / "out"
    assert bulk(photos, output, form="csv").sentence == f"--format csv: is unknown; use {', '.join(FORMATS)}"
    assert bulk(photos, output, "--engine", "spark").sentence == "--engine spark: is unknown; use plain or ray"
    assert bulk(photos, output, "--workers", 2).sentence.startswith("--workers needs --engine ray")
    assert bulk(photos, output, "--shard", "3/2").sentence.startswith("--shard 3/2: write i/n")
    assert "--format parquet or coco" in bulk(photos, output, "--shard", "1/2", form="pictures").sentence


@pytest.mark.parametrize(
    ("module", "words", "extra"), [("pyarrow.parquet", (), "bulk"), ("ray", ("--engine", "ray"), "ray")]
)
def test_a_missing_extra_is_answered_by_the_pip_command(photos, bulk, tmp_path, monkeypatch, module, words, extra):
    monkeypatch.setitem(sys.modules, module, None)
    assert bulk(photos, tmp_path / "out", *words).sentence.endswith(f"pip install 'doublehead[{extra}]'")


def test_pictures_come_from_archives_too(bulk, tmp_path):
    outcome = bulk(tar_of(tmp_path / "a.tar", 3), tmp_path / "out", form="pictures")
    assert outcome.code == 0
    names = ["0000.jpg", "0001.jpg", "0002.jpg", "predictions.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert Image.open(tmp_path / "out" / "0001.jpg").size == Image.open(io.BytesIO(jpeg(1))).size


def test_parts_cover_every_source_in_order(photos, tmp_path):
    tar = tar_of(tmp_path / "a.tar", 5)
    table = table_of(tmp_path / "t.parquet", [jpeg(number) for number in range(7)], group=2)
    sources = [str(photos / "000[0-4].jpg"), str(tar), str(table), str(photos / "0009.jpg")]
    found = list(parts(sources, 3))
    assert [len(part) for part in found] == [3, 2, 3, 2, 3, 3, 1, 1]
    items = [item for part in found for item in part.items()]
    assert [item.read() for item in items] == [jpeg(n) for n in (*range(5), *range(5), *range(7), 9)]


def started(checkpoint, photos, output, *words):
    """A run in a process of its own, as Ray needs it: it takes the signals of its process, for good."""
    command = ["predict", checkpoint, photos, "-o", output, "--format", "parquet", "--part-size", 2, *words]
    command = [sys.executable, "-m", "doublehead.cli", *command, "--device", "cpu", "--score", 0.1]
    # As many threads as Ray gives a worker: with more, sums are taken in another order.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with output.with_suffix(".log").open("w") as log:
        return subprocess.Popen([*map(str, command)], env=environment, stderr=log, stdout=log)


@pytest.mark.long
def test_ray_gives_the_same_files_also_after_the_loss_of_a_process(checkpoint, tmp_path):
    pytest.importorskip("ray")
    photos, plain, ray = folder_of(tmp_path / "photos", 60), tmp_path / "plain", tmp_path / "ray"
    assert started(checkpoint, photos, plain).wait(120) == 0
    run = started(checkpoint, photos, ray, "--engine", "ray", "--workers", 2)
    wait_for_parts(ray, 4)
    os.kill(worker_of_ray(run.pid), signal.SIGKILL)
    said = ray.with_suffix(".log")
    assert run.wait(120) == 0, said.read_text()
    assert said.read_text().endswith(f"detections of 60 images are in {ray}\n")
    for path in plain.iterdir():
        assert (ray / path.name).read_bytes() == path.read_bytes()


@pytest.mark.long
def test_what_fails_always_on_ray_is_told_in_a_sentence(checkpoint, tmp_path):
    pytest.importorskip("ray")
    photos, output = folder_of(tmp_path / "photos", 60), tmp_path / "ray"
    run = started(checkpoint, photos, output, "--engine", "ray", "--workers", 2)
    wait_for_parts(output, 1)
    blocked = output / "part-000029.parquet"
    blocked.mkdir()
    (blocked / "in the way").touch()
    assert run.wait(120) == 2
    said = output.with_suffix(".log").read_text()
    assert f"\nerror: on Ray: {blocked}: cannot be written" in said
    assert "Traceback" not in said


def wait_for_parts(output, least):
    until = time.monotonic() + 120
    while len(list(output.glob("part-*.parquet"))) < least:
        assert time.monotonic() < until, "nothing came of it"
        time.sleep(0.01)


def worker_of_ray(driver):
    """The process id of a worker with a model among all that a run has started."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,command"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    below = {driver}
    for _ in range(5):  # generations
        below |= {int(pid) for pid, parent, _ in rows if int(parent) in below}
    return next(int(pid) for pid, _, words in rows if int(pid) in below and "OnRay" in words)
