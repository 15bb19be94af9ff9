"""One run on two machines: each a network namespace with an address of its own, joined by a cable that can be cut.

Where namespaces may not be made, two addresses of the loopback stand in, and nothing is cut.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from whole_runs import MODEL, SHORT, assert_same_run

from small import flags, rows

SETTINGS = SHORT | {"train.steps": 32, "train.evaluate_every": 2, "train.save_minutes": 0.01, "train.timeout": 20}


def ip(*words: str) -> bool:
    return shutil.which("ip") is not None and subprocess.run(["ip", *words], capture_output=True).returncode == 0


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
        rendezvous += [f"--local-addr={self.address}", f"--rdzv-conf=is_host={leads}"]
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


@contextmanager
def namespaces() -> Iterator[list[Host] | None]:
    """Two hosts 10.77.0.1 and 10.77.0.2; None where they may not be made."""
    names = [f"doublehead-{os.getpid()}-{number}" for number in (1, 2)]
    ends = [f"dh{os.getpid()}-{number}" for number in (1, 2)]
    try:
        made = all(ip("netns", "add", name) for name in names)
        made = made and ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for number, (name, end) in enumerate(zip(names, ends, strict=True), 1):
            made = made and ip("link", "set", end, "netns", name)
            made = made and ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", end)
            made = made and ip("-n", name, "link", "set", end, "up") and ip("-n", name, "link", "set", "lo", "up")
        prefixes = [("ip", "netns", "exec", name) for name in names]
        yield [Host(f"10.77.0.{n + 1}", ends[n], prefixes[n]) for n in (0, 1)] if made else None
    finally:
        for name in names:
            ip("netns", "delete", name)


@pytest.fixture(params=["namespaces", "loopback"])
def hosts(request):
    with namespaces() as found:
        if request.param == "namespaces" and not found:
            pytest.skip("nobody may make network namespaces here; two addresses of the loopback stand in")
        if request.param == "loopback":
            if found:
                pytest.skip("network namespaces, which are more, can be made here")
            found = [Host("127.0.0.1", "lo"), Host("127.0.0.2", "lo")]
        yield found
        for process in [process for host in found for process in host.started]:
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


@pytest.mark.long
def test_two_hosts_lose_a_process_and_their_network_and_finish(dataset, tmp_path, hosts):
    run, whole = tmp_path / "run", tmp_path / "whole"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"{hosts[0].address}:{free.getsockname()[1]}"
    words = ("train", dataset, "--model", MODEL, *flags(SETTINGS), "-o")
    for host in hosts:
        host.torchrun(endpoint, host is hosts[0], tmp_path, *words, run)

    wait_for(lambda: steps(run) >= 10, hosts)  # in the third epoch; saved after the second
    os.kill(hosts[1].worker(), signal.SIGKILL)
    wait_for(lambda: len(starts(run)) >= 2 and steps(run) >= starts(run)[1] + 4, hosts)
    if hosts[1].prefix:
        cable = ("-n", hosts[1].prefix[-1], "link", "set", hosts[1].interface)
        assert ip(*cable, "down")
        time.sleep(1.25 * SETTINGS["train.timeout"])
        assert ip(*cable, "up")
    logs = [tmp_path / f"{host.address}.log" for host in hosts]
    assert [host.started[-1].wait(180) for host in hosts] == [0, 0], "".join(log.read_text() for log in logs)

    began = starts(run)
    assert len(began) >= (3 if hosts[1].prefix else 2)
    assert 0 == began[0] < 8 <= began[1] < SETTINGS["train.steps"]
    assert began == sorted(began)  # each time from the last checkpoint
    assert all("error: lost another process of this run" in log.read_text() for log in logs[: len(began) - 1])
    alone = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "doublehead.cli"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *alone, *map(str, words), str(whole)], env=environment, check=True)
    assert_same_run(run, whole)
