import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from doublehead.data.near_copies import NEAR, group, near_pairs, original_name, perceptual_hash


def scene(seed: int) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((160, 120), Image.Resampling.BICUBIC)


def recompressed(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=30)
    return Image.open(file)


def test_copies_are_near_and_other_pictures_are_far():
    originals = [scene(seed) for seed in range(20)]
    copies = [
        changed
        for image in originals
        for changed in (image, recompressed(image), image.resize((96, 72)), ImageEnhance.Brightness(image).enhance(0.8))
    ]
    groups = group(len(copies), near_pairs([perceptual_hash(image) for image in copies]))
    assert groups == [list(range(start, start + 4)) for start in range(0, 80, 4)]


@pytest.mark.parametrize(("paper", "size"), [(255, 40), (255, 200), (5, 20)])
def test_pictures_too_plain_to_compare_have_no_hash(paper, size):
    """Objects on white paper or in a dark room: the hash is nearly the same whatever the picture shows."""
    random = np.random.default_rng(0)
    for _ in range(20):
        pixels = paper + random.normal(0, 2, (480, 640, 3)) * (paper < 255)
        x, y = random.integers(0, 640 - size), random.integers(0, 480 - size)
        pixels[y : y + size, x : x + size] = random.integers(0, 200, 3)
        assert perceptual_hash(Image.fromarray(pixels.clip(0, 255).astype(np.uint8))) is None


def test_pairs_are_those_of_the_definition():
    random = np.random.default_rng(0)
    hashes = [int(value) for value in random.integers(0, 1 << 63, 40)]
    for value in hashes[:20]:
        flips = random.choice(64, int(random.integers(1, 8)), replace=False)
        hashes.append(value ^ sum(1 << int(bit) for bit in flips))
    wanted = {(i, j) for i in range(60) for j in range(i + 1, 60) if (hashes[i] ^ hashes[j]).bit_count() <= NEAR}
    assert wanted
    assert {tuple(sorted(pair)) for pair in near_pairs(hashes)} == wanted
    assert list(near_pairs([])) == []


def test_groups_follow_chains():
    assert group(6, [(0, 3), (3, 5), (1, 2)]) == [[0, 3, 5], [1, 2], [4]]


def test_roboflows_copies_share_a_name():
    assert original_name("p1_png.rf.0123abcd.jpg") == original_name("p1_png.rf.99.jpg") == "p1_png"
