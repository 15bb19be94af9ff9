"""Small models, their servers, and images to send."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image

from doublehead.common.categories import Categories
from doublehead.data.synthetic import scene
from doublehead.deploy.server.app import create_app
from doublehead.deploy.server.settings import make_settings
from doublehead.inference.predictor import load
from doublehead.model.checkpoint import save_checkpoint
from doublehead.model.detector import Detector
from doublehead.training.recipes import resolve
from small import SMALL

DETECT = "/v1/detect"
JPEG = {"Content-Type": "image/jpeg"}
CLASSES = Categories(("red", "white", "<b>platelets</b>"), (7, 17, 27))


@contextmanager
def command_serving(*words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A `doublehead` command that serves on a free port of this machine, and the line in which it says where."""
    command = [sys.executable, "-m", "doublehead.cli", *words, "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        yield process, process.stderr.readline()
    finally:
        process.kill()
        process.wait()


def small_checkpoint(folder: Path, variant: str) -> Path:
    """A model of random weights that finds something anywhere, and whose heads do not agree."""
    settings = {key: value for key, value in SMALL.items() if key.startswith("model.")}
    config = resolve(f"{variant}-tiny", settings=settings).model
    torch.manual_seed(0)
    model = Detector(config, len(CLASSES))
    for branch in model.roi_heads:
        for layer, factor in ((branch.classifier, 60), (branch.regressor, 200)):
            if layer is not None:
                layer.weight.data *= factor
    path = folder / f"{variant}.safetensors"
    save_checkpoint(path, config, CLASSES, model.state_dict(), {})
    return path


def small_app(weights: Path, **settings: Any) -> FastAPI:
    return create_app(load(weights, "cpu"), weights.stem, make_settings(**settings))


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """The address of a real server in a thread of this process."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def picture(seed: int = 0, size: tuple[int, int] = (96, 72)) -> Image.Image:
    return scene(seed, size)


def encoded(image: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def sent(client, image: Image.Image | bytes, query: str = "score=0", form: str = "PNG"):
    """One image as the body."""
    data = image if isinstance(image, bytes) else encoded(image, form)
    return client.post(f"{DETECT}?{query}", content=data, headers={"Content-Type": f"image/{form.lower()}"})


def found(response) -> list[dict]:
    """The detections of the first image."""
    assert response.status_code == 200, response.text
    return response.json()["images"][0]["detections"]


def problem(response, status: int, error: str) -> str:
    """The sentence of a refusal, which has the form that is documented."""
    assert response.status_code == status, response.text
    content = response.json()
    assert content == {"status": status, "error": error, "detail": content["detail"]}
    return content["detail"]


def files(*images: bytes, field: str = "images"):
    return [(field, (f"{place}.jpg", image, "image/jpeg")) for place, image in enumerate(images)]


def until(true) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def waiting(client) -> float:
    return float(re.search(r"^doublehead_waiting_images (\S+)", client.get("/metrics").text, re.MULTILINE)[1])
