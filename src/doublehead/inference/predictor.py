"""Inference: a model with its classes on a device."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, overload

import torch
from torch import Tensor

from doublehead.common.categories import Categories
from doublehead.common.device import PRECISIONS, pick_device, pick_precision
from doublehead.common.errors import DoubleheadError
from doublehead.config import USUAL_DECISION, InferenceOptions, ModelConfig, inference_options, option_names
from doublehead.data.images import to_tensor
from doublehead.data.inputs import ImageLike, as_images, as_picture
from doublehead.inference.detections import Detections
from doublehead.inference.exported import Exported, is_exported, open_exported
from doublehead.inference.fusion import Found
from doublehead.inference.tiles import detect_in_tiles
from doublehead.inference.views import detect_in_views
from doublehead.model.checkpoint import load_model, read_config
from doublehead.model.detector import Detector
from doublehead.model.interop.published import resolve
from doublehead.model.optimize import for_inference

WeightsLike = str | Path | Sequence[str | Path]
"""One model, or several that form an ensemble."""


class Detects(Protocol):
    """Interface of a model that a Predictor can run."""

    @property
    def config(self) -> ModelConfig:
        """The model's config."""
        ...

    def detect(self, images: list[Tensor], options: InferenceOptions | None = None) -> list[dict[str, Tensor]]:
        """As `Detector.detect`."""
        ...


class Predictor:
    """A trained detector for inference, created by `doublehead.load`.

    Args:
        model: detector, which is copied and optimised (see `for_inference`), or an exported model.
        categories: classes of the model.
        device: device to run on.
        precision: fp32; bf16 or fp16, which are faster on devices that support them; or auto, bf16 where supported.
        settings: inference options by name; see `config.InferenceOptions`.

    Attributes:
        options: the current inference options.
    """

    def __init__(
        self,
        model: Detects,
        categories: Categories,
        device: torch.device,
        precision: str = "fp32",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.categories = categories
        self.device = device
        given = _of_one_model(settings or {})
        self.precision = pick_precision(given.get("precision", precision), device)
        if isinstance(model, Detector):
            self.options = inference_options(model.config, {"precision": precision} | given, categories.names)
            self.inside: Detects = for_inference(model, device, self.precision)
        else:
            self.options, self.inside = inference_options(model.config, None, categories.names), model
            self.options = self._changed(given)

    def with_options(self, **settings: Any) -> Predictor:
        """Return a predictor with other options, such as `with_options(score_threshold=0.3, classes=["car"])`.

        The weights are shared, not copied.

        Args:
            settings: inference options by name; see `config.InferenceOptions`.

        Raises:
            DoubleheadError: an option or class is unknown, a value is invalid, or the model is exported and does not
                support the option.
        """
        result = copy.copy(self)
        result.options = self._changed(settings)
        return result

    def _changed(self, settings: Mapping[str, Any]) -> InferenceOptions:
        given = _of_one_model(settings)
        if "precision" in given and PRECISIONS.get(given["precision"], "auto") != self.precision:
            raise DoubleheadError("the precision is chosen when a model is loaded: give it to doublehead.load")
        config = self.inside.config
        wanted = inference_options(config, given, self.categories.names)
        changed = {name: getattr(wanted, name) for name in given}
        options = self.options.model_copy(update=changed)
        if isinstance(self.inside, Exported):
            self.inside.require_possible(options)
        return options

    def only(self, labels: tuple[int, ...]) -> Predictor:
        """Return a predictor limited to these labels; exported models always detect all and are returned unchanged."""
        result = copy.copy(self)
        if not isinstance(self.inside, Exported):
            result.options = self.options.model_copy(update={"classes": labels})
        return result

    @property
    def decision_threshold(self) -> float:
        """Minimum score of the detections that are shown by default."""
        chosen = self.options.decision_threshold
        return USUAL_DECISION if chosen is None else chosen

    def autocast(self) -> torch.autocast:
        """Autocast context of the model, for code that calls its parts directly."""
        return torch.autocast(self.device.type, self.precision, enabled=self.precision is not None)

    @property
    def model(self) -> Detector:
        """The underlying detector, for inspection.

        Raises:
            DoubleheadError: the model is exported, or the options ask for tiles, mirrored images or several scales.
        """
        if not isinstance(self.inside, Detector):
            raise DoubleheadError(f"{self.inside}: is exported and cannot be inspected; give its checkpoint")
        if not self.options.plain:
            raise DoubleheadError("a model can only be inspected on whole images; omit tiles, flip and scales")
        return self.inside

    @overload
    def predict(self, images: ImageLike, batch_size: int = 4) -> Detections: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, images: Iterable[ImageLike], batch_size: int = 4) -> list[Detections]: ...
    def predict(self, images: ImageLike | Iterable[ImageLike], batch_size: int = 4) -> Detections | list[Detections]:
        """Detect objects in one image, or in each of several.

        Args:
            images: one image (see `ImageLike`), or any iterable of images. Arrays and tensors of shape (N, 3, H, W) or
                (N, H, W, 3) are N images.
            batch_size: images per forward pass.

        Returns:
            The detections of one image, or a list with the detections of each image.

        Raises:
            DoubleheadError: an image cannot be read or downloaded, or its type is not supported.
        """
        if batch_size < 1:
            raise DoubleheadError(f"batch_size is {batch_size}; give at least 1")
        given, single = as_images(images)
        numbered, found = enumerate(given), list[Detections]()
        while batch := list(islice(numbered, batch_size)):
            pictures = [as_picture(image, "the image" if single else f"images[{place}]") for place, image in batch]
            results = self.detect([to_tensor(picture) for picture in pictures])
            found += [
                Detections(d.boxes, d.scores, d.labels, d.names, d.category_ids, picture)
                for d, picture in zip(results, pictures, strict=True)
            ]
        return found[0] if single else found

    def detect(self, images: list[Tensor]) -> list[Detections]:
        """Detect objects in RGB images of any sizes, uint8 tensors (3, H, W)."""
        return [self.as_detections(result) for result in self.found(images)]

    def found(self, images: list[Tensor]) -> list[Found]:
        """As `detect`, but return tensors. Applies the options for tiles, flip and scales."""
        with self.autocast():
            return detect_in_views(partial(detect_in_tiles, self.inside.detect), images, self.options)

    def as_detections(self, result: dict[str, Tensor]) -> Detections:
        """Convert one result of `Detector.detect` to Detections."""
        boxes, scores, labels = (result[key].cpu().numpy() for key in ("boxes", "scores", "labels"))
        return Detections(boxes, scores, labels, self.categories.names, self.categories.ids)


def _of_one_model(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a single model, by option name.

    Raises:
        DoubleheadError: an option is unknown, or only applies to ensembles.
    """
    given = option_names(settings)
    if given.get("model_weights") is not None:
        raise DoubleheadError("model_weights needs an ensemble: give several models, or omit it")
    return given


def load(
    weights: WeightsLike,
    device: str = "auto",
    precision: str = "fp32",
    settings: Mapping[str, Any] | None = None,
) -> Predictor:
    """Load a detector for inference.

        model = doublehead.load("runs/first/best.safetensors", settings={"score_threshold": 0.3})

    Args:
        weights: checkpoint, such as a run's best.safetensors; published name, such as mmdet-double-head-r50-coco, which
            is downloaded on first use; or a file written by `doublehead export`. Several form an ensemble (see
            `inference.ensemble`).
        device: auto, cpu, cuda or a card such as cuda:1.
        precision: fp32, bf16, fp16, or auto: bf16 where the device supports it.
        settings: inference options by name, such as {"score_threshold": 0.3, "short_side": 480}; see
            `config.InferenceOptions`.

    Raises:
        DoubleheadError: the file is damaged or cannot be downloaded, an option is invalid, or the device is not
            available.
    """
    if not isinstance(weights, str | Path):
        from doublehead.inference.ensemble import load_ensemble  # an Ensemble is a Predictor

        return load_ensemble(weights, device, precision, settings)
    path = resolve(weights)
    if is_exported(path):
        given = option_names(settings or {})
        exported = open_exported(path, device, given.pop("precision", precision))
        return Predictor(exported, exported.categories, torch.device("cpu"), settings=given)
    chosen = pick_device(device)
    model, checkpoint = load_model(path)
    return Predictor(model, checkpoint.categories, chosen, precision, settings)


def decision_threshold(weights: str | Path, settings: Mapping[str, Any] | None = None) -> float | None:
    """Read the decision threshold of weights without loading them; None if they have none.

    Args:
        weights: as in `load`.
        settings: as in `load`; a threshold given here takes precedence.

    Raises:
        DoubleheadError: the weights cannot be downloaded, or an option is unknown or invalid.
    """
    given = option_names(settings or {})
    path = resolve(weights)
    config = open_exported(path, "cpu").config if is_exported(path) else read_config(path)
    own = {name: value for name, value in given.items() if name == "decision_threshold"}
    return inference_options(config, own).decision_threshold if config else None
