from __future__ import annotations

import pytest

from doublehead.training import loop


@pytest.fixture
def no_pictures(monkeypatch):
    """Leave out the curves and predictions of finished runs, which take longer than the small runs themselves."""
    monkeypatch.setattr(loop, "draw_run", lambda *arguments: [])
