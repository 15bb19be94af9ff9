"""Checkpoints: safetensors with the model's config, classes and version in the header. Loading runs no code.

A file can also contain the state of a training run, with its tensors under `training/`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

import doublehead
from doublehead.common.categories import Categories
from doublehead.common.errors import DoubleheadError, sentence
from doublehead.common.files import whole
from doublehead.common.model_files import EXPORTED, missing_weights, of_newer_version
from doublehead.common.names import names_only
from doublehead.config import ModelConfig, with_options
from doublehead.model.detector import Detector

FORMAT = "doublehead"
FORMAT_VERSION = 3  # 1: without checksum; 2: one box head, whose keys had no number
ONE_HEAD, FIRST_HEAD = "roi_heads.branches.", "roi_heads.heads.0.branches."
TRAINING = "training/"
REMEDY = "convert weights of other programs with `doublehead convert`"


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint file."""

    config: ModelConfig
    categories: Categories
    weights: dict[str, Tensor]
    training: dict[str, Tensor]  # tensors of a training run's state, without the prefix; empty if there is none
    notes: dict[str, Any]  # metadata of the writer: step, metrics, scalars of the training state

    def require_fit(self) -> None:
        """Check that the weights fit the config.

        Raises:
            RuntimeError: weights are missing, unexpected or of another shape.
        """
        with torch.device("meta"):
            Detector(self.config, len(self.categories)).load_state_dict(self.weights, assign=True)

    def build(self) -> Detector:
        """Build the detector in float32 and inference mode. It shares the weights of this checkpoint.

        Raises:
            RuntimeError: weights are missing, unexpected or of another shape. Raised before memory is allocated.
        """
        self.require_fit()
        with _Blank():
            model = Detector(self.config, len(self.categories))
        model.load_state_dict(self.weights, assign=True)
        return model.float().eval()


def save_checkpoint(
    path: Path,
    config: ModelConfig,
    categories: Categories,
    weights: dict[str, Tensor],
    notes: dict[str, Any],
    training: dict[str, Tensor] | None = None,
    keep: Path | None = None,
) -> None:
    """Write a checkpoint with a checksum, atomically: `path` never holds an incomplete file.

    Since checkpoints are shared, paths in the config and the notes are shortened to file names.

    Args:
        path: output file.
        config: config of the model.
        categories: classes of the model.
        weights: state_dict of the model.
        notes: metadata, returned as `Checkpoint.notes` on loading.
        training: tensors of a training run's state.
        keep: path to move an existing file at `path` to.

    Raises:
        Fault: the file cannot be written; an existing file at `path` is unchanged.
    """
    header = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "doublehead": doublehead.__version__,
        "model": json.dumps(names_only(config.model_dump(mode="json"))),
        "categories": categories.to_json(),
        "notes": json.dumps(names_only(notes)),
    }
    tensors = weights | {TRAINING + key: value for key, value in (training or {}).items()}
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    header["checksum"] = checksum(header, tensors)
    with whole(path, keep) as temporary:
        try:
            save_file(tensors, temporary, metadata=header)
        except SafetensorError as error:  # a full disk, among others
            raise OSError(str(error)) from error


def checksum(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a header without its `checksum`, and of the name, type, shape and bytes of every tensor."""
    digest = hashlib.sha256(json.dumps({k: v for k, v in header.items() if k != "checksum"}, sort_keys=True).encode())
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises:
        DoubleheadError: the file is missing or damaged, is not a doublehead checkpoint, or needs a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise missing_weights(path)
    if path.suffix.lower() in EXPORTED:
        raise DoubleheadError(f"{path}: is exported and works only with `predict` and `evaluate`; give its checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise DoubleheadError(f"{path}: is damaged or not a safetensors file ({error}); {REMEDY}") from error
    if header.get("format") != FORMAT:
        raise DoubleheadError(f"{path}: is a safetensors file, but not a doublehead checkpoint; {REMEDY}")
    try:
        version = int(header["format_version"])
        if version > FORMAT_VERSION:
            raise of_newer_version(path, header["doublehead"])
        if version != 1 and checksum(header, tensors) != header["checksum"]:
            raise DoubleheadError(f"{path}: is damaged (its checksum differs); restore a copy, or train again")
        if version < 3:
            tensors = {key.replace(ONE_HEAD, FIRST_HEAD): value for key, value in tensors.items()}
        config = ModelConfig.model_validate_json(header["model"])
        result = Checkpoint(
            config,
            Categories.from_json(header["categories"]),
            {key: value for key, value in tensors.items() if not key.startswith(TRAINING)},
            {key.removeprefix(TRAINING): value for key, value in tensors.items() if key.startswith(TRAINING)},
            json.loads(header["notes"]),
        )
    except ValidationError as error:
        raise DoubleheadError(f"{path}: its model config does not fit this version: {sentence(error)}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DoubleheadError(f"{path}: its header is damaged ({error!r})") from error
    return result


def read_notes(path: Path) -> dict[str, Any]:
    """Read a checkpoint's notes without its tensors; empty if the file is not a checkpoint."""
    try:
        with safe_open(path, framework="pt") as file:
            notes = json.loads((file.metadata() or {}).get("notes", "{}"))
    except (SafetensorError, OSError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


def read_config(path: Path) -> ModelConfig | None:
    """Read a checkpoint's model config without its tensors; None if the file is not a valid checkpoint."""
    try:
        with safe_open(path, framework="pt") as file:
            return ModelConfig.model_validate_json((file.metadata() or {})["model"])
    except (SafetensorError, OSError, ValueError, KeyError):
        return None


class _Blank(TorchFunctionMode):
    """Context in which layers skip random initialisation, which takes most of the time of building a model."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _DRAWING:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


_DRAWING = (Tensor.uniform_, Tensor.normal_, init.uniform_, init.normal_, init.kaiming_uniform_)


def load_model(path: str | Path, settings: Mapping[str, Any] | None = None) -> tuple[Detector, Checkpoint]:
    """Load a detector in inference mode, and the checkpoint it came from.

    Args:
        path: checkpoint file.
        settings: other defaults for the inference options; see `config.with_options`.

    Raises:
        DoubleheadError: as in `load_checkpoint`; or weights are missing, unexpected or of another shape.
    """
    checkpoint = load_checkpoint(path)
    checkpoint = replace(checkpoint, config=with_options(checkpoint.config, settings or {}))
    try:
        return checkpoint.build(), checkpoint
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise DoubleheadError(f"{path}: its weights do not fit its model config ({detail})") from error


def adopt(model: Detector, categories: Categories, path: str | Path, partial: bool = False) -> list[str]:
    """Load the weights of another detector. Predictors are left unchanged if the classes differ.

    Args:
        model: the detector to load weights into.
        categories: classes of `model`.
        path: checkpoint file.
        partial: whether layers of the backbone may be left unchanged too.

    Returns:
        The keys of the weights that were not loaded.

    Raises:
        DoubleheadError: as in `load_checkpoint`; or no weights fit, or the backbone does not fit completely.
    """
    checkpoint = load_checkpoint(path)
    same_classes = categories == checkpoint.categories

    def fits(key: str, value: Tensor) -> bool:
        of_classes = ".classifier." in key or (".regressor." in key and not model.config.roi.class_agnostic)
        found = checkpoint.weights.get(key)
        return found is not None and found.shape == value.shape and (same_classes or not of_classes)

    left = [key for key, value in model.state_dict().items() if not fits(key, value)]
    taken = {key: value for key, value in checkpoint.weights.items() if key in model.state_dict() and key not in left}
    if not taken:
        raise DoubleheadError(f"{path}: none of its weights fits the model")
    backbone = [key for key in left if key.startswith("backbone.") and not key.endswith("num_batches_tracked")]
    if backbone and not partial:
        wanted, found = (
            f"{config.backbone.name} with {config.backbone.norm} norm" for config in (model.config, checkpoint.config)
        )
        raise DoubleheadError(
            f"train.weights={path}: {len(backbone)} weights of the model's backbone ({wanted}) are missing or have "
            f"another shape, such as {backbone[0]}; the file holds a {found}. Choose the same model.backbone, or set "
            "train.partial_weights=true to train those layers from their initial values"
        )
    model.load_state_dict(taken, strict=False)
    return left
