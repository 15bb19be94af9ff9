"""An optimiser step: losses of a batch, gradients, and agreement among processes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from doublehead.common.distribution import Distribution
from doublehead.common.errors import DoubleheadError, Fault
from doublehead.config import TrainConfig
from doublehead.data.records import Record
from doublehead.training.bad_batch import keep_batch
from doublehead.training.parallel import no_sync
from doublehead.training.state import TrainingState

Batch = tuple[list[Tensor], list[dict[str, Any]]]
"""Images, uint8 (3, H, W), and their targets, as returned by `DetectionDataset`."""


def on_device(
    images: list[Tensor], targets: list[dict[str, Any]], device: torch.device
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Move images, and the boxes and labels of their targets, to a device."""
    truth = [{key: target[key].to(device, non_blocking=True) for key in ("boxes", "labels")} for target in targets]
    return [image.to(device, non_blocking=True) for image in images], truth


@dataclass(frozen=True)
class Taken:
    """Result of a step that was taken, or skipped because of a non-finite loss or gradient."""

    losses: dict[str, float]  # by name, averaged over the accumulated parts; empty: the step was skipped
    stop: bool  # whether some process was asked to stop
    save: bool  # whether some process has not saved for `train.save_minutes`


class Stepper:
    """Executes the steps of a run.

    Args:
        settings: training settings.
        state: state of the run.
        processes: the processes of the run.
        rate: returns the learning rate of a step.
        autocast: autocast context of the model.
        records: training records, to name images with a non-finite loss.
        keep: folder for the images of such steps.
        say: called with a message if a step is skipped.
        asked_to_stop: whether this process was asked to stop.
    """

    def __init__(
        self,
        settings: TrainConfig,
        state: TrainingState,
        processes: Distribution,
        rate: Callable[[int], float],
        autocast: torch.autocast,
        records: Sequence[Record],
        keep: Path,
        say: Callable[[str], object],
        asked_to_stop: Callable[[], bool],
    ) -> None:
        self.settings, self.state, self.processes, self.rate = settings, state, processes, rate
        self.autocast, self.records, self.keep, self.say = autocast, records, keep, say
        self.asked_to_stop = asked_to_stop

    def take(self, module: nn.Module, step: int, batches: Iterator[Batch], saved: float) -> Taken:
        """Take one step.

        Args:
            module: result of `parallel.learner`.
            step: number of the step, from 0.
            batches: source of `train.accumulate` parts.
            saved: time of this process's last save, by the monotonic clock.

        Raises:
            DoubleheadError: a loss or gradient is not finite, more often than `train.skip_not_finite` allows.
        """
        settings, state = self.settings, self.state
        # Each step draws its own numbers, so that a resumed run draws the same.
        torch.manual_seed((settings.seed * 1_000_003 + step) * 1_009 + self.processes.rank)
        state.model.train()
        buffers = [buffer.clone() for buffer in state.model.buffers()] if settings.skip_not_finite else []
        parts: list[Batch] = []
        found: list[Tensor] = []
        for part in range(settings.accumulate):
            parts.append(next(batches))
            with no_sync(module, wait=part < settings.accumulate - 1):
                with self.autocast:
                    losses = module(*on_device(*parts[-1], self.processes.device))
                loss = torch.stack(list(losses.values())).sum()
                state.scaler.scale(loss / settings.accumulate).backward()
            found.append(torch.stack([loss, *losses.values()]).detach())
        rate = self.rate(step)
        for group in state.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in state.model.parameters() if p.grad is not None])
        if settings.clip_norm:
            nn.utils.clip_grads_with_norm_(state.model.parameters(), settings.clip_norm, norm)
        values, norm_value, (sick, stop, save) = self._agree(torch.stack(found), norm, saved)
        sums = {name: sum(row[i] / settings.accumulate for row in values) for i, name in enumerate(["loss", *losses])}
        finite = not sick and math.isfinite(norm_value)
        rescaled = not finite and not sick and state.rescales()
        if finite:
            state.optimizer.step()
            state.halvings = 0
        state.scaler.update()
        if not finite and not rescaled:
            bad = [name for name, value in sums.items() if not math.isfinite(value)]
            suspects = [part for part, row in zip(parts, values, strict=True) if not math.isfinite(row[0])]
            self._not_finite(step, bad if sick else ["gradient"], sums, suspects or parts)
            self._leave_out(buffers)
            return Taken({}, stop, save)
        state.optimizer.zero_grad(set_to_none=True)
        if finite and state.average is not None:
            state.average.update(state.model)
        return Taken(sums, stop, save)

    def _agree(self, losses: Tensor, norm: Tensor, saved: float) -> tuple[list[list[float]], float, list[bool]]:
        """Exchange a step's values among processes: its only exchange, and its only synchronisation with the device.

        Args:
            losses: (parts, 1 + names of losses).
            norm: norm of the gradient.
            saved: as in `take`.

        Returns:
            Losses and norm as numbers; and whether in any process a loss is not finite, a stop was asked for, and
            saving is due.
        """
        late = time.monotonic() - saved > 60 * self.settings.save_minutes
        own = torch.tensor([self.asked_to_stop(), late], dtype=losses.dtype, device=losses.device)
        sick = ~losses[:, 0].isfinite().all()
        flags = self.processes.largest(torch.cat([sick[None].to(losses.dtype), own]))
        figures = torch.cat([losses.flatten(), norm[None], flags]).tolist()
        count = losses.shape[1]
        rows = [figures[start : start + count] for start in range(0, losses.numel(), count)]
        return rows, figures[losses.numel()], [bool(flag) for flag in figures[losses.numel() + 1 :]]

    def _not_finite(self, step: int, bad: list[str], losses: dict[str, float], parts: list[Batch]) -> None:
        """Store the batch of each process with non-finite values, and stop the run after too many such steps.

        Raises:
            DoubleheadError: too many steps were skipped; the message names the images.
        """
        folder = self.keep / f"step-{step}"
        images = [image for part in parts for image in part[0]]
        targets = [target for part in parts for target in part[1]]
        files = [str(self.records[target["index"]].path) for target in targets] if bad else []
        if bad:
            with suppress(Fault):  # a disk too full for pictures
                keep_batch(folder, self.processes.rank, images, targets, self.records, losses)
        bad, files = self.processes.gather(bad), self.processes.gather(files)
        names = ", ".join(name for name in dict.fromkeys(bad) if name != "loss") or "loss"
        what = "the gradient" if "gradient" in bad else f"the loss ({names})"
        found = f"{what} is not finite at step {step} on {', '.join(files)}"
        if self.state.skipped >= self.settings.skip_not_finite:
            raise DoubleheadError(
                f"{found}: lower train.lr, set train.clip_norm, or check the boxes of these images in {folder}"
            )
        self.say(f"skipped: {found}; see {folder}")

    def _leave_out(self, buffers: list[Tensor]) -> None:
        """Undo a step: drop its gradients and restore running statistics."""
        self.state.skipped += 1
        self.state.optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(self.state.model.buffers(), buffers, strict=True):
            buffer.copy_(before)
