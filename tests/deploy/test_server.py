"""The server's answers, as a client meets them."""

from __future__ import annotations

import io
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from serving import CLASSES, DETECT, encoded, files, found, picture, problem, sent

import doublehead
from doublehead.common.errors import DoubleheadError
from doublehead.deploy.server import app as routes
from doublehead.deploy.server.app import create_app
from doublehead.deploy.server.settings import make_settings
from doublehead.model.postprocess import class_nms


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
@pytest.mark.parametrize("boxes", ["fc", "conv", "fused"])
def test_heads_are_those_of_the_model(client, weights, scores, boxes):
    chosen = {"score_branch": None if scores == "fused" else scores}
    chosen |= {"box_fusion": "average"} if boxes == "fused" else {"box_branch": boxes}
    predictor = doublehead.load(weights, "cpu", settings=chosen)
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


def test_the_decision_threshold_is_the_score_unless_asked(weights):
    predictor = doublehead.load(weights, "cpu", settings={"decision_threshold": 0.2})
    with TestClient(create_app(predictor, "own", make_settings())) as own:
        everything = found(sent(own, picture(), "score=0"))
        assert found(sent(own, picture(), "")) == [d for d in everything if d["score"] >= 0.2]
        (model,) = own.get("/v1/models").json()["models"]
    assert model["decision_threshold"] == 0.2


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
        ("scores=fused", "scores=fused: there is nothing to fuse: only the fc-head classifies in this model"),
        ("boxes=fused", "boxes=fused: there is nothing to fuse: only the conv-head regresses boxes in this model"),
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


def test_the_model_is_described_by_the_options_it_is_served_with(weights):
    settings = {"score_threshold": 0.3, "detections": 7, "box_branch": "fc"}
    app = create_app(doublehead.load(weights, "cpu", settings=settings), "m", make_settings())
    with TestClient(app) as client:
        (model,) = client.get("/v1/models").json()["models"]
    assert (model["score_threshold"], model["own"]["limit"], model["own"]["boxes"]) == (0.3, 7, "fc")


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
    assert (enums["scores"], enums["boxes"]) == (["fc", "conv", "fused"], ["fc", "conv", "fused"])
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


def test_an_exported_model_answers_and_leaves_no_choice(exported):
    with TestClient(exported, raise_server_exceptions=False) as client:
        (model,) = client.get("/v1/models").json()["models"]
        assert (model["own"], model["scores"], model["boxes"], model["score_threshold"]) == (None, [], [], None)
        assert len(found(sent(client, picture()))) > 5
        for query in ("nms=0.3", "limit=5", "scores=fc"):
            detail = problem(sent(client, picture(), query), 422, "no_such_choice")
            assert detail.startswith(f"`{query.split('=')[0]}` is fixed in an exported model")


@pytest.mark.parametrize("how", ["tiles", "ensemble"])
def test_tiles_and_ensembles_answer_as_predict_does_and_leave_no_choice(weights, how):
    several, settings = ([weights, weights], {}) if how == "ensemble" else ([weights], {"tiles": 64, "flip": True})
    predictor = doublehead.load(several, "cpu", settings=settings)
    app = create_app(predictor, how, make_settings())
    with TestClient(app, raise_server_exceptions=False) as client:
        (model,) = client.get("/v1/models").json()["models"]
        assert (model["own"], model["preset"]) == (None, predictor.inside.config.preset)
        words = {"tiles": "with tiles, flip or scales", "ensemble": "in an ensemble"}[how]
        assert model["fixed"] == words
        assert f"`nms` is fixed {words}" in problem(sent(client, picture(), "nms=0.3"), 422, "no_such_choice")
        answer = found(sent(client, picture(), "score=0"))
        assert len(answer) > 5
        assert answer == predictor.predict(picture()).to_dicts()
