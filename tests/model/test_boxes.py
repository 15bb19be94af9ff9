"""Inclusive boxes, by the authors' own definition: they end at their last pixel."""

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from doublehead.config import RPNConfig
from doublehead.model.boxes import EXCLUSIVE, Edges
from doublehead.model.detector import build_rpn
from doublehead.model.pooling import STRIDES

HEIGHT, WIDTH = 40, 60
LAST = torch.tensor([0.0, 0.0, 1.0, 1.0])


def boxes_in_and_out() -> Tensor:
    """Boxes inside the image, over each edge, and beyond it."""
    corner = torch.cartesian_prod(torch.tensor([-30.0, -5, 10, 55, 80]), torch.tensor([-30.0, -5, 10, 38, 70]))
    return torch.cat([corner, corner + torch.tensor([12.5, 7.25])], 1)


def test_clipping() -> None:
    boxes = boxes_in_and_out()
    theirs = boxes - LAST
    theirs[:, 0::2] = theirs[:, 0::2].clamp(0, WIDTH - 1)
    theirs[:, 1::2] = theirs[:, 1::2].clamp(0, HEIGHT - 1)
    assert torch.equal(Edges(inclusive=True).clip(boxes, (HEIGHT, WIDTH)), theirs + LAST)
    assert torch.equal(EXCLUSIVE.clip(boxes, (HEIGHT, WIDTH)), clip_boxes_to_image(boxes, (HEIGHT, WIDTH)))


def test_resizing() -> None:
    boxes, ratio = boxes_in_and_out(), torch.tensor([0.5, 0.25, 0.5, 0.25])
    torch.testing.assert_close(Edges(inclusive=True).rescale(boxes, ratio), (boxes - LAST) * ratio + LAST)
    assert torch.equal(EXCLUSIVE.rescale(boxes, ratio), boxes * ratio)


def test_proposals_beyond_the_edge_keep_a_pixel() -> None:
    beyond = torch.tensor([[70.0, 10.0, 90.0, 30.0]])
    for inclusive, kept in ((True, [[59.0, 10.0, 60.0, 30.0]]), (False, [])):
        rpn = build_rpn(RPNConfig(), 8, Edges(inclusive), STRIDES).eval()
        (found,), _ = rpn.filter_proposals(beyond[None], torch.ones(1), [(HEIGHT, WIDTH)], [1])
        assert found.tolist() == kept
