"""Trained models that others published: fetched once, converted once, kept in the user's cache folder."""

from __future__ import annotations

import os
import tempfile
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import NoReturn
from urllib.error import URLError

import platformdirs

from doublehead.common.console import Console
from doublehead.common.errors import DoubleheadError
from doublehead.common.files import sha256
from doublehead.common.model_files import missing_weights

SILENCE = 30.0  # seconds without a byte after which a network counts as dead
CHUNK = 1 << 20
MEGABYTE = 10**6


@dataclass(frozen=True)
class Published:
    """A file of weights on the publisher's server."""

    url: str
    sha256: str  # how the hex digest begins
    about: str  # one line, with the published AP and its source

    @property
    def file_name(self) -> str:
        """The file's name on the server, and in the cache folder if somebody fetched it by hand."""
        return self.url.rsplit("/", 1)[-1]


PUBLISHED = {
    "mmdet-double-head-r50-coco": Published(
        "https://download.openmmlab.com/mmdetection/v2.0/double_heads/dh_faster_rcnn_r50_fpn_1x_coco/"
        "dh_faster_rcnn_r50_fpn_1x_coco_20200130-586b67df.pth",
        "586b67df",
        "Double-Head R-CNN, ResNet-50-FPN, trained on COCO by MMDetection: 40.0 AP on val2017 (MMDetection's figure)",
    ),
    "torchvision-faster-rcnn-r50-coco": Published(
        "https://download.pytorch.org/models/fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
        "258fb6c6",
        "Faster R-CNN, ResNet-50-FPN, trained on COCO by torchvision: 37.0 AP on val2017 (torchvision's figure)",
    ),
}


def resolve(weights: str | Path) -> Path:
    """The path of a checkpoint: a published name is fetched, unless a file has that name; a path stays as it is.

    Raises:
        DoubleheadError: as `fetch`.
    """
    path = Path(weights)
    return fetch(str(weights)) if str(weights) in PUBLISHED and not path.is_file() else path


def require_known(weights: str | Path) -> None:
    """Look whether `resolve` would find weights, without fetching any.

    Raises:
        DoubleheadError: there is no such file, and no published model of that name.
    """
    if str(weights) not in PUBLISHED and not Path(weights).is_file():
        raise missing_weights(weights)


def cache_folder() -> Path:
    """Where fetched models are kept: $DOUBLEHEAD_CACHE, else the place that the system has for caches."""
    said = os.environ.get("DOUBLEHEAD_CACHE")
    return Path(said).expanduser() if said else platformdirs.user_cache_path("doublehead", appauthor=False)


def fetch(name: str) -> Path:
    """The checkpoint of a published model; the first time it is downloaded and converted.

    A file fetched by hand is taken from the cache folder, and left there.

    Raises:
        DoubleheadError: no model has that name, the network or the server fails, or the file is not the published one.
    """
    if name not in PUBLISHED:
        raise DoubleheadError(f"{name}: is no published model; there are {', '.join(PUBLISHED)}")
    published, folder = PUBLISHED[name], cache_folder()
    checkpoint = folder / f"{name}.safetensors"
    if checkpoint.is_file():
        return checkpoint
    folder.mkdir(parents=True, exist_ok=True)
    # A folder for each process. Whatever ends this early, Ctrl-C too, what is unfinished goes with it.
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as unfinished:
        by_hand = folder / published.file_name
        if by_hand.is_file():
            source, digest = by_hand, sha256(by_hand)
            if not digest.startswith(published.sha256):
                raise DoubleheadError(
                    f"{by_hand}: is damaged or not the published file (its SHA-256 begins with {digest[:8]}, not with "
                    f"{published.sha256}); remove it, or fetch {published.url} once more"
                )
        else:
            source = Path(unfinished, published.file_name)
            try:
                _download(name, published, source)
            except (OSError, HTTPException) as error:
                reason = " ".join(str(error).strip("<>").split())
                raise DoubleheadError(
                    f"{name} could not be downloaded ({reason}): fetch {published.url} by hand, put it into {folder} "
                    "and run the same command again"
                ) from error
        from doublehead.model.interop import convert  # here: the names above are read without torch

        converted = Path(unfinished, checkpoint.name)
        convert.convert(source, converted)
        os.replace(converted, checkpoint)
    return checkpoint


def _download(name: str, published: Published, path: Path) -> None:
    """Write the file to `path`.

    torch.hub would do it without a timeout, and would tell a transfer cut off as a wrong hash.

    Raises:
        OSError, HTTPException: the network or the server fails, or something else than the published file came.
    """
    request = urllib.request.Request(published.url, headers={"User-Agent": "doublehead"})
    console = Console()
    with urllib.request.build_opener(_NoFtp).open(request, timeout=SILENCE) as answer, path.open("wb") as file:
        length = int(answer.headers["Content-Length"] or 0)  # 0: not said, and then the chunks say where the file ends
        console.say(f"downloading {published.url} into {path.parent.parent}")
        with console.progress(f"{name}, MB", length // MEGABYTE) as advance:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                advance(len(chunk) / MEGABYTE)
    size = path.stat().st_size
    if size < length:
        raise ConnectionError(f"the connection broke off after {size} of {length} bytes")
    digest = sha256(path)
    if not digest.startswith(published.sha256):
        raise ConnectionError(
            f"the server sent another file: its SHA-256 begins with {digest[:8]}, not with {published.sha256}"
        )


class _NoFtp(urllib.request.FTPHandler):
    """Put in the place of urllib's own, which would let a redirect lead from http to ftp."""

    def ftp_open(self, req: urllib.request.Request) -> NoReturn:
        raise URLError("a redirect leads to ftp")
