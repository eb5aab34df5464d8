"""Find the photos of a run and name their results.

Results keep the tree of the folder that was given: photos/2024/a.jpg becomes OUTPUT/2024/a.overlay.png. Where several
folders are given, each keeps its own name below the output, as with `cp -r`. Only one directory's names are in memory
at a time.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from segment.errors import OptionError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"}


@dataclass(frozen=True)
class Photo:
    """A photo file. `name`: its path below the folder that was given, unique in a run, with "/" between folders.

    `result`: the path of its results below the output, to which each format's file name is appended.
    """

    path: Path
    name: str
    result: str


def find(
    paths: Sequence[Path], output: Path | None = None, on_error: Callable[[OSError], None] | None = None
) -> Iterator[Photo]:
    """The files among `paths`, and the photos in the folders among them, each folder's files in order of their names.

    What lies in `output` is left out: results are no photos. `on_error` is told of each folder that cannot be listed.
    Raises OptionError if two paths would give photos of the same name.
    """
    folders = [path for path in dict.fromkeys(paths) if path.is_dir()]
    files = [path for path in dict.fromkeys(paths) if not path.is_dir()]
    files = [file for file in files if not any(_inside(file, folder) for folder in folders)]
    several = len(folders) > 1
    tops = [folder.resolve().name if several else "" for folder in folders]
    for name, count in Counter([*(top for top in tops if top), *(file.name for file in files)]).items():
        if count > 1:
            raise OptionError(
                "photos", f"There is more than one {name}. Use a separate output folder for each of them."
            )
    for file in files:
        if not several and folders and (folders[0] / file.name).exists():
            raise OptionError("photos", f"{file} and {folders[0] / file.name} would have the same results.")
    yield from _photos(Path(), files)
    for folder, top in zip(folders, tops, strict=True):
        for directory, below, names in os.walk(folder, onerror=on_error):
            here = Path(directory)
            below[:] = sorted(name for name in below if output is None or not _same(here / name, output))
            found = sorted(name for name in names if Path(name).suffix.lower() in SUFFIXES)
            yield from _photos(top / here.relative_to(folder), [here / name for name in found])


def _photos(place: Path, files: Sequence[Path]) -> Iterator[Photo]:
    """The photos of one directory. Results keep the photo's extension where two photos differ in nothing else."""
    stems = Counter(file.stem for file in files)
    for file in files:
        name = file.stem if stems[file.stem] == 1 else file.name
        yield Photo(file, _text(place / file.name), (place / name).as_posix())


def _text(path: Path) -> str:
    """The path as valid Unicode; bytes of a name that are not UTF-8 are escaped."""
    return PurePosixPath(path).as_posix().encode("utf-8", "backslashreplace").decode()


def _inside(file: Path, folder: Path) -> bool:
    return file.exists() and file.resolve().is_relative_to(folder.resolve())


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()
