"""Find the photos of a run and name their results.

Results have the same folder structure as the photos: photos/2024/a.jpg becomes OUTPUT/2024/a.overlay.png. If several
folders are given, the output contains a folder for each, as with `cp -r`. A directory's names are sorted on disk, so
memory does not grow with their number.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from segment.dataset.entry import shown
from segment.errors import OptionError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"}
VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".mts", ".m2ts", ".wmv", ".3gp"}


@dataclass(frozen=True)
class Photo:
    """A photo file. `name`: its path below the folder that was given, unique in a run, with "/" between folders.

    `result`: the path of its results below the output, to which each format's file name is appended.
    """

    path: Path
    name: str
    result: str


def find(
    paths: Sequence[Path],
    output: Path | None = None,
    on_error: Callable[[OSError], None] = lambda error: None,
    suffixes: Container[str] = SUFFIXES,
) -> Iterator[Photo]:
    """The files among `paths`, and those with these `suffixes` in the folders among them, by name in each folder.

    Files in `output` are left out, because they are results, and so are hidden files and folders, whose names start
    with a dot. `on_error` is called for each folder that cannot be listed. Raises OptionError if two paths contain
    photos of the same name, if `output` is one of the folders, or for a URL.
    """
    folders = [path for path in dict.fromkeys(paths) if path.is_dir()]
    files = [path for path in dict.fromkeys(paths) if not path.is_dir()]
    files = [file for file in files if not any(_inside(file, folder) for folder in folders)]
    tops = [folder.resolve().name if len(folders) > 1 else "" for folder in folders]
    _check_addresses(paths)
    _check_results(files, folders, tops, output)
    stems, names = Counter(file.stem for file in files), {file.name for file in files}
    for file in files:
        yield _photo(file, Path(), not folders and stems[file.stem] == 1 and file.stem not in names)
    for folder, top in zip(folders, tops, strict=True):
        yield from _below(folder, Path(top), output, on_error, suffixes)


def _check_addresses(paths: Sequence[Path]) -> None:
    """Raise OptionError for a URL, and for the address of a bucket."""
    for path in paths:
        if path.parts[:1] in (("http:",), ("https:",)) and not path.exists():
            raise OptionError(
                "photos", f"{path.name} is given by a URL. Download it first, or send the URL to the service."
            )
        if path.parts[:1] == ("gs:",) and not path.exists():
            raise OptionError(
                "photos", f"{path.name} is in a bucket. `segment backfill` and `segment beam` segment the photos there."
            )


def _check_results(files: Sequence[Path], folders: Sequence[Path], tops: Sequence[str], output: Path | None) -> None:
    """Raise OptionError if results would be photos of the next run, or if two photos would have the same results.

    `tops`: the name of each folder in the output; empty if there is only one.
    """
    if output and any(_same(folder, output) for folder in folders):
        raise OptionError(
            "output",
            f"The photos are in the output folder, {output}, so the next run would segment the results. Choose another "
            f"output folder, such as {output / 'results'}.",
        )
    for name, count in Counter([*filter(None, tops), *(file.name for file in files)]).items():
        if count > 1:
            raise OptionError(
                "photos", f"There is more than one {name}. Use a separate output folder for each of them."
            )
    for file in files:
        if len(folders) == 1 and (folders[0] / file.name).exists():
            raise OptionError(
                "photos", f"The results of {file} and {folders[0] / file.name} would have the same names; omit one."
            )


def _below(
    folder: Path, place: Path, output: Path | None, on_error: Callable[[OSError], None], suffixes: Container[str]
) -> Iterator[Photo]:
    """The photos in a directory, then those in the directories in it. `place`: its path below the output."""
    with closing(sqlite3.connect("")) as names:  # a temporary file, of which a little is in memory
        names.execute("CREATE TABLE files (name BLOB, stem BLOB)")
        names.execute("CREATE TABLE folders (name BLOB)")
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    path = folder / entry.name
                    if entry.name.startswith("."):  # such as ._IMG_0001.jpg, which macOS adds on other file systems
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        if output is None or not _same(path, output):
                            names.execute("INSERT INTO folders VALUES (?)", (os.fsencode(entry.name),))
                    elif path.suffix.lower() in suffixes:
                        row = os.fsencode(entry.name), os.fsencode(path.stem)
                        names.execute("INSERT INTO files VALUES (?, ?)", row)
        except OSError as error:
            on_error(error)
        # a.jpg.webp keeps its extension beside a.jpg, whose results may be named a.jpg.*
        is_only = "count(*) OVER (PARTITION BY stem) = 1 AND stem NOT IN (SELECT name FROM files)"
        for name, short in names.execute(f"SELECT name, {is_only} FROM files ORDER BY name"):
            yield _photo(folder / os.fsdecode(name), place, short)
        for (name,) in names.execute("SELECT name FROM folders ORDER BY name"):
            below = os.fsdecode(name)
            yield from _below(folder / below, place / below, output, on_error, suffixes)


def _photo(file: Path, place: Path, short: bool) -> Photo:
    """A photo. `short`: whether its results are named without its extension, which must not be ambiguous."""
    return Photo(file, shown((place / file.name).as_posix()), (place / (file.stem if short else file.name)).as_posix())


def _inside(file: Path, folder: Path) -> bool:
    return file.exists() and file.resolve().is_relative_to(folder.resolve())


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()
