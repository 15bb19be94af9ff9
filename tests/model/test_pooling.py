import torch
from torchvision.ops import MultiScaleRoIAlign

from doublehead.model.pooling import RoIPooler, enlarge, pyramid_level


def pyramid(height: int, width: int) -> list[torch.Tensor]:
    return [torch.randn(2, 3, height // s, width // s) for s in (4, 8, 16, 32)]


def random_boxes(count: int, side: float, limit: float) -> torch.Tensor:
    corner = torch.rand(count, 2) * limit
    return torch.cat([corner, corner + torch.rand(count, 2) * side + 1], dim=1)


def test_agrees_with_torchvision_where_nothing_is_enlarged() -> None:
    torch.manual_seed(0)
    levels = pyramid(512, 640)
    boxes = [random_boxes(40, 500, 300), random_boxes(25, 60, 400)]
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)(
        {str(i): f for i, f in enumerate(levels)}, boxes, [(512, 640)] * 2
    )
    torch.testing.assert_close(RoIPooler()(levels, boxes), theirs)


def test_level_follows_the_unscaled_box() -> None:
    boxes = torch.tensor([[0, 0, 56, 56], [0, 0, 112, 112], [0, 0, 224, 224], [0, 0, 448, 448], [0, 0, 1e4, 1e4]])
    assert pyramid_level(boxes).tolist() == [0, 1, 2, 3, 3]
    assert pyramid_level(torch.zeros(1, 4)).tolist() == [0]
    # a box just under the next level stays at its own, though enlarged by 1.3 it would pass it
    torch.manual_seed(0)
    levels = pyramid(256, 256)
    box = torch.tensor([[20.0, 20.0, 120.0, 120.0]])  # P2
    alone = [levels[0], *(torch.zeros_like(f) for f in levels[1:])]
    torch.testing.assert_close(RoIPooler()(levels, [box, box[:0]], 1.3), RoIPooler()(alone, [box, box[:0]], 1.3))


def test_enlarging_keeps_the_centre() -> None:
    box = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    torch.testing.assert_close(enlarge(box, 1.5), torch.tensor([[5.0, 10.0, 35.0, 70.0]]))
    assert enlarge(box, 1.0) is box


def test_no_boxes() -> None:
    empty = torch.zeros(0, 4)
    assert RoIPooler()(pyramid(64, 64), [empty, empty]).shape == (0, 3, 7, 7)
