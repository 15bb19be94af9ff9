"""Every way to hand in an image, and the errors for what is not an image."""

from __future__ import annotations

import io
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from doublehead.common.errors import DoubleheadError, Fault
from doublehead.data import inputs
from doublehead.data.inputs import as_images, as_picture


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """A photograph without loss, 12 wide and 9 high."""
    path = tmp_path_factory.mktemp("inputs") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def pixels(file) -> np.ndarray:
    return np.array(Image.open(file))


def same(picture: Image.Image, pixels: np.ndarray, by: int = 0) -> bool:
    return picture.mode == "RGB" and np.abs(np.array(picture).astype(int) - pixels).max() <= by


class Place(os.PathLike):
    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path)


class Unseekable(io.BytesIO):
    def seekable(self):
        return False


def test_files_in_every_form(file, pixels):
    data = file.read_bytes()
    used = io.BytesIO(data)
    used.read()
    with file.open("rb") as opened:
        for image in (str(file), file, Place(file), np.str_(file), data, bytearray(data), memoryview(data)):
            assert same(as_picture(image), pixels)
        for image in (io.BytesIO(data), used, opened, Unseekable(data)):
            assert same(as_picture(image), pixels)


def test_arrays_in_every_form(pixels):
    wide = np.zeros((9, 24, 3), np.uint8)
    wide[:, ::2] = pixels
    exact = [
        pixels,
        pixels.transpose(2, 0, 1),
        np.asfortranarray(pixels),
        wide[:, ::2],
        pixels / 255,
        (pixels / 255).astype(np.float32),
        pixels.astype(np.uint16) * 257,
        pixels.astype(">u2") * 257,
    ]
    for image in exact:
        assert same(as_picture(image), pixels)


def test_tensors_in_every_form(pixels):
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for image in (tensor, tensor.contiguous(), tensor.permute(1, 2, 0), tensor / 255, tensor.double() / 255):
        assert same(as_picture(image), pixels)
    assert same(as_picture((tensor / 255).requires_grad_()), pixels)
    assert same(as_picture((tensor / 255).half()), pixels)
    assert same(as_picture((tensor / 255).bfloat16()), pixels, by=1)  # 8 bits of mantissa


def test_grey_and_transparent_arrays(pixels):
    grey, solid = pixels[:, :, 0], np.dstack([pixels, np.full((9, 12), 255, np.uint8)])
    for image in (grey, grey[None], grey[:, :, None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        assert same(as_picture(image), np.dstack([grey] * 3))
    for image in (solid, solid.transpose(2, 0, 1), torch.from_numpy(solid).permute(2, 0, 1)):
        assert same(as_picture(image), pixels)


def test_one_or_several(file, pixels):
    class Like:
        def __array__(self, *_, **__):
            return pixels

    tensor = torch.from_numpy(pixels)
    for image in (str(file), file, Place(file), b"", io.BytesIO(), Image.new("RGB", (4, 4)), pixels, tensor, Like()):
        given, single = as_images(image)
        assert single
        assert len(list(given)) == 1
    for images in ([file], (file,), iter([file]), {file}, pixels[None], tensor[None], np.array([str(file)])):
        given, single = as_images(images)
        assert not single
        assert len(list(given)) == 1


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (None, "None was given; give a path"),
        (3, "a int was given; give a path"),
        (np.float64(3), "a float was given; give a path"),
        ({"image": "a.jpg"}, r"a mapping with the keys \['image'\] was given"),
        (np.zeros((4, 4, 2), np.uint8), r"must be \(H, W, 3\), not of shape \(4, 4, 2\)"),
        (torch.zeros(5, 4, 2), r"must be \(3, H, W\), not of shape \(5, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), r"not of shape \(0, 4, 3\)"),
        (torch.zeros(1, 2, 3, 4, 5), r"not of shape \(1, 2, 3, 4, 5\)"),
        (np.full((4, 4, 3), 200.0), r"lies in 200\.\.200: divide it by 255"),
        (torch.linspace(-1, 1, 48).view(3, 4, 4), r"lies in -1\.\.1: .* \(image \+ 1\) / 2"),
        (torch.linspace(-2.1, 2.6, 48).view(3, 4, 4), r"lies in -2\.1\.\.2\.6: undo its normalisation"),
        (np.full((4, 4, 3), np.nan), "not finite"),
        (np.zeros((4, 4, 3), np.int64), "uint8 or float, not int64; .* uint8"),
        (np.zeros((4, 4, 3), bool), "uint8 or float, not bool"),
        (b"no image", "the image: is not an image that can be read"),
        (io.BytesIO(b""), "the image: is not an image that can be read"),
        (io.StringIO("text"), "mode 'rb'"),
        (Image.new("F", (4, 4)), "32-bit values"),
        ("", "is a folder"),
        ("s3://bucket/photo.jpg", "s3://bucket/photo.jpg: only http and https are fetched"),
        ("file:///etc/passwd", "file:///etc/passwd: only http and https are fetched"),
        ("data:image/png;base64," + 5000 * "A", "data:image/png"),
    ],
)
def test_what_is_no_image_is_told_in_a_sentence(image, sentence):
    (given,), single = as_images(image)
    assert single
    with pytest.raises(DoubleheadError, match=sentence):
        as_picture(given)


def test_a_folder_a_missing_file_and_a_closed_one(tmp_path, file):
    for folder in (str(tmp_path), tmp_path):
        with pytest.raises(DoubleheadError, match=f"{tmp_path}: is a folder; give its files"):
            as_picture(folder)
    with pytest.raises(DoubleheadError, match=r"none\.jpg: there is no such image file"):
        as_picture(tmp_path / "none.jpg")
    opened = file.open("rb")
    opened.close()
    with pytest.raises(DoubleheadError, match=f"{file}: cannot be read"):
        as_picture(opened)


@pytest.mark.parametrize("nested", [[["a.jpg"]], [[[0, 0, 0]]], [("a.jpg", 1)]])
def test_nested_lists_are_not_taken_apart(nested):
    given, single = as_images(nested)
    assert not single
    with pytest.raises(DoubleheadError, match=r"images\[0\]: a (list|tuple) was given; give .* flat list"):
        as_picture(next(iter(given)), "images[0]")


class Site(BaseHTTPRequestHandler):
    """photo.png, and whatever goes wrong."""

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path == "/moved":
            self._head(302, Location="/photo.png")
        elif path == "/away":
            self._head(302, Location="ftp://127.0.0.1/photo.png")
        elif path in ("/photo.png", "/a%20photo.png"):
            self._head(200)
            self.wfile.write(self.server.data)
        elif path == "/page":
            self._head(200)
            self.wfile.write(b"<html>")
        elif path == "/endless":
            self._head(200)
            while not self.wfile.closed:
                self.wfile.write(bytes(2**16))
        elif path == "/silent":
            time.sleep(2)
        else:
            self.send_error(404)

    def _head(self, status, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *words):
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):  # a client that has seen enough closes the connection
        pass


@pytest.fixture
def site(file, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server(("127.0.0.1", 0), Site)
    server.data = file.read_bytes()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_addresses_are_fetched(site, pixels):
    for address in (f"{site}/photo.png?key=1", f"{site}/moved", f"{site}/a photo.png", site.upper() + "/photo.png"):
        assert as_images(address)[1]
        assert same(as_picture(address), pixels)


@pytest.mark.parametrize(
    ("path", "kind", "sentence"),
    [
        ("none?key=secret", DoubleheadError, "/none: answered 404"),
        ("page", DoubleheadError, "/page: is not an image that can be read"),
        ("endless", DoubleheadError, "/endless: is larger than 0.5 MB"),
        ("silent", Fault, "/silent: cannot be fetched .*timed out"),
        ("away", Fault, "/away: cannot be fetched .*a redirect leads to ftp"),
    ],
)
def test_what_an_address_may_answer(site, monkeypatch, path, kind, sentence):
    monkeypatch.setattr(inputs, "SECONDS", 0.5)
    monkeypatch.setattr(inputs, "MEGABYTES", 0.5)
    with pytest.raises(kind, match=sentence) as raised:
        as_picture(f"{site}/{path}")
    assert "secret" not in str(raised.value)


def test_addresses_without_a_server(monkeypatch):
    monkeypatch.setattr(inputs, "SECONDS", 0.5)
    for address in ("http://127.0.0.1:9/photo.jpg", "http:///photo.jpg", "https://[::1/photo.jpg"):
        with pytest.raises(DoubleheadError, match=r"photo\.jpg: "):
            as_picture(address)
