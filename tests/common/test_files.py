"""Files are whole or absent, also where several processes write into one folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from doublehead.common.files import remove_unfinished, whole


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


def test_only_what_dead_processes_were_writing_is_removed(tmp_path):
    """Two shards end together: one cleans up while the other still writes."""
    script = "import sys, time\nfrom pathlib import Path\nfrom doublehead.common.files import whole\n"
    script += "with whole(Path(sys.argv[1])):\n    print('writing', flush=True)\n    time.sleep(60)\n"
    killed = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "b")], stdout=subprocess.PIPE)
    assert killed.stdout.readline() == b"writing\n"
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    with whole(tmp_path / "a") as path:
        path.write_text("to the end")
        assert len(list((tmp_path / ".writing").iterdir())) == 2
        remove_unfinished(tmp_path)
        assert len(list((tmp_path / ".writing").iterdir())) == 1
    assert (tmp_path / "a").read_text() == "to the end"
    remove_unfinished(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
