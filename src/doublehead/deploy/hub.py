"""Sharing of models on the Hugging Face Hub, with huggingface_hub's mixin."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from doublehead.common.device import pick_device
from doublehead.common.errors import DoubleheadError, require
from doublehead.common.files import writing
from doublehead.common.names import names_only
from doublehead.config import Config
from doublehead.inference.predictor import Predictor
from doublehead.model.checkpoint import load_checkpoint, save_checkpoint
from doublehead.model.interop.published import resolve
from doublehead.training.run import RunFolder

hub = require("huggingface_hub", "hub")
ModelHubMixin: Any = hub.ModelHubMixin

WEIGHTS = "model.safetensors"
CONFIG = "config.json"  # the Hub counts downloads by it
TRAINING = "training.yaml"
TEMPLATE = Path(__file__).with_name("card.md")
FIGURES = ("AP", "AP50", "AP75")


class HubPredictor(Predictor, ModelHubMixin):
    """A Predictor with `save_pretrained`, `from_pretrained` and `push_to_hub`, with the mixin's arguments.

    `from_pretrained` also takes `device` and `precision`. `model_card_kwargs` are fields of the model card's header,
    such as license or datasets; the rest of the card is filled from the weights' run folder.

    Args:
        weights: checkpoint, such as a run's best.safetensors, or published name.
        device: auto, cpu, cuda or a card such as cuda:1.
        precision: as in `load`.

    Raises:
        DoubleheadError: as in `load`.
    """

    def __init__(self, weights: str | Path, device: str = "auto", precision: str = "fp32") -> None:
        self.weights = resolve(weights)
        checkpoint = load_checkpoint(self.weights)
        super().__init__(checkpoint.build(), checkpoint.categories, pick_device(device), precision)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> HubPredictor:
        """Load a model from a repository on the Hub, or from a folder written by `save_pretrained`.

        Raises:
            DoubleheadError: the folder or repository does not exist or has no such model, or the network fails.
        """
        folder = Path(pretrained_model_name_or_path)
        if folder.is_dir() and not (folder / WEIGHTS).is_file():
            raise DoubleheadError(f"{folder}: holds no {WEIGHTS}; give a folder that save_pretrained wrote")
        with _told(str(pretrained_model_name_or_path)):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload weights, config and model card. Returns the URL of the commit.

        Raises:
            DoubleheadError: the Hub cannot be reached, or rejects the upload.
        """
        with _told(repo_id):
            said = {"repo_id": repo_id} | (kwargs.pop("model_card_kwargs", None) or {})
            return super().push_to_hub(repo_id, model_card_kwargs=said, **kwargs)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> Any:
        """Create the model card from the weights' run folder. Arguments are fields of its header."""
        checkpoint, config = load_checkpoint(self.weights), _run_config(self.weights)
        repo_id = kwargs.pop("repo_id", None)
        name = repo_id.rpartition("/")[2] if repo_id else self.weights.resolve().parent.name
        data, results = _data_name(config), _results(self.weights.parent)
        header = {
            "library_name": "doublehead",
            "pipeline_tag": "object-detection",
            "tags": ["object-detection", "double-head-rcnn", checkpoint.config.preset],
            "metrics": list(FIGURES),
            "model_name": name,
            "eval_results": _header_results(data, results),
        } | kwargs
        return hub.ModelCard.from_template(
            hub.ModelCardData(**{key: value for key, value in header.items() if value}),
            template_path=str(TEMPLATE),
            name=name,
            repo_id=repo_id,
            preset=checkpoint.config.preset,
            classes=self.categories.names,
            input=checkpoint.config.input,
            data=data,
            steps=checkpoint.notes.get("step"),
            results={split: _table(metrics) for split, metrics in results.items()},
            license=header.get("license"),
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        checkpoint = load_checkpoint(self.weights)
        notes = {key: value for key, value in checkpoint.notes.items() if key in ("step", "best")}
        path = save_directory / WEIGHTS
        save_checkpoint(path, checkpoint.config, checkpoint.categories, checkpoint.weights, notes)
        described = {
            "library_name": "doublehead",
            "model": names_only(checkpoint.config.model_dump(mode="json")),
            "id2label": dict(zip(checkpoint.categories.ids, checkpoint.categories.names, strict=True)),
        }
        config = _run_config(self.weights)
        with writing(save_directory):
            if config:
                public = config.model_copy(update={"data": config.data.model_copy(update={"path": _data_name(config)})})
                text = yaml.safe_dump(names_only(public.model_dump(mode="json")), sort_keys=False)
                (save_directory / TRAINING).write_text(text, encoding="utf-8")
            (save_directory / CONFIG).write_text(json.dumps(described, indent=1), encoding="utf-8")

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, device: str = "auto", precision: str = "fp32", **where: Any
    ) -> HubPredictor:
        folder = Path(model_id)
        path = folder / WEIGHTS if folder.is_dir() else hub.hf_hub_download(model_id, WEIGHTS, **where)
        return cls(path, device, precision)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Convert errors of the Hub, the network or huggingface_hub to one-sentence errors."""
    try:
        yield
    except (OSError, ValueError) as error:  # all of huggingface_hub's, and its HTTP client's, are among these
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DoubleheadError(
            f"{name}: the Hugging Face Hub request failed ({said}): check that it names a repository or a local "
            "folder, and check the network, HF_HUB_OFFLINE and `hf auth login`"
        ) from error


def _run_config(weights: Path) -> Config | None:
    """Config of the run folder that contains the weights, if any."""
    run = RunFolder(weights.parent)
    return run.stored_config() if run.config.exists() else None


def _data_name(config: Config | None) -> str:
    """Name of the dataset, without its path, which is private."""
    return Path(config.data.path).stem if config else ""


def _results(folder: Path) -> dict[str, dict[str, Any]]:
    """Results of `doublehead evaluate` beside the weights, by split."""
    found = {}
    for path in sorted(folder.glob("*/metrics.json")):
        try:
            found[path.parent.name.removeprefix("evaluation-")] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DoubleheadError(f"{path}: is damaged ({error}); run `doublehead evaluate` again") from error
    return found


def _header_results(data: str, results: dict[str, dict[str, Any]]) -> list[Any]:
    """Metrics in the format of the card's header (`model-index`)."""
    dataset = {"dataset_name": data or "unknown", "dataset_type": data.lower() or "unknown"}
    return [
        hub.EvalResult("object-detection", metric_type=figure, metric_value=value, dataset_split=split, **dataset)
        for split, metrics in results.items()
        for figure in FIGURES
        if (value := metrics[figure]) is not None
    ]


def _table(metrics: dict[str, Any]) -> dict[str, Any]:
    """Rows of the card's table, in per cent."""
    rows = [*metrics["classes"], {"name": "all", **metrics}]
    shown = [row | {f: "-" if row[f] is None else f"{100 * row[f]:.1f}" for f in FIGURES} for row in rows]
    return {"images": metrics["images"], "rows": shown}
