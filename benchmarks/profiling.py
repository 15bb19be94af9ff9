"""Where inference spends its time, part by part, beside what the machine could do at best (a roofline)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.inference import VARIANTS, random_images, require_same_detections, untrained_peers
from benchmarks.measure import BenchmarkSettings
from benchmarks.owners import set_owners
from benchmarks.peers import Peer
from benchmarks.report import figures_table, ratios_to, versions
from doublehead.common.console import Console
from doublehead.common.device import pick_device
from doublehead.model.detector import Detector
from doublehead.training.study.timing import alternate, wait

USUAL = ("double-head staged", "double-head staged, bf16")
"""Cases profiled unless others are asked for; torchvision's is always the first."""

REST, POOLING, PROPOSALS, SECOND = "resizing, normalising, padding", "pooling", "proposals", "post-processing"

MATRIX = 2048
"""Side of the matrices whose product shows how many FLOPs a second the machine reaches."""

COPIED = 64 * 2**20
"""Floats copied to show the machine's memory bandwidth: far more than a cache holds."""


class Meter:
    """Shares out what a growing reading, such as a clock's, gains among the parts at work. Parts nest."""

    def __init__(self, read: Callable[[], float]) -> None:
        self.read = read
        self.totals: dict[str, float] = {}
        self.stack = [REST]
        self.last = read()

    def enter(self, part: str) -> None:
        """A part begins."""
        self._gained()
        self.stack.append(part)

    def leave(self) -> None:
        """The part that began last ends."""
        self._gained()
        self.stack.pop()

    def rename(self, part: str, name: str) -> None:
        """What a part gained so far is another's."""
        self.totals[name] = self.totals.get(name, 0.0) + self.totals.pop(part, 0.0)

    def _gained(self) -> None:
        now, part = self.read(), self.stack[-1]
        self.totals[part] = self.totals.get(part, 0.0) + now - self.last
        self.last = now


@contextmanager
def metered(peer: Peer, read: Callable[[], float]) -> Iterator[dict[str, float]]:
    """What the reading gains in each part of the run inside: filled when it ends."""
    model, hooks, meter = peer.model, list[Any](), Meter(read)

    def part(module: nn.Module, name: str, after: str | None = None) -> None:
        def begin(module: nn.Module, inputs: Any) -> None:
            meter.enter(name)

        def end(module: nn.Module, inputs: Any, outputs: Any) -> None:
            meter.leave()
            if after:
                meter.stack[-1] = after

        hooks.extend([module.register_forward_pre_hook(begin), module.register_forward_hook(end)])

    def pooled_for(branch: str) -> Callable[..., None]:
        return lambda module, inputs: meter.rename(POOLING, f"{branch} pooling")

    part(model.backbone.body, "backbone")
    part(model.backbone.fpn, "FPN")
    part(model.rpn.head, "RPN head")
    part(model.rpn, PROPOSALS, after=SECOND)
    for pooler, branches in _second_stage(model):
        part(pooler, POOLING)
        for name, modules in branches.items():
            hooks.append(modules[0].register_forward_pre_hook(pooled_for(name)))
            for module in modules:
                part(module, f"{name} trunk")
    result: dict[str, float] = {}
    try:
        yield result
        meter.leave()
        result.update(meter.totals)
    finally:
        for hook in hooks:
            hook.remove()


def _second_stage(model: Any) -> Iterator[tuple[nn.Module, dict[str, list[nn.Module]]]]:
    """For each box head, what pools RoIs and its branches by name."""
    if isinstance(model, Detector):
        for head in model.roi_heads.each:
            yield head.pooler, {name: [branch] for name, branch in zip(head.names, head, strict=True)}
    else:
        yield model.roi_heads.box_roi_pool, {"fc": [model.roi_heads.box_head, model.roi_heads.box_predictor]}


class Traffic(TorchDispatchMode):
    """Counts the bytes that operators read and write, each of their tensors once. Views and empty tensors move none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in func.name():
            moved = tree_leaves((args, kwargs, result))
            self.bytes += sum(leaf.nbytes for leaf in moved if isinstance(leaf, Tensor))
        return result


@dataclass(frozen=True)
class Machine:
    """What the machine reaches with these threads, measured."""

    flops: Mapping[str, float]  # a second, in a product of matrices, by precision
    bandwidth: float  # bytes a second, read and written, in a copy

    @classmethod
    def measured(cls, device: torch.device, repeats: int) -> Machine:
        """The best of several rounds."""

        def best(work: Callable[[], object]) -> float:
            return min(alternate({"": work}, repeats, device, lambda: None)[""])

        flops = {}
        for name, precision in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            matrix = torch.rand(MATRIX, MATRIX, device=device).to(precision)
            flops[name] = 2 * MATRIX**3 / best(lambda m=matrix: m @ m)  # type: ignore[misc]
        source = torch.rand(COPIED, device=device)
        target = torch.empty_like(source)
        return cls(flops, 2 * source.nbytes / best(lambda: target.copy_(source)))

    def least_seconds(self, flops: float, moved: float, precision: str) -> float:
        """No less than what computing takes, nor than what memory takes."""
        return max(flops / self.flops[precision], moved / self.bandwidth)


@dataclass(frozen=True)
class Profile:
    """One case: parts in the order in which they work."""

    name: str
    precision: str
    seconds: dict[str, list[float]]  # of each part, round by round
    flops: dict[str, float]
    bytes: dict[str, float]

    @property
    def totals(self) -> list[float]:
        """Seconds of the whole, round by round."""
        return [sum(parts) for parts in zip(*self.seconds.values(), strict=True)]


@dataclass(frozen=True)
class ProfileReport:
    """All cases; the first is the one that the others are compared with."""

    settings: dict[str, Any]
    versions: dict[str, Any]
    machine: Machine
    profiles: list[Profile]

    def to_json(self) -> dict[str, Any]:
        """Settings, versions, the machine's limits, and each case part by part."""
        cases = [{"name": p.name, "ratio": self._ratio(p), "parts": self._parts(p)} for p in self.profiles]
        return {
            "command": "benchmark profile",
            "settings": self.settings,
            "versions": self.versions,
            "machine": asdict(self.machine),
            "cases": cases,
        }

    def table(self) -> Table:
        """A row for each part of each case."""
        table = figures_table("part", ("seconds", "share", "GFLOP", "GB", "limit", "of limit"), self.versions)
        reached = ", ".join(f"{name} {flops / 1e9:.0f} GFLOP/s" for name, flops in self.machine.flops.items())
        table.caption = f"{table.caption}\nreached: {reached}, copying {self.machine.bandwidth / 1e9:.1f} GB/s"
        for profile in self.profiles:
            parts = self._parts(profile)
            whole = median(profile.totals)
            table.add_row(f"[bold]{profile.name}[/]", f"{whole:.4f}", f"ratio {self._ratio(profile):.2f}")
            for row in parts:
                table.add_row(
                    f"  {row['part']}",
                    f"{row['seconds']:.4f}",
                    f"{row['seconds'] / whole:.0%}",
                    f"{row['gflop']:.1f}",
                    f"{row['gb']:.2f}",
                    f"{row['limit']:.4f}",
                    f"{row['limit'] / row['seconds']:.0%}",
                )
        return table

    def _ratio(self, profile: Profile) -> float:
        return median(ratios_to(self.profiles[0].totals, profile.totals))

    def _parts(self, profile: Profile) -> list[dict[str, Any]]:
        return [
            {
                "part": part,
                "seconds": median(seconds),
                "gflop": profile.flops[part] / 1e9,
                "gb": profile.bytes[part] / 1e9,
                "limit": self.machine.least_seconds(profile.flops[part], profile.bytes[part], profile.precision),
            }
            for part, seconds in profile.seconds.items()
        ]


def profile(settings: BenchmarkSettings, owners: int = 100, changes: Mapping[str, Any] | None = None) -> ProfileReport:
    """Time every part of inference on the same random image, `settings.batch` times, case after case in each round.

    Args:
        settings: how to measure; no cases: USUAL.
        owners: proposals per image that own a candidate detection, in every model.
        changes: to the settings of all models, as nested keys.

    Raises:
        DoubleheadError: a setting has a mistake, or staged inference gave other detections than unstaged.
    """
    device = pick_device(settings.device)
    images = random_images(settings, device)
    variants = VARIANTS if settings.cases else {name: VARIANTS[name] for name in USUAL}

    @torch.no_grad()
    def run(peer: Peer) -> None:
        with peer.autocast(device):
            peer.model(images)

    def clock() -> float:
        wait(device)
        return time.perf_counter()

    with settings.with_threads():
        peers = untrained_peers(variants, settings, device, changes)
        machine = Machine.measured(device, settings.repeats)
        flops, moved = {}, {}
        with Console().progress("preparing", len(peers)) as advance:
            for peer in peers:
                set_owners(peer, lambda p=peer: run(p), owners, device)  # type: ignore[misc]
                require_same_detections(peer, images)
                with (
                    FlopCounterMode(display=False) as counter,
                    metered(peer, counter.get_total_flops) as flops[peer.name],
                ):
                    run(peer)
                with Traffic() as traffic, metered(peer, lambda t=traffic: t.bytes) as moved[peer.name]:  # type: ignore[misc]
                    run(peer)
                advance()
        rounds: dict[str, list[dict[str, float]]] = {peer.name: [] for peer in peers}

        def timed(peer: Peer) -> None:
            with metered(peer, clock) as parts:
                run(peer)
            rounds[peer.name].append(parts)

        with Console().progress("measuring", settings.repeats * len(peers)) as advance:
            alternate({p.name: lambda p=p: timed(p) for p in peers}, settings.repeats, device, advance)  # type: ignore[misc]
        profiles = [
            Profile(
                peer.name,
                peer.variant.precision,
                {part: [each[part] for each in rounds[peer.name][-settings.repeats :]] for part in flops[peer.name]},
                flops[peer.name],
                moved[peer.name],
            )
            for peer in peers
        ]
        return ProfileReport(asdict(settings) | {"owners": owners}, versions(device), machine, profiles)
