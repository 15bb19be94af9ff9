"""Images of any size as the input of an exported file with static shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from doublehead.config import InputConfig
from doublehead.model.detector import input_size, resize


@dataclass(frozen=True)
class Canvas:
    """An input of one size: `batch` images at once, each resized and in the top left corner of its own canvas."""

    batch: int
    height: int
    width: int

    @classmethod
    def of_images(cls, height: int, width: int, config: InputConfig, multiple: int, batch: int = 1) -> Canvas:
        """The model's own input for images of one size: resized, and padded to multiples of `multiple`."""
        rows, columns = input_size(height, width, config.short_side, config.long_side)
        return cls(batch, -(-rows // multiple) * multiple, -(-columns // multiple) * multiple)

    def fill(self, images: Sequence[Tensor], config: InputConfig) -> tuple[dict[str, np.ndarray], list[Tensor]]:
        """Put images where the file expects them.

        An image is resized as the model does it, or to a smaller size where that would not fit.

        Args:
            images: RGB uint8 (3, H, W) of any sizes, at most `batch`; canvases that are left stay black.
            config: how the model resizes.

        Returns:
            `images` uint8 (batch, 3, height, width) and `sizes` int32 (batch, 2), height and width of each; and per
            image, (4,): pixels of the image given to one of the canvas, for x, y, x, y.
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
        """The maximum longer side under which an image fits: the model's own, if that will do."""
        rows, columns = input_size(height, width, config.short_side, config.long_side)
        if rows <= self.height and columns <= self.width:
            return config.long_side
        longer = max(height, width)
        return max(1, min(self.height * longer // height, self.width * longer // width))
