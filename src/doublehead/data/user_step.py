"""The step `use`: a user function, or a Compose of Albumentations."""

from __future__ import annotations

import importlib
import random
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

from doublehead.common.errors import DoubleheadError
from doublehead.data.steps import Use
from doublehead.data.transforms import InputSize, Sample, Step, StepError

_FORMATS = {
    "pascal_voc": (BoundingBoxFormat.XYXY, False),
    "coco": (BoundingBoxFormat.XYWH, False),
    "albumentations": (BoundingBoxFormat.XYXY, True),
    "yolo": (BoundingBoxFormat.CXCYWH, True),
}
"""Formats of Albumentations: torchvision's names of them, and whether they are fractions of the image's size."""


def use(settings: Use, size: InputSize) -> Step:
    """Build the step; the callable is imported once here, so that a mistake in its name is told at once."""
    step = UserStep(settings.transform)
    step.function  # noqa: B018
    return step


class UserStep:
    """Calls a user function with an image, boxes and labels.

    The function receives a uint8 `tv_tensors.Image` (3, H, W), `tv_tensors.BoundingBoxes` XYXY float32 (N, 4) in pixels
    and labels int64 (N,), and returns the same. Any transform of torchvision.transforms.v2 can be used. Random numbers
    may come from torch, numpy or `random`, which are seeded for each image.

    Args:
        name: import path of the function, as `package.module:name`.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> Any:
        return UserStep, (self.name,)  # loader processes that are not forked import the function themselves

    @cached_property
    def function(self) -> Callable[[Tensor, Tensor, Tensor], Any]:
        """The function, behind an adapter where it is a Compose of Albumentations.

        Raises:
            DoubleheadError: it cannot be imported.
        """
        found = _imported(self.name)
        return Albumentations(found, self.name) if is_albumentations(found) else found

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor, others: Sequence[Sample]) -> Any:  # noqa: D102
        function = self.function
        with _seeded(int(torch.randint(2**31, ()))):
            try:
                result = function(image, boxes, labels)
            except DoubleheadError:
                raise
            except Exception as error:  # whatever the user's code raises
                place = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(place.filename).name}, line {place.lineno}"
                raise StepError(f"step `use`: {self.name} raised {type(error).__name__}: {error} ({where})") from error
        return _in_xyxy(result)


class Albumentations:
    """A Compose of Albumentations as a function on (image, boxes, labels).

    It is called as its documentation says: `compose(image=, bboxes=, <label field>=)` with an array (H, W, 3); it gives
    a dictionary of the same.

    Args:
        compose: with `bbox_params` that name one label field.
        name: of the compose, for errors.
    """

    def __init__(self, compose: Any, name: str) -> None:
        self.compose = compose
        parameters = getattr(compose.processors.get("bboxes"), "params", None)
        fields = list(getattr(parameters, "label_fields", None) or ())
        found: Any = getattr(parameters, "format", None)
        if found not in _FORMATS or len(fields) != 1:
            raise DoubleheadError(
                f"step `use`: give {name} bbox_params=BboxParams(format='pascal_voc', label_fields=['labels'])"
            )
        self.format, self.field = _FORMATS[found], fields[0]

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor) -> Any:  # noqa: D102
        if hasattr(self.compose, "set_random_seed"):  # from version 1.4.19 on it draws from generators of its own
            self.compose.set_random_seed(int(torch.randint(2**31, ())))
        own, fractions = self.format
        given = functional.convert_bounding_box_format(boxes, new_format=own).as_subclass(Tensor)
        given = given / _lengths(image) if fractions else given
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        result = self.compose(image=pixels, bboxes=given.tolist(), **{self.field: labels.tolist()})
        image, found = result["image"], torch.from_numpy(np.asarray(result["bboxes"], np.float32).reshape(-1, 4))
        if isinstance(image, np.ndarray):  # else a tensor, of ToTensorV2
            image = torch.from_numpy(np.ascontiguousarray(image)).movedim(-1, 0)
        found = found * _lengths(image) if fractions else found
        labels = torch.tensor(result[self.field], dtype=torch.float64)  # some versions return them as floats
        return image, functional.convert_bounding_box_format(found, own, BoundingBoxFormat.XYXY), labels.to(torch.int64)


def _lengths(image: Tensor) -> Tensor:
    """Width and height, twice."""
    return torch.tensor([image.shape[-1], image.shape[-2]] * 2)


def is_albumentations(found: Any) -> bool:
    """Whether an object is called as a Compose of Albumentations is: with keywords, boxes by a processor of theirs."""
    return isinstance(getattr(found, "processors", None), dict) and hasattr(found, "transforms")


def _in_xyxy(result: Any) -> Any:
    """The same with boxes as x1, y1, x2, y2, where they are torchvision's in another format."""
    if isinstance(result, list | tuple) and len(result) == 3 and isinstance(result[1], BoundingBoxes):
        image, boxes, labels = result
        return image, functional.convert_bounding_box_format(boxes, new_format=BoundingBoxFormat.XYXY), labels
    return result


def _imported(name: str) -> Any:
    """The object at `package.module:name`; modules in the current folder are found too.

    Raises:
        DoubleheadError: there is none, or it is no function.
    """
    module, _, attribute = name.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever the user's module raises
        raise DoubleheadError(
            f"data.augment: step `use`: {name} cannot be imported ({type(error).__name__}: {error}); write it as "
            "package.module:name, and run where the module is found"
        ) from error
    if not callable(found):
        raise DoubleheadError(f"data.augment: step `use`: {name} is {type(found).__name__}, which cannot be called")
    return found


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed `random` and numpy, and put their states back at the end."""
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
