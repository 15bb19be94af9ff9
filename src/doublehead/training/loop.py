"""The training loop: one function from a Config to a run folder."""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from doublehead.common.categories import require_same_classes
from doublehead.common.console import Console
from doublehead.common.device import float32_by_default, pick_precision
from doublehead.common.distribution import Distribution
from doublehead.common.errors import DoubleheadError, Fault
from doublehead.common.faults import less_memory, told
from doublehead.common.files import writing
from doublehead.config import Config
from doublehead.data.check import check_images, read_for_training
from doublehead.data.dataset import summary
from doublehead.data.loader import DetectionDataset, Waited, default_workers, steps_per_epoch, training_loader
from doublehead.data.records import Split
from doublehead.data.transforms import training_transform
from doublehead.evaluation.coco import Metrics, evaluate_detections
from doublehead.evaluation.evaluate import predict_split
from doublehead.inference.predictor import Predictor
from doublehead.model.checkpoint import adopt
from doublehead.model.detector import Detector
from doublehead.training.bad_batch import keep_batch
from doublehead.training.environment import environment, fingerprint
from doublehead.training.pictures import draw_run
from doublehead.training.run import RunFolder, append_row
from doublehead.training.schedule import learning_rate
from doublehead.training.signals import Interrupted, stop_signals
from doublehead.training.state import TrainingState

MEASUREMENTS = 20
"""How often a run is measured where `train.evaluate_every` does not say: so many times, each epoch at most once."""


@float32_by_default()
def run_training(config: Config, output: Path, resume: bool = False, other_data: bool = False) -> Path:
    """Train a detector; everything about the run is written into `output`.

    Args:
        config: the whole run; `data.path` names the dataset.
        output: the run folder; a new one, or with `resume` that of the run to go on with.
        resume: go on from the newest whole checkpoint, or from the start where there is none. The weights will be those
            of a run that was never stopped. A run that torchrun or SLURM starts again resumes by itself.
        other_data: go on even if the data has changed since.

    Returns:
        The path of the best checkpoint.

    Raises:
        DoubleheadError: the data, the config or the folder has a mistake, or a loss is not finite.
        Fault: memory, disk, a loader process or another process of the run failed; the run is kept.
        Interrupted: Ctrl-C or SIGTERM; the run is saved.
    """
    processes = Distribution.start(config.train.device, config.train.timeout)
    try:
        with told(less_memory(config.train, processes.world)):
            training = _Training(config, output, resume, processes, other_data)
            with stop_signals() as training.asked_to_stop:
                return training.run()
    except Fault as fault:
        if not RunFolder(output).config.exists():
            raise
        raise Fault(f"{fault}; then go on with: {_resume_command(output, processes.world)}") from fault
    finally:
        processes.stop()


class _Training:
    """One run in one process. Built in the order in which mistakes are cheapest to find: data, folder, model."""

    asked_to_stop: Callable[[], bool]

    def __init__(self, config: Config, output: Path, resume: bool, processes: Distribution, other_data: bool) -> None:
        self.config, self.processes = config, processes
        self.run_folder = RunFolder(output)
        self.console = Console(processes.leads)
        settings = config.train
        if settings.batch_size % (processes.world * settings.accumulate):
            raise DoubleheadError(
                f"train.batch_size {settings.batch_size} cannot be shared among {processes.world} processes with "
                f"train.accumulate {settings.accumulate}: make it a multiple of their product"
            )
        backbone = config.model.backbone
        if backbone.weights is None and (backbone.trainable_stages < 5 or backbone.norm == "frozen"):
            raise DoubleheadError(
                "a backbone without weights must learn all its stages and norms: set model.backbone.trainable_stages=5 "
                "and model.backbone.norm=group, or give model.backbone.weights"
            )
        if not resume and processes.started_again():
            (resume,) = processes.any(processes.leads and self.run_folder.config.exists())
            if resume:
                processes.lead(lambda: self.run_folder.require_config(config))
        elif not resume:
            processes.lead(self.run_folder.require_free)
        self.split, self.val = self._read_data(check=not resume)
        fingerprints = self._fingerprints()
        if resume and not other_data:
            processes.lead(lambda: self.run_folder.require_data(fingerprints))
        self.per_epoch = steps_per_epoch(len(self.split.records), settings.batch_size)
        self.total = settings.steps or max(1, round((settings.epochs or 0) * self.per_epoch))
        precision = pick_precision(settings.precision, processes.device)
        self.autocast = torch.autocast(processes.device.type, precision, enabled=precision is not None)
        torch.manual_seed(settings.seed)
        checkpoint = self.run_folder.newest(self.console.say) if resume else None
        fresh = checkpoint is None and settings.weights is None
        model = Detector(config.model, len(self.split.categories), pretrained=fresh)
        if settings.weights and checkpoint is None:
            new = adopt(model, self.split.categories, settings.weights)
            layers = sorted({key.rpartition(".")[0] for key in new})
            self.console.say(f"starting from {settings.weights}; new are {', '.join(layers) or 'no layers'}")
        model.to(processes.device).to(memory_format=torch.channels_last)
        self.state = TrainingState.create(model, settings, processes.device, precision is torch.float16)
        state = self.state
        if checkpoint:
            require_same_classes(f"{self.run_folder.path} and the data", checkpoint.categories, self.split.categories)
            state.restore(checkpoint, self.run_folder.last)
        processes.require_same(
            f"step {state.step}",
            f"{output}: must be a folder that all machines share; the checkpoints seen there differ",
        )

        def write() -> None:
            about = environment(processes, state.step, fingerprints)
            if resume:
                self.run_folder.go_on(state.step, state.measured, about)
            else:
                self.run_folder.begin(config, about)

        processes.lead(write)
        self.saved, self.saved_at = time.monotonic(), (state.step, state.measured)

    def _read_data(self, check: bool) -> tuple[Split, Split | None]:
        data = self.config.data
        if not data.path:
            raise DoubleheadError("which data? give the dataset's folder, or data.path in the config")
        split, val = read_for_training(data.path, data.train_split, data.val_split)
        for part in filter(None, (split, val)):
            self.console.say(summary(part))
        if val is None:
            self.console.say("no val split: nothing is measured during training, and `best` will be the last weights")
        records = split.records + (val.records if val else [])

        def check_all() -> None:
            with self.console.progress("checking images", len(records)) as advance:
                check_images(records, data.check, advance)

        if check:
            self.processes.lead(check_all)
        return split, val

    def _fingerprints(self) -> dict[str, str]:
        """Of each split, by its name.

        Raises:
            DoubleheadError: the processes see different data.
        """
        root = Path(self.config.data.path)
        found = {split.name: fingerprint(split, root) for split in (self.split, self.val) if split}
        self.processes.require_same(json.dumps(found), f"{root}: must be the same on all machines; its data differs")
        return found

    def run(self) -> Path:
        """Train to the end."""
        state, console = self.state, self.console
        console.say(
            f"training {self.config.model.preset} for {self.total} steps "
            f"({self.total / self.per_epoch:.1f} epochs) on {self.processes.world} x {self.processes.device} "
            f"into {self.run_folder.path}"
        )
        try:
            self._learn()
        except Interrupted:
            self._save()
            command = _resume_command(self.run_folder.path, self.processes.world)
            console.say(f"stopped at step {state.step} and saved; go on with: {command}")
            raise
        if self.val is None:
            self._save_best()
        if self.processes.leads:
            with writing(self.run_folder.path):
                draw_run(self.run_folder, self.val or self.split, self._predictor(), console)
                self.run_folder.previous.unlink(missing_ok=True)
            best = f", best AP {state.best:.3f}" if state.best >= 0 else ""
            console.say(f"done in {state.seconds / 60:.1f} minutes{best}; everything is in {self.run_folder.path}:")
            for path in sorted(self.run_folder.path.iterdir()):
                console.say(f"  {path}")
        return self.run_folder.best

    def _learn(self) -> None:
        state = self.state
        if self._due(state.step):  # stopped while measuring
            self._measure()
        learner: nn.Module = state.model
        if self.processes.world > 1:
            learner = DistributedDataParallel(state.model)
        with self.console.training(self.total, state.step) as show:
            batches, before = Waited(self._batches()), state.seconds
            for step in range(state.step, self.total):
                began = time.monotonic()
                losses = self._step(learner, step, batches)
                state.step = step + 1
                state.seconds += time.monotonic() - began
                if losses:
                    self._log(losses)
                    show(state.step, losses, state.best)
                late = time.monotonic() - self.saved > 60 * self.config.train.save_minutes
                stop, save = self.processes.any(self.asked_to_stop(), late)
                if stop:
                    raise Interrupted
                if self._due(state.step):
                    self._measure()
                elif save:
                    self._save()
            if state.seconds > before:
                share = batches.seconds / (state.seconds - before)
                self.console.say(f"{share:.0%} of the steps' time went into waiting for images")
        self._save()

    def _batches(self) -> Iterator[tuple[list[Tensor], list[dict[str, Any]]]]:
        settings, data, processes = self.config.train, self.config.data, self.processes
        size = self.config.model.input
        return training_loader(
            DetectionDataset(
                self.split, training_transform(data.augment, size.short_side, size.long_side), settings.seed
            ),
            settings.batch_size,
            settings.batch_size // (processes.world * settings.accumulate),
            processes.rank,
            processes.world,
            settings.seed,
            self.state.step,
            self.total,
            default_workers(processes.world) if data.workers is None else data.workers,
            data.timeout,
        )

    def _step(
        self, learner: nn.Module, step: int, batches: Iterator[tuple[list[Tensor], list[dict[str, Any]]]]
    ) -> dict[str, float]:
        """One optimiser step; the losses by name, averaged over the accumulated parts; none where it is left out."""
        settings, state = self.config.train, self.state
        # Each step draws its own numbers, so that a resumed run draws the same.
        torch.manual_seed((settings.seed * 1_000_003 + step) * 1_009 + self.processes.rank)
        state.model.train()
        buffers = [buffer.clone() for buffer in state.model.buffers()] if settings.skip_not_finite else []
        sums: dict[str, float] = {}
        for part in range(settings.accumulate):
            images, targets = next(batches)
            truth = [{k: target[k].to(self.processes.device) for k in ("boxes", "labels")} for target in targets]
            last = part == settings.accumulate - 1
            with _no_sync(learner, wait=not last):
                with self.autocast:
                    losses = learner(images, truth)
                loss = torch.stack(list(losses.values())).sum()
                for name, value in zip(["loss", *losses], torch.stack([loss, *losses.values()]).tolist(), strict=True):
                    sums[name] = sums.get(name, 0.0) + value / settings.accumulate
                if any(self.processes.any(not math.isfinite(sums["loss"]))):
                    bad = [name for name, value in sums.items() if not math.isfinite(value) and name != "loss"]
                    self._not_finite(step, bad, sums, images, targets)
                    for _ in range(part + 1, settings.accumulate):
                        next(batches)
                    return self._leave_out(buffers)
                state.scaler.scale(loss / settings.accumulate).backward()
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(settings, step, self.total)
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in state.model.parameters() if p.grad is not None])
        if settings.clip_norm:
            nn.utils.clip_grads_with_norm_(state.model.parameters(), settings.clip_norm, norm)
        if not state.scaler.is_enabled() and not norm.isfinite():  # a scaler leaves such a step out by itself
            self._not_finite(step, ["gradient"], sums, images, targets)
            return self._leave_out(buffers)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        if state.average is not None:
            state.average.update_parameters(state.model)
        return sums

    def _not_finite(
        self,
        step: int,
        bad: list[str],
        losses: dict[str, float],
        images: list[Tensor],
        targets: list[dict[str, Any]],
    ) -> None:
        """Keep the batch of each process that has something `bad`; stop all with one sentence if there were too many.

        Raises:
            DoubleheadError: names the images.
        """
        folder = self.run_folder.not_finite / f"step-{step}"
        files = [str(self.split.records[target["index"]].path) for target in targets] if bad else []
        if bad:
            with suppress(Fault):  # a disk too full for pictures
                keep_batch(folder, self.processes.rank, images, targets, self.split.records, losses)
        bad, files = self.processes.gather(bad), self.processes.gather(files)
        what = "the gradient" if "gradient" in bad else f"the loss ({', '.join(dict.fromkeys(bad))})"
        found = f"{what} is not finite at step {step} on {', '.join(files)}"
        if self.state.skipped >= self.config.train.skip_not_finite:
            raise DoubleheadError(
                f"{found}: lower train.lr, set train.clip_norm, or look at the boxes of these images in {folder}"
            )
        self.console.say(f"left out: {found}; see {folder}")

    def _leave_out(self, buffers: list[Tensor]) -> dict[str, float]:
        """Forget a step: its gradients, and what it did to running statistics."""
        self.state.skipped += 1
        self.state.optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(self.state.model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        return {}

    def _due(self, step: int) -> bool:
        """Whether the val split is to be measured after so many steps, and has not been yet."""
        if self.val is None or step == 0 or self.state.measured == step:
            return False
        epochs = self.config.train.evaluate_every or max(1.0, self.total / self.per_epoch / MEASUREMENTS)
        every = epochs * self.per_epoch
        return step == self.total or math.floor(step / every) > math.floor((step - 1) / every)

    def _measure(self) -> None:
        """Measure the val split, shared among the processes, and keep the best weights."""
        assert self.val is not None
        state, processes = self.state, self.processes
        processes.share_buffers(state.for_use)
        with self.console.progress("measuring", -(-len(self.val.records) // processes.world)) as advance:

            def went_on(images: int) -> None:
                advance(images)
                if processes.world == 1 and self.asked_to_stop():
                    raise Interrupted

            data = self.config.data
            found = predict_split(self._predictor(), self.val, 4, data.workers, processes, went_on, data.timeout)
        metrics = evaluate_detections(self.val.records, self.val.categories, found.results)
        state.measured = state.step
        unknown = math.isnan(metrics["AP"])  # without a box in the val split the newest weights count as best
        improved = unknown or metrics["AP"] > state.best
        if improved and not unknown:
            state.best = metrics["AP"]
        self._report(metrics)
        if improved:
            self._save_best()
        self._save()

    def _report(self, metrics: Metrics) -> None:
        state = self.state
        row = {"step": state.step, "epoch": state.step / self.per_epoch, **metrics.totals}
        self.processes.lead(lambda: append_row(self.run_folder.validation, row))
        self.console.say(
            f"step {state.step} of {self.total}, {state.seconds / 60:.1f} minutes: AP {metrics['AP']:.3f}, "
            f"AP50 {metrics['AP50']:.3f}, AP75 {metrics['AP75']:.3f} on {self.val.name if self.val else ''}"
        )

    def _predictor(self) -> Predictor:
        return Predictor(self.state.for_use, self.split.categories, self.processes.device)

    def _log(self, losses: dict[str, float]) -> None:
        state = self.state
        if state.step % self.config.train.log_every == 0 or state.step == self.total:
            rate = state.optimizer.param_groups[0]["lr"]
            row = {"step": state.step, "epoch": state.step / self.per_epoch, "lr": rate, **losses}
            self.processes.lead(lambda: append_row(self.run_folder.training, row))

    def _save(self) -> None:
        """Write `last`, unless it holds just this state."""
        state, run = self.state, self.run_folder
        if self.saved_at != (state.step, state.measured):
            self.processes.lead(lambda: state.save(run.last, self.config, self.split.categories, keep=run.previous))
        self.saved, self.saved_at = time.monotonic(), (state.step, state.measured)

    def _save_best(self) -> None:
        state, run = self.state, self.run_folder
        self.processes.lead(lambda: state.save(run.best, self.config, self.split.categories, weights_only=True))


def _resume_command(folder: Path, world: int) -> str:
    program = "doublehead" if world == 1 else "torchrun ... -m doublehead.cli"
    return f"{program} resume {shlex.quote(str(folder))}"


@contextmanager
def _no_sync(learner: nn.Module, wait: bool) -> Iterator[None]:
    """Let DistributedDataParallel exchange gradients only with the last of the accumulated parts."""
    if wait and isinstance(learner, DistributedDataParallel):
        with learner.no_sync():
            yield
    else:
        yield
