import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from making import picture
from PIL import Image

import doublehead
from doublehead.common.errors import DoubleheadError
from doublehead.data.check import check_images
from doublehead.data.images import FORMATS, image_size, read_image, to_rgb, to_tensor
from doublehead.data.records import Record


def record(path: Path, width: int = 40, height: int = 30) -> Record:
    nothing = np.zeros(0)
    return Record(1, path, width, height, np.zeros((0, 4), np.float32), nothing.astype(np.int64), nothing > 0, nothing)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("P", 3, (60, 70, 80)),
        ("LA", (77, 255), (77, 77, 77)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (0, 0, 0, 0), (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("I;16", 257 * 77, (77, 77, 77)),
        ("I;16", 65535, (255, 255, 255)),
        ("I", 257 * 77, (77, 77, 77)),
    ],
)
def test_every_colour_mode_becomes_the_rgb_one_sees(tmp_path, mode, colour, expected):
    image = Image.new(mode, (5, 4), colour)
    if mode == "P":
        image.putpalette([0] * 9 + [60, 70, 80])
    assert to_rgb(image).getpixel((2, 2)) == expected
    path = tmp_path / ("x.tif" if mode in ("CMYK", "I") else "x.png")
    image.save(path)
    read = read_image(path)
    assert read.mode == "RGB"
    assert read.getpixel((2, 2)) == expected


def test_sixteen_bits_are_scaled_over_their_whole_range(tmp_path):
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    read = np.asarray(read_image(tmp_path / "deep.png"))
    assert (read[..., 0].ravel() == np.arange(256)).all()


def test_palette_with_a_transparent_entry_is_laid_on_white(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30])
    image.save(tmp_path / "x.png", transparency=0)
    assert read_image(tmp_path / "x.png").getpixel((0, 0)) == (255, 255, 255)


def test_floats_of_unknown_range_are_refused(tmp_path):
    Image.new("F", (4, 4), 0.5).save(tmp_path / "x.tif")
    with pytest.raises(DoubleheadError, match=r"x\.tif: has 32-bit values .* save it with 8 or 16 bits"):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_image_and_size_alike(tmp_path, orientation, suffix):
    image = Image.new("RGB", (40, 30))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{suffix}"
    image.save(path, exif=exif)
    expected = (40, 30) if orientation < 5 else (30, 40)
    assert read_image(path).size == image_size(path) == expected


def test_tensor_is_channels_first_bytes():
    tensor = to_tensor(Image.new("RGB", (5, 4), (1, 2, 3)))
    assert tensor.shape == (3, 4, 5)
    assert tensor[:, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_an_unreadable_image_is_named(tmp_path, suffix):
    cut = picture(tmp_path / f"cut.{suffix}")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    text = tmp_path / f"text.{suffix}"
    text.write_text("no image")
    empty = tmp_path / f"empty.{suffix}"
    empty.touch()
    for path, message in ((cut, "damaged or cut short"), (text, "not an image"), (empty, "not an image")):
        with pytest.raises(DoubleheadError, match=rf"{path.name}: is {message}"):
            read_image(path)
    with pytest.raises(DoubleheadError, match=r"none.jpg: there is no such image file"):
        image_size(tmp_path / "none.jpg")


def test_an_image_past_pillows_limit_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DoubleheadError, match=r"big.png: has more pixels than Pillow's limit"):
        read_image(picture(tmp_path / "big.png"))


def test_check_names_the_first_fault_and_counts_the_rest(tmp_path):
    good = picture(tmp_path / "good.png")
    cut = picture(tmp_path / "cut.jpg")
    cut.write_bytes(cut.read_bytes()[:-300])  # the header is whole
    seen = []
    records = [record(good), record(cut), record(tmp_path / "gone.png"), record(good)]
    with pytest.raises(DoubleheadError, match=r"cut.jpg: is damaged .*and 1 more of 4 images"):
        check_images(records, "decode", lambda: seen.append(1))
    assert len(seen) == 4
    with pytest.raises(DoubleheadError, match=r"gone.png: there is no such"):
        check_images(records, "header")
    check_images(records, "none")
    check_images(records[:1])


@pytest.mark.parametrize("how", ["decode", "header"])
def test_check_compares_sizes_and_knows_an_exchange(tmp_path, how):
    path = picture(tmp_path / "x.png")
    with pytest.raises(DoubleheadError, match=r"x.png: is 40x30, but the annotations say 30x40; .* EXIF"):
        check_images([record(path, 30, 40)], how)
    with pytest.raises(DoubleheadError, match=r"x.png: is 40x30, but the annotations say 80x60; restore"):
        check_images([record(path, 80, 60)], how)


@pytest.mark.parametrize("form", ["EPS", "TGA", "PCX", "SGI"])
def test_a_file_of_another_format_never_reaches_its_decoder(tmp_path, monkeypatch, form):
    path = tmp_path / "x.jpg"
    Image.new("RGB", (8, 6), "red").save(path, form)
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was called"))
    for read in (read_image, image_size):
        with pytest.raises(DoubleheadError, match=r"x\.jpg: is not an image that can be read"):
            read(path)
        with pytest.raises(DoubleheadError, match=r"photo\.jpg: is not an image that can be read"):
            read(Path("photo.jpg"), path.read_bytes())


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_read_whatever_its_suffix(tmp_path, form):
    path = tmp_path / "x.jpg"
    Image.new("RGB", (8, 6), (250, 5, 5)).save(path, form)
    assert image_size(path) == (8, 6)
    assert np.abs(np.array(read_image(path)).astype(int) - [250, 5, 5]).max() < 12


def test_pillow_opens_files_in_one_place():
    source = Path(doublehead.__file__).parent
    callers = [path.name for path in source.rglob("*.py") if "Image.open(" in path.read_text()]
    assert callers == ["images.py"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted as Linux lists them")
def test_tensors_start_no_threads() -> None:
    """Threads of torch beside those of the model slow the model down."""
    script = """
import os, threading
from PIL import Image
from doublehead.data.images import to_tensor
def count():
    before = len(os.listdir("/proc/self/task"))
    assert to_tensor(Image.new("RGB", (2000, 1500), (1, 2, 3)))[:, -1, -1].tolist() == [1, 2, 3]
    print(len(os.listdir("/proc/self/task")) - before)
import torch
thread = threading.Thread(target=count)
thread.start()
thread.join()
"""
    env = os.environ | {"OMP_NUM_THREADS": "4"}
    run = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "0", run.stderr
