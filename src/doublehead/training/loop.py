"""The training loop: one function from a Config to a run folder."""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from doublehead.common.categories import require_same_classes
from doublehead.common.console import Console
from doublehead.common.device import float32_by_default, pick_precision
from doublehead.common.distribution import Distribution
from doublehead.common.errors import DoubleheadError, Fault
from doublehead.common.faults import less_memory, told
from doublehead.common.files import writing
from doublehead.config import Config, with_options
from doublehead.data.check import check_images, read_for_training
from doublehead.data.dataset import Dataset, summary
from doublehead.data.loader import Waited, default_workers, steps_per_epoch, training_dataset, training_loader
from doublehead.data.records import Split
from doublehead.evaluation.coco import Metrics, evaluate_detections
from doublehead.evaluation.evaluate import predict_split
from doublehead.inference.predictor import Predictor
from doublehead.model.checkpoint import adopt
from doublehead.model.detector import Detector
from doublehead.model.grow import grow, growth_table
from doublehead.training.bad_batch import keep_batch
from doublehead.training.environment import environment, fingerprint
from doublehead.training.parallel import learner, no_sync, share_batch_norm
from doublehead.training.pictures import draw_run
from doublehead.training.recorders import Recorders
from doublehead.training.run import RunFolder
from doublehead.training.schedule import learning_rate
from doublehead.training.signals import Interrupted, stop_signals
from doublehead.training.state import TrainingState

Batch = tuple[list[Tensor], list[dict[str, Any]]]
"""Images, uint8 (3, H, W), and their targets, as `DetectionDataset` gives them."""

MEASUREMENTS = 20
"""How often a run is measured where `train.evaluate_every` does not say: so many times, each epoch at most once."""


@float32_by_default()
def run_training(
    config: Config, output: Path, resume: bool = False, other_data: bool = False, dataset: Dataset | None = None
) -> Path:
    """Train a detector; everything about the run is written into `output`.

    Args:
        config: the whole run; `data.path` names the dataset.
        output: the run folder; a new one, or with `resume` that of the run to go on with.
        resume: go on from the newest whole checkpoint, or from the start where there is none. The weights will be those
            of a run that was never stopped. A run that torchrun or SLURM starts again resumes by itself.
        other_data: go on even if the data has changed since.
        dataset: in place of the one at `data.path`.

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
            training = _Training(config, output, resume, processes, other_data, dataset)
            with stop_signals() as training.asked_to_stop:
                return training.run()
    except Fault as fault:
        if not RunFolder(output).config.exists():
            raise
        raise Fault(f"{fault}; then go on with: {_resume_command(output, processes.world, dataset)}") from fault
    finally:
        processes.stop()


class _Training:
    """One run in one process. Built in the order in which mistakes are cheapest to find: data, folder, model."""

    asked_to_stop: Callable[[], bool]

    def __init__(
        self,
        config: Config,
        output: Path,
        resume: bool,
        processes: Distribution,
        other_data: bool,
        dataset: Dataset | None = None,
    ) -> None:
        self.config, self.processes, self.dataset = config, processes, dataset
        self.run_folder = RunFolder(output)
        self.console = Console(processes.leads)
        settings = config.train
        self.recorders = Recorders(settings.recorders if processes.leads else (), self.console.say)
        if settings.batch_size % (processes.world * settings.accumulate):
            raise DoubleheadError(
                f"train.batch_size {settings.batch_size} cannot be shared among {processes.world} processes with "
                f"train.accumulate {settings.accumulate}: make it a multiple of their product"
            )
        backbone = config.model.backbone
        scratch = backbone.weights is None and not (settings.weights or settings.grow_from)
        if scratch and (backbone.trainable_stages < 5 or backbone.norm == "frozen"):
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
        fresh = checkpoint is None and not (settings.weights or settings.grow_from)
        model = Detector(config.model, len(self.split.categories), pretrained=fresh)
        if settings.weights and checkpoint is None:
            new = adopt(model, self.split.categories, settings.weights, settings.partial_weights)
            layers = sorted({key.rpartition(".")[0] for key in new})
            self.console.say(f"starting from {settings.weights}; new are {', '.join(layers) or 'no layers'}")
        if settings.grow_from and checkpoint is None:
            parts = grow(model, self.split.categories, settings.grow_from, settings.partial_weights)
            self.console.show(growth_table(parts, settings.grow_from))
        model.to(processes.device).to(memory_format=torch.channels_last)
        share_batch_norm(model, settings, processes, self.console.say)
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
                self.run_folder.go_on(about)
            else:
                self.run_folder.begin(config, about)
            self.recorders.begin(config, output, state.step, state.measured)

        processes.lead(write)
        self.saved, self.saved_at = time.monotonic(), (state.step, state.measured)

    def _read_data(self, check: bool) -> tuple[Split, Split | None]:
        data = self.config.data
        if not data.path and self.dataset is None:
            raise DoubleheadError(
                "which data? give the dataset's folder, or data.path in the config; a run on Python objects needs them "
                "again: doublehead.resume(run, data=...)"
            )
        split, val = read_for_training(self.dataset or data.path, data.train_split, data.val_split, data.split)
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
        done = False
        try:
            self._train()
            done = True
        finally:
            self.recorders.end(done)
        return self.run_folder.best

    def _train(self) -> None:
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
            command = _resume_command(self.run_folder.path, self.processes.world, self.dataset)
            console.say(f"stopped at step {state.step} and saved; go on with: {command}")
            raise
        if self.val is None:
            self._save_best()
        if self.processes.leads:
            with writing(self.run_folder.path):
                drawn = draw_run(self.run_folder, self.val or self.split, self._predictor(), console)
                self.run_folder.previous.unlink(missing_ok=True)
            for path in drawn:
                self.recorders.picture(state.step, path.stem, path)
            best = f", best AP {state.best:.3f}" if state.best >= 0 else ""
            console.say(f"done in {state.seconds / 60:.1f} minutes{best}; everything is in {self.run_folder.path}:")
            for path in sorted(self.run_folder.path.iterdir()):
                console.say(f"  {path}")

    def _learn(self) -> None:
        state = self.state
        if self._due(state.step):  # stopped while measuring
            self._measure()
        module = learner(state.model, self.processes)
        with self.console.training(self.total, state.step) as show:
            batches, before = Waited(self._batches()), state.seconds
            for step in range(state.step, self.total):
                began = time.monotonic()
                losses, stop, save = self._step(module, step, batches)
                state.step = step + 1
                state.seconds += time.monotonic() - began
                if losses:
                    self._log(losses)
                    show(state.step, losses, state.best)
                if stop or (self.processes.world == 1 and self.asked_to_stop()):
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
        return training_loader(
            training_dataset(self.split, self.config),
            settings.batch_size,
            settings.batch_size // (processes.world * settings.accumulate),
            processes.rank,
            processes.world,
            settings.seed,
            self.state.step,
            self.total,
            default_workers(processes.local) if data.workers is None else data.workers,
            data.timeout,
            pin=processes.device.type == "cuda",
        )

    def _step(self, module: nn.Module, step: int, batches: Iterator[Batch]) -> tuple[dict[str, float], bool, bool]:
        """One optimiser step.

        Returns:
            The losses by name, averaged over the accumulated parts, none where the step is left out; whether some
            process was asked to stop; whether it is time to save.
        """
        settings, state = self.config.train, self.state
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
                    losses = module(*self._on_device(*parts[-1]))
                loss = torch.stack(list(losses.values())).sum()
                state.scaler.scale(loss / settings.accumulate).backward()
            found.append(torch.stack([loss, *losses.values()]).detach())
        rate = learning_rate(settings, step, self.total)
        for group in state.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in state.model.parameters() if p.grad is not None])
        if settings.clip_norm:
            nn.utils.clip_grads_with_norm_(state.model.parameters(), settings.clip_norm, norm)
        values, norm_value, (sick, stop, save) = self._agree(torch.stack(found), norm)
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
            return self._leave_out(buffers), stop, save
        state.optimizer.zero_grad(set_to_none=True)
        if finite and state.average is not None:
            state.average.update(state.model)
        return sums, stop, save

    def _on_device(
        self, images: list[Tensor], targets: list[dict[str, Any]]
    ) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        device = self.processes.device
        truth = [{key: target[key].to(device, non_blocking=True) for key in ("boxes", "labels")} for target in targets]
        return [image.to(device, non_blocking=True) for image in images], truth

    def _agree(self, losses: Tensor, norm: Tensor) -> tuple[list[list[float]], float, list[bool]]:
        """Bring a step's figures to this process; it is the step's one exchange, and its one wait for the device.

        Args:
            losses: (parts, 1 + names of losses).
            norm: of the gradient.

        Returns:
            Losses and norm as numbers; and whether in any process a loss is not finite, a stop was asked for, and
            saving is due.
        """
        late = time.monotonic() - self.saved > 60 * self.config.train.save_minutes
        own = torch.tensor([self.asked_to_stop(), late], dtype=losses.dtype, device=losses.device)
        sick = ~losses[:, 0].isfinite().all()
        flags = self.processes.largest(torch.cat([sick[None].to(losses.dtype), own]))
        figures = torch.cat([losses.flatten(), norm[None], flags]).tolist()
        count = losses.shape[1]
        rows = [figures[start : start + count] for start in range(0, losses.numel(), count)]
        return rows, figures[losses.numel()], [bool(flag) for flag in figures[losses.numel() + 1 :]]

    def _not_finite(self, step: int, bad: list[str], losses: dict[str, float], parts: list[Batch]) -> None:
        """Keep the batch of each process that has something `bad`; stop all with one sentence if there were too many.

        Raises:
            DoubleheadError: names the images.
        """
        folder = self.run_folder.not_finite / f"step-{step}"
        images = [image for part in parts for image in part[0]]
        targets = [target for part in parts for target in part[1]]
        files = [str(self.split.records[target["index"]].path) for target in targets] if bad else []
        if bad:
            with suppress(Fault):  # a disk too full for pictures
                keep_batch(folder, self.processes.rank, images, targets, self.split.records, losses)
        bad, files = self.processes.gather(bad), self.processes.gather(files)
        names = ", ".join(name for name in dict.fromkeys(bad) if name != "loss") or "loss"
        what = "the gradient" if "gradient" in bad else f"the loss ({names})"
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
            # always 4 images at once: padding has a part in the last digits, which shall not depend on the batch
            found = predict_split(self._predictor(), self.val, 4, data.workers, processes, went_on, data.timeout)
        most = self.config.model.roi.detections
        metrics = evaluate_detections(self.val.records, self.val.categories, found.results, most)
        state.measured = state.step
        unknown = math.isnan(metrics["AP"])  # without a box in the val split the newest weights count as best
        improved = unknown or metrics["AP"] > state.best
        if improved and not unknown:
            state.best = metrics["AP"]
        self._report(metrics)
        if improved:
            self._save_best(metrics.best_threshold)
        self._save()

    def _report(self, metrics: Metrics) -> None:
        state = self.state
        self.processes.lead(lambda: self.recorders.metrics(state.step, state.step / self.per_epoch, metrics.totals))
        self.console.say(
            f"step {state.step} of {self.total}, {state.seconds / 60:.1f} minutes: AP {metrics['AP']:.3f}, "
            f"AP50 {metrics['AP50']:.3f}, AP75 {metrics['AP75']:.3f} on {self.val.name if self.val else ''}"
        )

    def _predictor(self) -> Predictor:
        """The model to measure, in the precision of the run."""
        precision = self.config.train.precision
        return Predictor(self.state.for_use, self.split.categories, self.processes.device, precision)

    def _log(self, losses: dict[str, float]) -> None:
        state = self.state
        if state.step % self.config.train.log_every == 0 or state.step == self.total:
            values = {"lr": state.optimizer.param_groups[0]["lr"], **losses}
            self.processes.lead(lambda: self.recorders.losses(state.step, state.step / self.per_epoch, values))

    def _save(self) -> None:
        """Write `last`, unless it holds just this state."""
        state, run = self.state, self.run_folder
        if self.saved_at != (state.step, state.measured):
            self.processes.lead(lambda: state.save(run.last, self.config, self.split.categories, keep=run.previous))
        self.saved, self.saved_at = time.monotonic(), (state.step, state.measured)

    def _save_best(self, threshold: float = math.nan) -> None:
        """Write `best`, with the score of the highest F1 as its decision threshold unless the config has one."""
        state, run, config = self.state, self.run_folder, self.config
        if config.model.roi.decision_threshold is None and not math.isnan(threshold):
            model = with_options(config.model, {"decision_threshold": threshold})
            config = config.model_copy(update={"model": model})
        self.processes.lead(lambda: state.save(run.best, config, self.split.categories, weights_only=True))


def _resume_command(folder: Path, world: int, dataset: Dataset | None) -> str:
    if dataset:  # a command cannot be given Python objects
        return f"doublehead.resume({str(folder)!r}, data=...)"
    program = "doublehead" if world == 1 else "torchrun ... -m doublehead.cli"
    return f"{program} resume {shlex.quote(str(folder))}"
