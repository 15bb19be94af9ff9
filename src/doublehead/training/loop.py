"""The training loop: one function from a Config to a run folder."""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

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
from doublehead.data.loader import Waited
from doublehead.data.records import Split
from doublehead.inference.predictor import Predictor
from doublehead.training import estimate
from doublehead.training.batches import batches_of, steps_of_epoch, workers_of
from doublehead.training.callbacks import CallbackError, Callbacks, Run
from doublehead.training.ending import say_done
from doublehead.training.environment import environment, fingerprint
from doublehead.training.first_model import first_model, require_start
from doublehead.training.metric import Metric
from doublehead.training.parallel import learner
from doublehead.training.pictures import draw_predictions, draw_run
from doublehead.training.progress import Progress
from doublehead.training.recorders import Recorders
from doublehead.training.run import RunFolder
from doublehead.training.schedule import learning_rate
from doublehead.training.signals import Interrupted, stop_signals
from doublehead.training.state import TrainingState
from doublehead.training.step import Stepper
from doublehead.training.validation import Measured, validate

MEASUREMENTS = 20
"""Validations per run if `train.evaluate_every` is not set; at most one per epoch."""


@float32_by_default()
def run_training(
    config: Config,
    output: Path,
    resume: bool = False,
    other_data: bool = False,
    dataset: Dataset | None = None,
    callbacks: Sequence[Any] = (),
) -> Path:
    """Train a detector and write everything about the run to `output`.

    Args:
        config: config of the run; `data.path` names the dataset.
        output: run folder: new, or with `resume` that of the run to resume.
        resume: continue from the newest intact checkpoint, or from the start if there is none. The final weights equal
            those of an uninterrupted run. Runs restarted by torchrun or SLURM resume automatically.
        other_data: resume even if the data has changed.
        dataset: dataset to use instead of the one at `data.path`.
        callbacks: objects to call during the run; see `callbacks.Callback`.

    Returns:
        The path of the best checkpoint.

    Raises:
        DoubleheadError: the data, the config or the folder is invalid, a loss is not finite, or a callback failed.
        Fault: memory, disk, a loader process or another process of the run failed; the run can be resumed.
        Interrupted: Ctrl-C or SIGTERM; the run is saved.
    """
    processes = Distribution.start(config.train.device, config.train.timeout)
    run_folder = RunFolder(output)
    try:
        with told(less_memory(config.train, processes.world)):
            training = _Training(config, run_folder, resume, processes, other_data, dataset, callbacks)
            with stop_signals() as training.asked_to_stop:
                return training.run()
    except Fault as fault:
        if not run_folder.config.exists():
            raise
        raise Fault(f"{fault}; then resume with: {_resume_command(output, processes.world, dataset)}") from fault
    finally:
        run_folder.release()
        processes.stop()


class _Training:
    """One run in one process. Set up so that cheap checks come first: data, folder, model."""

    asked_to_stop: Callable[[], bool]
    progress: Progress | None = None

    def __init__(
        self,
        config: Config,
        run_folder: RunFolder,
        resume: bool,
        processes: Distribution,
        other_data: bool,
        dataset: Dataset | None = None,
        callbacks: Sequence[Any] = (),
    ) -> None:
        self.config, self.processes, self.dataset = config, processes, dataset
        self.run_folder, output = run_folder, run_folder.path
        self.console = Console(processes.leads)
        settings = config.train
        self.recorders = Recorders(settings.recorders if processes.leads else (), self.console.say)
        if settings.batch_size % (processes.world * settings.accumulate):
            raise DoubleheadError(
                f"train.batch_size {settings.batch_size} cannot be divided among {processes.world} processes with "
                f"train.accumulate {settings.accumulate}: make it a multiple of their product"
            )
        require_start(config)
        if not resume and processes.started_again():
            (resume,) = processes.any(processes.leads and self.run_folder.config.exists())
            if resume:
                processes.lead(lambda: self.run_folder.require_config(config))
        elif not resume:
            processes.lead(self.run_folder.require_free)
        if resume:
            processes.lead(run_folder.hold)
        self.split, self.val = self._read_data(check=not resume)
        self.metric = Metric.of(settings.metric, self.val) if self.val else Metric(settings.metric)
        fingerprints = self._fingerprints()
        if resume and not other_data:
            processes.lead(lambda: self.run_folder.require_data(fingerprints))
        self.per_epoch = steps_of_epoch(config, self.split)
        self.total = settings.steps or max(1, round((settings.epochs or 0) * self.per_epoch))
        precision = pick_precision(settings.precision, processes.device)
        self.autocast = torch.autocast(processes.device.type, precision, enabled=precision is not None)
        checkpoint = self.run_folder.newest(self.console.say) if resume else None
        model = first_model(config, self.split, processes, self.console, bare=checkpoint is not None)
        self.state = TrainingState.create(model, settings, processes.device, precision is torch.float16)
        state = self.state
        run = Run(config, output, state, self.total, self.per_epoch)
        self.callbacks = Callbacks(callbacks, run, processes)
        if checkpoint:
            require_same_classes(f"{self.run_folder.path} and the data", checkpoint.categories, self.split.categories)
            state.restore(checkpoint, self.run_folder.last)
        processes.require_same(
            f"step {state.step}",
            f"{output}: must be a folder that all machines share; the checkpoints seen there differ",
        )

        if state.step > self.total:
            raise DoubleheadError(
                f"{output}: has already reached step {state.step}, epoch {run.epoch:.1f}; give a train.epochs or "
                "train.steps that is not below it"
            )

        def write() -> None:
            about = environment(processes, state.step, fingerprints)
            if resume:
                self.run_folder.go_on(config, about)
            else:
                self.run_folder.begin(config, about)
            self.recorders.begin(config, output, state.step, state.measured)

        processes.lead(write)
        if resume and self.run_folder.changed_at(state.step):  # a run that had stopped early gets its patience back
            state.stale = 0
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
        if val is None and self.config.train.patience:
            raise DoubleheadError("train.patience needs a val split: name one as data.val_split, or omit patience")
        if val is None:
            self.console.say("no val split: training does not evaluate, and `best` will be the last weights")
        records = split.records + (val.records if val else [])

        def check_all() -> None:
            with self.console.progress("checking images", len(records)) as advance:
                check_images(records, data.check, advance)

        if check:
            self.processes.lead(check_all)
        return split, val

    def _fingerprints(self) -> dict[str, str]:
        """Fingerprint of each split, by name.

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
            self.callbacks.end(done)
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
            console.say(f"stopped at step {state.step} and saved; resume with: {command}")
            raise
        except CallbackError:
            if self.processes.world == 1:  # the others may not know of it
                self._save()
            raise
        if self.val is None:
            self._save_best()
        why = self._why_early()
        self.processes.lead(lambda: self.run_folder.end(state.step, why or "all steps are done"))
        if self.processes.leads:
            with writing(self.run_folder.path):
                drawn = draw_run(self.run_folder, self.val or self.split, self._predictor(), console)
                self.run_folder.previous.unlink(missing_ok=True)
            for path in drawn:
                self.recorders.picture(state.step, path.stem, path)
            if why:
                console.say(f"stopped early at step {state.step} of {self.total}: {why}")
            best = f", best {self.metric.title} {state.best:.3f} at step {state.best_step}" if state.best >= 0 else ""
            outcome = f"done in {state.seconds / 60:.1f} minutes{best}"
            say_done(self.run_folder, self.config, outcome, console.say)

    def _learn(self) -> None:
        state = self.state
        if self._due(state.step):  # stopped while measuring
            self._measure()
        self._estimate()
        self.callbacks.begin()
        module = learner(state.model, self.processes)
        stepper = Stepper(
            self.config.train,
            state,
            self.processes,
            partial(learning_rate, self.config.train, total=self.total),
            self.autocast,
            self.split.records,
            self.run_folder.not_finite,
            self.console.say,
            self.asked_to_stop,
        )
        before = state.seconds
        with (
            closing(
                Waited(batches_of(self.config, self.split, self.processes, self.state.step, self.total))
            ) as batches,
            self.console.training(self.total, state.step) as show,
        ):
            progress = self.progress = Progress(
                self.config.train, state, batches, self.processes.device, self.per_epoch, self.total, self.metric
            )
            for step in range(state.step, self.total):
                if self._why_early():
                    break
                began = time.monotonic()
                taken = stepper.take(module, step, batches, self.saved)
                state.step = step + 1
                state.seconds += time.monotonic() - began
                if taken.losses:
                    self._log(taken.losses, progress)
                    show(state.step, progress.lines(taken.losses))
                module = self._call_back(module, taken.losses)
                if taken.stop or (self.processes.world == 1 and self.asked_to_stop()):
                    raise Interrupted
                if self._due(state.step):
                    self._measure()
                elif taken.save:
                    self._save()
            if state.seconds > before:
                share = batches.seconds / (state.seconds - before)
                self.console.say(f"{share:.0%} of the steps' time went into waiting for images")
        if self.val is not None and state.measured != state.step:  # a callback has stopped it
            self._measure()
        self._save()

    def _call_back(self, module: nn.Module, losses: dict[str, float]) -> nn.Module:
        """Call the callbacks of a step; returns the module for the next, rebuilt if they changed what is trainable."""
        if not self.callbacks:
            return module
        before = [parameter.requires_grad for parameter in self.state.model.parameters()]
        self.callbacks.step(losses)
        changed = before != [parameter.requires_grad for parameter in self.state.model.parameters()]
        return learner(self.state.model, self.processes) if changed else module

    def _estimate(self) -> None:
        """Print an estimate for the rest of the run, unless it is short."""
        done, total, processes = self.state.step, self.total, self.processes
        if total - done < estimate.LEAST:
            return
        validations = sum(self._due(step) for step in range(done + 1, total + 1))
        found = estimate.estimate(
            self.config.train,
            self.state,
            processes,
            self.autocast,
            lambda: batches_of(self.config, self.split, processes, done, total, workers=0),
            workers_of(self.config, processes),
            total - done,
            validations * -(-len(self.val.records) // processes.world) if self.val else 0,
        )
        for line in found.lines():
            self.console.say(line)

    def _due(self, step: int) -> bool:
        """Whether a validation is due after this many steps."""
        if self.val is None or step == 0 or self.state.measured == step:
            return False
        epochs = self.config.train.evaluate_every or max(1.0, self.total / self.per_epoch / MEASUREMENTS)
        every = epochs * self.per_epoch
        return step == self.total or math.floor(step / every) > math.floor((step - 1) / every)

    def _measure(self) -> None:
        """Evaluate the val split, divided among the processes, and save the best weights."""
        assert self.val is not None
        state, processes = self.state, self.processes
        processes.share_buffers(state.for_use)
        predictor = self._predictor()
        with self.console.progress("measuring", -(-len(self.val.records) // processes.world)) as advance:

            def went_on(images: int) -> None:
                advance(images)
                if processes.world == 1 and self.asked_to_stop():
                    raise Interrupted

            found = validate(predictor, self.val, self.config, self.metric, processes, went_on)
        state.measured = state.step
        improved = self.metric.improves(found.value, state.best)
        if improved:
            state.best_step = state.step
            state.best = found.value if math.isfinite(found.value) else state.best
        state.stale = 0 if improved else state.stale + 1
        if self.progress is not None:
            self.progress.last = found.value
        self._report(found)
        if self.recorders.want_pictures:
            processes.lead(lambda: self._draw_predictions(predictor))
        self.callbacks.validation(found.row(self.metric))
        if improved:
            self._save_best(found.metrics.best_threshold)
        self._save()

    def _draw_predictions(self, predictor: Predictor) -> None:
        path = draw_predictions(self.val or self.split, predictor, self.run_folder.pictures)
        self.recorders.picture(self.state.step, path.stem, path)

    def _report(self, found: Measured) -> None:
        assert self.val is not None
        state, metrics, row = self.state, found.metrics, found.row(self.metric)
        self.processes.lead(lambda: self.recorders.metrics(state.step, state.step / self.per_epoch, row))
        figures = {name: metrics[name] for name in ("AP", "AP50", "AP75")} | {self.metric.title: found.value}
        figures |= {"loss": found.losses["loss"]} if found.losses else {}
        said = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
        self.console.say(
            f"step {state.step} of {self.total}, {state.seconds / 60:.1f} minutes: {said} on {self.val.name}"
        )

    def _why_early(self) -> str:
        """Reason to stop before the last step, or ""."""
        patience = self.config.train.patience
        if patience is not None and self.state.stale >= patience:
            return f"{self.metric.title} has not improved for {self.state.stale} validations"
        return self.callbacks.run.stopping

    def _predictor(self) -> Predictor:
        """Predictor for validation, in the precision of the run."""
        precision = self.config.train.precision
        return Predictor(self.state.for_use, self.split.categories, self.processes.device, precision)

    def _log(self, losses: dict[str, float], progress: Progress) -> None:
        state = self.state
        if state.step % self.config.train.log_every == 0 or state.step == self.total:
            values, machine = {"lr": state.optimizer.param_groups[0]["lr"], **losses}, progress.machine()

            def record() -> None:
                self.recorders.losses(state.step, state.step / self.per_epoch, values)
                self.recorders.machine(state.step, machine)

            self.processes.lead(record)

    def _save(self) -> None:
        """Write the last checkpoint, unless it already holds this state."""
        state, run = self.state, self.run_folder
        if self.saved_at != (state.step, state.measured):
            self.processes.lead(lambda: state.save(run.last, self.config, self.split.categories, keep=run.previous))
        self.saved, self.saved_at = time.monotonic(), (state.step, state.measured)

    def _save_best(self, threshold: float = math.nan) -> None:
        """Write the best weights, with the score of the highest F1 as decision threshold unless the config sets one."""
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
