"""The page in a real browser."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx
import pytest
from PIL import Image
from serving import encoded, found, listening, picture, small_app

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(weights):
    with listening(small_app(weights)) as address:
        yield address


@pytest.fixture
def opened(browser):
    """Give an address, get its page; whatever the browser complains of fails the test."""
    complaints: list[str] = []
    context = browser.new_context()

    def open_page(address: str):
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: request.url.startswith((address, "blob:")) or complaints.append(request.url))
        page.goto(address)
        page.wait_for_selector("#class-list li")
        return page

    yield open_page
    context.close()
    assert not complaints


def choose(page, data: bytes, name: str = "cells.png") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": data})


def boxes(page) -> list[tuple[str, ...]]:
    """What is drawn: place and size of each box, and its score."""
    page.wait_for_selector("#picture:not(.busy) #boxes g.frame")
    return page.eval_on_selector_all(
        "#boxes g.frame",
        """all => all.map(
            g => ["x", "y", "width", "height"].map(n => g.firstChild.getAttribute(n)).concat(g.dataset.score)
        )""",
    )


def scores(page) -> list[str]:
    return [row[4] for row in boxes(page)]


def slide(page, name: str, value: float) -> None:
    page.locator(f"#{name}").fill(str(value))


def test_an_image_is_uploaded_and_its_boxes_appear(opened, address):
    page = opened(address)
    choose(page, encoded(picture(), "PNG"))
    first = boxes(page)
    assert page.locator("#found li").count() == len(first)
    assert page.locator("#status").inner_text().startswith(f"{len(first)} object")
    assert "<b>platelets</b>" in page.locator("#class-list").inner_text()  # a name is text, whatever it holds

    slide(page, "score", 0.05)
    many = len(boxes(page))
    slide(page, "nms", 0.3)
    response = httpx.post(f"{address}/v1/detect?score=0.05&nms=0.3", files={"images": encoded(picture(), "PNG")})
    assert sorted(map(float, scores(page))) == sorted(d["score"] for d in found(response))  # as the server does it
    slide(page, "nms", 0.1)
    few = len(boxes(page))
    assert few < many
    slide(page, "score", 1)
    assert page.locator("#boxes g.frame").count() == 0
    slide(page, "score", 0.05)
    page.uncheck("#class-list li:nth-child(3) input")
    assert 0 < len(boxes(page)) < few
    page.click("#none")
    assert page.locator("#boxes g.frame").count() == 0


def test_the_heads_are_switched(opened, address):
    page = opened(address)
    choose(page, encoded(picture(), "PNG"))
    slide(page, "score", 0.05)
    seen = [boxes(page)]
    for task, head in (("scores", "fc"), ("scores", "conv"), ("boxes", "fc")):
        with page.expect_response("**/v1/detect*"):
            page.check(f"input[name={task}][value={head}]")
        page.wait_for_function(
            "before => document.querySelector('#boxes g.frame')?.dataset.score !== before[0]"
            " || document.querySelector('#boxes g.frame rect').getAttribute('x') !== before[1]",
            arg=[seen[-1][0][4], seen[-1][0][0]],
        )
        seen.append(boxes(page))
    fused, fc, conv, conv_fc = seen
    assert len({str(sorted(row[4] for row in rows)) for rows in (fused, fc, conv)}) == 3
    assert {tuple(row[:4]) for row in conv} != {tuple(row[:4]) for row in conv_fc}
    page.check("#ghosts")
    page.wait_for_selector("#boxes rect.own")
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.check("input[name=boxes][value=conv]")
    page.check("input[name=scores][value=fc]")
    assert boxes(page) == fc
    assert not requests  # all of it was there


def test_a_head_that_cannot_answer_says_why(opened, plain_weights):
    with listening(small_app(plain_weights)) as address:
        page = opened(address)
        for task, able in (("scores", "fc"), ("boxes", "conv")):
            choices = page.locator(f"input[name={task}]")
            enabled = [c.get_attribute("value") for c in choices.all() if c.is_enabled()]
            assert enabled == [able]
        said = page.locator("#heads-reason").inner_text()
        assert "This model's conv-head never learnt to classify." in said
        assert "This model's fc-head never learnt to regress boxes." in said
        choose(page, encoded(picture(), "PNG"))
        assert boxes(page)


def test_an_exported_model_has_no_heads_to_switch(opened, exported):
    with listening(exported) as address:
        page = opened(address)
        assert page.locator("#heads").is_hidden()
        assert page.locator("#nms").is_disabled()
        assert page.locator("#nms-reason").inner_text() == "NMS is fixed in an exported model."
        choose(page, encoded(picture(), "PNG"))
        assert boxes(page)


def test_a_broken_file_gives_the_message(opened, address):
    page = opened(address)
    choose(page, encoded(picture(), "PNG")[:-500], "half.png")
    page.wait_for_selector("#problem:not([hidden])")
    assert page.locator("#problem").inner_text().startswith("half.png: is damaged or cut short")
    assert page.locator("#boxes g.frame").count() == 0
    choose(page, b"no image", "notes.txt")
    page.wait_for_function(
        "() => document.getElementById('problem').textContent.startsWith('notes.txt: is not an image')"
    )
    choose(page, encoded(picture(), "PNG"))
    assert boxes(page)
    assert page.locator("#problem").is_hidden()


def test_the_sample_by_keyboard_and_what_is_saved(opened, address, tmp_path):
    page = opened(address)
    page.locator("#file").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    shown = boxes(page)
    with page.expect_download() as download:
        page.click("#save-json")
    content = json.loads(Path(download.value.path()).read_text())
    assert download.value.suggested_filename == "sample-detections.json"
    assert (content["model"], content["scores"], content["boxes"]) == ("double-head-ext", "fused", "conv")
    assert (content["width"], content["height"]) == (640, 480)
    assert len(content["detections"]) == len(shown)
    with page.expect_download() as download:
        page.click("#save-picture")
    saved = Image.open(download.value.path())
    assert (saved.format, saved.size) == ("PNG", (640, 480))
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.locator("#boxes g.frame.on").count() == 1  # the entry in focus is picked out


def test_dropped_and_pasted(opened, address):
    page = opened(address)
    for event in ("drop", "paste"):
        page.reload()
        page.wait_for_selector("#class-list li")
        page.evaluate(
            """([event, bytes]) => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: "image/png" }));
                const made = event === "drop"
                    ? new DragEvent("drop", { dataTransfer: data, cancelable: true })
                    : new ClipboardEvent("paste", { clipboardData: data });
                document.body.dispatchEvent(new made.constructor(made.type, { ...{ bubbles: true, cancelable: true },
                    dataTransfer: data, clipboardData: data }));
            }""",
            [event, list(encoded(picture(), "PNG"))],
        )
        assert boxes(page)


def test_an_api_key_is_asked_for(browser, weights):
    with listening(small_app(weights, api_key="s3cret")) as address:
        page = browser.new_page()
        page.goto(address)
        page.fill("#key-value", "s3cret")
        page.click("#key button")
        page.wait_for_selector("#class-list li")
        choose(page, encoded(picture(), "PNG"))
        assert boxes(page)
        page.close()


def test_it_fits_a_phone(opened, address):
    page = opened(address)
    page.set_viewport_size({"width": 360, "height": 640})
    choose(page, encoded(picture(), "PNG"))
    boxes(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_api_is_documented_without_network(opened, address, browser):
    page = browser.new_page()
    page.on("request", lambda request: pytest.fail(request.url) if not request.url.startswith(address) else None)
    page.goto(f"{address}/docs")
    page.wait_for_selector("#routes article")
    assert "POST /v1/detect" in page.locator("#routes").inner_text()
    assert page.locator("#Problem").count() == 1
    page.close()
