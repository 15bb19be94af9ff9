import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from making import picture

from doublehead.common.errors import DoubleheadError
from doublehead.config import AugmentConfig
from doublehead.data.images import to_tensor
from doublehead.data.loader import (
    DetectionDataset,
    default_workers,
    epoch_batches,
    evaluation_loader,
    steps_per_epoch,
    training_loader,
)
from doublehead.data.records import Categories, Findings, Record, Split
from doublehead.data.transforms import training_transform

EVERYTHING = AugmentConfig(short_sides=(32, 48), vertical_flip=0.5, colour=1.0, iou_crop=0.8)


def record(number, path, width, height, boxes, crowd=False):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    n = len(boxes)
    return Record(number, path, width, height, boxes, np.arange(1, n + 1), np.full(n, crowd), np.ones(n, np.float32))


def make_split(folder, count=11):
    records = []
    for i in range(count):
        width, height = (40, 30) if i % 3 else (30, 40)
        path = picture(folder / f"{i}.png", width, height, seed=i)
        boxes = [[2, 3, 20, 25], [15, 15, 16, 16], [5, 5, 28, 29]][: i % 4]
        records.append(record(100 + i, path, width, height, boxes))
    return Split("train", records, Categories(("a", "b", "c"), (1, 2, 3)), Findings())


@pytest.fixture
def split(tmp_path):
    return make_split(tmp_path / "images")


def batches(split, *, micro=2, rank=0, world=1, start=0, steps=7, workers=0, batch_size=4, seed=5):
    dataset = DetectionDataset(split, training_transform(EVERYTHING, 40, 60), seed)
    return list(training_loader(dataset, batch_size, micro, rank, world, seed, start, steps, workers))


def assert_same(first, second):
    assert len(first) == len(second)
    for (images, targets), (others, other_targets) in zip(first, second, strict=True):
        for a, b in zip(images, others, strict=True):
            assert torch.equal(a, b)
        for a, b in zip(targets, other_targets, strict=True):
            assert (a["image_id"], a["index"]) == (b["image_id"], b["index"])
            assert torch.equal(a["boxes"], b["boxes"])
            assert torch.equal(a["labels"], b["labels"])


def test_what_a_model_gets(split):
    images, targets = batches(split, micro=4, steps=1)[0]
    assert len(images) == len(targets) == 4
    for image, target in zip(images, targets, strict=True):
        assert type(image) is torch.Tensor
        assert image.dtype == torch.uint8
        assert min(image.shape[1:]) in (32, 48) or max(image.shape[1:]) == 60
        assert type(target["boxes"]) is torch.Tensor
        assert target["boxes"].dtype == torch.float32
        assert target["labels"].dtype == torch.int64
        assert target["boxes"].shape == (len(target["labels"]), 4)
        assert target["image_id"] == 100 + target["index"]
        limit = torch.tensor([image.shape[2], image.shape[1]] * 2)
        assert ((target["boxes"] >= 0) & (target["boxes"] <= limit)).all()


def test_augmentation_is_the_same_for_every_number_of_workers_and_whatever_else_is_random(split):
    expected = batches(split)
    torch.manual_seed(99)
    random.seed(99)
    assert_same(expected, batches(split, workers=1))
    assert_same(expected, batches(split, workers=2))


def test_loading_leaves_the_global_random_state_alone(split):
    before = torch.get_rng_state()
    batches(split, workers=0, steps=2)
    batches(split, workers=1, steps=2)
    assert torch.equal(before, torch.get_rng_state())


def test_resuming_at_a_step_gives_what_running_through_gives(split):
    whole = batches(split, steps=9)
    for start in (1, 2, 5):  # two steps an epoch: within one and between two
        assert_same(whole[2 * start :], batches(split, start=start, steps=9, workers=1))


def test_an_image_changes_between_epochs_and_with_the_seed(split):
    dataset = DetectionDataset(split, training_transform(EVERYTHING, 40, 60), 5)
    other = DetectionDataset(split, dataset.transform, 6)
    seen = {dataset[epoch, 1][0].float().mean().item() for epoch in range(5)} | {other[0, 1][0].float().mean().item()}
    assert len(seen) == 6


def test_ranks_share_out_each_global_batch(split):
    whole = batches(split, micro=4, steps=4)
    ranks = [batches(split, micro=1, rank=rank, world=2, steps=4) for rank in (0, 1)]
    for step, (_, targets) in enumerate(whole):
        parts = [t["index"] for rank in ranks for _, ts in rank[2 * step : 2 * step + 2] for t in ts]
        assert parts == [t["index"] for t in targets]
    with pytest.raises(DoubleheadError, match=r"train\.batch_size 4 cannot be divided among 3 processes"):
        batches(split, world=3, micro=1)


def test_an_epoch_is_full_batches_of_one_orientation_each_image_once():
    sizes = [(40, 30)] * 13 + [(30, 40)] * 6
    found = epoch_batches(sizes, 4, seed=1, epoch=0)
    assert len(found) == steps_per_epoch(19, 4) == 4
    assert all(len(batch) == 4 for batch in found)
    flat = [index for batch in found for index in batch]
    assert len(set(flat)) == len(flat)
    assert sum(len({index < 13 for index in batch}) == 1 for batch in found) == 4
    assert found == epoch_batches(sizes, 4, seed=1, epoch=0)
    assert found != epoch_batches(sizes, 4, seed=1, epoch=1)
    assert found != epoch_batches(sizes, 4, seed=2, epoch=0)
    mixed = epoch_batches([(4, 3)] * 3 + [(3, 4)] * 3, 4, seed=1, epoch=0)
    assert len(mixed) == 1


def test_fewer_images_than_a_batch_are_repeated():
    (batch,) = epoch_batches([(4, 3)] * 3, 8, 0, 0)
    assert len(batch) == 8
    assert set(batch) == {0, 1, 2}
    assert steps_per_epoch(3, 8) == 1


def test_evaluation_gives_each_original_once_by_shape_and_shares_them_among_ranks(split):
    seen = [pair for images, records in evaluation_loader(split, 4, 1) for pair in zip(images, records, strict=True)]
    assert sorted(record.image_id for _, record in seen) == [record.image_id for record in split.records]
    for image, record in seen:
        assert image.shape == (3, record.height, record.width)
    shapes = [record.width / record.height for _, record in seen]
    assert shapes == sorted(shapes)
    assert len(set(shapes)) > 1
    whole = [[record.image_id for record in records] for _, records in evaluation_loader(split, 4, 0)]
    ranks = [
        [[record.image_id for record in records] for _, records in evaluation_loader(split, 4, 0, rank, 4)]
        for rank in range(4)
    ]
    assert ranks == [[whole[0]], [whole[1]], [whole[2]], []]  # the same batches, and a rank without any


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_met_on_the_way_is_told_in_its_sentence(split, workers):
    path = split.records[4].path
    path.write_bytes(path.read_bytes()[:200])
    for run in (lambda: batches(split, workers=workers), lambda: list(evaluation_loader(split, 4, workers))):
        with pytest.raises(DoubleheadError) as caught:
            run()
        assert str(caught.value).startswith(f"{path}: is damaged")
        assert "\n" not in str(caught.value)


KEEPS_ITS_ERROR = """
import sys
from doublehead.data.loader import evaluation_loader
from doublehead.data.dataset import open_dataset
batches = evaluation_loader(open_dataset(sys.argv[1]).read("val"), 1, workers=1)
try:
    for _ in batches:
        raise RuntimeError("of the script")
except RuntimeError as error:
    kept = error
"""


def test_a_script_ends_that_keeps_an_error_met_while_it_loads(dataset):
    subprocess.run([sys.executable, "-c", KEEPS_ITS_ERROR, dataset], check=True, timeout=300)


def test_crowds_do_not_train_and_a_split_without_images_is_refused(tmp_path):
    crowd = record(1, picture(tmp_path / "x.png"), 40, 30, [[1, 1, 9, 9]], crowd=True)
    split = Split("train", [crowd], Categories(("a",), (1,)), Findings())
    image, target = DetectionDataset(split, training_transform(EVERYTHING, 40, 60), 0)[0, 0]
    assert target["boxes"].shape == (0, 4)
    assert image.shape[0] == 3
    with pytest.raises(DoubleheadError, match="no images"):
        batches(Split("train", [], split.categories, Findings()))


def test_without_augmentation_boxes_follow_the_size_and_one_pixel_boxes_survive(tmp_path):
    plain = AugmentConfig(horizontal_flip=0)
    item = record(1, picture(tmp_path / "x.png", 400, 300), 400, 300, [[100, 90, 101, 91], [0, 0, 400, 300]])
    split = Split("train", [item], Categories(("a", "b"), (1, 2)), Findings())
    image, target = DetectionDataset(split, training_transform(plain, 100, 120), 0)[0, 0]
    assert image.shape == (3, 90, 120)
    assert torch.allclose(target["boxes"], torch.tensor([[30, 27, 30.3, 27.3], [0, 0, 120, 90]]), atol=1e-4)
    assert target["labels"].tolist() == [1, 2]


def test_flips_carry_the_boxes_along(tmp_path):
    both = AugmentConfig(horizontal_flip=1, vertical_flip=1)
    item = record(1, picture(tmp_path / "x.png"), 40, 30, [[1, 2, 11, 12]])
    split = Split("train", [item], Categories(("a",), (1,)), Findings())
    image, target = DetectionDataset(split, training_transform(both, 30, 40), 0)[0, 0]
    assert target["boxes"].tolist() == [[29, 18, 39, 28]]
    original = next(iter(evaluation_loader(split, 1, 0)))[0][0]
    assert torch.equal(image.flip(1, 2), original)


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (300, 1)])
def test_images_of_hardly_a_pixel_pass(tmp_path, size):
    item = record(1, picture(tmp_path / "x.png", *size), *size, [[0, 0, *size]])
    split = Split("train", [item], Categories(("a",), (1,)), Findings())
    dataset = DetectionDataset(split, training_transform(EVERYTHING, 32, 64), 0)
    for epoch in range(8):
        image, target = dataset[epoch, 0]
        assert min(image.shape) >= 1
        assert torch.isfinite(target["boxes"]).all()


def test_crops_keep_boxes_and_labels_in_step(tmp_path):
    crop = AugmentConfig(horizontal_flip=0, iou_crop=1)
    pixels = np.zeros((90, 120, 3), np.uint8)
    boxes = [[10, 10, 40, 40], [70, 10, 110, 40], [10, 50, 50, 80]]
    for value, (x1, y1, x2, y2) in zip((60, 120, 180), boxes, strict=True):
        pixels[y1:y2, x1:x2] = value
    from PIL import Image

    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert to_tensor(Image.open(tmp_path / "x.png")).max() == 180
    item = record(1, tmp_path / "x.png", 120, 90, boxes)
    split = Split("train", [item], Categories(("a", "b", "c"), (1, 2, 3)), Findings())
    dataset = DetectionDataset(split, training_transform(crop, 90, 200), 0)
    fewer = 0
    for epoch in range(25):
        image, target = dataset[epoch, 0]
        fewer += len(target["labels"]) < 3
        for (x1, y1, x2, y2), label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            assert abs(int(image[0, int((y1 + y2) / 2), int((x1 + x2) / 2)]) - 60 * label) < 4
    assert fewer


def test_default_workers_leave_a_core_to_compute(monkeypatch):
    import os

    for cores, local, expected in ((1, 1, 1), (2, 1, 1), (8, 1, 7), (64, 1, 8), (16, 4, 3)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        assert default_workers(local) == expected
