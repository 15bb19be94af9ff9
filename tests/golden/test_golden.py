"""Converted weights compute what their own implementation computed, step by step (see README.md beside this file)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from doublehead.config import override
from doublehead.model.anchors import ANCHORS
from doublehead.model.checkpoint import load_checkpoint, load_model
from doublehead.model.detector import Detector
from doublehead.model.interop import convert
from doublehead.model.interop.authors import ANCHOR, LAST_PIXEL

FOLDER = Path(os.environ.get("DOUBLEHEAD_GOLDEN_DIR", Path(__file__).parent))

SETTINGS = {
    "rpn_nms_pre": "rpn.before_nms_inference",
    "rpn_pre_nms": "rpn.before_nms_inference",
    "rpn_max_per_img": "rpn.proposals_inference",
    "rpn_post_nms": "rpn.proposals_inference",
    "rpn_nms_iou": "rpn.nms_iou",
    "score_thr": "roi.score_threshold",
    "nms_iou": "roi.nms_iou",
    "max_per_img": "roi.detections",
    "fc_roi_scale": "branches.0.roi_scale",
    "conv_roi_scale": "branches.1.roi_scale",
    "reg_roi_scale_factor": "branches.1.roi_scale",
    "roi_align_sampling_ratio": "roi.sampling_ratio",
    "roi_align_aligned": "roi.aligned",
    "nonlocal_groups": "conv_head.non_local_groups",
}
"""What a header says that the weights do not tell."""

READ_OFF = {
    "base_channels": "backbone.resnet.width",
    "fpn_channels": "fpn.channels",
    "fc_out_channels": "fc_head.width",
    "conv_out_channels": "conv_head.width",
    "nonlocal_inter_channels": "conv_head.non_local_width",
    "reg_class_agnostic": "roi.class_agnostic",
}
"""What a header says that the weights tell too."""

MODES = {0: ("conv", "conv"), 1: ("fc", "fc"), 2: ("fc", "conv"), 3: (None, "conv")}
"""The authors' four ways to detect: whose scores (None: fused) and whose boxes."""


@dataclass
class Golden:
    """One file, and the model converted from its weights."""

    path: Path
    said: dict[str, Any]
    tensors: dict[str, Tensor]
    checkpoint: Path
    model: Detector = field(init=False)

    def __post_init__(self) -> None:
        self.model, _ = load_model(self.checkpoint)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def of_authors(self) -> bool:
        return "authors" in self.said["source"]

    @property
    def image(self) -> Tensor:
        return self["input.image"].permute(2, 0, 1)

    @property
    def proposals(self) -> Tensor:
        """Theirs, as our boxes."""
        return self["rpn.boxes"] + LAST_PIXEL * self.of_authors

    @property
    def levels(self) -> list[Tensor]:
        return [self[f"fpn.p{n}"] for n in (2, 3, 4, 5)]

    def head(self, branch: str, what: str) -> Tensor:
        return self[f"head.{branch}_{what}" if self.of_authors else f"head.{what}"]

    def detector(self, **settings: Any) -> Detector:
        """The model under other settings."""
        config = override(self.model.config.model_dump(), {k.replace("__", "."): v for k, v in settings.items()})
        model = Detector(type(self.model.config).model_validate(config), int(self.said["num_classes"]))
        model.load_state_dict(self.model.state_dict())
        return model.eval()


def open_golden(path: Path, folder: Path) -> Golden:
    with safe_open(path, framework="pt") as file:
        said = {key: json.loads(value) for key, value in file.metadata().items()}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    weights = {k.removeprefix("state_dict."): v for k, v in tensors.items() if k.startswith("state_dict.")}
    source, checkpoint = folder / f"{path.stem}.pth", folder / f"{path.stem}.safetensors"
    torch.save({"state_dict": weights}, source)
    height, width = said["image_hw"]
    settings = {f"model.{SETTINGS[key]}": value for key, value in said.items() if key in SETTINGS}
    convert.convert(
        source,
        checkpoint,
        settings=settings | {"model.input.short_side": min(height, width), "model.input.long_side": max(height, width)},
    )
    return Golden(path, said, tensors, checkpoint)


@pytest.fixture(scope="module", params=sorted(FOLDER.glob("*.safetensors")), ids=lambda path: path.stem)
def golden(request, tmp_path_factory) -> Iterator[Golden]:
    with torch.no_grad():
        yield open_golden(request.param, tmp_path_factory.mktemp("golden"))


def same(ours: Tensor, theirs: Tensor, relative: float = 1e-4) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= relative * theirs.abs().max()


def same_boxes(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Each box of theirs has one of ours within 0.01 pixels, with its label and its score within 1e-4; none is left."""
    assert len(ours["boxes"]) == len(theirs["boxes"])
    near = (ours["boxes"][:, None] - theirs["boxes"]).abs().amax(2) <= 1e-2
    near &= (ours["scores"][:, None] - theirs["scores"]).abs() <= 1e-4
    near &= ours["labels"][:, None] == theirs["labels"]
    assert near.any(0).all()
    assert near.any(1).all()
    assert (ours["scores"].diff() <= 0).all()


def test_there_are_golden_files() -> None:
    assert list(FOLDER.glob("*.safetensors"))


def test_header_and_weights_agree(golden: Golden) -> None:
    config = golden.model.config.model_dump()
    for key, place in READ_OFF.items():
        if key in golden.said and (key != "reg_class_agnostic" or golden.said["num_classes"] > 1):
            *parts, name = place.split(".")
            assert reduce(getitem, parts, config)[name] == golden.said[key], key
    assert config["backbone"]["name"] == f"resnet{golden.said.get('depth', 50)}"
    blocks = config["conv_head"]["blocks"]
    if "num_convs" in golden.said:
        assert blocks == ("up", *["bottleneck"] * golden.said["num_convs"])
    if "nonlocal_stacks" in golden.said:
        assert blocks == ("up", *["non-local", "bottleneck"] * golden.said["nonlocal_stacks"])
    if "res2_out_channels" in golden.said:
        assert config["backbone"]["resnet"]["width"] * 4 == golden.said["res2_out_channels"]
    weights = golden.said.get("box_weights") or [1 / std for std in golden.said["box_stds"]]
    assert list(golden.model.roi_heads.last.coder.weights) == pytest.approx(weights)
    assert len(load_checkpoint(golden.checkpoint).categories) == golden.said["num_classes"]


def test_input(golden: Golden) -> None:
    batch, _ = golden.model._features([golden.image])
    same(batch.tensors.flip(1) if golden.of_authors else batch.tensors, golden["input.tensor"])  # the authors' is BGR


def test_features(golden: Golden) -> None:
    _, features = golden.model._features([golden.image])
    for ours, name in zip(features.values(), ("p2", "p3", "p4", "p5", "p6"), strict=True):
        same(ours, golden[f"fpn.{name}"])


def test_proposals(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[list[Tensor], list[Tensor]]] = []
    keep = golden.model.rpn.filter_proposals
    monkeypatch.setattr(golden.model.rpn, "filter_proposals", lambda *a: found.append(keep(*a)) or found[0])
    proposals, _ = golden.model.rpn(*golden.model._features([golden.image]))
    _, (scores,) = found[0]
    none = torch.zeros(len(scores))
    theirs = {"boxes": golden.proposals, "scores": golden["rpn.scores"], "labels": none[: len(golden["rpn.scores"])]}
    same_boxes({"boxes": proposals[0], "scores": scores, "labels": none}, theirs)


def test_heads(golden: Golden) -> None:
    """RoIAlign's output, logits and deltas of their proposals on their features."""
    heads = golden.model.roi_heads.last
    for name, branch in zip(heads.names, heads, strict=True):
        pooled = heads.pooler(golden.levels, [golden.proposals], branch.config.scale)
        same(pooled[:8], golden[f"roi.{name}_input_8"])
        logits, deltas = branch(pooled)
        if logits is not None:
            same(logits if golden.of_authors else logits.roll(-1, 1), golden.head(name, "cls_logits"))
        if deltas is not None:
            theirs = golden.head(name, "box_deltas")
            same(deltas[:, -theirs.shape[1] :], theirs)


@pytest.mark.parametrize("seen", ["owners", "all"])
@pytest.mark.parametrize("mode", [None, *MODES])
def test_detections(golden: Golden, mode: int | None, seen: str) -> None:
    """The whole path, from image to detections, staged and not."""
    name = "detections" if mode is None else f"detections.mode{mode}"
    if f"{name}.boxes" not in golden.tensors:
        assert golden.of_authors == (mode is None)  # they have modes, MMDetection has none
        return
    score_branch, box_branch = (None, None) if mode is None else MODES[mode]
    model = golden.detector(roi__score_branch=score_branch, roi__box_branch=box_branch, roi__inference_proposals=seen)
    (ours,) = model.detect([golden.image])
    theirs = {key: golden[f"{name}.{key}"] for key in ("boxes", "scores", "labels")}
    theirs["boxes"] = theirs["boxes"] + LAST_PIXEL * golden.of_authors
    theirs["labels"] = theirs["labels"] + int(not golden.of_authors)  # MMDetection counts classes from 0
    same_boxes(ours, theirs)


def test_staging_spares_the_conv_head_where_only_its_boxes_count(golden: Golden) -> None:
    """With the fc-head's scores alone an Ext model is a Double-Head: its conv-head sees the owners only."""
    model = golden.detector(roi__score_branch="fc", roi__box_branch="conv", roi__score_threshold=0.5)
    seen: list[int] = []
    model.roi_heads.last.branches[1].register_forward_hook(lambda module, given, result: seen.append(len(given[0])))
    (found,) = model.detect([golden.image])
    owners = len(found["proposals"].unique())
    assert owners <= sum(seen) < len(golden["rpn.boxes"])


def test_round_trip_is_bit_identical(golden: Golden, tmp_path: Path) -> None:
    program = "authors" if golden.of_authors else "mmdetection"
    convert.convert_back(golden.checkpoint, tmp_path / "back.pth", program)
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    theirs = {k.removeprefix("state_dict."): v for k, v in golden.tensors.items() if k.startswith("state_dict.")}
    equal(back["model" if golden.of_authors else "state_dict"], theirs)
    convert.convert(tmp_path / "back.pth", tmp_path / "again.safetensors")
    equal(load_checkpoint(tmp_path / "again.safetensors").weights, load_checkpoint(golden.checkpoint).weights)


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert value.dtype == ours[key].dtype
        assert torch.equal(value, ours[key]), key


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.keys.json")), ids=lambda path: path.name.split(".")[0])
def test_every_key_of_the_full_size_model_has_its_place(path: Path) -> None:
    """Nothing missing, nothing left over, and the way back gives the same keys and shapes."""
    shapes = {key: tuple(shape) for key, shape in json.loads(path.read_text()).items()}
    weights = {key: torch.zeros(shape) for key, shape in shapes.items()}
    anchors = ANCHORS["authors"]((32, 64, 128, 256, 512), (0.5, 1.0, 2.0)).cell_anchors
    weights |= {f"{ANCHOR}{n}": cell - LAST_PIXEL for n, cell in enumerate(anchors) if f"{ANCHOR}{n}" in shapes}
    (form,) = [f for family in convert.FORMATS.values() for f in family if f.recognises(weights)]
    config, classes, ours = form.load(weights, {})
    assert classes == 80
    assert config.backbone.name == ("resnet101" if "r101" in path.name else "resnet50")
    with torch.device("meta"):
        model = Detector(config, classes).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in model.items()}
    assert {k: tuple(v.shape) for k, v in form.save(config, ours).items()} == shapes
