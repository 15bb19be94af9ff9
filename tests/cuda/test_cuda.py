"""Training, measuring, predicting and resuming on a card, compared with the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import doublehead
from doublehead.common.device import pick_device
from doublehead.data.dataset import open_dataset
from doublehead.deploy.parity import compare
from small import SMALL, rows

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")

RUN = SMALL | {"train.device": "cuda", "train.steps": 12, "train.evaluate_every": 1}


@pytest.fixture(scope="module", autouse=True)
def full_float32() -> Any:
    """Without TF32, whose rounding is that of 10 bits."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def images(dataset: Path) -> list[Any]:
    return [str(record.path) for record in open_dataset(dataset).read("val").records]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("variant", ["single-fc", "double-head", "double-head-ext"])
def test_it_trains(dataset: Path, tmp_path: Path, variant: str, precision: str) -> None:
    settings = RUN | {"train.precision": precision}
    best = doublehead.train(dataset, f"{variant}-tiny", tmp_path / "run", settings=settings)
    losses = [row["loss"] for row in rows(tmp_path / "run" / "training.csv")]
    assert len(losses) == 12
    assert all(torch.isfinite(torch.tensor(losses)))
    assert doublehead.evaluate(best, dataset, device="cuda").metrics.images == 4


def test_the_first_loss_is_the_cpus(dataset: Path, tmp_path: Path) -> None:
    """The same weights and images; what is sampled is drawn by another generator, so the RPN's are compared."""
    for device in ("cpu", "cuda"):
        settings = RUN | {"train.steps": 1, "train.device": device}
        doublehead.train(dataset, "double-head-tiny", tmp_path / device, settings=settings)
    cpu, cuda = (rows(tmp_path / device / "training.csv")[0] for device in ("cpu", "cuda"))
    assert cuda["rpn_classify"] == pytest.approx(cpu["rpn_classify"], rel=0.05)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_it_finds_what_the_cpu_finds(trained: Path, images: list[Any], precision: str) -> None:
    weights = trained / "best.safetensors"
    tensors = [doublehead.load(weights, "cpu").predict(image).image for image in images]
    cpu, cuda = doublehead.load(weights, "cpu"), doublehead.load(weights, "cuda", precision)
    assert all(p.device.type == "cuda" for p in cuda.model.parameters())
    expected, found = cpu.predict(tensors), cuda.predict(tensors)

    def raw(several: list[Any]) -> list[dict[str, torch.Tensor]]:
        return [{key: torch.as_tensor(getattr(d, key)) for key in ("boxes", "scores", "labels")} for d in several]

    parity = compare(raw(expected), raw(found))
    assert parity.share > (0.98 if precision == "fp32" else 0.8)


def test_a_resumed_run_goes_on(dataset: Path, tmp_path: Path) -> None:
    best = doublehead.train(dataset, "double-head-tiny", tmp_path / "run", settings=RUN | {"train.steps": 6})
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("steps: 6", "steps: 12"))
    assert doublehead.resume(tmp_path / "run") == best
    assert [row["step"] for row in rows(tmp_path / "run" / "training.csv")] == list(range(1, 13))


def test_a_card_that_is_not_there_is_refused() -> None:
    with pytest.raises(doublehead.DoubleheadError, match=f"cuda:{torch.cuda.device_count()}"):
        pick_device(f"cuda:{torch.cuda.device_count()}")
