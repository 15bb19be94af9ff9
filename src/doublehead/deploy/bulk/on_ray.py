"""Bulk inference on Ray Data, on one machine or on the cluster named by RAY_ADDRESS."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from doublehead.common.errors import Fault, require
from doublehead.deploy.bulk.sources import Part
from doublehead.deploy.bulk.worker import Work, Worker

RETRIES = 3  # of a part whose worker raised; one whose process or machine was lost is always done again


def predict_on_ray(
    work: Work, todo: Iterable[tuple[int, Part]], workers: int, progress: Callable[[int], object]
) -> None:
    """Process parts by Ray workers, each with its own model. All machines need access to the output folder.

    Args:
        work: description of the job.
        todo: parts to process, with their numbers.
        workers: number of workers.
        progress: called with the number of finished images.

    Raises:
        DoubleheadError: Ray is not installed.
        Fault: a part failed repeatedly, or the workers could not start.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it would warn of what these workers do not do
    ray, data = require("ray", "ray"), require("ray.data", "ray")
    rows = [{"number": number, "images": len(part), "part": part} for number, part in todo]
    began = _start(ray, workers)
    try:
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        context.retried_map_errors, context.max_map_retries = True, RETRIES
        # It would speak of its plans, and show the traceback of what is told below in a sentence.
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        done = data.from_items(rows, override_num_blocks=len(rows)).map(
            OnRay,
            fn_constructor_kwargs={"work": work, "folder": os.getcwd()},
            compute=data.ActorPoolStrategy(size=min(workers, len(rows))),
            num_cpus=1,
            num_gpus=int(_on_gpu(work.device)),
        )
        for row in done.iter_rows():
            progress(row["images"])
    except ray.exceptions.RayError as error:
        raise _told(error) from error
    finally:
        if began:
            ray.shutdown()


class OnRay:
    """A worker in a Ray process."""

    def __init__(self, work: Work, folder: str) -> None:
        if not Path(folder).is_dir():
            raise Fault(f"{folder}: is not there on one of Ray's machines; all must see sources and output alike")
        os.chdir(folder)  # paths of sources and output may be relative to it
        self.worker = Worker(work)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Process a part."""
        self.worker.do(row["number"], row["part"])
        return {"images": row["images"]}


def _start(ray: Any, workers: int) -> bool:
    """Join the cluster, or start one unless the caller has. Returns whether one was started."""
    if ray.is_initialized():
        return False
    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False, logging_level="ERROR")
    else:  # one more than workers, since Ray's own tasks want a processor too, if only in name
        processors = max(os.cpu_count() or 1, workers + 1)
        ray.init(num_cpus=processors, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    return True


def _on_gpu(device: str) -> bool:
    """Whether each worker needs a GPU. Ray places workers, and this machine may have none."""
    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


def _told(error: Exception) -> Fault:
    """Extract a worker's message from the text of its error, which includes a remote traceback."""
    text = str(error).strip()
    said = re.findall(rf"{re.escape(Fault.__module__)}\.\w+: (.+)", text)
    return Fault(f"on Ray: {said[-1] if said else text.splitlines()[-1]}")
