"""What torchrun tells a process, and what one process tells the others."""

from __future__ import annotations

import multiprocessing
import socket

import pytest
import torch

from doublehead.common.distribution import Distribution
from doublehead.common.errors import DoubleheadError, Fault

JOINING = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "LOCAL_RANK": "0"}


@pytest.fixture
def environment(monkeypatch):
    def put(**values):
        for name in (*JOINING, "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize("name", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_a_missing_variable_is_named(environment, name):
    environment(**{key: value for key, value in JOINING.items() if key != name})
    with pytest.raises(DoubleheadError, match=f"WORLD_SIZE is set, but {name} is not: start the processes with torchr"):
        Distribution.start("cpu")


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "MASTER_PORT", "LOCAL_WORLD_SIZE"])
def test_a_variable_that_is_no_number_is_named(environment, name):
    environment(**JOINING | {name: "two"})
    with pytest.raises(DoubleheadError, match=f"{name}=two: must be a whole number"):
        Distribution.start("cpu")


def test_without_a_local_rank_no_card_can_be_chosen(environment, monkeypatch):
    environment(**{key: value for key, value in JOINING.items() if key != "LOCAL_RANK"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(DoubleheadError, match="WORLD_SIZE is set, but LOCAL_RANK is not"):
        Distribution.start("auto")


def test_one_card_for_all_processes_is_refused(environment):
    environment(**JOINING)
    with pytest.raises(DoubleheadError, match='Device "cuda:1" would be shared by 2 processes: use --device cuda'):
        Distribution.start("cuda:1")


def lead(rank, port, error, queue):
    """One of two processes, the first of which meets with an error."""
    import os

    os.environ.update(JOINING | {"RANK": str(rank), "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": "1"})
    processes = Distribution.start("cpu", 60)

    def work():
        raise error

    try:
        processes.lead(work)
    except Exception as caught:
        queue.put((rank, type(caught), str(caught), processes.local))
    processes.stop()


@pytest.mark.parametrize("error", [KeyError("rpn"), Fault("the disk is full")])
def test_whatever_the_first_process_meets_ends_the_others(error):
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = context.Queue()
    started = [context.Process(target=lead, args=(rank, port, error, queue)) for rank in (0, 1)]
    for process in started:
        process.start()
    (_, own, _, local), (_, other, sentence, _) = sorted(queue.get(timeout=100) for _ in started)
    for process in started:
        process.join()
    assert own is type(error)
    assert other is Fault
    assert str(error) in sentence
    assert type(error).__name__ in sentence or isinstance(error, Fault)
    assert local == 1  # of a machine with one of the two
