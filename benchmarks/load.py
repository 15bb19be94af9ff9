"""Load on a server that runs: throughput, latency, batches and memory by the number of clients; and overload.

    doublehead serve WEIGHTS --port 8000
    python -m benchmarks.load http://127.0.0.1:8000 PHOTOS --json load.json

    doublehead serve WEIGHTS --port 8001 --queue 8 --max-images 4
    python -m benchmarks.load http://127.0.0.1:8001 PHOTOS --overload --json overload.json

Each client sends one image at a time, again and again. PHOTOS is a folder of images; without it, scenes are drawn. The
key of a server that asks for one is read from DOUBLEHEAD_API_KEY. With --weights, requests of one client alternate with
the same model in this process on decoded images, to show what a request costs besides.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

import doublehead
from benchmarks.report import write_json
from doublehead.data.images import read_image
from doublehead.data.synthetic import scene
from doublehead.deploy.bulk.sources import find_files
from doublehead.deploy.server.app import as_jpeg

CLIENTS = (1, 2, 4, 8, 16, 32, 64)
PATIENCE = 120  # seconds after which a request is taken to hang
COLUMNS = (
    "clients",
    "images/s",
    "p50 ms",
    "p99 ms",
    "images a batch",
    "memory MB",
    "200",
    "503",
    "others",
    "no answer",
)


@dataclass
class Round:
    """What the clients of one round met."""

    seconds: list[float] = field(default_factory=list)  # of those answered with 200
    statuses: Counter[int] = field(default_factory=Counter)
    sent: int = 0
    slowest: float = 0.0

    @property
    def lost(self) -> int:
        """Requests that got no answer at all."""
        return self.sent - self.statuses.total()


async def ask(http: httpx.AsyncClient, image: bytes) -> httpx.Response:
    """Detections in a JPEG file."""
    return await http.post("/v1/detect", content=image, headers={"Content-Type": "image/jpeg"})


async def client(http: httpx.AsyncClient, images: itertools.cycle[bytes], until: float, seen: Round) -> None:
    while time.monotonic() < until:
        began = time.monotonic()
        seen.sent += 1
        try:
            response = await ask(http, next(images))
        except httpx.HTTPError as error:
            print(f"no answer: {error!r}")
            continue
        taken = time.monotonic() - began
        seen.slowest = max(seen.slowest, taken)
        seen.statuses[response.status_code] += 1
        if response.status_code == 200:
            seen.seconds.append(taken)
        if response.status_code == 503 and not int(response.headers["Retry-After"]) >= 1:
            raise AssertionError("503 without Retry-After")


async def counts(http: httpx.AsyncClient) -> dict[str, float]:
    """The metrics without labels."""
    text = (await http.get("/metrics")).text
    return {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", text, re.MULTILINE)}


async def measure(http: httpx.AsyncClient, images: list[bytes], clients: int, seconds: float) -> dict[str, Any]:
    """One round."""
    before, seen, began = await counts(http), Round(), time.monotonic()
    turn = itertools.cycle(images)
    await asyncio.gather(*(client(http, turn, began + seconds, seen) for _ in range(clients)))
    elapsed, after = time.monotonic() - began, await counts(http)
    batches = after["doublehead_batch_images_count"] - before["doublehead_batch_images_count"]
    through = after["doublehead_batch_images_sum"] - before["doublehead_batch_images_sum"]
    p50, p99 = np.percentile(seen.seconds, [50, 99]).tolist() if seen.seconds else (None, None)
    return {
        "clients": clients,
        "seconds": elapsed,
        "sent": seen.sent,
        "statuses": dict(seen.statuses),
        "no_answer": seen.lost,
        "images_per_second": len(seen.seconds) / elapsed,
        "p50": p50,
        "p99": p99,
        "slowest": seen.slowest,
        "images_per_batch": through / batches if batches else None,
        "memory": after.get("process_resident_memory_bytes"),
        "waiting_afterwards": after["doublehead_waiting_images"],
    }


async def cost_of_a_request(http: httpx.AsyncClient, images: list[bytes], weights: str) -> dict[str, float]:
    """Medians of the seconds of a request, of the bare model, and of their difference image by image."""
    model = doublehead.load(weights)
    asked, bare = [], []
    for image in images:
        began = time.monotonic()
        (await ask(http, image)).raise_for_status()
        asked.append(time.monotonic() - began)
        picture = read_image("request.jpg", image)
        began = time.monotonic()
        model.predict(picture)
        bare.append(time.monotonic() - began)
    request, alone = np.array(asked), np.array(bare)
    seconds = {"request": request, "bare": alone, "difference": request - alone}
    cold = len(images) // 8
    return {name: float(np.median(values[cold:])) for name, values in seconds.items()}


def row(result: dict[str, Any]) -> str:
    """A row of the Markdown table."""
    statuses = result["statuses"]
    others = sum(number for status, number in statuses.items() if status not in (200, 503))
    cells = [
        result["clients"],
        f"{result['images_per_second']:.1f}",
        *("-" if result[key] is None else f"{1000 * result[key]:.0f}" for key in ("p50", "p99")),
        "-" if result["images_per_batch"] is None else f"{result['images_per_batch']:.2f}",
        "-" if result["memory"] is None else f"{result['memory'] / 1e6:.0f}",
        *(statuses.get(status, 0) for status in (200, 503)),
        others,
        result["no_answer"],
    ]
    return f"| {' | '.join(map(str, cells))} |"


async def run(arguments: argparse.Namespace) -> None:
    files = list(find_files([arguments.images]))[: arguments.most] if arguments.images else []
    images = [file.read_bytes() for file in files] or [as_jpeg(scene(seed)) for seed in range(arguments.most)]
    key = os.environ.get("DOUBLEHEAD_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(
        base_url=arguments.server, headers=headers, timeout=PATIENCE, limits=limits, trust_env=False
    ) as http:
        await measure(http, images, 4, min(5.0, arguments.seconds))  # warm
        print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
        results = []
        for clients in arguments.clients or ((64,) if arguments.overload else CLIENTS):
            results.append(await measure(http, images, clients, arguments.seconds))
            print(row(results[-1]), flush=True)
        models = (await http.get("/v1/models")).json()
        cost = await cost_of_a_request(http, images, arguments.weights) if arguments.weights else None
    if cost:
        said = (f"{name} {1000 * seconds:.1f} ms" for name, seconds in cost.items())
        print(f"one client, medians: {', '.join(said)}")
    if arguments.json:
        write_json({"images": len(images), "server": models, "rounds": results, "cost": cost}, arguments.json)
    if arguments.overload:
        answered = set().union(*(result["statuses"] for result in results))
        assert answered == {200, 503}, f"not overloaded, or answered otherwise: {answered}"
        assert all(not result["no_answer"] and not result["waiting_afterwards"] for result in results)
        print("only 200 and 503; every request was answered, and nothing is left waiting")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", help="such as http://127.0.0.1:8000")
    parser.add_argument("images", nargs="?", help="folder of images; else scenes are drawn")
    parser.add_argument("--seconds", type=float, default=60, help="of each round")
    parser.add_argument("--clients", type=int, nargs="*", help="how many at once; else 1, 2, 4 ... 64")
    parser.add_argument("--weights", help="of the server's model, for the cost of a request")
    parser.add_argument("--most", type=int, default=64, help="unlike images")
    parser.add_argument(
        "--overload", action="store_true", help="64 clients; fails unless all is answered by 200 or 503"
    )
    parser.add_argument("--json", type=Path)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
