from __future__ import annotations

import threading

import pytest

from doublehead.common.threads import apart


def test_a_call_apart_returns_from_another_thread_that_has_ended() -> None:
    before = threading.active_count()
    name, result = apart(lambda a, b: (threading.current_thread().name, a + b), 2, 3)
    assert result == 5
    assert name != threading.current_thread().name
    assert threading.active_count() == before


def test_an_error_of_a_call_apart_is_its_own() -> None:
    with pytest.raises(KeyError, match="missing"):
        apart({}.__getitem__, "missing")


def test_an_interruption_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def interrupted(self: object, timeout: float | None = None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("doublehead.common.threads.Future.result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        apart(release.wait, 600)
    release.set()
