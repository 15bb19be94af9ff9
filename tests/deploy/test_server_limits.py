"""What the server refuses, and how it stands what it cannot take at once."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import sys
import threading
import weakref
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image
from serving import DETECT, JPEG, encoded, files, picture, problem, sent, small_app, until, waiting

from doublehead.common.errors import DoubleheadError
from doublehead.data.images import to_tensor
from doublehead.deploy.server import app as routes
from doublehead.deploy.server.batcher import Batcher
from doublehead.deploy.server.settings import make_settings


def png_that_claims(width: int, height: int) -> bytes:
    """A few bytes whose header promises a picture of any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


WHOLE = encoded(picture())


@pytest.mark.parametrize(
    ("options", "status", "error"),
    [
        ({"content": b"", "headers": JPEG}, 400, "no_image"),
        ({"content": b""}, 400, "no_image"),
        ({"content": b"no image", "headers": JPEG}, 415, "unsupported_image"),
        ({"content": b"\x89PNG\r\n\x1a\n", "headers": JPEG}, 415, "unsupported_image"),
        ({"content": WHOLE[:-300], "headers": JPEG}, 400, "damaged"),
        ({"content": WHOLE[:100], "headers": JPEG}, 400, "damaged"),
        ({"content": encoded(picture(), "GIF"), "headers": {"Content-Type": "image/gif"}}, 415, "unsupported_image"),
        ({"content": encoded(picture(), "TIFF"), "headers": {"Content-Type": "image/jpeg"}}, 415, "unsupported_image"),
        ({"content": b"<svg/>", "headers": {"Content-Type": "image/svg+xml"}}, 415, "unsupported_image"),
        ({"json": {"url": "http://127.0.0.1/x.jpg"}}, 415, "unsupported_body"),
        ({"data": {"images": "http://127.0.0.1/x.jpg"}}, 415, "unsupported_body"),
        ({"content": WHOLE, "headers": {"Content-Type": "text/plain"}}, 415, "unsupported_body"),
        ({"content": WHOLE, "headers": {"Content-Type": "multipart/form-data"}}, 400, "bad_form"),
        ({"content": WHOLE, "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, 400, "bad_form"),
        ({"content": b"--x--\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, 400, "no_image"),
        ({"files": [("images", (None, "http://127.0.0.1/x.jpg"))]}, 400, "bad_form"),
        ({"files": files(WHOLE, field="photo")}, 400, "bad_form"),
        ({"files": files(WHOLE, b"")}, 400, "no_image"),
        ({"files": files(WHOLE, b"no image")}, 415, "unsupported_image"),
        ({"files": files(WHOLE, WHOLE[:-300])}, 400, "damaged"),
        ({"content": png_that_claims(60_000, 60_000), "headers": JPEG}, 413, "too_many_pixels"),
        ({"content": png_that_claims(10_000, 10_000), "headers": JPEG}, 413, "too_many_pixels"),
        ({"content": png_that_claims(2**31 - 1, 2**31 - 1), "headers": JPEG}, 413, "too_many_pixels"),
        ({"content": png_that_claims(7_000, 5_000), "headers": JPEG}, 400, "damaged"),  # claims as many as it may
    ],
)
def test_bodies_that_are_refused(client, options, status, error):
    problem(client.post(DETECT, **options), status, error)
    assert client.get("/metrics").text.count("doublehead_waiting_images 0.0") == 1


def test_the_image_at_fault_is_named(client):
    assert problem(client.post(DETECT, files=files(WHOLE, WHOLE[:-300])), 400, "damaged").startswith(
        "1.jpg: is damaged or cut short"
    )


def test_limits(served):
    client = served(max_megabytes=0.02, max_megapixels=0.01, max_images=2)
    small = encoded(picture(size=(64, 64)))
    assert len(small) < 9_000
    assert client.post(DETECT, files=files(small, small)).status_code == 200
    assert "2 images" in problem(client.post(DETECT, files=files(small, small, small)), 413, "too_many_images")
    assert "10000 pixels" in problem(sent(client, picture(size=(101, 100)), form="JPEG"), 413, "too_many_pixels")
    assert "10000 pixels" in problem(
        client.post(DETECT, files=files(small, encoded(picture(size=(96, 72))))), 413, "too_many_pixels"
    )
    noise = encoded(Image.effect_noise((95, 95), 90).convert("RGB"), "BMP")
    assert "20000 bytes" in problem(sent(client, noise), 413, "too_large")
    assert problem(client.post(DETECT, content=iter([noise[:9000]] * 5), headers=JPEG), 413, "too_large")  # no length
    assert client.post(DETECT, files=files(small)).status_code == 200


def test_formats_can_be_allowed(served):
    client = served(formats="gif, tiff")
    for form, status in (("GIF", 200), ("TIFF", 200), ("JPEG", 415)):
        assert sent(client, picture(), form=form).status_code == status
    with pytest.raises(DoubleheadError, match=r"the server's settings: `formats.0`"):
        make_settings(formats=("pdf",))


def test_api_key(served):
    client = served(api_key="s3cret")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}, {"X-API-Key": "s3cret"}):
        for method, path in (("POST", DETECT), ("GET", "/v1/models"), ("GET", "/metrics")):
            response = client.request(method, path, headers=headers)
            assert "Authorization: Bearer KEY" in problem(response, 401, "unauthorized")
            assert response.headers["WWW-Authenticate"] == "Bearer"
    right = {"Authorization": "Bearer s3cret"}
    assert client.get("/v1/models", headers=right).status_code == 200
    assert client.post(DETECT, content=WHOLE, headers=right | JPEG).status_code == 200
    for path in ("/", "/health", "/ready", "/openapi.json", "/docs"):
        assert client.get(path).status_code == 200
    assert "s3cret" not in client.get("/openapi.json").text


@pytest.fixture
def held(monkeypatch):
    """The model waits until it is let go."""
    gate, detect = threading.Event(), routes.Engine.detect

    def waiting(self, images, choices):
        assert gate.wait(30)
        return detect(self, images, choices)

    monkeypatch.setattr(routes.Engine, "detect", waiting)
    yield gate
    gate.set()


def test_overload_is_turned_away_and_nothing_is_lost(served, held):
    client = served(queue=6, max_images=4)
    with ThreadPoolExecutor(6) as pool:
        taken = [pool.submit(sent, client, picture(i)) for i in range(4)]
        until(lambda: waiting(client) == 4)
        for options in ({"files": files(WHOLE, WHOLE, WHOLE)}, {"files": files(*[WHOLE] * 4)}):  # more than 2 are left
            refused = client.post(DETECT, **options)
            assert problem(refused, 503, "busy")
            assert int(refused.headers["Retry-After"]) >= 1
        taken.append(pool.submit(client.post, DETECT, files=files(WHOLE, WHOLE)))
        until(lambda: waiting(client) == 6)
        refused = sent(client, picture())
        assert problem(refused, 503, "busy")
        assert int(refused.headers["Retry-After"]) >= 1
        held.set()
        assert [future.result().status_code for future in taken] == [200] * 5
    assert waiting(client) == 0
    assert sent(client, picture()).status_code == 200


def test_decoded_pixels_are_bounded_too(served, held):
    client = served(max_megapixels=0.01)
    with ThreadPoolExecutor(4) as pool:
        taken = [pool.submit(sent, client, picture(size=(100, 100))) for _ in range(4)]
        until(lambda: client.app.state.service.room.pixels == 40_000)
        assert problem(sent(client, picture(size=(64, 64))), 503, "busy")
        held.set()
        assert [future.result().status_code for future in taken] == [200] * 4


def test_an_answer_that_takes_too_long(served, held):
    client = served(timeout=0.3)
    response = sent(client, picture())
    assert problem(response, 503, "timeout")
    assert int(response.headers["Retry-After"]) >= 1
    assert waiting(client) == 0
    held.set()
    until(lambda: sent(client, picture()).status_code == 200)


def test_an_image_that_the_model_fails_on_harms_no_other(served, monkeypatch):
    detect = routes.Engine.detect

    def failing(self, images, choices):
        if any(image.shape[2] == 77 for image in images):
            raise RuntimeError("out of memory")
        return detect(self, images, choices)

    monkeypatch.setattr(routes.Engine, "detect", failing)
    client = served(batch_size=3, batch_wait=20_000)
    with ThreadPoolExecutor(3) as pool:
        widths = (96, 77, 90)
        answers = list(pool.map(lambda width: sent(client, picture(size=(width, 72))), widths))
    assert [answer.status_code for answer in answers] == [200, 500, 200]
    assert problem(answers[1], 500, "failed") == "the server failed; its log says how"


def test_a_failed_batch_is_freed_before_its_images_are_run_again(caplog):
    caplog.set_level(logging.CRITICAL)  # a record of a log may keep the error
    kept = []

    def run(images, choices):
        if len(images) > 1:
            activations = torch.zeros(9)
            kept.append(weakref.ref(activations))
            try:
                raise ValueError("inside")
            except ValueError as error:
                raise RuntimeError(f"out of memory with {len(activations)}") from error
        assert kept[0]() is None
        return [None]

    batcher = Batcher(run, 2, 60.0, lambda *_: None)
    promises = [batcher.submit(torch.zeros(3, 4, 4), None) for _ in range(2)]
    assert [promise.result(60) for promise in promises] == [None, None]
    batcher.close()


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: an illegal memory access was encountered",
    ],
)
def test_after_a_device_error_the_server_is_neither_ready_nor_healthy(served, monkeypatch, message):
    client, calls = served(batch_size=2, batch_wait=500), []

    def failing(images, choices):
        calls.append(len(images))
        raise RuntimeError(message)

    monkeypatch.setattr(client.app.state.service.batcher, "_run", failing)
    assert client.get("/ready").status_code == 200
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: sent(client, picture()), range(2)))
    for answer in [*answers, client.get("/ready"), client.get("/health")]:
        assert message.splitlines()[0] in problem(answer, 503, "device_lost")
        assert "Retry-After" not in answer.headers
    assert sent(client, picture()).status_code == 503
    assert len(calls) == 1  # neither was tried again, nor any request after it


@pytest.mark.parametrize("message", ["CUDA out of memory. Tried to allocate 2 GiB", "CUDA error: out of memory"])
def test_out_of_memory_leaves_the_server_ready(served, monkeypatch, message):
    client = served(batch_size=1)
    batcher = client.app.state.service.batcher
    run = batcher._run

    def failing(images, choices):
        monkeypatch.setattr(batcher, "_run", run)
        raise torch.OutOfMemoryError(message)

    monkeypatch.setattr(batcher, "_run", failing)
    assert sent(client, picture()).status_code == 500
    assert client.get("/ready").status_code == client.get("/health").status_code == 200
    assert sent(client, picture()).status_code == 200


@pytest.mark.parametrize("module", ["fastapi", "uvicorn", "python_multipart", "prometheus_client"])
def test_a_missing_extra_is_named(weights, command, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    assert command("serve", weights).sentence == (
        f"this needs {module}, which is not installed: pip install 'doublehead[serve]'"
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--host", "256.0.0.1"), "256.0.0.1:8000: the server cannot listen there"),
        (("--queue", 2, "--max-images", 4), "max_images 4 must not exceed the queue of 2"),
        (("--api-key", ""), "the server's settings: `api_key`"),
        (("--formats", "jpeg,pdf"), "the server's settings: `formats.1`"),
    ],
)
def test_settings_that_cannot_be(weights, command, words, sentence):
    assert sentence in command("serve", weights, *words).sentence


def test_a_port_in_use(weights, command):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        sentence = command("serve", weights, "--port", port).sentence
    assert sentence.startswith(f"127.0.0.1:{port}: the server cannot listen there (Address already in use)")


def test_closing_finishes_what_was_taken(weights):
    """As at SIGTERM: an image handed in before is answered."""
    service = small_app(weights, batch_wait=200).state.service
    promises = [service.batcher.submit(to_tensor(picture(seed)), None) for seed in range(3)]
    asyncio.run(asyncio.to_thread(service.close))
    assert all(promise.done() and len(promise.result()) for promise in promises)
