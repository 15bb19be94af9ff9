"""Inference of the detectors beside torchvision's, with a given number of owners of candidate detections per image."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.formats import file_run
from benchmarks.measure import BenchmarkSettings, Workload, measure
from benchmarks.owners import owners_per_image, set_owners, watch
from benchmarks.peers import Peer, Variant, build_peers
from benchmarks.report import Report, versions
from doublehead.common.console import Console
from doublehead.common.device import pick_device
from doublehead.common.errors import DoubleheadError
from doublehead.config import RoIConfig, merge
from doublehead.model.detector import Detector

ALL = {"roi": {"inference_proposals": "all"}}
MMDETECTION = {"conv_head": {"blocks": "mmdetection"}}
VARIANTS = {
    "torchvision Faster R-CNN, bf16": Variant(None, precision="bf16"),
    "single-fc": Variant("single-fc"),
    "double-head as others run it": Variant("double-head", ALL, ready=False),
    "double-head, all proposals": Variant("double-head", ALL),
    "double-head staged": Variant("double-head"),
    "double-head staged, compiled": Variant("double-head", compiled=True),
    "double-head staged, bf16": Variant("double-head", precision="bf16"),
    "double-head staged, bf16, compiled": Variant("double-head", precision="bf16", compiled=True),
    "double-head, MMDetection's form, as others run it": Variant("double-head", merge(ALL, MMDETECTION), ready=False),
    "double-head staged, MMDetection's form": Variant("double-head", MMDETECTION),
    "double-head-fused staged": Variant("double-head-fused"),
    "double-head-ext": Variant("double-head-ext"),
    "double-head-ext, bf16": Variant("double-head-ext", precision="bf16"),
}
"""What is measured. `As others run it`: every proposal through both heads, norms on their own, channels first."""

EVERY_DETECTION = 10**9
"""Detections kept: all, so that staged inference computes every owner's box. Boxes of random weights hardly suppress
each other, so that the usual 100 would be full after the first owners, as a trained model's are not always."""


def inference(
    settings: BenchmarkSettings,
    owners: int = 100,
    changes: Mapping[str, Any] | None = None,
    variants: Mapping[str, Variant] = VARIANTS,
) -> Report:
    """Measure every case on the same random image, `settings.batch` times.

    Args:
        settings: how to measure.
        owners: proposals per image that own a candidate detection, in every model.
        changes: to the settings of all models, as nested keys.
        variants: what there is to choose from.

    Raises:
        DoubleheadError: a setting has a mistake, or staged inference or a file gave other detections.
    """
    device = pick_device(settings.device)
    images = random_images(settings, device)

    def runner(peer: Peer) -> Workload:
        @torch.no_grad()
        def run() -> None:
            with peer.autocast(device):
                peer.model(images)

        return run

    with settings.with_threads(), tempfile.TemporaryDirectory() as folder:
        peers = untrained_peers(variants, settings, device, changes)
        runs = {peer.name: runner(peer) for peer in peers}
        counts = {}
        with Console().progress("preparing", len(peers)) as advance:
            for peer in peers:
                set_owners(peer, runs[peer.name], owners, device)
                require_same_detections(peer, images)
                counts[peer.name] = _counts(peer, runs[peer.name])
                if peer.variant.file:
                    runs[peer.name] = file_run(peer, images, owners, Path(folder))
                advance()
        cases = measure(runs, counts, settings, device)
        said = asdict(settings) | {"owners": owners}
        return Report("benchmark inference", said, versions(device), cases, ("owners", "boxes"))


def random_images(settings: BenchmarkSettings, device: torch.device) -> list[Tensor]:
    """The same random image (3, H, W) in 0..1, of 256 levels, `settings.batch` times."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(256, (3, *settings.shape), generator=generator)
    return [(levels / 255).to(device)] * settings.batch


def untrained_peers(
    variants: Mapping[str, Variant],
    settings: BenchmarkSettings,
    device: torch.device,
    changes: Mapping[str, Any] | None = None,
) -> list[Peer]:
    """The variants that the settings choose, with random weights, ready for inference and keeping every detection."""
    changes = merge({"roi": {"detections": EVERY_DETECTION}}, dict(changes or {}))
    return build_peers(variants, settings, device, changes, learn=False)


def _counts(peer: Peer, run: Workload) -> dict[str, float]:
    """Per image: proposals, those that own a candidate, and those whose boxes are computed."""
    with watch(peer) as seen:
        run()
    totals = {"proposals": sum(seen.proposals), "owners": sum(owners_per_image(peer, seen)), "boxes": seen.boxes}
    return {name: total / len(seen.proposals) for name, total in totals.items()}


@torch.no_grad()
def require_same_detections(peer: Peer, images: list[Tensor]) -> None:
    """Refuse to measure staged inference that finds something else than the same model on all proposals, in float32.

    Raises:
        DoubleheadError: numbers, labels or boxes differ.
    """
    model = peer.model
    if not isinstance(model, Detector) or model.config.roi.inference_proposals == "all":
        return
    model = copy.deepcopy(model).float()  # weights that were cast once
    usual = RoIConfig.model_fields["detections"].default
    found = []
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for seen in ("owners", "all"):
            changed = model.options.model_copy(update={"inference_proposals": seen, "detections": usual})
            found.append(model.detect(images, changed))
    for staged, whole in zip(*found, strict=True):
        same = torch.equal(staged["labels"], whole["labels"])
        if not same or not torch.allclose(staged["boxes"], whole["boxes"], rtol=0, atol=1e-3):
            raise DoubleheadError(
                f"{peer.name}: gave other detections than on all proposals, so that no time of it "
                "means anything; please report this with your versions of torch and torchvision"
            )
