"""The command itself, over real connections: clients that leave, dawdle or send too much; and its end."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from serving import command_serving, encoded, picture, until

WAIT = 3.0  # seconds an image waits for others: long enough to do something meanwhile


@contextmanager
def serving(weights, *words: str) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """The process, with host and port."""
    with command_serving("serve", str(weights), *words) as (process, line):
        found = re.search(r"serving double-head-ext at http://(127\.0\.0\.1):(\d+)", line)
        assert found, line
        yield process, found[1], int(found[2])


def connected(place: tuple[str, int], *parts: bytes) -> socket.socket:
    """A connection over which these have been sent."""
    sock = socket.create_connection(place, timeout=60)
    for part in parts:
        sock.sendall(part)
    return sock


def head(length: int | None = None) -> bytes:
    how = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n{how}\r\n\r\n".encode()


def answer(sock: socket.socket) -> tuple[int, dict]:
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        assert more, data
        data += more
    start, _, body = data.partition(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", start)[1])
    while len(body) < length:
        body += sock.recv(65536)
    return int(start.split()[1]), json.loads(body)


def count(place: tuple[str, int], metric: str) -> float:
    with urllib.request.urlopen(f"http://{place[0]}:{place[1]}/metrics", timeout=60) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{metric} "))


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGTERM")
def test_a_server_from_start_to_end(weights):
    data = encoded(picture())
    with serving(weights, "--batch-wait", str(1000 * WAIT), "--timeout", "5", "--max-megabytes", "0.1") as (
        process,
        *place,
    ):
        place = (place[0], place[1])
        waiting = "doublehead_waiting_images"
        left = 'doublehead_requests_total{path="/v1/detect",status="499"}'

        health = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        idle = connected(place, health)
        assert answer(idle)[0] == 200

        leaving = connected(place, head(len(data)), data)
        until(lambda: count(place, waiting) == 1)
        leaving.close()
        until(lambda: count(place, left) == 1)
        assert count(place, waiting) == 0

        dawdling = connected(place, head(1000), b"x")  # the rest never comes
        chunk = b"4000\r\n" + bytes(0x4000) + b"\r\n"
        endless = connected(place, head(), *[chunk] * 8)  # 131 kB, and no end
        assert answer(endless)[0] == 413
        assert answer(connected(place, head(10**12)))[0] == 413
        status, content = answer(dawdling)
        assert (status, content["error"]) == (408, "too_slow")
        idle.sendall(health)  # after more than 5 seconds
        assert answer(idle)[0] == 200

        taken = connected(place, head(len(data)), data)
        until(lambda: count(place, waiting) == 1)
        process.send_signal(signal.SIGTERM)
        status, content = answer(taken)
        assert status == 200
        assert content["images"][0]["width"] == 96
        assert process.wait(60) == 0
        assert "Traceback" not in process.stderr.read()
        with pytest.raises(ConnectionRefusedError):
            connected(place)
