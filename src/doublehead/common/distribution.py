"""Distributed processes: torchrun and torch.distributed."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from doublehead.common.device import pick_device
from doublehead.common.errors import DoubleheadError, Fault
from doublehead.common.faults import refuse_second_import, told

JOINING = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells a process of the others."""

STARTED_AGAIN = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
"""How often torchrun has started these processes again, and SLURM this job."""


@dataclass(frozen=True)
class Distribution:
    """This process and its place among the processes of the run."""

    rank: int
    world: int
    device: torch.device
    joined: bool = False  # whether this is what joined the others, and not something around it
    local: int = 1  # processes on this machine

    @classmethod
    def start(cls, device: str, timeout: float = 1800) -> Distribution:
        """Join the other processes if torchrun started this one; otherwise run alone.

        Args:
            device: auto, cpu, cuda or a card such as cuda:1.
            timeout: maximum seconds to wait for the others.

        Raises:
            DoubleheadError: the device is not available, several processes were given one card, or WORLD_SIZE is set
                without what torchrun sets beside it.
            Fault: the others could not be joined.
        """
        refuse_second_import()
        if not cls.many():
            return cls(0, 1, pick_device(device))
        needed = {} if dist.is_initialized() else {name: _environment(name) for name in JOINING}
        world = int(needed.get("WORLD_SIZE", os.environ["WORLD_SIZE"]))
        local = int(_environment("LOCAL_WORLD_SIZE", str(world)))
        if device in ("auto", "cuda") and torch.cuda.is_available():
            device = f"cuda:{_environment('LOCAL_RANK')}"
        elif device.startswith("cuda:") and local > 1:
            raise DoubleheadError(
                f'Device "{device}" would be shared by {local} processes: use --device cuda, which gives each its own.'
            )
        chosen = pick_device(device)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        joined = not dist.is_initialized()
        if joined:
            backend = "nccl" if chosen.type == "cuda" else "gloo"
            with told():
                store, rank, world = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout)))
                own = dist.PrefixStore(_meet(store, rank, world, timeout), store)
                dist.init_process_group(
                    backend, store=own, rank=rank, world_size=world, timeout=timedelta(seconds=timeout)
                )
        return cls(dist.get_rank(), dist.get_world_size(), chosen, joined, local)

    @staticmethod
    def many() -> bool:
        """Whether torchrun started this process."""
        return "WORLD_SIZE" in os.environ

    @property
    def leads(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def started_again(self) -> bool:
        """Whether torchrun or SLURM has started this run again after the loss of a process or a machine."""
        (again,) = self.any(any(os.environ.get(name, "0") != "0" for name in STARTED_AGAIN))
        return again

    def gather(self, values: list[Any]) -> list[Any]:
        """The lists of all processes, joined in the order of their ranks."""
        if self.world == 1:
            return values
        parts: list[list[Any]] = [[] for _ in range(self.world)]
        dist.all_gather_object(parts, values)
        return [value for part in parts for value in part]

    def any(self, *flags: bool) -> list[bool]:
        """Of each flag, whether it is up in any process."""
        if self.world == 1:
            return list(flags)
        tensor = torch.tensor(flags, dtype=torch.float32, device=self.device)
        return [bool(value) for value in self.largest(tensor).tolist()]

    def largest(self, values: torch.Tensor) -> torch.Tensor:
        """Each value's largest in all processes, in place; the host does not wait for it."""
        if self.world > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def lead(self, work: Callable[[], object]) -> None:
        """Let the first process do something; whatever it raises stops all of them.

        Raises:
            DoubleheadError: the first process's own; or, in the others, a Fault that names its error of another type.
        """
        if self.world == 1:
            work()
            return
        raised: list[Exception] = []
        if self.leads:
            try:
                work()
            except Exception as error:
                raised.append(error)
        for fault in self.gather([_for_others(error) for error in raised]):
            raise raised[0] if raised else fault

    def require_same(self, value: object, otherwise: str) -> None:
        """Require that all processes have the same value.

        Raises:
            DoubleheadError: the sentence `otherwise`, with the values.
        """
        values = list(dict.fromkeys(self.gather([value])))
        if len(values) > 1:
            raise DoubleheadError(f"{otherwise} ({' or '.join(map(str, values))})")

    def share_buffers(self, module: nn.Module) -> None:
        """Give all processes the first one's running statistics, which each gathers from its own images."""
        if self.world > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def stop(self) -> None:
        """Leave the other processes, unless an enclosing block continues with them."""
        if self.joined:
            dist.destroy_process_group()


def _for_others(error: Exception) -> DoubleheadError:
    """An error as the other processes raise it, which know nothing of its type."""
    if isinstance(error, DoubleheadError):
        return error
    return Fault(f"the first process of this run failed ({type(error).__name__}: {error}); see what it says")


def _environment(name: str, default: str | None = None) -> str:
    """A variable that torchrun sets in each process; all but MASTER_ADDR are numbers.

    Raises:
        DoubleheadError: it is not set and has no default, or is not a number.
    """
    value = os.environ.get(name, default)
    if value is None:
        raise DoubleheadError(
            f"WORLD_SIZE is set, but {name} is not: start the processes with torchrun, which sets both, or unset "
            "WORLD_SIZE to run in one process"
        )
    if name != "MASTER_ADDR" and not value.isdecimal():
        raise DoubleheadError(f"{name}={value}: must be a whole number; torchrun sets it")
    return value


def _meet(store: dist.Store, rank: int, world: int, timeout: float) -> str:
    """Agree with the other processes on a name that no processes had before.

    torchrun's store outlives the processes that it starts again (pytorch issue 135712): under the names of torch itself
    a process may find the address of one that has ended, and so every start would be lost in which it is the first.

    Raises:
        Fault: not all the others came in time.
    """
    if rank > 0:
        caller = uuid.uuid4().hex
        store.set(f"caller {rank}", caller)
        name = store.get(f"answer to {caller}").decode()
        store.set(f"{name} reached {rank}", caller)
        return name
    name, until, absent = uuid.uuid4().hex, time.monotonic() + timeout, set(range(1, world))
    while absent:
        for other in absent:
            if store.check([f"caller {other}"]):  # perhaps one that has ended: then another will call
                store.set(f"answer to {store.get(f'caller {other}').decode()}", name)
        absent = {other for other in absent if not store.check([f"{name} reached {other}"])}
        if time.monotonic() > until:
            ranks = ", ".join(map(str, sorted(absent)))
            raise Fault(f"the processes of ranks {ranks} did not come within {timeout:g} seconds: see whether they run")
        time.sleep(0.05)
    return name


def parse_shard(shard: str) -> tuple[int, int]:
    """The share that `i/n` names: its place, from 0, and how many there are.

    Raises:
        DoubleheadError: it is not written so, or i is not in 1..n.
    """
    numbers = re.fullmatch(r"(\d+)/(\d+)", shard)
    place, shares = (int(number) for number in numbers.groups()) if numbers else (0, 0)
    if not 1 <= place <= shares:
        raise DoubleheadError(f"--shard {shard}: write i/n with i from 1 to n, such as 1/2 and 2/2")
    return place - 1, shares
