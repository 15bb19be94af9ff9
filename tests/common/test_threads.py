from __future__ import annotations

import signal
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


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals go to a thread on Unix alone")
def test_an_interruption_does_not_wait() -> None:
    release = threading.Event()
    # A shell starts background jobs with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        release.wait(600)

    try:
        with pytest.raises(KeyboardInterrupt):
            apart(interrupt)
    finally:
        release.set()
        signal.signal(signal.SIGINT, before)
