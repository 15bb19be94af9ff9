from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from serving import small_app, small_checkpoint
from small_bulk import untrained

import doublehead
from doublehead.common.errors import DoubleheadError
from doublehead.deploy.server.app import create_app
from doublehead.deploy.server.settings import ServerSettings
from doublehead.inference.predictor import Predictor
from doublehead.model.detector import Detector


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """A Double-Head-Ext model: both heads classify and regress."""
    return small_checkpoint(tmp_path_factory.mktemp("weights"), "double-head-ext")


@pytest.fixture(scope="session")
def plain_weights(tmp_path_factory) -> Path:
    """A Double-Head model: the fc-head only classifies, the conv-head only regresses."""
    return small_checkpoint(tmp_path_factory.mktemp("weights"), "double-head")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A Double-Head model that finds something nearly everywhere."""
    return untrained(tmp_path_factory.mktemp("weights") / "untrained.safetensors")


@pytest.fixture
def served(weights) -> Iterator[Callable[..., TestClient]]:
    """Give settings, get a client of a server with them."""
    with ExitStack() as stack:
        yield lambda model=weights, **settings: stack.enter_context(
            TestClient(small_app(model, **settings), raise_server_exceptions=False)
        )


class Exported:
    """A Predictor of a file that was exported: it detects, and cannot be looked into."""

    def __init__(self, predictor: Predictor) -> None:
        self.categories, self.device, self.precision = predictor.categories, predictor.device, predictor.precision
        self.detect, self.options, self.inside = predictor.detect, predictor.options, predictor.inside
        self.decision_threshold = predictor.decision_threshold

    @property
    def model(self) -> Detector:
        raise DoubleheadError("was exported")


@pytest.fixture
def exported(weights) -> FastAPI:
    return create_app(Exported(doublehead.load(weights, "cpu")), "exported", ServerSettings())


@pytest.fixture(scope="session")
def client(weights) -> Iterator[TestClient]:
    """A server that no test changes."""
    with TestClient(small_app(weights), raise_server_exceptions=False) as client:
        yield client
