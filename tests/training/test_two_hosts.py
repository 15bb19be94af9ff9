"""One run on two machines: each a network namespace with an address of its own, joined by a cable that can be cut.

Where namespaces may not be made, two addresses of the loopback stand in, and nothing is cut.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from whole_runs import MODEL, NARROW

from small import flags, rows

SETTINGS = NARROW | {"train.steps": 32, "train.evaluate_every": 2, "train.save_minutes": 0.01, "train.timeout": 5}


def ip(*words: str) -> bool:
    return subprocess.run(["ip", *words], capture_output=True).returncode == 0


@dataclass
class Host:
    address: str
    interface: str
    prefix: tuple[str, ...] = ()
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def torchrun(self, endpoint: str, leads: bool, folder: Path, *words: str | Path) -> None:
        """Start this host's part of a job of two hosts with a process each."""
        rendezvous = ["--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", "--rdzv-id=job"]
        # A namespace has the machine's own name, by which torchrun would find its address and who leads.
        rendezvous += [f"--local-addr={self.address}", f"--rdzv-conf=is_host={leads},read_timeout=20"]
        start = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=5", *rendezvous]
        with (folder / f"{self.address}.log").open("a") as log:
            self.started.append(
                subprocess.Popen(
                    [*self.prefix, sys.executable, *start, "-m", "doublehead.cli", *map(str, words)],
                    env=os.environ | {"GLOO_SOCKET_IFNAME": self.interface, "OMP_NUM_THREADS": "1"},
                    stderr=log,
                    stdout=log,
                    start_new_session=True,
                )
            )

    def worker(self) -> int:
        """The process id of what torchrun started here."""
        agent = self.started[-1].pid
        return int(Path(f"/proc/{agent}/task/{agent}/children").read_text().split()[0])


@pytest.fixture
def namespaces():
    """Two hosts 10.77.0.1 and 10.77.0.2."""
    names = [f"doublehead-{os.getpid()}-{number}" for number in (1, 2)]
    cable = [f"dh{os.getpid()}-{number}" for number in (1, 2)]
    made = all(ip("netns", "add", name) for name in names)
    made = made and ip("link", "add", cable[0], "type", "veth", "peer", "name", cable[1])
    for number, (name, end) in enumerate(zip(names, cable, strict=True), 1):
        made = made and ip("link", "set", end, "netns", name)
        made = made and ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", end)
        made = made and ip("-n", name, "link", "set", end, "up") and ip("-n", name, "link", "set", "lo", "up")
    hosts = [
        Host(f"10.77.0.{number}", end, ("ip", "netns", "exec", name))
        for number, (name, end) in enumerate(zip(names, cable, strict=True), 1)
    ]
    yield hosts if made else None
    end_all(hosts)
    for name in names:
        ip("netns", "delete", name)


def end_all(hosts):
    for process in [process for host in hosts for process in host.started]:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(what: Callable[[], bool], hosts: list[Host], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "nothing came of it"
        assert all(host.started[-1].poll() is None for host in hosts), "torchrun has ended"
        time.sleep(0.02)


def starts(run: Path) -> list[int]:
    """The steps from which the run was started."""
    file = run / "environment.json"
    return [entry["from_step"] for entry in json.loads(file.read_text())] if file.exists() else []


def steps(run: Path) -> int:
    return len(rows(run / "training.csv")) if (run / "training.csv").exists() else 0


def test_two_hosts_lose_a_process_and_their_network_and_finish(dataset, tmp_path, namespaces):
    hosts = namespaces
    run, whole = tmp_path / "run", tmp_path / "whole"
    endpoint = f"{hosts[0].address}:29500"
    words = ("train", dataset, "--model", MODEL, *flags(SETTINGS), "-o")
    for host in hosts:
        host.torchrun(endpoint, host is hosts[0], tmp_path, *words, run)
    wait_for(lambda: steps(run) >= 6, hosts)
    os.kill(hosts[1].worker(), signal.SIGKILL)
    wait_for(lambda: len(starts(run)) == 2 and steps(run) >= 14, hosts)
    print("after kill", starts(run), time.monotonic())
    ip("-n", hosts[1].prefix[-1], "link", "set", hosts[1].interface, "down")
    time.sleep(float(os.environ.get("CUT", 8)))
    ip("-n", hosts[1].prefix[-1], "link", "set", hosts[1].interface, "up")
    t = time.monotonic()
    try:
        for host in hosts:
            print(host.started[-1].wait(120), time.monotonic() - t)
    finally:
        for host in hosts:
            print((tmp_path / f"{host.address}.log").read_text())
        print(starts(run))
