"""Files are whole or absent, also where several processes write into one folder."""

from __future__ import annotations

import pytest

from doublehead.common.files import whole


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
