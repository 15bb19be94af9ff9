"""A dataset's folder, listed once: which files are there, and which picture an annotation means."""

from __future__ import annotations

import filecmp
import os
import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

from doublehead.common.errors import DoubleheadError
from doublehead.data.images import IMAGE_SUFFIXES

OUTSIDE = "images outside the dataset's folder"

_SPLITS = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}
_KNOWN = ("train", "val", "test", "trainval")
_FILLERS = {"images", "image", "imgs", "img", "labels", "label", "annotations", "annotation", "data", "set", "obj"}
_DATA_SUFFIXES = (
    *IMAGE_SUFFIXES,
    ".txt",
    ".xml",
    ".json",
    ".jsonl",
    ".ndjson",
    ".manifest",
    ".csv",
    ".yaml",
    ".yml",
    ".parquet",
    ".arrow",
)
_JUNK = ("__macosx",)  # besides what begins with a dot
_LOOKED_AT = 5  # files of a folder that are looked into, to see what they hold
_SAMPLE = 1000  # names that decide which folder holds the pictures


def canonical(split: str) -> str:
    """The plain name of a split: `val` for `Validation`, `valid` and `val2017`, `all` for CVAT's `default`."""
    plain = re.sub(r"(?<=[a-z])(19|20)\d\d$", "", split.strip().lower())
    plain = {**_SPLITS, "default": "all"}.get(plain, plain)
    return plain if plain in (*_KNOWN, "all") else split


def split_of_folder(path: str) -> str | None:
    """The split that a folder on a file's way names, such as `train`, `Valid` or `obj_train_data`; None: no split."""
    for part in path.split("/")[:-1]:
        words = [word for word in _words(part) if word.lower() not in _FILLERS]
        if len(words) == 1 and canonical(words[0]) in _KNOWN:
            return canonical(words[0])
    return None


def split_in_name(stem: str) -> str | None:
    """The split that a file's name names, such as `instances_train2017` or `valid-labels`; None: no split."""
    return next((canonical(word) for word in _words(stem) if canonical(word) in _KNOWN), None)


def split_of_file(file: str) -> str:
    """The split of an annotation file: that of its folder, or else in its name, or else `all`."""
    return split_of_folder(file) or split_in_name(Path(file).stem) or "all"


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[^A-Za-z0-9]+", text) if word]


class Folder:
    """The files below a folder, by their paths from it with forward slashes.

    Links are followed. Hidden files and folders (`._*`, `.ipynb_checkpoints`, `__MACOSX`) are left out; `skipped` has
    those that look like data.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.skipped: list[str] = []
        self.folders = {""}
        found: list[str] = []
        for path, folders, names in os.walk(root, followlinks=True):
            here = os.path.relpath(path, root).replace(os.sep, "/") if path != str(root) else ""
            here = "" if here == "." else here
            for name in folders:
                if _hidden(name):
                    self.skipped.append(posixpath.join(here, name) + "/")
            folders[:] = sorted(
                name for name in folders if not _hidden(name) and not _leads_back(os.path.join(path, name), str(root))
            )
            self.folders.update(posixpath.join(here, name) for name in folders)
            for name in names:
                if not _hidden(name):
                    found.append(posixpath.join(here, name))
                elif name.lower().endswith(_DATA_SUFFIXES):
                    self.skipped.append(posixpath.join(here, name))
        self.files = dict.fromkeys(sorted(found, key=lambda file: file.split("/")))
        self.skipped.sort()

    def path(self, file: str) -> Path:
        """The path of one of the files."""
        return self.root / file

    def within(self, top: str) -> Folder:
        """One of the folders as a dataset of its own."""
        inner = Folder.__new__(Folder)
        inner.root = self.root / top
        inner.skipped = self.skipped
        inner.files = {file[len(top) + 1 :]: None for file in self.files if file.startswith(top + "/")}
        inner.folders = {"", *(file[len(top) + 1 :] for file in self.folders if file.startswith(top + "/"))}
        return inner

    def suffixed(self, *suffixes: str) -> list[str]:
        """Files with one of these suffixes, in any case."""
        return [file for file in self.files if file.lower().endswith(suffixes)]

    def of_kind(self, suffix: str, is_one: Callable[[Path], bool]) -> list[str]:
        """Files with a suffix, of the folders where one of the first few is of the kind asked for."""
        by_folder = _index(self.suffixed(suffix), posixpath.dirname)
        return [
            file
            for files in by_folder.values()
            if any(is_one(self.path(one)) for one in files[:_LOOKED_AT])
            for file in files
        ]

    @cached_property
    def images(self) -> list[str]:
        """Files that are images by their suffix."""
        return self.suffixed(*IMAGE_SUFFIXES)

    def has_image(self, name: str) -> bool:
        """Whether any image in the dataset is called like this, with or without extension, whatever its folder."""
        names = [_plain(one.rpartition("/")[2]) for one in spellings(name)]
        return any(one in self._by_name or one in self._by_stem for one in names)

    def images_below(self, folder: str) -> list[str]:
        """Images in a folder and the folders in it."""
        return [file for file in self.images if not folder or file.startswith(folder + "/")]

    def frames_below(self, folder: str, pattern: str) -> dict[int, str]:
        """Frames of a video among the images below a folder: the number that the pattern finds in a stem -> file."""
        found = ((re.search(pattern, Path(file).stem, re.IGNORECASE), file) for file in self.images_below(folder))
        return {int(match[1]): file for match, file in found if match}

    def find(self, text: str, beside: str, among: Iterable[str]) -> str | None:
        """One of the files or folders `among`, as a file in the folder `beside` names it.

        Leading folders that do not exist are dropped. What leads out by `..` is not found, except that Roboflow writes
        `../train/images` and means `train/images`.
        """
        spelled = {_plain(name): name for name in reversed(list(among))}
        for name in spellings(text):
            for start in dict.fromkeys((beside, "")):
                place = self.place(name, start)
                if place is None:
                    meant = _plain("/".join(_parts(name.removeprefix("../"))))
                    if meant in spelled:
                        return spelled[meant]
                    continue
                parts, whole = place
                tries = ["/".join(parts[drop:]) for drop in range(self._missing(parts) + 1)] or [""]
                if not whole and start:
                    tries.insert(0, posixpath.join(start, *parts))
                for one in map(_plain, tries):
                    if one in spelled:
                        return spelled[one]
        return None

    def _missing(self, parts: Sequence[str]) -> int:
        """How many of the folders in front may be dropped: they are not there and name no split."""
        for place, part in enumerate(parts):
            if _plain(part) in self._plain_folders or split_of_folder(f"{part}/"):
                return place
        return max(len(parts) - 1, 0)

    @cached_property
    def _plain_folders(self) -> set[str]:
        return {_plain(folder) for folder in self.folders}

    def text_lists(self) -> dict[str, str]:
        """Files of text called after a split, such as `train.txt` and `ImageSets/Main/Val.txt`: split -> file."""
        lists = {}
        for file in reversed(self.suffixed(".txt")):
            split = canonical(Path(file).stem)
            if split in _KNOWN:
                lists[split] = file
        return lists

    def place(self, name: str, beside: str) -> tuple[list[str], bool] | None:
        """A name as parts, and whether they certainly start at the root; None where it leads out by `..`."""
        if _is_absolute(name):
            path = posixpath.normpath(name)
            for root in self._roots:
                if path == root or path.startswith(root + "/"):
                    return _parts(path[len(root) :]), True
            return _parts(path), False
        parts = _parts(name)
        if ".." not in parts:
            return parts, False
        path = posixpath.normpath(posixpath.join(beside, *parts))
        return None if path.split("/")[0] == ".." else (_parts(path), True)

    @cached_property
    def _roots(self) -> tuple[str, ...]:
        return tuple({os.path.abspath(self.root).replace(os.sep, "/"): 0, os.path.realpath(self.root): 0})

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        return _index(self.images, lambda file: _plain(file.rpartition("/")[2]))

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        return _index(self.images, lambda file: _plain(posixpath.splitext(file.rpartition("/")[2])[0]))


class Pictures:
    """The pictures that the names in one annotation file, or of one split, mean.

    A name is looked for as it is, percent-decoded and with its backslashes turned, in the folder that holds most of
    these pictures; then with another extension or none, in another case, without leading folders that do not exist; and
    at last as a name that only one picture in the dataset has. Never in the folder of another split.

    Args:
        folder: the dataset.
        names: all names that will be asked for.
        beside: the folder of the annotation file.
        split: the split's plain name.
        first: folders to prefer over others that hold as many of the pictures.
    """

    def __init__(
        self, folder: Folder, names: Sequence[str], beside: str = "", split: str = "", first: Sequence[str] = ()
    ) -> None:
        self.folder, self.beside, self.split = folder, beside, split
        self.doubles: list[tuple[str, str]] = []  # the same name with two extensions; the last is taken
        self.bases = self._bases(names, first)
        self.exact = {name: file for name in names if (file := self._exact(name))}
        self._taken = set(self.exact.values())

    def seek(self, name: str, beside: str | None = None) -> str | None:
        """The file that a name means; None: there is none, or several might be meant."""
        if name in self.exact:
            return self.exact[name]
        beside = self.beside if beside is None else beside
        for spelled in spellings(name):
            place = self.folder.place(spelled, beside)
            if place and place[0]:
                found = self._alike(*place, beside)
                if found:
                    return found
        return None

    def find(self, name: str, where: str, beside: str | None = None) -> Path:
        """The path of the file that a name means, also where it is missing.

        Args:
            name: as the annotation has it.
            where: who says so, for the error: "a.json: image 1".
            beside: the folder of the annotation file, where each picture has its own.

        Raises:
            DoubleheadError: the name leads out of the dataset.
        """
        found = self.seek(name, beside)
        if found is not None:
            return self.folder.path(found)
        place = self.folder.place(name, self.beside if beside is None else beside)
        if not place or not place[0] or (_is_absolute(name) and not place[1]):
            raise DoubleheadError(
                f"{where} lies outside the dataset's folder {self.folder.root} (`{name}`); move it there", OUTSIDE
            )
        base = self.bases[0] if self.bases and not place[1] else ""
        return self.folder.path(posixpath.join(base, *place[0]))

    def _bases(self, names: Sequence[str], first: Sequence[str]) -> list[str]:
        votes = Counter[str]()
        for name in names[:: max(1, len(names) // _SAMPLE)]:
            for spelled in spellings(name):
                place = "/" + "/".join(_parts(spelled))
                for file in self.folder._by_name.get(_plain(place.rpartition("/")[2]), []):
                    if f"/{file}".endswith(place) and self._allowed(file):
                        votes[f"/{file}"[: -len(place)].lstrip("/")] += 1
        prefer = [folder for folder in dict.fromkeys((*first, self.beside)) if folder in self.folder.folders]

        def rank(base: str) -> tuple[bool, int, int]:
            other = self.split in _KNOWN and split_of_folder(base + "/") != self.split
            return other, -votes[base], prefer.index(base) if base in prefer else len(prefer)

        ranks = {base: rank(base) for base in votes or prefer}
        self._equal = [base for base in ranks if ranks[base] == min(ranks.values())]
        return sorted(ranks, key=lambda base: (ranks[base], base.count("/"), base))

    def _exact(self, name: str) -> str | None:
        for spelled in spellings(name):
            place = self.folder.place(spelled, self.beside)
            if place is None:
                continue
            files = [posixpath.join(base, *place[0]) for base in self._starts(place[1])]
            files = [file for file in files if file in self.folder.files]
            if files:
                return files[0] if self._is_one(files, place[0]) else None
        return None

    def _is_one(self, files: list[str], parts: list[str]) -> bool:
        """Whether the files in folders that are as likely are copies of one."""
        equal = sorted({posixpath.join(base, *parts) for base in self._equal}.intersection(files))
        paths = [self.folder.path(file) for file in equal]
        with suppress(OSError):
            return all(filecmp.cmp(paths[0], path, shallow=False) for path in paths[1:])
        return False

    def _starts(self, whole: bool) -> Sequence[str]:
        return ("",) if whole else self.bases

    def _alike(self, parts: list[str], whole: bool, beside: str) -> str | None:
        *dirs, last = map(_plain, parts)
        stem = posixpath.splitext(last)
        stems = [last, stem[0]] if stem[1] in IMAGE_SUFFIXES else [last]
        found = self.folder._by_name.get(last) or next(filter(None, map(self.folder._by_stem.get, stems)), [])
        found = [file for file in found if file not in self._taken and self._allowed(file)]
        homes = {posixpath.join(base, *parts[:-1]) for base in self._starts(whole)} & self.folder.folders
        if dirs and homes:  # the folders that the name has in front are there, so no other can be meant
            found = [file for file in found if posixpath.dirname(file) in homes]
        if not found:
            return None

        def nearness(file: str) -> tuple[int, int, bool]:
            there = [_plain(part) for part in file.split("/")[:-1]]
            behind = alike(reversed(there), reversed(dirs))
            return behind, alike(there, map(_plain, beside.split("/"))), [posixpath.dirname(file)] == self._equal

        best = max(map(nearness, found))
        found = [file for file in found if nearness(file) == best]
        if len({posixpath.splitext(file)[0] for file in found}) > 1:
            return None
        self.doubles += [(one, other) for one, other in pairwise(found)]
        return found[-1]

    def _allowed(self, file: str) -> bool:
        other = split_of_folder(file)
        return self.split not in _KNOWN or other is None or other == self.split or "trainval" in (other, self.split)


def spellings(name: str) -> list[str]:
    """A file's name as it is, and as it may be meant: percent-decoded, with forward slashes, without a URL's head."""
    decoded = unquote(name.rpartition("?d=")[2])  # Label Studio: /data/local-files/?d=images/1.jpg
    plain = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]+://", "/", decoded.replace("\\", "/"))
    return list(dict.fromkeys((name, name.replace("\\", "/"), plain)))


def _index(files: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for file in files:
        found[key(file)].append(file)
    return dict(found)


def alike(one: Iterable[str], other: Iterable[str]) -> int:
    """How many parts two ways have in common at their start."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]


def _plain(text: str) -> str:
    """Text in one case and one normal form, since file systems write umlauts in two ways."""
    return unicodedata.normalize("NFC", text).casefold()


def _is_absolute(name: str) -> bool:
    return name.startswith("/") or bool(re.match(r"[A-Za-z]:[/\\]", name))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _JUNK


def _leads_back(path: str, root: str) -> bool:
    """Whether a folder is a link to one on the way to it, so that following it would never end."""
    if not os.path.islink(path):
        return False
    target = os.path.realpath(path)
    way = path
    while len(way) > len(root):
        way = os.path.dirname(way)
        if f"{os.path.realpath(way)}/".startswith(f"{target.rstrip('/')}/"):
            return True
    return False
