import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_models import small_config

from doublehead.common.categories import Categories
from doublehead.common.errors import DoubleheadError, Fault
from doublehead.config import ModelConfig
from doublehead.model.checkpoint import adopt, load_checkpoint, load_model, save_checkpoint
from doublehead.model.detector import Detector
from small import SMALL, flags

CATEGORIES = Categories(("cat", "dog", "stop sign"), (1, 17, 90))


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Detector]:
    config = small_config("double-head-ext")
    model = Detector(config, 3)
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, config, CATEGORIES, model.state_dict(), {"step": 7}, {"averaged": torch.tensor(5)})
    return path, model


def test_everything_comes_back(saved: tuple[Path, Detector]) -> None:
    path, model = saved
    loaded, checkpoint = load_model(path)
    assert checkpoint.config == model.config
    assert checkpoint.categories == CATEGORIES  # ids with gaps travel along
    assert checkpoint.notes == {"step": 7}
    assert checkpoint.training["averaged"] == 5
    assert not loaded.training
    for (name, one), other in zip(loaded.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert [p.name for p in path.parent.iterdir()] == ["best.safetensors"]
    (path.parent / "another").touch()
    assert path.stat().st_mode == (path.parent / "another").stat().st_mode  # safetensors keeps others from reading


def test_loading_draws_no_random_numbers_and_copies_no_weights(saved: tuple[Path, Detector]) -> None:
    checkpoint = load_checkpoint(saved[0])
    before = torch.get_rng_state()
    model = checkpoint.build()
    assert torch.equal(torch.get_rng_state(), before)
    for name, weight in model.state_dict().items():
        assert weight.data_ptr() == checkpoint.weights[name].data_ptr(), name
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


def test_weights_of_any_type_are_loaded_as_float32(saved: tuple[Path, Detector]) -> None:
    path, model = saved
    halves = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    save_checkpoint(path, model.config, CATEGORIES, halves, {})
    loaded, _ = load_model(path)
    assert {value.dtype for value in loaded.state_dict().values() if value.is_floating_point()} == {torch.float32}


def test_an_interrupted_save_leaves_the_old_file(saved: tuple[Path, Detector], monkeypatch: pytest.MonkeyPatch) -> None:
    path, model = saved
    before = path.read_bytes()

    def cut(tensors: object, target: Path, metadata: object) -> None:
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("doublehead.model.checkpoint.save_file", cut)
    with pytest.raises(Fault, match=r"best.safetensors: cannot be written \(disk full\)"):
        save_checkpoint(path, model.config, CATEGORIES, model.state_dict(), {})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["best.safetensors"]


def test_a_change_of_any_bit_is_found(tmp_path: Path) -> None:
    """Of the header and of the tensors; 200 of them."""
    path = tmp_path / "best.safetensors"
    tensors = {"a": torch.arange(500), "b": torch.zeros(3, 4, 5, dtype=torch.bfloat16)}
    save_checkpoint(path, small_config("double-head"), CATEGORIES, tensors, {"step": 7}, {"c": torch.tensor(True)})
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    chance = random.Random(0)
    places = [chance.randrange(header) for _ in range(100)] + [chance.randrange(header, len(whole)) for _ in range(100)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(DoubleheadError, match=r"best\.safetensors: "):
            load_checkpoint(path)
    path.write_bytes(whole)
    load_checkpoint(path)


@pytest.mark.parametrize("damage", ["cut", "noise", "pickle", "empty", "other", "newer", "config", "weights"])
def test_a_file_that_is_no_whole_checkpoint_is_named(saved: tuple[Path, Detector], damage: str) -> None:
    path, model = saved
    header = {"format": "doublehead", "format_version": "1", "doublehead": "0.1.0", "notes": "{}"}
    header |= {
        "model": model.config.model_dump_json(),
        "categories": json.dumps({"names": ["a"] * 3, "ids": [1, 2, 3]}),
    }
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "noise":
        path.write_bytes(bytes(range(256)) * 40)
    elif damage == "pickle":
        path.write_bytes(pickle.dumps({"model": 1}))
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other":
        save_file({"x": torch.zeros(1)}, path)
    elif damage == "newer":
        save_file({"x": torch.zeros(1)}, path, metadata=header | {"format_version": "99", "doublehead": "9.0"})
    elif damage == "config":
        save_file({"x": torch.zeros(1)}, path, metadata=header | {"model": '{"branches": [], "wings": 2}'})
    else:
        save_file({"x": torch.zeros(1)}, path, metadata=header)
    with pytest.raises(DoubleheadError, match=r"best\.safetensors: ") as caught:
        load_model(path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_header_made_up_takes_no_memory(tmp_path: Path) -> None:
    """Two layers of a million times a million: more than any machine holds."""
    changed = small_config("double-head").model_dump()
    changed["fc_head"] = {"layers": 2, "width": 10**6}
    path = tmp_path / "huge.safetensors"
    model = Detector(small_config("double-head"), 3)
    save_checkpoint(path, ModelConfig.model_validate(changed), CATEGORIES, model.state_dict(), {})
    with pytest.raises(DoubleheadError, match=r"huge\.safetensors: its weights do not fit its model config"):
        load_model(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DoubleheadError, match="no such file"):
        load_checkpoint(tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    "backbone", [{"name": "resnet34"}, {"resnet": {"width": 32}}, {"norm": "frozen"}, {"name": "resnet50"}]
)
def test_weights_of_another_backbone_are_refused_unless_asked_for(saved: tuple[Path, Detector], backbone: Any) -> None:
    """Otherwise most of it would stay random, some of it frozen."""
    path, _ = saved
    other = Detector(small_config("double-head-ext", backbone=backbone), 3)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(DoubleheadError, match=r"best\.safetensors: .*backbone.*train\.partial_weights=true"):
        adopt(other, CATEGORIES, path)
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())
    left = adopt(other, CATEGORIES, path, partial=True)
    assert any(key.startswith("backbone.body.") for key in left)
    assert not any(key.startswith("roi_heads.") for key in left)


def test_weights_of_the_same_backbone_with_another_head_are_taken(saved: tuple[Path, Detector]) -> None:
    path, model = saved
    other = Detector(small_config("single-fc"), 3)
    left = adopt(other, CATEGORIES, path)
    assert not any(key.startswith("backbone.") for key in left)
    assert torch.equal(other.state_dict()["backbone.body.conv1.weight"], model.backbone.body.conv1.weight)


def test_training_does_not_start_from_weights_of_another_backbone(
    saved: tuple[Path, Detector], dataset: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    path, _ = saved
    settings = SMALL | {"train.steps": 1, "train.weights": str(path), "model.backbone.name": "resnet34"}
    words = ("train", dataset, "--model", "double-head-tiny", "-o", tmp_path / "run")
    outcome = command(*words, *flags(settings))
    assert str(path) in outcome.sentence
    assert "resnet34" in outcome.sentence
    assert command(*words, *flags(settings | {"train.partial_weights": True})).code == 0


@pytest.mark.parametrize("weights", ["/home/anna/secret/r50.pth", "secret/r50.pth", r"C:\Users\anna\secret\r50.pth"])
def test_of_paths_only_names_are_written(tmp_path: Path, weights: str) -> None:
    config = small_config("double-head", backbone={"weights": weights})
    path = tmp_path / "best.safetensors"
    notes = {"step": 7, "from": [{"weights": weights}], "share": 0.25}
    save_checkpoint(path, config, CATEGORIES, Detector(config, 3).state_dict(), notes)
    data = path.read_bytes()
    assert b"secret" not in data
    assert b"anna" not in data
    loaded, checkpoint = load_model(path)
    assert loaded.config.backbone.weights == "r50.pth"
    assert checkpoint.notes == {"step": 7, "from": [{"weights": "r50.pth"}], "share": 0.25}
