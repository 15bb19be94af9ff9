"""What README and docs tell people to type is run, or at least understood, as typed."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from PIL import Image

from doublehead import cli
from small import SMALL, flags

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def shell_lines(page: Path) -> list[list[str]]:
    """The lines of a page's shell blocks, as words."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines]


def commands(page: Path) -> list[list[str]]:
    """The doublehead commands among them, without their first word."""
    return [words[1:] for words in shell_lines(page) if words[:1] == ["doublehead"]]


def voc_dataset(folder: Path) -> Path:
    """Three images of one cell each, in BCCD's layout."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    box = "<xmin>10</xmin><ymin>12</ymin><xmax>50</xmax><ymax>44</ymax>"
    for split, number in (("train", 1), ("val", 2), ("test", 7)):
        stem = f"BloodImage_{number:05}"
        Image.new("RGB", (96, 64), (200, 180, 190)).save(folder / "JPEGImages" / f"{stem}.jpg")
        (folder / "Annotations" / f"{stem}.xml").write_text(
            f"<annotation><filename>{stem}.jpg</filename><size><width>96</width><height>64</height></size>"
            f"<object><name>RBC</name><bndbox>{box}</bndbox></object></annotation>"
        )
        (folder / "ImageSets/Main" / f"{split}.txt").write_text(f"{stem}\n")
    return folder


def test_the_walk_through_runs_as_written(tmp_path, monkeypatch, command) -> None:
    monkeypatch.chdir(tmp_path)
    voc_dataset(tmp_path / "BCCD")
    walk = [words for words in commands(PAGES[0]) if any("BCCD" in word for word in words)]
    assert [words[0] for words in walk] == ["train", "evaluate", "predict", "analyze"]
    for words in walk:
        small = flags(SMALL | {"train.epochs": 2}) if words[0] == "train" else []
        outcome = command(*words, *small)
        assert outcome.code == 0, outcome.err
    assert (tmp_path / "runs/bccd/curves.png").exists()
    assert (tmp_path / "runs/bccd/pictures/BloodImage_00007.jpg").exists()
    assert (tmp_path / "runs/bccd/analysis/index.html").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_understood(page: Path) -> None:
    group = typer.main.get_command(cli.app)
    for words in commands(page):
        command, context = group, group.make_context("doublehead", words[:1])
        while hasattr(command, "commands"):  # benchmark has commands of its own
            name, *words = words
            command = command.commands[name]
            context = command.make_context(name, [*words], parent=context)  # parses, and does not run


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_other_commands_name_what_exists(page: Path) -> None:
    """Scripts, tests and targets of make are there."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in shell_lines(page):
        for word in words:
            if re.match(r"(benchmarks|studies|tests|packaging|examples)/\S", word):
                assert (ROOT / word).exists(), word
        if words[:1] == ["make"]:
            assert set(words[1:]) <= set(targets)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
