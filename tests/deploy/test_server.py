"""The server's answers, as a client meets them."""

from __future__ import annotations

import asyncio
import io
import re
import socket
import struct
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from serving import CLASSES, encoded, picture, small_app

import doublehead
from doublehead.data.images import to_tensor
from doublehead.deploy.server import app as routes
from doublehead.deploy.server.settings import make_settings
from doublehead.errors import DoubleheadError
from doublehead.model.postprocess import class_nms

DETECT = "/v1/detect"
JPEG = {"Content-Type": "image/jpeg"}


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


def png_that_claims(width: int, height: int) -> bytes:
    """A few bytes whose header promises a picture of any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_every_way_of_sending_gives_what_predict_gives(client, weights):
    image = picture()
    data = encoded(image, "PNG")
    expected = doublehead.load(weights, "cpu").predict(image).to_dicts()
    assert len(expected) > 5
    for headers in ({"Content-Type": "image/png"}, {"Content-Type": "application/octet-stream"}, {}):
        assert found(client.post(f"{DETECT}?score=0", content=data, headers=headers)) == expected
    assert found(client.post(f"{DETECT}?score=0", files=files(data))) == expected


def test_an_answer_names_the_model_the_heads_and_the_files(client):
    images = [picture(size=(96, 72)), picture(1, size=(64, 80))]
    response = client.post(f"{DETECT}?scores=fc", files=files(*map(encoded, images)))
    answer = response.json()
    assert (answer["model"], answer["scores"], answer["boxes"]) == ("double-head-ext", "fc", "conv")
    assert [(i["name"], i["width"], i["height"]) for i in answer["images"]] == [("0.jpg", 96, 72), ("1.jpg", 64, 80)]
    for item in answer["images"]:
        for detection in item["detections"]:
            assert detection["score"] >= 0.5  # unless asked otherwise
            assert CLASSES.pairs[detection["label"] - 1] == (detection["name"], detection["category_id"])


@pytest.mark.parametrize("scores", ["fc", "conv", "fused"])
@pytest.mark.parametrize("boxes", ["fc", "conv"])
def test_heads_are_those_of_the_model(client, weights, scores, boxes):
    predictor = doublehead.load(weights, "cpu")
    predictor.model.roi_heads.choose(None if scores == "fused" else scores, boxes)
    image = picture(3)
    assert found(sent(client, image, f"score=0&scores={scores}&boxes={boxes}")) == predictor.predict(image).to_dicts()


def test_requests_with_unlike_choices_share_a_batch(served):
    """Sent together they come out as they do alone, and go through the model at once."""
    queries = ["scores=fc", "scores=conv&boxes=fc", "scores=fc", "nms=0.9", "limit=3&boxes=fc", ""]
    client = served(batch_size=len(queries), batch_wait=0)
    alone = [found(sent(client, picture(i), f"score=0&{query}")) for i, query in enumerate(queries)]
    together = served(batch_size=len(queries), batch_wait=20_000)
    with ThreadPoolExecutor(len(queries)) as pool:
        answers = list(pool.map(lambda i: sent(together, picture(i), f"score=0&{queries[i]}"), range(len(queries))))
    assert f'doublehead_batch_images_bucket{{le="{len(queries)}.0"}} 1.0' in together.get("/metrics").text
    assert f"doublehead_batch_images_sum {len(queries)}.0" in together.get("/metrics").text
    for one, answer in zip(alone, map(found, answers), strict=True):
        assert [d["label"] for d in one] == [d["label"] for d in answer]
        for key in ("score", "box"):
            assert np.allclose([d[key] for d in one], [d[key] for d in answer], atol=1e-3)
    assert len({str(answer) for answer in alone}) == len(queries)


def test_score_is_a_filter_and_limit_takes_the_best(client):
    everything = found(sent(client, picture()))
    middle = everything[len(everything) // 2]["score"]
    assert found(sent(client, picture(), f"score={middle}")) == [d for d in everything if d["score"] >= middle]
    assert found(sent(client, picture(), "score=0&limit=4")) == everything[:4]


def test_candidates_suppressed_by_the_client_are_the_servers_answer(client):
    """What the page's slider rests on: with nms=1 come all candidates, and NMS can be done anywhere."""
    candidates = found(sent(client, picture(), "score=0&nms=1&limit=1000"))
    assert len(candidates) > 100
    boxes, scores, labels = (torch.tensor([d[k] for d in candidates]) for k in ("box", "score", "label"))
    for iou in (0.2, 0.5, 0.8):
        kept = class_nms(boxes, scores, labels, iou)[:100]
        assert [candidates[i] for i in kept] == found(sent(client, picture(), f"score=0&nms={iou}"))


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("scores=conv", "scores=conv: this model's conv-head never learnt to classify; choose fc"),
        ("boxes=fc", "boxes=fc: this model's fc-head never learnt to regress boxes; choose conv"),
        ("scores=fused", "scores=fused: there is nothing to fuse, since the fc-head alone classifies in this model"),
        ("boxes=fused", "boxes=fused: this model has no such head; choose conv"),
    ],
)
def test_a_head_that_the_model_lacks(served, plain_weights, query, sentence):
    assert problem(sent(served(plain_weights), picture(), query), 422, "no_such_choice") == sentence


@pytest.mark.parametrize(
    "query", ["score=2", "score=nan", "nms=-1", "limit=0", "limit=1001", "threshold=0.5", "score="]
)
def test_a_parameter_that_is_none(client, query):
    assert problem(sent(client, picture(), query), 422, "invalid").startswith(query.split("=")[0])


def test_the_model_is_described(client, served, plain_weights):
    content = client.get("/v1/models").json()
    (model,) = content["models"]
    assert [(c["name"], c["label"], c["category_id"]) for c in model["classes"]] == [
        (name, label, number) for label, (name, number) in enumerate(CLASSES.pairs, 1)
    ]
    assert all(head["reason"] is None for head in model["scores"] + model["boxes"])
    assert model["own"] == {"scores": "fused", "boxes": "conv", "nms": 0.5, "limit": 100}
    assert content["limits"]["formats"] == ["jpeg", "png", "webp", "bmp"]
    (plain,) = served(plain_weights).get("/v1/models").json()["models"]
    assert [head["name"] for head in plain["scores"] if head["reason"] is None] == ["fc"]
    assert [head["name"] for head in plain["boxes"] if head["reason"] is None] == ["conv"]


KINDS = {
    "one pixel": (Image.new("RGB", (1, 1)), {}),
    "one line": (Image.new("RGB", (2000, 1)), {}),
    "grey": (picture().convert("L"), {}),
    "black and white": (picture().convert("1"), {}),
    "palette": (picture().convert("P"), {}),
    "transparent": (picture().convert("RGBA"), {}),
    "16 bits": (Image.fromarray(np.full((60, 80), 40_000, np.uint16)), {}),
    "CMYK": (picture().convert("CMYK"), {"form": "JPEG"}),
    "WebP": (picture(), {"form": "WEBP"}),
    "BMP": (picture(), {"form": "BMP"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_images(client, kind):
    image, options = KINDS[kind]
    response = sent(client, image, **options)
    found(response)
    (answer,) = response.json()["images"]
    assert (answer["width"], answer["height"]) == image.size


def test_exif_orientation_is_followed(client):
    """A photograph lying on its side is seen upright, and its boxes are those of the upright picture."""
    image = picture(size=(96, 64))
    lying = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    response = sent(client, encoded(lying, "PNG", exif=exif))
    assert found(response) == found(sent(client, image))
    assert (response.json()["images"][0]["width"], response.json()["images"][0]["height"]) == image.size


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
    client = served(formats=("gif", "tiff"))
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


def until(true) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def waiting(client) -> float:
    return float(re.search(r"^doublehead_waiting_images (\S+)", client.get("/metrics").text, re.MULTILINE)[1])


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


def test_metrics_count(served):
    client = served()
    for _ in range(2):
        found(sent(client, picture(), "limit=3&score=0"))
    sent(client, b"no image")
    client.get("/nothing/here")
    text = client.get("/metrics").text
    assert 'doublehead_requests_total{path="/v1/detect",status="200"} 2.0' in text
    assert 'doublehead_requests_total{path="/v1/detect",status="415"} 1.0' in text
    assert 'doublehead_requests_total{path="other",status="404"} 1.0' in text
    assert "doublehead_request_seconds_count 3.0" in text
    assert "doublehead_batch_images_count 2.0" in text
    assert "doublehead_detections_total 6.0" in text
    assert "process_resident_memory_bytes" in text


def test_health_and_readiness(served):
    client = served()
    assert client.get("/health").json() == {"status": "alive"}
    assert client.get("/ready").json() == {"status": "ready"}
    client.app.state.service.batcher.close()
    assert problem(client.get("/ready"), 503, "not_ready")
    assert client.get("/health").status_code == 200


def test_paths_and_methods_that_are_none(client):
    problem(client.get("/nothing"), 404, "not_found")
    refused = client.get(DETECT)
    problem(refused, 405, "method_not_allowed")
    assert refused.headers["Allow"] == "POST"
    assert client.get("/page/../app.py").status_code == 404
    assert client.get("/page/%2e%2e/app.py").status_code == 404


def test_the_openapi_document_knows_every_refusal_and_the_models_heads(client, served, plain_weights):
    post = client.get("/openapi.json").json()["paths"][DETECT]["post"]
    assert set(post["responses"]) == {"200", "400", "401", "408", "413", "415", "422", "500", "503"}
    assert "Retry-After" in post["responses"]["503"]["headers"]
    enums = {p["name"]: p["schema"].get("enum") for p in post["parameters"]}
    assert (enums["scores"], enums["boxes"]) == (["fc", "conv", "fused"], ["fc", "conv"])
    post = served(plain_weights).get("/openapi.json").json()["paths"][DETECT]["post"]
    assert {p["name"]: p["schema"].get("enum") for p in post["parameters"]}["scores"] == ["fc"]


def test_the_page_needs_nothing_from_elsewhere(client):
    response = client.get("/")
    assert "default-src 'self'" in response.headers["Content-Security-Policy"]
    names = {"docs.html"} | {file.name for file in routes.PAGE.iterdir()}
    for name in names:
        text = client.get(f"/page/{name}").text
        outside = set(re.findall(r"https?://[^\s\"'`]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not outside, name
        for target in re.findall(r'(?:src|href)="(page/[^"]+)"', text):
            assert client.get(f"/{target}").status_code == 200


def test_the_sample(client, served, tmp_path):
    drawn = Image.open(io.BytesIO(client.get("/sample").content))
    assert drawn.size == (640, 480)
    picture(5, (80, 70)).save(tmp_path / "mine.png")
    assert Image.open(io.BytesIO(served(sample=tmp_path / "mine.png").get("/sample").content)).size == (80, 70)
    with pytest.raises(DoubleheadError, match="there is no such image file"):
        served(sample=tmp_path / "none.png")


@pytest.mark.parametrize("module", ["fastapi", "uvicorn", "python_multipart", "prometheus_client"])
def test_an_exported_model_answers_and_leaves_no_choice(exported):
    with TestClient(exported, raise_server_exceptions=False) as client:
        (model,) = client.get("/v1/models").json()["models"]
        assert (model["own"], model["scores"], model["boxes"], model["score_threshold"]) == (None, [], [], None)
        assert len(found(sent(client, picture()))) > 5
        for query in ("nms=0.3", "limit=5", "scores=fc"):
            detail = problem(sent(client, picture(), query), 422, "no_such_choice")
            assert detail.startswith(f"`{query.split('=')[0]}` is fixed in an exported model")


def test_a_missing_extra_is_named(weights, command, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    assert command("serve", weights).sentence == (
        f"this needs {module}, which is not installed: pip install 'doublehead[serve]'"
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--host", "256.0.0.1"), "256.0.0.1:8000: cannot be listened on"),
        (("--queue", 2, "--max-images", 4), "max_images 4 would never fit into a queue of 2"),
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
    assert sentence.startswith(f"127.0.0.1:{port}: cannot be listened on (Address already in use)")


def test_closing_finishes_what_was_taken(weights):
    """As at SIGTERM: an image handed in before is answered."""
    service = small_app(weights, batch_wait=200).state.service
    promises = [service.batcher.submit(to_tensor(picture(seed)), None) for seed in range(3)]
    asyncio.run(asyncio.to_thread(service.close))
    assert all(promise.done() and len(promise.result()) for promise in promises)
