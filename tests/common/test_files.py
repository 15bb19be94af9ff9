"""Files are whole or absent, also where several processes write into one folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from doublehead.common.errors import DoubleheadError
from doublehead.common.files import cache_folder, held, remove_unfinished, whole


@pytest.mark.parametrize("names", [("a", "b"), ("a", "a")])
def test_writers_in_one_folder_do_not_disturb_each_other(tmp_path, names):
    with whole(tmp_path / names[0]) as first:
        first.write_text("first, ")
        with whole(tmp_path / names[1]) as second:
            second.write_text("second")
        assert (tmp_path / names[1]).read_text() == "second"
        with first.open("a") as file:
            file.write("to its end")
    assert (tmp_path / names[0]).read_text() == "first, to its end"
    assert {path.name for path in tmp_path.iterdir()} == set(names)


def test_what_is_not_finished_leaves_nothing(tmp_path):
    (tmp_path / "a").write_text("before")

    def stopped():
        with whole(tmp_path / "a") as path:
            path.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        stopped()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "before")]


def test_what_is_being_written_is_not_removed_as_left_over(tmp_path):
    with whole(tmp_path / "a") as first:
        first.write_text("first")
        remove_unfinished(tmp_path)  # as another shard that has just ended does
        assert first.read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


KILLED = """
import sys, time
from pathlib import Path
from doublehead.common.files import whole
with whole(Path(sys.argv[1]) / "killed") as path:
    path.write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


def test_what_a_kill_left_is_removed_and_what_another_process_writes_is_not(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "writing\n"
        remove_unfinished(tmp_path)
        assert list(tmp_path.rglob("killed"))
    finally:
        process.kill()
        process.wait()
    (tmp_path / ".writing" / "half").write_text("of an earlier version")
    remove_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == []


HOLDING = """
import os, sys, time
from pathlib import Path
from doublehead.common.files import held
with held(Path(sys.argv[1])):
    if not os.fork():
        print(os.getpid(), flush=True)
    time.sleep(600)
"""


def test_a_folder_is_held_until_its_holder_ends_whatever_it_has_started(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDING, tmp_path], stdout=subprocess.PIPE, text=True)
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(DoubleheadError, match=f"{tmp_path}: "), held(tmp_path):
            pass
        holder.kill()
        holder.wait()
        with held(tmp_path):
            os.kill(child, 0)  # still there
    finally:
        holder.kill()
        os.kill(child, signal.SIGKILL)


def test_the_cache_is_the_users_own_unless_another_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("DOUBLEHEAD_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert cache_folder("a") == tmp_path / "user" / "doublehead" / "a"
    monkeypatch.setenv("DOUBLEHEAD_CACHE", str(tmp_path / "other"))
    assert cache_folder("a") == tmp_path / "other" / "a"
    assert (tmp_path / "other" / "a").is_dir()
    monkeypatch.setenv("DOUBLEHEAD_CACHE", "")
    assert cache_folder("a") is None


def test_without_a_folder_for_the_cache_there_is_none(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DOUBLEHEAD_CACHE", str(tmp_path / "file"))
    assert cache_folder("a") is None
