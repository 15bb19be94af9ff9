"""Models shared by huggingface_hub's conventions, without a network."""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
import yaml
from safetensors import safe_open
from small_bulk import jpeg

import doublehead
from doublehead.deploy.hub import HubPredictor
from doublehead.model.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture
def photo(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(jpeg(3))
    return tmp_path / "photo.jpg"


@pytest.fixture(scope="module")
def run(trained, dataset, tmp_path_factory):
    """A finished run, measured on its test split."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("hub") / "my-shapes")
    doublehead.evaluate(folder / "best.safetensors", dataset, "test", device="cpu").save(folder / "evaluation-test")
    return folder


def test_saved_and_loaded_it_is_the_same_model(run, photo, tmp_path):
    model = HubPredictor(run / "last.safetensors", device="cpu")
    model.save_pretrained(tmp_path / "shared")
    names = ["README.md", "config.json", "model.safetensors", "training.yaml"]
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == names
    again = HubPredictor.from_pretrained(tmp_path / "shared", device="cpu")
    assert again.predict(photo) == model.predict(photo) == doublehead.load(run / "last.safetensors").predict(photo)
    with safe_open(tmp_path / "shared" / "model.safetensors", "pt") as file:
        assert not [key for key in file.keys() if key.startswith("training/")]  # noqa: SIM118
    assert doublehead.load(tmp_path / "shared" / "model.safetensors", "cpu").predict(photo) == model.predict(photo)


def test_the_card_is_filled_from_the_run(run, dataset, tmp_path):
    HubPredictor(run / "best.safetensors").save_pretrained(tmp_path / "shared", model_card_kwargs={"license": "mit"})
    text = (tmp_path / "shared" / "README.md").read_text()
    card = huggingface_hub.ModelCard(text)
    assert (card.data.library_name, card.data.pipeline_tag) == ("doublehead", "object-detection")
    assert card.data.license == "mit"
    metrics = json.loads((run / "evaluation-test" / "metrics.json").read_text())
    results = {(r.dataset_name, r.dataset_split, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert results["shapes", "test", "AP50"] == metrics["AP50"]
    for row in metrics["classes"]:
        assert f"| {row['name']} | " + ("-" if row["AP"] is None else f"{100 * row['AP']:.1f}") in text
    assert "Trained on shapes" in text
    assert 'HubPredictor.from_pretrained("' in text
    everything = "".join(path.read_text() for path in (tmp_path / "shared").iterdir() if path.suffix != ".safetensors")
    assert str(dataset.parent) not in everything  # where the data lies is nobody's business
    assert yaml.safe_load((tmp_path / "shared" / "training.yaml").read_text())["data"]["path"] == "shapes"


def test_nothing_that_is_shared_names_a_folder_of_the_machine(run, tmp_path, monkeypatch):
    own = shutil.copytree(run, tmp_path / "run")
    config = yaml.safe_load((own / "config.yaml").read_text())
    config["model"]["backbone"]["weights"] = str(tmp_path / "secret" / "r18.pth")
    config["train"]["weights"] = str(tmp_path / "secret" / "start.safetensors")
    (own / "config.yaml").write_text(yaml.safe_dump(config))
    found = load_checkpoint(own / "best.safetensors")
    backbone = found.config.backbone.model_copy(update={"weights": str(tmp_path / "secret" / "r18.pth")})
    model = found.config.model_copy(update={"backbone": backbone})
    with monkeypatch.context() as patch:  # as the previous version wrote it
        patch.setattr("doublehead.model.checkpoint.names_only", lambda values: values)
        save_checkpoint(own / "best.safetensors", model, found.categories, found.weights, found.notes)
    assert b"secret" in (own / "best.safetensors").read_bytes()
    HubPredictor(own / "best.safetensors", device="cpu").save_pretrained(tmp_path / "shared")
    for path in (tmp_path / "shared").iterdir():
        assert b"secret" not in path.read_bytes()
        assert str(tmp_path).encode() not in path.read_bytes()
    training = yaml.safe_load((tmp_path / "shared" / "training.yaml").read_text())
    assert training["train"]["weights"] == "start.safetensors"
    assert training["model"]["backbone"]["weights"] == "r18.pth"


def test_without_a_run_the_card_says_what_it_does_not_know(checkpoint, tmp_path):
    HubPredictor(checkpoint).save_pretrained(tmp_path / "shared")
    text = (tmp_path / "shared" / "README.md").read_text()
    for words in ("no run folder was beside these weights", "Not measured", "Not stated", "cat, dog"):
        assert words in text


def test_what_would_be_uploaded(checkpoint, photo, tmp_path, monkeypatch):
    pushed = {}

    class Api:
        def __init__(self, token=None):
            pushed["token"] = token

        def create_repo(self, repo_id, private, exist_ok):
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, folder_path, **words):
            pushed.update(words)
            shutil.copytree(folder_path, tmp_path / "pushed")
            return "https://hub/commit/1"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    model = HubPredictor(checkpoint, device="cpu")
    address = model.push_to_hub("me/pets", token="t", branch="dev", model_card_kwargs={"datasets": ["me/photos"]})
    assert address == "https://hub/commit/1"
    assert (pushed["token"], pushed["repo_id"], pushed["revision"]) == ("t", "me/pets", "dev")
    card = huggingface_hub.ModelCard((tmp_path / "pushed" / "README.md").read_text())
    assert card.data.datasets == ["me/photos"]
    assert 'HubPredictor.from_pretrained("me/pets")' in card.text
    assert card.text.lstrip().startswith("# pets")
    assert HubPredictor.from_pretrained(tmp_path / "pushed", device="cpu").predict(photo) == model.predict(photo)


class Stub(BaseHTTPRequestHandler):
    """As much of the Hub as a download needs."""

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        file = self.server.folder / self.path.rpartition("/")[2].partition("?")[0]
        if not self.path.startswith("/me/pets/resolve/v1/") or not file.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *words):
        pass


@pytest.fixture
def stub(checkpoint, tmp_path, monkeypatch):
    """A Hub with one repository, me/pets, whose only revision is v1."""
    HubPredictor(checkpoint, device="cpu").save_pretrained(tmp_path / "shared")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    server.folder, address = tmp_path / "shared", f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_from_a_repository_once_and_then_offline(checkpoint, photo, tmp_path, stub):
    where = {"cache_dir": tmp_path / "cache", "device": "cpu"}
    expected = HubPredictor(checkpoint, device="cpu").predict(photo)
    assert HubPredictor.from_pretrained("me/pets", revision="v1", **where).predict(photo) == expected
    with pytest.raises(doublehead.DoubleheadError, match="me/pets: the Hugging Face Hub request failed"):
        HubPredictor.from_pretrained("me/pets", revision="v2", **where)
    stub.shutdown()
    stub.server_close()
    again = HubPredictor.from_pretrained("me/pets", revision="v1", local_files_only=True, **where)
    assert again.predict(photo) == expected


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("me/pets", "me/pets: the Hugging Face Hub request failed"), ("no where", "no where: the Hugging Face Hub")],
)
def test_offline_and_unknown_names_end_in_a_sentence(tmp_path, name, sentence):
    with pytest.raises(doublehead.DoubleheadError, match=sentence):
        HubPredictor.from_pretrained(name, local_files_only=True, cache_dir=tmp_path)


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(doublehead.DoubleheadError, match=r"holds no model\.safetensors"):
        HubPredictor.from_pretrained(tmp_path)


def test_a_missing_extra_is_answered_by_the_pip_command(monkeypatch):
    monkeypatch.delitem(sys.modules, "doublehead.deploy.hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(doublehead.DoubleheadError, match=r"pip install 'doublehead\[hub\]'"):
        importlib.import_module("doublehead.deploy.hub")
