"""A dataset without splits: the same picture goes to the same split, and near-copies go together."""

from pathlib import Path

import numpy as np
import pytest
from cases import labelimg_flat
from making import box, coco, image, picture, thing, xml
from PIL import Image

from doublehead.common.categories import Categories
from doublehead.common.errors import DoubleheadError
from doublehead.config import SplitConfig, parse_settings
from doublehead.data.dataset import open_dataset, summary
from doublehead.evaluation.evaluate import measured_split
from doublehead.model.checkpoint import save_checkpoint
from doublehead.model.detector import Detector
from doublehead.training.environment import fingerprint
from doublehead.training.recipes import resolve
from small import SMALL


def flat(root: Path, names: dict[str, int]) -> Path:
    """Pictures with an XML file each: by name, their seeds."""
    for name, seed in names.items():
        picture(root / f"{name}.png", seed=seed)
        (root / f"{name}.xml").write_text(xml(thing("a", 1, 1, 9, 9)))
    return root


def homes(root: Path, shares: SplitConfig | None = None) -> dict[bytes, str]:
    dataset = open_dataset(root, shares)
    return {
        record.path.read_bytes(): split for split in dataset.splits for record in dataset.read(split).records
    }  # fmt: skip


def test_the_content_decides_and_not_the_name_or_the_order(tmp_path):
    one = homes(flat(tmp_path / "one", {f"a{seed}": seed for seed in range(60)}))
    other = homes(flat(tmp_path / "other", {f"b{1000 - seed}": seed for seed in range(60)}))
    assert one == other
    more = homes(flat(tmp_path / "one", {f"new{seed}": seed for seed in range(60, 90)}))
    assert one.items() <= more.items()


def test_shares_are_about_what_is_asked_and_another_seed_chooses_others(tmp_path):
    root = flat(tmp_path, {str(seed): seed for seed in range(200)})
    counts = {name: list(homes(root).values()).count(name) for name in ("train", "val", "test")}
    assert sum(counts.values()) == 200
    assert abs(counts["train"] - 160) < 20
    assert min(counts["val"], counts["test"]) > 8
    assert homes(root, SplitConfig(seed=1)) != homes(root)
    assert set(homes(root, SplitConfig(shares=(0.5, 0.5))).values()) == {"train", "val"}


def test_turns_of_the_shares_are_the_folds_of_a_cross_validation(tmp_path):
    root = flat(tmp_path, {str(seed): seed for seed in range(90)})
    folds = [homes(root, SplitConfig(shares=(2, 0, 1), turn=turn)) for turn in (0, 1 / 3, 2 / 3)]
    for name in folds[0]:
        assert sorted(fold[name] for fold in folds) == ["test", "train", "train"]


def test_three_pictures_fill_three_splits(tmp_path):
    for start in range(0, 30, 3):
        root = flat(tmp_path / str(start), {str(seed): seed for seed in range(start, start + 3)})
        assert sorted(homes(root).values()) == ["test", "train", "val"]


def test_near_copies_stay_together(tmp_path):
    for seed in range(12):
        cells = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        scene = Image.fromarray(cells).resize((80, 60), Image.Resampling.BICUBIC)
        for place in range(5):
            frame = tmp_path / f"video{seed}-{place}.jpg"
            scene.point(lambda value, place=place: value * (20 - place) // 20).save(frame, quality=90 - 10 * place)
            frame.with_suffix(".xml").write_text(xml(thing("a", 1, 1, 9, 9), size=""))
    dataset = open_dataset(tmp_path)
    videos = [{record.path.name.split("-")[0] for record in dataset.read(split).records} for split in dataset.splits]
    assert sum(map(len, videos)) == 12


def test_augmented_copies_of_roboflow_stay_together(tmp_path):
    names = {f"p{seed % 20}_png.rf.{seed:032x}": seed for seed in range(80)}
    dataset = open_dataset(flat(tmp_path, names))
    originals = [{record.path.name.split(".rf.")[0] for record in dataset.read(s).records} for s in dataset.splits]
    assert sum(map(len, originals)) == 20


def test_findings_go_with_their_images_and_others_to_train(tmp_path):
    entries = [image(k) for k in range(20)]
    for k in range(20):
        picture(tmp_path / f"{k}.png", seed=k)
    small = [box(k, k, 1, [1, 1, 0, 5]) for k in range(20)]
    coco(tmp_path / "all.json", entries, [*small, box(99, 99, 1, [1, 1, 5, 5])], [{"id": 1, "name": "cat"}])
    dataset = open_dataset(tmp_path)
    for name in dataset.splits:
        split = dataset.look(name)
        assert split.findings.counts["boxes without area ignored"] == len(split.records)
        assert ("annotations of unknown images" in split.findings.counts) == (name == "train")


def test_it_is_said_recorded_and_set(tmp_path):
    labelimg_flat(tmp_path / "data")
    dataset = open_dataset(tmp_path / "data")
    assert "80/10/10" in dataset.note
    assert "80/10/10" in summary(dataset.read("train"))
    settings = parse_settings(["data.split=[0.5, 0.25, 0.25]"])
    config = resolve("double-head-tiny", settings=settings)
    assert config.data.split == SplitConfig(shares=(0.5, 0.25, 0.25))
    other = open_dataset(tmp_path / "data", config.data.split)
    assert fingerprint(other.read("train"), tmp_path) != fingerprint(dataset.read("train"), tmp_path)
    file = tmp_path / "shares.yaml"
    file.write_text("root: data\nsplit: [0.5, 0.25, 0.25]\n")
    from_yaml = open_dataset(file)
    assert fingerprint(from_yaml.read("train"), tmp_path) == fingerprint(other.read("train"), tmp_path)


@pytest.mark.parametrize("text", ["[0, 1]", "[1]", "[0.5, -0.5, 1]", "[nan, 1, 1]", "[1, 2, 3, 4]", "half"])
def test_shares_that_make_no_sense_are_refused(text):
    with pytest.raises(DoubleheadError, match=r"data\.split"):
        resolve("double-head-tiny", settings=parse_settings([f"data.split={text}"]))


def test_shares_of_a_dataset_with_splits_are_refused(tmp_path):
    picture(tmp_path / "train/1.png")
    coco(
        tmp_path / "annotations/instances_train.json",
        [image(1)],
        [box(1, 1, 1, [1, 1, 5, 5])],
        [{"id": 1, "name": "a"}],
    )
    with pytest.raises(DoubleheadError, match=r"splits of its own.*data\.split"):
        open_dataset(tmp_path, SplitConfig())


def test_nothing_is_written_into_the_dataset(tmp_path):
    root = flat(tmp_path / "data", {str(seed): seed for seed in range(5)})
    before = {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}
    homes(root)
    assert before == {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}


def test_a_run_is_measured_on_the_split_that_it_left_out(tmp_path):
    root = flat(tmp_path / "data", {str(seed): seed for seed in range(30)})
    config = resolve("double-head-tiny", settings={k: v for k, v in SMALL.items() if k.startswith("model.")}).model
    weights = tmp_path / "best.safetensors"
    model = Detector(config, 1, pretrained=False)
    shares = SplitConfig(shares=(0.5, 0.5), seed=3)
    save_checkpoint(weights, config, Categories(("a",), (1,)), model.state_dict(), {"split": shares.model_dump()})
    wanted = [record.path for record in open_dataset(root, shares).read("val").records]
    assert [record.path for record in measured_split(weights, root, "val").records] == wanted
    assert [record.path for record in measured_split(weights, root, "val", SplitConfig()).records] != wanted


def shared_counts(root: Path, images: list[Image.Image]) -> list[int]:
    """How many of these images each of the three splits gets."""
    for number, shot in enumerate(images):
        shot.save(root / f"{number}.png")
        (root / f"{number}.xml").write_text(xml(thing("a", 1, 1, 9, 9), size=""))
    splits = open_dataset(root)
    return [len(splits.read(name).records) for name in ("train", "val", "test")]


def scene(random: np.random.Generator) -> np.ndarray:
    return random.integers(0, 256, (8, 9, 3))


def shown(cells: np.ndarray) -> Image.Image:
    return Image.fromarray(cells.clip(0, 255).astype(np.uint8)).resize((72, 64), Image.Resampling.NEAREST)


def test_frames_of_many_videos_keep_to_the_shares(tmp_path):
    """Ten frames of each of forty scenes: about four scenes are held out for each of val and test."""
    random = np.random.default_rng(0)
    scenes = [scene(random) for _ in range(40)]
    frames = [shown(cells + random.integers(-2, 3, cells.shape)) for cells in scenes for _ in range(10)]
    train, val, test = shared_counts(tmp_path, frames)
    assert 240 <= train < 380
    assert min(val, test) >= 10


def test_pictures_of_one_still_camera_are_shared_out(tmp_path):
    """All look alike, each with another object: they are not copies."""
    random = np.random.default_rng(0)
    camera, pictures = scene(random), []
    for _ in range(100):
        cells = camera.copy()
        cells[random.integers(8), random.integers(9)] = random.integers(0, 256, 3)
        pictures.append(shown(cells))
    train, val, test = shared_counts(tmp_path, pictures)
    assert train >= 50
    assert min(val, test) >= 2


def test_objects_on_white_paper_are_shared_out(tmp_path):
    random = np.random.default_rng(0)
    pictures = []
    for _ in range(100):
        pixels = np.full((64, 72, 3), 255, dtype=np.uint8)
        x, y = random.integers(0, 64), random.integers(0, 56)
        pixels[y : y + 8, x : x + 8] = random.integers(0, 200, 3)
        pictures.append(Image.fromarray(pixels))
    train, val, test = shared_counts(tmp_path, pictures)
    assert abs(train - 80) < 15
    assert min(val, test) >= 4
