"""Environment of a run: environment.json has one entry for each start."""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import doublehead
from doublehead.common.distribution import Distribution
from doublehead.data.records import Split

PACKAGES = ("torchvision", "numpy", "pillow", "safetensors", "hotcoco")


def fingerprint(split: Split, root: Path) -> str:
    """SHA-256 of a split's classes, annotations and file names. Independent of the dataset's location and of pixels."""
    digest = hashlib.sha256(json.dumps([split.categories.names, split.categories.ids]).encode())
    for record in split.records:
        file = record.path.relative_to(root) if record.path.is_relative_to(root) else record.path
        digest.update(
            f"{record.image_id} {file.as_posix()} {record.width} {record.height} {len(record.boxes)}".encode()
        )
        if record.weight != 1:
            digest.update(f"weight {record.weight}".encode())
        for values in (record.boxes, record.labels, record.crowd, record.areas):
            digest.update(values.tobytes())
    return digest.hexdigest()


def environment(processes: Distribution, step: int, data: dict[str, str]) -> dict[str, Any]:
    """Describe the start of a run: machine, time, versions, command, first step, and fingerprints of the data."""
    versions = {"doublehead": doublehead.__version__, "python": platform.python_version(), "torch": torch.__version__}
    device = processes.device
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "from_step": step,
        "command": shlex.join(sys.argv),
        "git": _git(),
        "versions": versions | {package: version(package) for package in PACKAGES},
        "system": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processes": processes.world,
        "threads": torch.get_num_threads(),
        "data": data,
    }


def _git() -> dict[str, Any] | None:
    """Commit and changed files of the repository in the current folder; None outside a repository."""
    try:
        return {"commit": _ask_git("rev-parse", "HEAD"), "changed": _ask_git("status", "--porcelain").splitlines()}
    except (OSError, subprocess.SubprocessError):
        return None


def _ask_git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.rstrip()
