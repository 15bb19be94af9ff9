"""The benchmark commands: what is compared is alike, and is what was asked for. No test looks at a time."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from benchmarks import inference as inference_module
from benchmarks import profiling
from benchmarks import training as training_module
from benchmarks.floor import FLOORS
from benchmarks.formats import FILES
from benchmarks.inference import inference
from benchmarks.measure import BenchmarkSettings, peak_mb
from benchmarks.owners import watch
from benchmarks.peers import TORCHVISION, Variant, build_peers, of_detector
from benchmarks.training import training
from doublehead.common.errors import DoubleheadError
from doublehead.config import ModelConfig, merge
from doublehead.data.dataset import open_dataset
from doublehead.data.loader import evaluation_loader
from doublehead.inference.predictor import load
from doublehead.model.checkpoint import load_checkpoint, save_checkpoint
from doublehead.model.detector import Detector
from doublehead.model.presets import preset_values
from doublehead.model.roi_heads import RoIHeads

SMALL: dict[str, Any] = {
    "backbone": {"name": "resnet18"},
    "fc_head": {"width": 32},
    "conv_head": {"width": 32, "bottleneck_width": 16, "non_local_width": 16},
    "rpn": {"proposals_inference": 150, "proposals_training": 100},
    "roi": {"sampled": 64},
}
INFERENCE = [name for name in inference_module.VARIANTS if "compiled" not in name]


@pytest.fixture(autouse=True)
def _no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.measure.WARM_UP", 0)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands measure small models."""
    monkeypatch.setattr("benchmarks.peers.preset_values", lambda name: merge(preset_values(name), SMALL))


def check_figures(values: dict[str, Any], names: list[str]) -> None:
    assert [case["name"] for case in values["cases"]] == [TORCHVISION, *names]
    first = values["cases"][0]
    assert first["ratio"] == first["ratio_min"] == first["ratio_max"] == 1.0
    for case in values["cases"]:
        assert 0 < case["seconds_min"] <= case["seconds"] <= case["seconds_max"]
        assert 0 < case["ratio_min"] <= case["ratio"] <= case["ratio_max"]
    assert {"doublehead", "torch", "torchvision", "python", "cpu", "threads", "gpu"} == values["versions"].keys()


@pytest.mark.parametrize(
    ("batch", "owners", "cases"),
    [
        (1, 140, ["double-head as others run it", "double-head staged", "double-head-fused staged"]),
        pytest.param(1, 140, [n for n in INFERENCE if "bf16" not in n], marks=pytest.mark.long),
        pytest.param(2, 33, [n for n in INFERENCE if "bf16" in n], marks=pytest.mark.long),
    ],
)
def test_every_model_has_just_the_owners_asked_for(batch: int, owners: int, cases: list[str]) -> None:
    """140 is beyond the first round of staged inference: all of them are computed all the same."""
    settings = BenchmarkSettings("64x96", batch, repeats=2, device="cpu", cases=tuple(cases))
    report = inference(settings, owners, SMALL)
    values = report.to_json()
    check_figures(values, cases)
    assert values["command"] == "benchmark inference"
    assert values["settings"]["owners"] == owners
    for case in values["cases"]:
        assert (case["proposals"], case["owners"]) == (150, owners)
        assert case["boxes"] == (owners if "staged" in case["name"] else 150)
    assert report.table().row_count == len(cases) + 1


@pytest.mark.long
def test_every_model_has_just_the_positives_asked_for() -> None:
    values = training(BenchmarkSettings("64x96", batch=2, repeats=1, device="cpu"), 13, SMALL).to_json()
    check_figures(values, [*training_module.VARIANTS])
    assert values["settings"]["positives"] == 13
    for case in values["cases"]:
        assert (case["sampled"], case["positives"]) == (64, 13)


def test_the_models_differ_in_their_heads_alone() -> None:
    settings = BenchmarkSettings("64x96", device="cpu")
    variants = {name: inference_module.VARIANTS[name] for name in INFERENCE if "bf16" not in name}
    peers = build_peers(variants, settings, torch.device("cpu"), SMALL, learn=False)
    image = [torch.rand(3, 64, 96)]
    found = []
    for peer in peers:
        proposals: list[torch.Tensor] = []
        peer.model.rpn.register_forward_hook(lambda module, args, out, into=proposals: into.extend(out[0]))
        peer.model(image)
        found.append(proposals[0])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-2)
    learning = [
        {name for name, p in peer.model.backbone.named_parameters() if p.requires_grad and "fpn" not in name}
        for peer in build_peers(training_module.VARIANTS, settings, torch.device("cpu"), SMALL, learn=True)
    ]
    assert learning[0]
    assert all(names == learning[0] for names in learning)


def test_no_time_is_given_of_staged_inference_that_finds_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = RoIHeads.detections

    def wrong(self: RoIHeads, *args: Any) -> list[dict[str, torch.Tensor]]:
        found = whole(self, *args)
        if args[-1].inference_proposals == "owners":
            found[0]["boxes"] = found[0]["boxes"] + 0.01
        return found

    monkeypatch.setattr(RoIHeads, "detections", wrong)
    with pytest.raises(DoubleheadError, match="double-head staged: gave other detections than on all proposals"):
        inference(BenchmarkSettings("64x96", repeats=1, device="cpu", cases=("double-head staged",)), 50, SMALL)


def test_inference_command(small, tmp_path, command) -> None:
    threads = torch.get_num_threads()
    words = ("--size", "64x96", "--owners", 5, "--repeats", 1, "--threads", 1, "--device", "cpu")
    outcome = command("benchmark", "inference", *words, "--cases", "Staged, M", "--json", tmp_path / "figures.json")
    assert outcome.code == 0, outcome.err
    values = json.loads((tmp_path / "figures.json").read_text())
    check_figures(values, ["double-head staged, MMDetection's form"])
    assert {case["owners"] for case in values["cases"]} == {5}
    assert (values["settings"]["size"], values["settings"]["cases"]) == ("64x96", ["Staged, M"])
    assert "ratio" in outcome.out
    assert torch.__version__ in outcome.out
    assert torch.get_num_threads() == threads


@pytest.mark.long
def test_formats_command_measures_files_that_find_the_same(small, tmp_path, command) -> None:
    pytest.importorskip("openvino")
    words = ("--size", "64x96", "--owners", 5, "--repeats", 1, "--threads", 1, "--backbone", "resnet34")
    outcome = command("benchmark", "formats", *words, "--json", tmp_path / "figures.json")
    assert outcome.code == 0, outcome.err
    values = json.loads((tmp_path / "figures.json").read_text())
    assert values["command"] == "benchmark formats"
    check_figures(values, list(FILES))
    assert {case["owners"] for case in values["cases"]} == {5}


def test_training_command(small, tmp_path, command) -> None:
    words = ("--size", "32x64", "--batch", 1, "--positives", 8, "--repeats", 1, "--device", "cpu")
    outcome = command("benchmark", "training", *words, "--cases", "single", "--json", tmp_path / "figures.json")
    assert outcome.code == 0, outcome.err
    values = json.loads((tmp_path / "figures.json").read_text())
    check_figures(values, ["single-fc"])
    assert {case["positives"] for case in values["cases"]} == {8}


@pytest.mark.long
def test_profile_command_shares_the_whole_out_among_the_parts(small, tmp_path, command) -> None:
    words = ("--size", "64x96", "--owners", 140, "--repeats", 2, "--threads", 1, "--device", "cpu")
    outcome = command("benchmark", "profile", *words, "--json", tmp_path / "figures.json")
    assert outcome.code == 0, outcome.err
    values = json.loads((tmp_path / "figures.json").read_text())
    assert [case["name"] for case in values["cases"]] == [TORCHVISION, *profiling.USUAL]
    shared = ["backbone", "FPN", "RPN head", "proposals", "fc pooling", "fc trunk", "post-processing"]
    parts = [{part["part"]: part for part in case["parts"]} for case in values["cases"]]
    assert [sorted(case) for case in parts] == [
        sorted([profiling.REST, *shared, *more]) for more in ([], *[["conv pooling", "conv trunk"]] * 2)
    ]
    for name in shared:
        assert all(case[name]["seconds"] > 0 and case[name]["gb"] > 0 for case in parts)
    assert parts[0]["fc trunk"]["gflop"] == pytest.approx(2 * 150 * 1024 * (12544 + 1024 + 5 * 81) / 1e9)
    assert parts[1]["conv trunk"]["gflop"] > 0
    assert all(limit > 0 for limit in (*values["machine"]["flops"].values(), values["machine"]["bandwidth"]))
    assert "of limit" in outcome.out


def test_owners_command_counts_what_inference_computes(trained, dataset, tmp_path, command) -> None:
    weights = trained / "best.safetensors"
    words = (weights, dataset, "--split", "test", "--batch-size", 2, "--device", "cpu")
    outcome = command("benchmark", "owners", *words, "--json", tmp_path / "owners.json")
    assert outcome.code == 0, outcome.err
    values = json.loads((tmp_path / "owners.json").read_text())
    model = load(weights, "cpu").model
    every = model.options.model_copy(update={"detections": 10**6})
    computed = []
    with watch(of_detector("", model, Variant(None))) as seen:
        for images, _ in evaluation_loader(open_dataset(dataset).read("test"), 1, 0):
            model.detect(images, every)
            computed.append(seen.boxes)
    assert values["owners"] == computed
    assert max(computed) > 0
    assert values["images"] == 3
    assert values["mean"] == pytest.approx(sum(computed) / 3)
    assert values["median"] == sorted(computed)[1]
    assert values["max"] == max(computed)
    assert f"max {max(computed)}\n" in outcome.out


@pytest.mark.long
def test_floor_command(trained, dataset, tmp_path, command) -> None:
    """A floor under the threshold of candidates, and with it none of a Double-Head's."""
    weights = tmp_path / "ext.safetensors"
    checkpoint = load_checkpoint(trained / "best.safetensors")
    config = ModelConfig.model_validate(merge(preset_values("double-head-ext-tiny"), SMALL))
    torch.manual_seed(0)
    model = Detector(config, len(checkpoint.categories))
    save_checkpoint(weights, config, checkpoint.categories, model.state_dict(), {})
    words = ("benchmark", "floor", weights, dataset, "--repeats", 1, "--device", "cpu", "--json", tmp_path / "a.json")
    outcome = command(*words)
    assert outcome.code == 0, outcome.err
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert [row["floor"] for row in rows] == [*FLOORS]
    assert (rows[0]["seen"], rows[0]["ratio"]) == (1.0, 1.0)
    shares = [row["seen"] for row in rows]
    assert shares == sorted(shares, reverse=True)
    sentence = command("benchmark", "floor", trained / "best.safetensors", dataset, "--device", "cpu").sentence
    assert sentence.endswith("scores of one branch only, so that there is nothing for a floor to spare")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("inference", "--size", "800"), "--size 800: write height x width in pixels, such as 800x1216"),
        (("training", "--size", "8x800"), "--size 8x800: both sides must have 32 pixels or more"),
        (("inference", "--cases", "triple"), "--cases triple: no case is called so; there are: torchvision"),
        (
            ("inference", "--size", "32x64", "--owners", 5000, "--cases", "single-fc"),
            "--owners 5000: an image of this size has only",
        ),
        (("training", "--size", "32x64", "--positives", 4, "--cases", "single-fc"), "--positives 4: give 8 to 16"),
        (("training", "--device", "abacus"), 'Device "abacus" is unknown: use auto, cpu, cuda'),
    ],
)
def test_a_mistake(small, command, words, sentence) -> None:
    assert command("benchmark", *words).sentence.startswith(sentence)


def test_peak_memory_is_that_of_the_run_alone() -> None:
    held = torch.ones(8_000_000)
    peak = peak_mb(lambda: torch.ones(4_000_000) + torch.ones(4_000_000), torch.device("cpu"))
    assert len(held)
    assert peak is None or 40 < peak < 80  # three of 16 MB
