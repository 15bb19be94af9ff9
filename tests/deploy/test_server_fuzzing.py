"""Whatever is sent, the answer is one that the OpenAPI document promises.

    DOUBLEHEAD_FUZZ=5000 python -m pytest tests/deploy/test_server_fuzzing.py -s

sends 5000 spoiled images instead of a few and tries the document with 500 examples a route.
"""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig
from serving import encoded, listening, picture, small_app

EXAMPLES = int(os.environ.get("DOUBLEHEAD_FUZZ", "0"))
FORMS = ("JPEG", "PNG", "WEBP", "BMP")

images = st.integers(0, 9).map(lambda seed: encoded(picture(seed), FORMS[seed % 4]))
CONFIG = {
    "checks": {"negative_data_rejection": {"expected-statuses": [400, 401, 413, 415, 422]}},
    "request-timeout": 120.0,  # seconds: the machine may be busy
}
schemathesis.openapi.format("binary", images)  # what the document calls bytes are images
for kind in ("image/jpeg", "image/png", "application/octet-stream"):
    schemathesis.openapi.media_type(kind, images)


@pytest.mark.parametrize("key", [None, "s3cret"])
@pytest.mark.parametrize("mode", GenerationMode)
def test_the_openapi_document(weights, mode, key):
    """What the document allows is answered as it says, and what it forbids is refused as it says."""
    seen = Counter[int]()

    def checked(case: schemathesis.Case) -> None:
        seen[case.call_and_validate(headers={"Authorization": f"Bearer {key}"} if key else {}).status_code] += 1

    with listening(small_app(weights, api_key=key, timeout=60)) as address:
        config = SchemathesisConfig.from_dict(CONFIG)
        document = schemathesis.openapi.from_url(f"{address}/openapi.json", config=config)
        if mode is GenerationMode.NEGATIVE:  # the others take nothing that could be wrong
            document = document.include(path="/v1/detect")
        for found in document.get_all_operations():
            cases = found.ok().as_strategy(generation_mode=mode)
            settings(
                max_examples=EXAMPLES // 10 or 5,
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            )(given(cases)(checked))()
    print(f"\n{mode.value} cases: {seen.total()}, " + ", ".join(f"{n} with {s}" for s, n in seen.most_common()))


def spoiled(whole: bytes, rng: random.Random) -> bytes:
    """Overwritten, cut, doubled or mixed up, at one to four places; headers more often than the rest."""
    data = bytearray(whole)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(len(data), 64) if rng.random() < 0.5 else len(data)) if data else 0
        length = rng.choice((1, 2, 4, 16, 200))
        how = rng.randrange(5)
        if how == 0:
            data[at : at + length] = rng.randbytes(len(data[at : at + length]))
        elif how == 1:
            data[at : at + length] = bytes([rng.choice((0, 127, 128, 255))]) * len(data[at : at + length])
        elif how == 2:
            del data[at : at + length]
        elif how == 3:
            data[at:at] = data[at : at + length]
        else:
            del data[at:]
    return bytes(data)


def test_spoiled_images(client):
    rng = random.Random(0)
    wholes = [encoded(picture(seed, (64, 64)), form) for seed in range(3) for form in FORMS]
    wholes += [
        encoded(Image.effect_noise((64, 64), 90), "PNG"),
        encoded(picture(0, (64, 64)).convert("P"), "PNG"),
        encoded(picture(0, (64, 64)).convert("CMYK"), "JPEG"),
        encoded(picture(0, (64, 64)), "JPEG", progressive=True),
    ]
    seen = Counter[str]()
    for _ in range(EXAMPLES or 100):
        data = spoiled(rng.choice(wholes), rng)
        if rng.random() < 0.5:
            response = client.post("/v1/detect", content=data, headers={"Content-Type": "image/jpeg"})
        else:
            response = client.post("/v1/detect", files=[("images", ("x", data)), ("images", ("y", wholes[0]))])
        content = response.json()
        assert response.status_code in (200, 400, 413, 415), content
        seen[content["error"] if response.status_code != 200 else "answered"] += 1
    print(f"\n{seen.total()} spoiled images: " + ", ".join(f"{count} {name}" for name, count in seen.most_common()))
    assert {"answered", "damaged", "unsupported_image"} <= set(seen)
    assert client.get("/ready").status_code == 200
