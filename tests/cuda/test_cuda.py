"""On a CUDA card: trains, resumes, evaluates and predicts, and finds what the CPU finds. Skipped without a card."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import doublehead
from doublehead.config import ModelConfig, merge
from doublehead.data.images import read_image, to_tensor
from doublehead.model.checkpoint import load_checkpoint
from doublehead.model.detector import Detector
from doublehead.model.presets import preset_values
from small import SMALL, rows

CARD = "cuda"
MODEL = "double-head-tiny"
SHORT = SMALL | {"train.device": CARD, "train.steps": 20, "train.evaluate_every": 1, "train.ema": 0.9}
PRECISIONS = ("fp32", "bf16", "fp16")

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(autouse=True)
def full_float32(monkeypatch):
    """Convolutions without TF32, which keeps 10 bits of a mantissa."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module", params=PRECISIONS)
def run(request, dataset, tmp_path_factory):
    """A finished run on the card, in each precision."""
    output = tmp_path_factory.mktemp("cuda") / request.param
    doublehead.train(dataset, MODEL, output, settings=SHORT | {"train.precision": request.param})
    return output


def test_training_ends_with_finite_losses_and_a_checkpoint_for_any_device(run):
    losses = [value for row in rows(run / "training.csv") for key, value in row.items() if "classify" in key]
    assert losses
    assert all(math.isfinite(loss) for loss in losses)
    checkpoint = load_checkpoint(run / "last.safetensors")
    assert checkpoint.notes["step"] == 20
    assert {weight.device.type for weight in checkpoint.weights.values()} == {"cpu"}
    assert {weight.dtype for weight in checkpoint.weights.values()} <= {torch.float32, torch.int64}


def test_evaluation_agrees_with_the_cpu(run, dataset):
    on_card, on_cpu = (doublehead.evaluate(run / "last.safetensors", dataset, "test", device=d) for d in (CARD, "cpu"))
    for figure in ("AP", "AP50", "AR100"):
        one, other = (result.metrics.to_json()[figure] for result in (on_card, on_cpu))
        assert one == pytest.approx(other, abs=0.01), figure


@pytest.mark.parametrize("precision", PRECISIONS)
def test_predictions_agree_with_the_cpu(trained, dataset, precision):
    """In fp32 nearly all of them; in 16 bits most of those that are not close to others."""
    photos = sorted((dataset / "test").iterdir())
    on_card = doublehead.load(trained / "best.safetensors", CARD, precision).predict(photos)
    on_cpu = doublehead.load(trained / "best.safetensors", "cpu").predict(photos)
    assert all(map(len, on_cpu))
    for one, other in zip(on_card, on_cpu, strict=True):
        best = other.above(float(np.median(other.scores)))
        gaps = np.abs(one.boxes[None] - best.boxes[:, None]).max(2)
        near = (gaps < (0.5 if precision == "fp32" else 4)) & (one.labels[None] == best.labels[:, None])
        assert near.any(1).mean() >= (0.95 if precision == "fp32" else 0.5)


def test_losses_and_gradients_agree_with_the_cpu(dataset):
    """With so much sampled that nothing is drawn: the two devices have random numbers of their own.

    In float64: float32's rounding moves a gradient of a small layer by more than the bound.
    """
    values = preset_values(MODEL)
    for key, value in SMALL.items():
        section, _, rest = key.partition(".")
        if section == "model":
            for part in reversed(rest.split(".")):
                value = {part: value}
            values = merge(values, value)
    every = {"rpn": {"sampled": 10**5, "positive_fraction": 1.0}, "roi": {"sampled": 10**5, "positive_fraction": 1.0}}
    config = ModelConfig.model_validate(merge(values, every))
    torch.manual_seed(0)
    model = Detector(config, 3).double()
    image = to_tensor(read_image(min((dataset / "test").iterdir())))
    boxes, labels = torch.tensor([[8.0, 8.0, 40.0, 44.0], [30.0, 10.0, 80.0, 60.0]]), torch.tensor([1, 3])

    def step(device: str) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        model.to(device).zero_grad()
        losses = model.losses([image.to(device)], [{"boxes": boxes.to(device), "labels": labels.to(device)}])
        torch.stack(list(losses.values())).sum().backward()
        gradients = {name: p.grad.to("cpu", copy=True) for name, p in model.named_parameters() if p.grad is not None}
        return {name: float(loss.detach()) for name, loss in losses.items()}, gradients

    (expected, gradients), (found, on_card) = step("cpu"), step(CARD)
    assert found == pytest.approx(expected, rel=1e-3)
    assert on_card.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert float((on_card[name] - gradient).norm()) <= 0.02 * float(gradient.norm()) + 1e-6, name


def test_a_stopped_run_resumes_on_the_card(dataset, tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    doublehead.train(dataset, MODEL, whole, settings=SHORT)
    calls, losses = iter(range(100)), Detector.losses

    def cut(self, *given):
        if next(calls) == 13:
            raise RuntimeError("power cut")
        return losses(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Detector, "losses", cut)
        with pytest.raises(RuntimeError, match="power cut"):
            doublehead.train(dataset, MODEL, stopped, settings=SHORT)
    assert load_checkpoint(stopped / "last.safetensors").notes["step"] == 12
    doublehead.resume(stopped)
    one, other = (rows(folder / "training.csv") for folder in (stopped, whole))
    assert [row["step"] for row in one] == [row["step"] for row in other]
    for mine, theirs in zip(one, other, strict=True):  # sums on the card are taken in no fixed order
        assert mine["lr"] == theirs["lr"]
        assert mine["rpn_classify"] == pytest.approx(theirs["rpn_classify"], rel=0.05)
