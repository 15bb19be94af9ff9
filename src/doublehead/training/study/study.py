"""Execution of a study: train and evaluate the runs that are not complete."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from doublehead.common.console import Console
from doublehead.common.distribution import Distribution, parse_shard
from doublehead.common.errors import DoubleheadError, Fault
from doublehead.common.files import whole
from doublehead.common.names import names_only
from doublehead.config import Config
from doublehead.data.dataset import open_dataset
from doublehead.evaluation.evaluate import Evaluation, evaluate
from doublehead.inference.predictor import Predictor
from doublehead.model.checkpoint import load_checkpoint
from doublehead.training.loop import run_training
from doublehead.training.recipes import resolve
from doublehead.training.run import RunFolder
from doublehead.training.study.plan import StudyPlan, StudyRun, read_plan, runs
from doublehead.training.study.summary import Summary, summarise

SECONDARY = {
    "train": {"device", "save_minutes", "log_every", "timeout"},
    "data": {"path", "workers", "timeout", "check"},
}
"""Settings that may differ between a complete run and the plan: where and how it ran, not what it learned."""


def study(
    plan: str | Path,
    data: str | Path,
    output: str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
    shard: str = "1/1",
    baseline: str | None = None,
    rows: Sequence[str] = (),
    seeds: Sequence[int] = (),
    classes: Sequence[str] = (),
    split: str | None = None,
) -> Summary | None:
    """Train and evaluate every row of a plan with every seed, and compare them.

    `study_all` does the same for several datasets.

    Complete runs are skipped, and interrupted runs are resumed. Processes with different shards and the same output
    folder divide the work; under torchrun, all processes train each run together.

    Args:
        plan: YAML file; see `plan.StudyPlan`.
        data: dataset folder or YAML.
        output: folder of the study: `<row>/seed-<seed>/` for each run, and the summary.
        settings: settings for all runs, which take precedence over the plan's.
        shard: i/n trains every n-th run, starting with the i-th.
        baseline: row to compare with; default: the plan's baseline.
        rows: rows to run and compare in addition to the baseline; empty: all.
        seeds: seeds of the plan to run and compare; empty: all.
        classes: classes whose AP is compared too; empty: those of the plan.
        split: split to evaluate; default: the plan's.

    Returns:
        The comparison; None while runs of other shards are missing.

    Raises:
        DoubleheadError: the plan, data or settings are invalid; or a run failed, after all others were complete.
        Interrupted: Ctrl-C or SIGTERM; the run is saved.
    """
    try:
        asked, output = read_plan(plan).part(rows, seeds, baseline, classes, split), Path(output)
    except LookupError as error:
        raise DoubleheadError(f"{plan}: {error.args[0]}") from error
    every = runs(asked, output)
    mine = _share(asked, every, shard)
    configs = {run: _config(asked, run, data, dict(settings or {})) for run in mine}  # mistakes before the first run
    any_config = next(iter(configs.values()))
    measured = open_dataset(data, any_config.data.split).read(asked.split)
    names = measured.categories.names
    shown = {names[label - 1] for record in measured.records for label in record.labels[~record.crowd]}
    for name in asked.classes:
        if name not in shown:
            raise DoubleheadError(f"{plan}: split `{measured.name}` of {data} has no boxes of the class `{name}`")
    processes = Distribution.start(any_config.train.device, any_config.train.timeout)
    try:
        _do_all(asked, configs, output, processes)
    finally:
        processes.stop()
    if not processes.leads or not all(run.result.exists() for run in every):
        return None
    return summarise(asked, every, measured)


def study_all(plan: str | Path, data: Sequence[str], output: str | Path, **choices: Any) -> dict[Path, Summary] | None:
    """Run `study` on each dataset; several datasets get subfolders of `output` with their names.

    Args:
        plan: as in `study`.
        data: folders or YAML files of datasets with different names.
        output: folder of the study.
        choices: as in `study`.

    Returns:
        The comparisons by folder; None while runs of other shards are missing.

    Raises:
        DoubleheadError: as in `study`; or two datasets have the same name.
    """
    names = [Path(one).resolve().stem for one in data]
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise DoubleheadError(f"two datasets are called {twice[0]}: give paths that end in different names")
    folders = [Path(output) / name if len(names) > 1 else Path(output) for name in names]
    found = {folder: study(plan, one, folder, **choices) for one, folder in zip(data, folders, strict=True)}
    complete = {folder: summary for folder, summary in found.items() if summary}
    return complete if len(complete) == len(found) else None


def _share(plan: StudyPlan, every: list[StudyRun], shard: str) -> list[StudyRun]:
    """Runs of one shard. Rows without training are in the shard of the run whose weights they use."""
    part, parts = parse_shard(shard)
    homes = [(plan.rows[run.row].of or run.row, run.seed) for run in every]
    order = {home: place for place, home in enumerate(dict.fromkeys(homes))}
    return [run for run, home in zip(every, homes, strict=True) if order[home] % parts == part]


def _config(plan: StudyPlan, run: StudyRun, data: str | Path, settings: dict[str, Any]) -> Config:
    """Config of a run. A run with another row's weights starts from that row's settings."""
    row = plan.rows[run.row]
    trained = plan.rows[row.of] if row.of else row
    fixed = {"data.path": str(data), "train.seed": run.seed}
    said = plan.settings | trained.settings | row.settings | settings | fixed
    return resolve(trained.model, plan.recipe, None, said)


def _do_all(plan: StudyPlan, configs: dict[StudyRun, Config], output: Path, processes: Distribution) -> None:
    """Do all incomplete runs. A failure does not stop the others."""
    console, faults = Console(processes.leads), []
    for number, (run, config) in enumerate(configs.items(), 1):
        if run.result.exists():
            _require_same(run, config, plan.split)
            continue
        console.say(f"run {number} of {len(configs)}: {run}")
        try:
            _do(plan, run, config, output, processes)
        except DoubleheadError as error:
            if isinstance(error, Fault) and processes.world > 1:  # the other processes may not know of it
                raise
            faults.append(f"{run}: {error}")
            console.say(f"failed: {error}")
    if faults:
        raise DoubleheadError(f"{len(faults)} of {len(configs)} runs failed; the first is {faults[0]}")


def _do(plan: StudyPlan, run: StudyRun, config: Config, output: Path, processes: Distribution) -> None:
    """Train, unless the weights are another run's, and evaluate."""
    of = plan.rows[run.row].of
    folder = RunFolder(run.folder)
    seconds: float | None = None
    if of is not None:
        weights = RunFolder(output / of / f"seed-{run.seed}").best
    else:
        resumed = folder.config.exists()
        if resumed:
            _require_same_config(run, folder.stored_config(), config)
        weights = run_training(config, run.folder, resume=resumed)
        processes.any(False)  # waits for the first process, which writes the weights
        seconds = load_checkpoint(folder.last).notes["seconds"]
    checkpoint = replace(load_checkpoint(weights), config=config.model)
    predictor = Predictor(checkpoint.build(), checkpoint.categories, processes.device)
    found = evaluate(
        predictor,
        config.data.path,
        plan.split,
        workers=config.data.workers,
        device=config.train.device,
        shares=config.data.split,
    )
    if processes.leads:
        found.save(run.folder / plan.split)
        _write_result(run, config, weights, found, seconds)
        folder.last.unlink(missing_ok=True)  # four times the weights, and nothing is left to resume


def _write_result(run: StudyRun, config: Config, weights: Path, found: Evaluation, seconds: float | None) -> None:
    """Write the result, which marks the run as complete."""
    values = {
        "row": run.row,
        "seed": run.seed,
        "weights": os.path.relpath(weights, run.folder),
        "training_seconds": seconds,
        "metrics": {name: None if math.isnan(value) else value for name, value in found.metrics.totals.items()},
        "max_detections": found.metrics.most,
        "config": names_only(config.model_dump(mode="json")),
    }
    with whole(run.result) as temporary:
        temporary.write_text(json.dumps(values, indent=1), encoding="utf-8")


def _require_same(run: StudyRun, config: Config, split: str) -> None:
    """Require that a complete run has the same settings, and detections of the same split."""
    if not (predictions := run.folder / split / "predictions.json").exists():
        raise DoubleheadError(
            f"{predictions}: there is no such file; if the run was evaluated on another split, give another --output"
        )
    stored = json.loads(run.result.read_text(encoding="utf-8"))["config"]
    _require_same_config(run, Config.model_validate(stored), config)


def _require_same_config(run: StudyRun, stored: Config, config: Config) -> None:
    """Require that a run to resume has the same settings."""
    one, other = (names_only(c.model_dump(mode="json", exclude=SECONDARY)) for c in (stored, config))
    changed = list(_differences(one, other))
    if changed:
        raise DoubleheadError(
            f"{run.folder}: was run with {'; '.join(changed[:3])}: give another --output, or remove the folder"
        )


def _differences(one: Any, other: Any, key: str = "") -> list[str]:
    """Describe the differences between nested settings."""
    if isinstance(one, dict) and isinstance(other, dict):
        found = []
        for name in one.keys() | other.keys():
            found += _differences(one.get(name), other.get(name), f"{key}.{name}" if key else name)
        return sorted(found)
    return [] if one == other else [f"{key} {one}, not {other}"]
