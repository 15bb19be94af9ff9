"""Files in, detections out: a model with its classes and a device."""

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
"""One model, or several that make an ensemble."""


class Detects(Protocol):
    """What a Predictor needs of a model."""

    @property
    def config(self) -> ModelConfig:
        """Of the model."""
        ...

    def detect(self, images: list[Tensor], options: InferenceOptions | None = None) -> list[dict[str, Tensor]]:
        """As `Detector.detect`."""
        ...


class Predictor:
    """A trained detector ready for use; `doublehead.load` makes one.

    Args:
        model: the detector, of which a copy is made ready (see `for_inference`); or one that was exported.
        categories: its classes.
        device: where it computes.
        precision: fp32; bf16 or fp16, which are faster where the device computes in them; or auto, for bf16 there.
        settings: inference options by their names; see `config.InferenceOptions`.

    Attributes:
        options: the inference options in force.
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
        """The same model asked otherwise, such as `with_options(score_threshold=0.3, classes=["car"])`.

        Args:
            settings: inference options by their names; see `config.InferenceOptions`.

        Raises:
            DoubleheadError: there is no such option or class, a value does not fit, or the model is exported and
                cannot do it.
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
        """The same model looking for these labels alone; an exported model cannot leave any out, and stays as it is."""
        result = copy.copy(self)
        if not isinstance(self.inside, Exported):
            result.options = self.options.model_copy(update={"classes": labels})
        return result

    @property
    def decision_threshold(self) -> float:
        """Score from which detections are shown unless asked otherwise."""
        chosen = self.options.decision_threshold
        return USUAL_DECISION if chosen is None else chosen

    def autocast(self) -> torch.autocast:
        """The context in which the model computes, for those who call its parts themselves."""
        return torch.autocast(self.device.type, self.precision, enabled=self.precision is not None)

    @property
    def model(self) -> Detector:
        """The detector, for those who look into it.

        Raises:
            DoubleheadError: it was exported, or the options show it images in tiles, mirrored or at several sizes.
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
            images: one image (see `ImageLike`), or any iterable of images. Arrays and tensors (N, 3, H, W) and
                (N, H, W, 3) are N images.
            batch_size: images per forward pass.

        Returns:
            Detections of one image; a list of them for several.

        Raises:
            DoubleheadError: an image cannot be read, fetched or understood.
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
        """Detect objects in RGB tensors uint8 (3, H, W) of any sizes."""
        return [self.as_detections(result) for result in self.found(images)]

    def found(self, images: list[Tensor]) -> list[Found]:
        """As `detect`, in tensors: in tiles and views, as the options say."""
        with self.autocast():
            return detect_in_views(partial(detect_in_tiles, self.inside.detect), images, self.options)

    def as_detections(self, result: dict[str, Tensor]) -> Detections:
        """What `Detector.detect` gives of one image, with the names of its classes."""
        boxes, scores, labels = (result[key].cpu().numpy() for key in ("boxes", "scores", "labels"))
        return Detections(boxes, scores, labels, self.categories.names, self.categories.ids)


def _of_one_model(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by their names.

    Raises:
        DoubleheadError: there is no such option, or it is one of an ensemble.
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
    """Load a detector for prediction.

    Args:
        weights: a checkpoint, such as a run's best.safetensors; the name of a published model, such as
            mmdet-double-head-r50-coco, which is downloaded the first time; or what `doublehead export` wrote. Several
            make an ensemble (see `inference.ensemble`).
        device: auto, cpu, cuda, cuda:1.
        precision: fp32, bf16, fp16, or auto: bf16 where the device computes in it.
        settings: inference options by their names, such as {"score_threshold": 0.3, "short_side": 480}; see
            `config.InferenceOptions`.

    Raises:
        DoubleheadError: the file is not whole, cannot be downloaded, or there is no such device.
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
    """The decision threshold of weights that are not loaded; None where they have none.

    Args:
        weights: as of `load`.
        settings: likewise; theirs comes first.

    Raises:
        DoubleheadError: the weights cannot be downloaded, or an option is not known or does not fit.
    """
    given = option_names(settings or {})
    path = resolve(weights)
    config = open_exported(path, "cpu").config if is_exported(path) else read_config(path)
    own = {name: value for name, value in given.items() if name == "decision_threshold"}
    return inference_options(config, own).decision_threshold if config else None
