"""Fit images of any size into the fixed input of an exported file with static shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from doublehead.config import InputConfig
from doublehead.model.detector import input_size, padded, resize


@dataclass(frozen=True)
class Canvas:
    """An input of fixed size: `batch` canvases, each with a resized image in its top left corner."""

    batch: int
    height: int
    width: int

    @classmethod
    def of_images(cls, height: int, width: int, config: InputConfig, multiple: int, batch: int = 1) -> Canvas:
        """The model's input for images of one size: resized, then padded to a multiple of `multiple`."""
        rows, columns = input_size(height, width, config.short_side, config.long_side)
        return cls(batch, padded(rows, multiple), padded(columns, multiple))

    def fill(self, images: Sequence[Tensor], config: InputConfig) -> tuple[dict[str, np.ndarray], list[Tensor]]:
        """Resize images and place them in canvases.

        An image is resized as by the model, or smaller if it would not fit.

        Args:
            images: RGB uint8 (3, H, W) of any sizes, at most `batch`; the remaining canvases stay black.
            config: how the model resizes.

        Returns:
            `images` uint8 (batch, 3, height, width) and `sizes` int32 (batch, 2), height and width of each; and per
            image, (4,): pixels of the original image per canvas pixel, for x, y, x, y.
        """
        canvases = np.zeros((self.batch, 3, self.height, self.width), np.uint8)
        sizes, ratios = np.ones((self.batch, 2), np.int32), []
        for place, image in enumerate(images):
            height, width = image.shape[-2:]
            resized = resize(image, config.short_side, self._long_side(height, width, config), config.antialias)
            rows, columns = resized.shape[-2:]
            canvases[place, :, :rows, :columns] = resized.numpy()
            sizes[place] = rows, columns
            ratios.append(torch.tensor([width / columns, height / rows]).repeat(2))
        return {"images": canvases, "sizes": sizes}, ratios

    def _long_side(self, height: int, width: int, config: InputConfig) -> int:
        """Maximum longer side with which an image fits: the model's own, if possible."""
        rows, columns = input_size(height, width, config.short_side, config.long_side)
        if rows <= self.height and columns <= self.width:
            return config.long_side
        longer = max(height, width)
        return max(1, min(self.height * longer // height, self.width * longer // width))
