"""Trained models that others published: fetched once, converted once, kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import NoReturn
from urllib.error import URLError

import platformdirs

from doublehead.common.console import Console
from doublehead.common.errors import DoubleheadError
from doublehead.common.model_files import missing_weights
from doublehead.model.interop.catalogue import PUBLISHED, Published

SILENCE = 30.0  # seconds without a byte after which a network counts as dead
CHUNK = 1 << 20
MEGABYTE = 10**6


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
        raise DoubleheadError(f"{name}: is not a published model; use one of {', '.join(PUBLISHED)}")
    published, folder = PUBLISHED[name], cache_folder()
    checkpoint = folder / f"{name}.safetensors"
    if checkpoint.is_file():
        return checkpoint
    folder.mkdir(parents=True, exist_ok=True)
    # A folder for each process. Whatever ends this early, Ctrl-C too, what is unfinished goes with it.
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as unfinished:
        by_hand = folder / published.file_name
        if by_hand.is_file():
            source, wrong = by_hand, _wrong_digest(published, by_hand)
            if wrong:
                raise DoubleheadError(
                    f"{by_hand}: is damaged or not the published file ({wrong}); remove it, or download "
                    f"{published.url} again"
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
        convert.convert(source, converted, settings={f"model.{key}": v for key, v in published.settings.items()})
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
    if wrong := _wrong_digest(published, path):
        raise ConnectionError(f"the server sent another file: {wrong}")


def _wrong_digest(published: Published, path: Path) -> str:
    """In what way a file's digest is not the published one's; empty where it is."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, published.algorithm).hexdigest()
    name = {"sha256": "SHA-256", "md5": "MD5"}[published.algorithm]
    wanted = published.digest
    return "" if found.startswith(wanted) else f"its {name} begins with {found[: len(wanted)]}, not with {wanted}"


class _NoFtp(urllib.request.FTPHandler):
    """Put in the place of urllib's own, which would let a redirect lead from http to ftp."""

    def ftp_open(self, req: urllib.request.Request) -> NoReturn:
        raise URLError("a redirect leads to ftp")
