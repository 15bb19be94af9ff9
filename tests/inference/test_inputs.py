"""Everything that a person hands over as an image, or as several."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import doublehead
from doublehead.common.errors import DoubleheadError
from doublehead.data.images import image_size, read_image


@pytest.fixture(scope="module")
def predictor(trained: Path) -> doublehead.Predictor:
    return doublehead.load(trained / "best.safetensors", device="cpu")


@pytest.fixture
def paths(dataset: Path) -> list[Path]:
    return sorted((dataset / "test").iterdir())


class Other:
    """A path of another library."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


def test_files_in_any_form(predictor: Any, paths: list[Path]) -> None:
    path = paths[0]
    expected = predictor.predict(path)
    assert len(expected)
    with path.open("rb") as file:
        forms = (path.read_bytes(), bytearray(path.read_bytes()), io.BytesIO(path.read_bytes()), file, Other(path))
        for form in forms:
            assert predictor.predict(form) == expected


def test_arrays_and_tensors_in_any_form(predictor: Any, paths: list[Path]) -> None:
    array = np.array(Image.open(paths[0]))
    expected = predictor.predict(array)
    first = array.transpose(2, 0, 1)
    for image in (first, np.asfortranarray(array), array[:, :, :].copy(order="F"), array.astype(np.float64) / 255):
        assert predictor.predict(image) == expected
    tensor = torch.from_numpy(first.copy())
    assert predictor.predict(tensor.requires_grad_(False).unsqueeze(0)[0]) == expected
    half = predictor.predict((tensor / 255).bfloat16())
    assert isinstance(half, doublehead.Detections)
    wide = np.array(Image.open(paths[0]).convert("L")).astype(np.uint16) * 257
    assert predictor.predict(wide) == predictor.predict(Image.open(paths[0]).convert("L"))


def test_collections_give_lists(predictor: Any, paths: list[Path]) -> None:
    expected = predictor.predict(paths[:2])
    assert [type(found) for found in expected] == [doublehead.Detections] * 2
    arrays = [np.array(Image.open(path)) for path in paths[:2]]
    collections = (
        tuple(paths[:2]),
        iter(paths[:2]),
        (path for path in paths[:2]),
        dict.fromkeys(paths[:2]).keys(),
        np.stack(arrays),
        torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2),
    )
    for several in collections:
        assert predictor.predict(several) == expected
    assert predictor.predict(()) == predictor.predict(np.zeros((0, 4, 4, 3), np.uint8)) == []


@pytest.fixture
def server(dataset: Path) -> Iterator[str]:
    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(dataset / "test"))

        def log_message(self, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_addresses(predictor: Any, paths: list[Path], server: str) -> None:
    assert predictor.predict(f"{server}/{paths[0].name}") == predictor.predict(paths[0])
    with pytest.raises(DoubleheadError, match=f"{server}/none.jpg: could not be fetched"):
        predictor.predict(f"{server}/none.jpg")
    with pytest.raises(DoubleheadError, match="could not be fetched"):
        predictor.predict("http://127.0.0.1:9/a.jpg")


def test_a_folder_is_called_one(predictor: Any, paths: list[Path]) -> None:
    with pytest.raises(DoubleheadError, match="is a folder"):
        predictor.predict(paths[0].parent)


def test_a_file_is_read_by_its_content_and_only_as_a_picture(tmp_path: Path) -> None:
    """An EPS would start Ghostscript, whatever it is called."""
    (tmp_path / "x.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    for read in (read_image, image_size):
        with pytest.raises(DoubleheadError, match=r"x\.jpg: is not an image"):
            read(tmp_path / "x.jpg")
    Image.new("RGB", (4, 4)).save(tmp_path / "y.png", "JPEG")
    assert read_image(tmp_path / "y.png").size == (4, 4)


@pytest.mark.parametrize("default", ["float16", "bfloat16", "float64"])
def test_nothing_depends_on_the_default_type(trained: Path, dataset: Path, default: str, tmp_path: Path) -> None:
    """Detections, losses and a fresh model, in a process whose default type another library has changed."""
    script = f"""
import sys, torch
if sys.argv[1] != "float32":
    torch.set_default_dtype(getattr(torch, sys.argv[1]))
import doublehead
from doublehead.model.detector import Detector
from doublehead.model.presets import preset
predictor = doublehead.load({str(trained / "best.safetensors")!r}, device="cpu")
found = predictor.predict({str(sorted((dataset / "test").iterdir())[0])!r})
print(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist())
torch.manual_seed(0)
model = Detector(predictor.model.config, 3).train()
assert {{p.dtype for p in model.parameters()}} == {{torch.float32}}
torch.manual_seed(0)
image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
boxes = torch.tensor([[4.0, 4, 40, 50]], dtype=torch.float32)
losses = model.losses([image], [{{"boxes": boxes, "labels": torch.tensor([1])}}])
print({{k: v.item() for k, v in losses.items()}})
"""
    words = [sys.executable, "-c", script]
    expected, found = (
        subprocess.run([*words, kind], capture_output=True, text=True, check=True).stdout
        for kind in ("float32", default)
    )
    assert expected
    assert found == expected
