from __future__ import annotations

from pathlib import Path

import pytest
from small_bulk import untrained


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    return untrained(tmp_path_factory.mktemp("weights") / "untrained.safetensors")
