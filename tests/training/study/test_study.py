"""A study as a user runs it: shards, stops, and the comparison at the end."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from doublehead.data.dataset import open_dataset
from doublehead.training.loop import Interrupted
from doublehead.training.study import pooled, summary
from doublehead.training.study import study as studying
from doublehead.training.study.plan import read_plan
from small import SMALL

ROOT = Path(__file__).parents[3]
SETTINGS = SMALL | {"train.steps": 4, "train.evaluate_every": 50, "model.roi.score_threshold": 0.01}
ROWS = {
    "ext": {"model": "double-head-ext-tiny"},
    "fc scores": {"of": "ext", "settings": {"model.roi.score_branch": "fc"}},
    "single-fc": {"model": "single-fc-tiny", "settings": {"train.steps": 5}},
}


@pytest.fixture(autouse=True)
def few_drawings(monkeypatch):
    """Few drawings: what is tested does not depend on their number."""
    for module in (summary, pooled):
        monkeypatch.setattr(module, "DRAWS", 50)


@pytest.fixture
def plan(tmp_path):
    """Write a plan with changes, and give its path."""

    def write(**changes) -> Path:
        path = tmp_path / "plan.yaml"
        path.write_text(yaml.safe_dump({"rows": ROWS, "seeds": [3, 5], "settings": SETTINGS} | changes))
        return path

    return write


def test_shards_share_the_runs_and_the_last_one_compares(plan, dataset, tmp_path, command) -> None:
    output = tmp_path / "study"
    first = command("study", plan(), dataset, "--output", output, "--shard", "1/2")
    assert first.code == 0, first.err
    assert not (output / "summary.md").exists()
    done = sorted(str(path.parent.relative_to(output)) for path in output.glob("*/*/result.json"))
    assert done == ["ext/seed-3", "ext/seed-5", "fc scores/seed-3", "fc scores/seed-5"]
    assert not list(output.glob("*/*/last.safetensors"))  # nothing is left to resume
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}
    last = command("study", plan(), dataset, "--output", output)
    assert last.code == 0, last.err
    assert {path: path.stat().st_mtime_ns for path in before} == before  # what is finished is not done again
    assert "single-fc" in last.out
    with (output / "summary.csv").open(newline="") as file:
        table = {row["row"]: row for row in csv.DictReader(file)}
    assert list(table) == list(ROWS)
    for name, row in table.items():
        aps = [json.loads(path.read_text())["metrics"]["AP"] for path in sorted(output.glob(f"{name}/*/result.json"))]
        assert len(aps) == 2
        assert float(row["AP"]) == pytest.approx(np.mean(aps))
        assert float(row["AP_deviation"]) == pytest.approx(np.std(aps, ddof=1))
        assert (row["difference"] == "") == (name == "single-fc")
        if name != "single-fc":
            assert float(row["difference"]) == pytest.approx(float(row["AP"]) - float(table["single-fc"]["AP"]))
            assert float(row["low"]) <= float(row["difference"]) + 1e-9 <= float(row["high"]) + 2e-9
    assert table["fc scores"]["training_minutes"] == ""
    assert (output / "summary.png").stat().st_size > 10_000
    assert (output / "summary.md").read_text().count("\n| ") == 2 + len(ROWS)


@pytest.mark.long
def test_classes_of_a_plan_are_compared(plan, dataset, tmp_path, command) -> None:
    """Detections that are the truth of one class, and nothing else: its AP is 1, and that of another class 0."""
    output, rows = tmp_path / "study", {name: ROWS[name] for name in ("single-fc", "ext")}
    split = open_dataset(dataset).read("test")
    own, other = list(dict.fromkeys(int(label) for record in split.records for label in record.labels))[:2]
    classes = [split.categories.names[label - 1] for label in (own, other)]
    words = ["study", plan(rows=rows, classes=classes), dataset, "--output", output]
    assert command(*words).code == 0
    right = [
        {"image_id": r.image_id, "category_id": split.categories.ids[own - 1], "bbox": xywh(box), "score": 0.9}
        for r in split.records
        for box in r.boxes[r.labels == own].tolist()
    ]
    for path in output.glob("*/*/test/predictions.json"):
        path.write_text(json.dumps(right if "ext" in path.parts else []))
    done = command(*words)
    assert done.code == 0, done.err
    with (output / "classes.csv").open(newline="") as file:
        table = {(row["row"], row["class"]): row for row in csv.DictReader(file)}
    expected = {classes[0]: 1.0, classes[1]: 0.0, "their mean": 0.5}
    assert set(table) == {(row, of) for row in rows for of in expected}
    for of, ap in expected.items():
        assert float(table["ext", of]["AP"]) == pytest.approx(ap)
        assert float(table["ext", of]["difference"]) == pytest.approx(ap)
        assert float(table["single-fc", of]["AP"]) == 0
        assert table["single-fc", of]["difference"] == ""
    assert float(table["ext", classes[0]]["low"]) == float(table["ext", classes[0]]["high"]) == pytest.approx(1)
    assert all(name in (output / "summary.md").read_text() for name in classes)
    assert command(*words, "--class", classes[1]).code == 0
    with (output / "classes.csv").open(newline="") as file:
        assert {row["class"] for row in csv.DictReader(file)} == {classes[1], "their mean"}


def test_another_split_is_evaluated_and_finished_runs_of_the_plans_split_are_refused(
    plan, dataset, tmp_path, command
) -> None:
    path = plan(rows={"single-fc": ROWS["single-fc"]}, seeds=[3], baseline="single-fc")
    done = command("study", path, dataset, "--output", tmp_path / "study", "--split", "val")
    assert done.code == 0, done.err
    run = tmp_path / "study/single-fc/seed-3"
    images = {found["image_id"] for found in json.loads((run / "val/predictions.json").read_text())}
    assert images <= {record.image_id for record in open_dataset(dataset).read("val").records}
    assert not (run / "test").exists()
    assert "of `val`" in (tmp_path / "study/summary.md").read_text()
    refused = command("study", path, dataset, "--output", tmp_path / "study")
    assert str(run / "test/predictions.json") in refused.sentence


def xywh(box: list[float]) -> list[float]:
    """COCO's form of a box."""
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


@pytest.mark.parametrize("by", ["plan", "option"])
def test_a_class_without_boxes_is_refused_before_training(by, plan, dataset, tmp_path, command) -> None:
    more, words = ({"classes": ["no such class"]}, []) if by == "plan" else ({}, ["--class", "no such class"])
    done = command("study", plan(**more), dataset, "--output", tmp_path / "study", *words)
    assert "no such class" in done.sentence
    assert not (tmp_path / "study").exists()


@pytest.mark.long
def test_several_datasets_are_pooled(plan, dataset, tmp_path, command) -> None:
    output, other = tmp_path / "study", tmp_path / "other"
    shutil.copytree(dataset, other)
    rows = {"single-fc": {"model": "single-fc-tiny"}, "ext": ROWS["ext"]}
    words = ["study", plan(rows=rows, seeds=[3]), dataset, other, "--output", output]
    assert command(*words[:3], "--output", output / Path(dataset).stem).code == 0
    shutil.copytree(output / Path(dataset).stem, output / "other")  # results of the same pictures are the same
    done = command(*words)
    assert done.code == 0, done.err
    assert not (output / "summary.md").exists()
    means = []
    for name in (Path(dataset).stem, "other"):
        with (output / name / "summary.csv").open(newline="") as file:
            (row,) = [row for row in csv.DictReader(file) if row["row"] == "ext"]
        means.append(float(row["difference"]))
        at = [float(row[f"difference_at_{iou:.2f}"]) for iou in np.linspace(0.5, 0.95, 10)]
        assert np.mean(at) == pytest.approx(means[-1], abs=1e-6)
        assert float(row["AP_at_0.50"]) == pytest.approx(float(row["AP50"]), abs=1e-6)
        assert (output / name / "by_iou.png").exists()
    with (output / "pooled.csv").open(newline="") as file:
        table = {row["iou"]: row for row in csv.DictReader(file)}
    assert len(table) == 11
    whole = {key: float(value) for key, value in table["0.50:0.95"].items() if key in ("difference", "low", "high")}
    assert whole["difference"] == pytest.approx(np.mean(means))
    assert whole["low"] - 1e-9 <= whole["difference"] <= whole["high"] + 1e-9
    assert (output / "pooled.md").read_text().count("\n| ") == 3
    assert (output / "pooled.png").stat().st_size > 10_000
    assert command(*words[:3], dataset, "--output", output).sentence.startswith("two datasets are called")

    # Results alone are enough to compare again: no weights, no run folders.
    kept = [
        file for file in output.rglob("*") if file.is_file() and file.name not in ("result.json", "predictions.json")
    ]
    for file in kept:
        file.unlink()
    assert str(tmp_path) not in "".join(file.read_text() for file in output.rglob("result.json"))
    again = command(*words)
    assert again.code == 0, again.err
    with (output / "pooled.csv").open(newline="") as file:
        assert {row["iou"]: row for row in csv.DictReader(file)} == table


@pytest.mark.long
def test_any_row_can_be_what_the_others_are_compared_with(plan, dataset, tmp_path, command) -> None:
    words = [
        "study",
        plan(rows={"a": ROWS["ext"], "b": ROWS["single-fc"]}, baseline="a", seeds=[3]),
        dataset,
        "--output",
        tmp_path,
    ]
    unknown = command(*words, "--baseline", "c")
    assert unknown.sentence == f"{words[1]}: has no row `c`, but a, b"
    differences = {}
    for baseline in ("a", "b"):
        assert command(*words, "--baseline", baseline).code == 0
        with (tmp_path / "summary.csv").open(newline="") as file:
            table = {row["row"]: row["difference"] for row in csv.DictReader(file)}
        assert table[baseline] == ""
        differences[baseline] = float(table["b" if baseline == "a" else "a"])
    assert differences["a"] == pytest.approx(-differences["b"])


def test_a_stopped_run_goes_on_where_it_was(plan, dataset, tmp_path, monkeypatch) -> None:
    whole, stopped, trained = tmp_path / "whole", tmp_path / "stopped", studying.run_training
    path = plan(rows={"single-fc": ROWS["single-fc"]}, seeds=[1])
    studying.study(path, dataset, whole)

    def stops_when_trained(*arguments, **named) -> Path:
        trained(*arguments, **named)
        raise Interrupted

    monkeypatch.setattr(studying, "run_training", stops_when_trained)
    with pytest.raises(Interrupted):
        studying.study(path, dataset, stopped)
    folder = stopped / "single-fc" / "seed-1"
    assert (folder / "last.safetensors").exists()
    monkeypatch.setattr(studying, "run_training", trained)
    with pytest.raises(studying.DoubleheadError, match=r"train\.lr 0\.001, not 0\.1: give another --output"):
        studying.study(path, dataset, stopped, settings={"train.lr": 0.1})
    studying.study(path, dataset, stopped)
    one, other = (json.loads((root / "single-fc/seed-1/result.json").read_text()) for root in (whole, stopped))
    assert one | {"training_seconds": 0} == other | {"training_seconds": 0}


@pytest.mark.long
def test_under_torchrun_all_processes_do_each_run_together(plan, dataset, tmp_path) -> None:
    rows = {"single-fc": ROWS["single-fc"], "same again": {"of": "single-fc"}}
    words = ["study", plan(rows=rows, seeds=[0, 1]), dataset, "--output", tmp_path / "study"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "doublehead.cli", *map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("on 2 x cpu") == 2
    with (tmp_path / "study/summary.csv").open(newline="") as file:
        table = {row["row"]: row for row in csv.DictReader(file)}
    assert float(table["same again"]["difference"]) == 0
    assert table["same again"]["AP"] == table["single-fc"]["AP"]


def test_a_run_that_fails_does_not_stop_the_others(plan, dataset, tmp_path, command) -> None:
    rows = {"single-fc": {**ROWS["single-fc"], "settings": {"train.lr": 1e30}}, "ext": ROWS["ext"]}
    outcome = command("study", plan(rows=rows, seeds=[0]), dataset, "--output", tmp_path / "study")
    assert outcome.sentence.startswith("1 of 2 runs failed; the first is single-fc, seed 0: the loss")
    assert (tmp_path / "study/ext/seed-0/result.json").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": {"a": {"model": "double-head-tiny"}}}, "no row is called `single-fc`"),
        ({"rows": {"single-fc": {}}}, "give either `model` or `of`"),
        ({"rows": ROWS | {"b": {"of": "c"}}}, "rows.b: `of` must name a row that is trained, not `c`"),
        (
            {"rows": ROWS | {"b": {"of": "ext", "settings": {"train.lr": 1}}}},
            "can change only model.roi.*, not train.lr",
        ),
        ({"rows": ROWS | {"a/b": {"model": "double-head-tiny"}}}, "`a/b` is not a valid folder name"),
        ({"rows": {"single-fc": {"model": "single-fc-tony"}}}, "did you mean single-fc-tiny"),
        ({"seeds": [1, 1]}, "a seed is listed twice"),
        ({"split": "exam"}, "has no split `exam`"),
        ({"epochs": 3}, "unknown key `epochs`"),
    ],
)
def test_mistakes_in_a_plan_are_told_before_anything_is_trained(plan, dataset, tmp_path, command, changes, words):
    outcome = command("study", plan(**changes), dataset, "--output", tmp_path / "study")
    assert words in outcome.sentence
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("shard", ["0/2", "3/2", "half", "1/0"])
def test_a_shard_is_i_of_n(plan, dataset, tmp_path, command, shard) -> None:
    outcome = command("study", plan(), dataset, "--output", tmp_path / "study", "--shard", shard)
    assert outcome.sentence == f"--shard {shard}: write i/n with i from 1 to n, such as 1/2 and 2/2"


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_plans_that_come_with_the_project_can_be_run(path, dataset, tmp_path) -> None:
    asked = read_plan(path)
    for run in studying.runs(asked, tmp_path):
        config = studying._config(asked, run, dataset, {})
        assert config.train.seed == run.seed
    assert open_dataset(dataset).has(asked.split)


def test_some_rows_and_seeds_alone(plan, dataset, tmp_path, command) -> None:
    output = tmp_path / "study"
    done = command("study", plan(), dataset, "-o", output, "--row", "ext", "--seed", "5")
    assert done.code == 0, done.err
    found = sorted(str(path.parent.relative_to(output)) for path in output.glob("*/*/result.json"))
    assert found == ["ext/seed-5", "single-fc/seed-5"]  # the baseline always belongs to it
    with (output / "summary.csv").open(newline="") as file:
        assert [(row["row"], row["seeds"]) for row in csv.DictReader(file)] == [("ext", "1"), ("single-fc", "1")]


@pytest.mark.parametrize("part", [{"rows": ["none"]}, {"seeds": [4]}, {"rows": ["fc scores"]}, {"baseline": "none"}])
def test_a_part_that_the_plan_does_not_have_is_refused(plan, part) -> None:
    with pytest.raises(LookupError):
        read_plan(plan()).part(**part)
