"""Windows around objects."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from doublehead.common.errors import DoubleheadError
from doublehead.data.records import Record
from doublehead.evaluation.analysis.proposals import choose, objects_of
from doublehead.evaluation.budget import BINS, FULL, Budget


def record(boxes, labels=None, crowd=None, image_id=1, size=(640, 480)):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    labels = np.ones(len(boxes), np.int64) if labels is None else np.asarray(labels, np.int64)
    crowd = np.zeros(len(boxes), bool) if crowd is None else np.asarray(crowd, bool)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return Record(image_id, Path(f"{image_id}.jpg"), *size, boxes, labels, crowd, areas)


@pytest.mark.parametrize(
    "box", [(300, 200, 360, 280), (0, 0, 90, 60), (620, 460, 640, 480), (100.4, 100.3, 105.8, 140.9), (20, 0, 630, 480)]
)
@pytest.mark.parametrize("count", [400, 20])
def test_every_range_of_iou_is_filled_alike(box, count):
    """In the middle, in corners, of a few pixels, and as large as the image."""
    (only,) = objects_of(record([box]))
    windows, ious = only.windows(count)
    np.testing.assert_allclose(ious, box_iou(torch.tensor(windows), torch.tensor([box]))[:, 0], atol=1e-5)
    counts = np.histogram(ious, np.linspace(0, 1, BINS + 1))[0]
    assert counts.tolist() == [count // BINS] * BINS
    assert (windows >= 0).all()
    assert (windows <= np.tile([640, 480], 2)).all()


def test_the_papers_number_of_windows_fits_around_an_ordinary_object():
    (only,) = objects_of(record([(300, 200, 360, 280)]))
    assert len(only.windows(FULL.windows)[0]) == 14_000


def test_a_window_of_a_neighbour_of_the_class_is_left_out():
    box, neighbour = (100, 100, 160, 160), (130, 100, 190, 160)
    lone, _ = objects_of(record([box, neighbour], labels=[1, 2]))
    crowded, _ = objects_of(record([box, neighbour]))

    def nearer_to_neighbour(windows):
        ious = box_iou(torch.tensor(windows), torch.tensor([box, neighbour]))
        return int((ious[:, 1] > ious[:, 0] + 1e-5).sum())

    assert nearer_to_neighbour(lone.windows(400)[0])
    assert not nearer_to_neighbour(crowded.windows(400)[0])
    assert len(crowded.windows(400)[0]) == 400


def test_crowds_and_boxes_without_area_are_no_objects():
    boxes = [(10, 10, 50, 50), (0, 0, 600, 400), (20, 20, 20, 60), (630, 100, 700, 200)]
    found = objects_of(record(boxes, crowd=[False, True, False, False]))
    assert [tuple(each.box) for each in found] == [(10, 10, 50, 50), (630, 100, 640, 200)]  # clipped to the image
    assert [each.size for each in found] == ["medium", "medium"]


def test_the_same_objects_are_drawn_each_time():
    records = [record([(10, 10, 50, 50), (60, 60, 80, 90)], image_id=k) for k in range(30)]
    budget = Budget(images=20, objects=15, windows=40)
    images, objects = choose(records, budget)
    again = choose(records, budget)
    assert len(images) == 20
    assert len(objects) == 15
    assert {each.image_id for each in objects} <= {image.image_id for image in images}
    assert [(o.image_id, *o.box) for o in objects] == [(o.image_id, *o.box) for o in again[1]]
    everything = choose(records, Budget(None, None, 40))
    assert (len(everything[0]), len(everything[1])) == (30, 60)


def test_images_without_objects_are_named_as_such():
    with pytest.raises(DoubleheadError, match="no annotated object"):
        choose([record([])], FULL)
