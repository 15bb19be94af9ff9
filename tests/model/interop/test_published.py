from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2_keys import published_cascade_keys, published_keys
from mmdetection_keys import mmdetections
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from doublehead.common.errors import DoubleheadError
from doublehead.model.detector import Detector
from doublehead.model.interop import published
from doublehead.model.interop.catalogue import PUBLISHED, Published
from doublehead.model.interop.convert import FORMATS
from doublehead.model.interop.published import fetch, resolve

BODY = bytes(range(256)) * 12_000  # about 3 MB: more than one chunk
DIGEST = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """Sends `body` for a file, as if it were `promised` bytes long; 404 for /gone and redirects for /moved."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = BODY
        self.promised: int | None = len(BODY)
        self.moved_to = ""
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path.startswith("/gone"):
            self.send_error(404)
        elif self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", self.server.moved_to)
            self.end_headers()
        else:
            self.send_response(200)
            if self.server.promised is not None:
                self.send_header("Content-Length", str(self.server.promised))
            self.end_headers()
            self.wfile.write(self.server.body)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DOUBLEHEAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "cache"


@pytest.fixture
def publish(server, cache, monkeypatch) -> Callable[..., Published]:
    """Make a file of the local server the one published model."""

    def make(path: str = "files/model.pth", digest: str = DIGEST[:8], algorithm: str = "sha256") -> Published:
        url = f"{server.address}/{path}".replace(".pth", f"-{digest}.pth")
        entry = Published(url, 40.0, "torchvision:FASTER_RCNN", {"rpn.depth": 2}, algorithm=algorithm)
        monkeypatch.setattr(published, "PUBLISHED", {"model": entry})
        return entry

    return make


@pytest.fixture
def conversions(monkeypatch) -> list[bytes]:
    """What was handed to the conversion, which here writes what it reads, backwards."""
    seen: list[bytes] = []

    def convert(source: Path, destination: Path, settings: dict[str, Any]) -> None:
        assert settings == {"model.rpn.depth": 2}
        seen.append(source.read_bytes())
        destination.write_bytes(seen[-1][::-1])

    monkeypatch.setattr("doublehead.model.interop.convert.convert", convert)
    return seen


def refusal(entry: Published, folder: Path) -> str:
    """The one sentence that fetching is answered with: it says what to fetch by hand and where to put it."""
    with pytest.raises(DoubleheadError) as caught:
        fetch("model")
    sentence = str(caught.value)
    assert entry.url in sentence
    assert str(folder) in sentence
    assert "\n" not in sentence
    return sentence


def test_a_model_is_downloaded_and_converted_once(publish, server, cache, conversions) -> None:
    publish()
    path = fetch("model")
    assert path == cache / "model.safetensors"
    assert path.read_bytes() == BODY[::-1]
    assert fetch("model") == path
    assert server.asked == [f"/files/model-{DIGEST[:8]}.pth"]
    assert conversions == [BODY]
    assert list(cache.iterdir()) == [path]


def test_a_server_need_not_say_the_length(publish, server, cache, conversions) -> None:
    server.promised = None
    publish()
    assert fetch("model").read_bytes() == BODY[::-1]


def test_a_redirect_is_followed_on_the_web_alone(publish, server, cache, conversions) -> None:
    entry = publish("moved/model.pth")
    server.moved_to = f"{server.address.replace('http', 'ftp')}/files/model.pth"
    assert "ftp" in refusal(entry, cache)
    server.moved_to = "/files/model.pth"
    assert fetch("model").read_bytes() == BODY[::-1]


def cut_off(server: Server) -> str:
    server.body = BODY[: len(BODY) // 2]
    return f"broke off after {len(BODY) // 2} of {len(BODY)} bytes"


def altered(server: Server) -> str:
    server.body = BODY[:-1] + b"?"
    return f"SHA-256 begins with {hashlib.sha256(server.body).hexdigest()[:8]}, not with {DIGEST[:8]}"


def offline(server: Server) -> str:
    server.shutdown()
    server.server_close()
    return "Connection refused"


@pytest.mark.parametrize("failure", [cut_off, altered, offline])
def test_a_failed_download_says_why_and_leaves_nothing(publish, server, cache, conversions, failure) -> None:
    entry = publish()
    reason = failure(server)
    assert reason in refusal(entry, cache)
    assert not conversions
    assert not list(cache.iterdir())


def test_an_address_that_is_gone_is_named(publish, server, cache, conversions) -> None:
    assert "404" in refusal(publish("gone/model.pth"), cache)
    assert not list(cache.iterdir())


def test_a_silent_server_is_given_up(publish, cache, conversions, monkeypatch, server) -> None:
    monkeypatch.setattr(published, "SILENCE", 0.2)
    enough = threading.Event()
    monkeypatch.setattr(Handler, "do_GET", lambda self: enough.wait(20))
    entry = publish()
    try:
        assert "timed out" in refusal(entry, cache)
    finally:
        enough.set()
    assert not list(cache.iterdir())


def test_an_interrupted_download_leaves_nothing(publish, cache, conversions, monkeypatch) -> None:
    @contextmanager
    def progress(self: object, title: str, total: int) -> Iterator[Callable[..., None]]:
        def advance(count: float) -> None:
            assert len(list(cache.iterdir())) == 1
            raise KeyboardInterrupt

        yield advance

    monkeypatch.setattr(published.Console, "progress", progress)
    publish()
    with pytest.raises(KeyboardInterrupt):
        fetch("model")
    assert not list(cache.iterdir())


def test_a_failed_conversion_leaves_nothing(publish, cache, monkeypatch) -> None:
    def convert(source: Path, destination: Path, settings: dict[str, Any]) -> None:
        destination.write_bytes(b"half")
        raise DoubleheadError("no room")

    monkeypatch.setattr("doublehead.model.interop.convert.convert", convert)
    publish()
    with pytest.raises(DoubleheadError, match="no room"):
        fetch("model")
    assert not list(cache.iterdir())


def test_a_file_fetched_by_hand_is_used_and_stays(publish, server, cache, conversions) -> None:
    publish()
    cache.mkdir()
    by_hand = cache / f"model-{DIGEST[:8]}.pth"
    by_hand.write_bytes(BODY)
    assert fetch("model").read_bytes() == BODY[::-1]
    assert by_hand.read_bytes() == BODY
    assert not server.asked


def test_an_altered_file_fetched_by_hand_is_refused_and_stays(publish, server, cache, conversions) -> None:
    entry = publish()
    cache.mkdir()
    by_hand = cache / f"model-{DIGEST[:8]}.pth"
    by_hand.write_bytes(BODY[:-1])
    sentence = refusal(entry, cache)
    assert str(by_hand) in sentence
    assert "SHA-256" in sentence
    assert list(cache.iterdir()) == [by_hand]
    assert not server.asked
    assert not conversions


def test_two_may_fetch_at_once(publish, cache, monkeypatch) -> None:
    both = threading.Barrier(2)

    def convert(source: Path, destination: Path, settings: dict[str, Any]) -> None:
        both.wait(20)  # neither is done before the other has its file
        destination.write_bytes(source.read_bytes()[::-1])
        both.wait(20)

    monkeypatch.setattr("doublehead.model.interop.convert.convert", convert)
    publish()
    threads = [threading.Thread(target=fetch, args=("model",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in cache.iterdir()] == ["model.safetensors"]
    assert fetch("model").read_bytes() == BODY[::-1]


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(DoubleheadError, match=r"resnet.*mmdet-double-head-r50-coco, torchvision-faster-rcnn-r50-coco"):
        fetch("resnet")


def test_a_file_goes_before_a_published_name(publish, cache, conversions, tmp_path, monkeypatch) -> None:
    publish()
    monkeypatch.chdir(tmp_path)
    assert resolve("best.safetensors") == Path("best.safetensors")
    assert resolve(Path("model")) == cache / "model.safetensors"
    Path("model").touch()
    assert resolve("model") == Path("model")


def test_the_cache_is_where_the_system_keeps_caches(monkeypatch) -> None:
    monkeypatch.delenv("DOUBLEHEAD_CACHE", raising=False)
    assert "doublehead" in published.cache_folder().parts
    monkeypatch.setenv("DOUBLEHEAD_CACHE", "~/models")
    assert published.cache_folder() == Path.home() / "models"


def test_a_file_named_by_its_md5_is_checked_by_it(publish, server, cache, conversions) -> None:
    entry = publish(digest=hashlib.md5(BODY).hexdigest()[:6], algorithm="md5")
    server.body = BODY[:-1] + b"?"
    found = hashlib.md5(server.body).hexdigest()[:6]
    assert f"its MD5 begins with {found}, not with {entry.digest}" in refusal(entry, cache)
    server.body = BODY
    assert fetch("model").read_bytes() == BODY[::-1]


def test_the_published_files_carry_their_hash_in_their_names() -> None:
    digits = {"sha256": 8, "md5": 6}
    for entry in PUBLISHED.values():
        assert entry.url.startswith("https://")
        assert re.fullmatch(rf"[0-9a-f]{{{digits[entry.algorithm]}}}", entry.digest)


TORCHVISIONS = {
    "torchvision-faster-rcnn-r50-coco": detection.FasterRCNN_ResNet50_FPN_Weights,
    "torchvision-faster-rcnn-r50-v2-coco": detection.FasterRCNN_ResNet50_FPN_V2_Weights,
    "torchvision-faster-rcnn-mobilenet-coco": detection.FasterRCNN_MobileNet_V3_Large_FPN_Weights,
    "torchvision-faster-rcnn-mobilenet-320-coco": detection.FasterRCNN_MobileNet_V3_Large_320_FPN_Weights,
}


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_figures_and_addresses_of_torchvision_are_its_own(name) -> None:
    weights, entry = TORCHVISIONS[name].COCO_V1, PUBLISHED[name]
    assert entry.ap == weights.meta["_metrics"]["COCO-val2017"]["box_map"]
    assert entry.url == weights.url
    assert entry.classes + 1 == len(weights.meta["categories"])


def torchvisions(name: str) -> dict[str, torch.Tensor]:
    build = {
        "FASTER_RCNN": lambda: detection.FasterRCNN(
            resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d), 91
        ),
        "FASTER_RCNN_V2": lambda: detection.fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None),
        "FASTER_RCNN_MOBILENET": lambda: detection.FasterRCNN(
            mobilenet_backbone(backbone_name="mobilenet_v3_large", weights=None, fpn=True),
            91,
            rpn_anchor_generator=AnchorGenerator(((32, 64, 128, 256, 512),) * 3, ((0.5, 1.0, 2.0),) * 3),
        ),
    }
    with torch.device("meta"):
        return build[name]().state_dict()


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_key_of_each_published_file_is_used_and_gives_the_listed_model(name) -> None:
    """Keys and shapes are torchvision's and MMDetection's own lists; detectron2's follow from its layers."""
    entry = PUBLISHED[name]
    program, _, kind = entry.format.partition(":")
    depth = int(str(entry.settings.get("backbone.name", "resnet50")).removeprefix("resnet"))
    weights = {
        "torchvision": lambda: torchvisions(kind),
        "mmdetection": lambda: mmdetections(kind.lower(), depth),
        "detectron2": lambda: (
            published_cascade_keys(depth)
            if kind == "CASCADE_RCNN"
            else published_keys(depth, baseline=kind == "CONV_FC")
        ),
    }[program]()
    found = [f for family in FORMATS.values() for f in family if f.recognises(weights)]
    config, classes, ours = found[-1].load(weights, {})
    assert config.backbone == entry.config.backbone
    config, classes, ours = found[-1].load(weights, entry.settings)
    assert (config, classes) == (entry.config, entry.classes)
    with torch.device("meta"):
        assert ours.keys() == Detector(config, classes).state_dict().keys()
