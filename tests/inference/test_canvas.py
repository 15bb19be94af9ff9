"""Images of any size in the one input that a file with static shapes has."""

from __future__ import annotations

import pytest
import torch

from doublehead.config import InputConfig
from doublehead.inference.canvas import Canvas
from doublehead.model.detector import resize

CONFIG = InputConfig(short_side=96, long_side=160)


def image(height: int, width: int) -> torch.Tensor:
    return torch.randint(1, 256, (3, height, width), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(480, 640, (96, 128)), (300, 600, (96, 160)), (64, 200, (64, 160))]
)
def test_is_the_models_own_input_for_the_size_given(height: int, width: int, expected: tuple[int, int]) -> None:
    canvas = Canvas.of_images(height, width, CONFIG, 32)
    assert (canvas.height, canvas.width) == expected


def test_an_image_that_fits_is_resized_as_the_model_does_it() -> None:
    canvas, given = Canvas.of_images(480, 640, CONFIG, 32, batch=3), [image(480, 640), image(200, 250)]
    inputs, ratios = canvas.fill(given, CONFIG)
    assert (inputs["images"].shape, inputs["images"].dtype) == ((3, 3, 96, 128), "uint8")
    assert inputs["sizes"].dtype == "int32"
    for place, (each, ratio) in enumerate(zip(given, ratios, strict=True)):
        expected = resize(each, CONFIG.short_side, CONFIG.long_side, CONFIG.antialias)
        rows, columns = inputs["sizes"][place]
        assert (rows, columns) == expected.shape[-2:]
        assert torch.equal(torch.from_numpy(inputs["images"][place, :, :rows, :columns]), expected)
        assert not inputs["images"][place, :, rows:].any()
        assert not inputs["images"][place, :, :, columns:].any()
        x, y = each.shape[-1] / columns, each.shape[-2] / rows
        assert ratio.tolist() == pytest.approx([x, y, x, y])
    assert not inputs["images"][2].any()


@pytest.mark.parametrize(("height", "width"), [(640, 480), (97, 300), (1000, 999), (3, 2000), (2000, 3), (1, 1)])
def test_an_image_that_does_not_fit_is_made_as_large_as_the_canvas_allows(height: int, width: int) -> None:
    canvas = Canvas.of_images(480, 640, CONFIG, 32)
    inputs, _ = canvas.fill([image(height, width)], CONFIG)
    (rows, columns), limit = inputs["sizes"][0].tolist(), (canvas.height, canvas.width)
    assert rows <= limit[0]
    assert columns <= limit[1]
    own = resize(image(height, width), CONFIG.short_side, CONFIG.long_side, CONFIG.antialias).shape[-2:]
    if own[0] > limit[0] or own[1] > limit[1]:
        assert rows >= limit[0] - 1 or columns >= limit[1] - 1
    else:
        assert (rows, columns) == tuple(own)
