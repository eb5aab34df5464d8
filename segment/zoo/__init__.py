"""The models of detectron2's model zoo that can be converted, by name.

`models.toml` describes each model, and a text file per data set contains its class names, so detectron2 is not needed.
Downloads and converted models are stored in the user's cache folder of the platform.
"""

from __future__ import annotations

import difflib
import functools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import platformdirs

from segment.errors import FetchError, ModelError
from segment.labels import read_labels
from segment.progress import Report, ignore
from segment.zoo.download import download_once

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    `megabytes`: approximate size of the checkpoint. `box_ap`, `mask_ap`: average precision in percent on the validation
    images of the data set, as published by detectron2; None if not published. `dataset`: the data set of its classes.
    `config`: its detectron2 config as nested mappings; absent keys have detectron2's defaults. `sha256`: the
    checkpoint's SHA-256, 64 hexadecimal digits; empty if it is not recorded.
    """

    name: str
    base: str
    file: str
    megabytes: int
    license: str
    dataset: str
    config: Mapping[str, Any]
    mask_ap: float
    box_ap: float | None = None
    sha256: str = ""

    @property
    def digest(self) -> str:
        """The first six digits of the checkpoint's MD5, from the end of its file name (MODEL_ZOO.md)."""
        return PurePosixPath(self.file).stem.rpartition("_")[2]

    @property
    def zoo_path(self) -> str:
        """The model's config in detectron2's `configs` folder, without the extension."""
        return str(PurePosixPath(self.file).parent.parent)


@functools.cache
def entries() -> Mapping[str, Entry]:
    """Every model of the zoo by name."""
    table = tomllib.loads((FOLDER / "models.toml").read_text(encoding="utf-8"))

    def entry(name: str, file: str, base: str = "base", parts: Sequence[str] = (), **rest: Any) -> Entry:
        config = functools.reduce(merged, [table["parts"][part] for part in parts], table[base])
        rest.setdefault("license", table["license"])
        return Entry(name=name, file=file, base=table["url"], config=config, **rest)

    return {name: entry(name, **row) for name, row in table["models"].items()}


def find(name: str) -> Entry | None:
    """The model with this name, with this path of its config in detectron2, or with this URL of its checkpoint."""
    for found in entries().values():
        paths = (found.zoo_path, found.zoo_path + ".yaml", found.zoo_path + ".py", found.base + found.file)
        if name == found.name or name in paths:
            return found
    return None


def entry(name: str) -> Entry:
    """Like `find`, but raises ModelError with similar names if there is no such model."""
    if found := find(name):
        return found
    names = ", ".join(difflib.get_close_matches(name, entries()))
    similar = f" Similar names: {names}." if names else ""
    raise ModelError(
        f"There is no model called {name!r}.{similar} Give a model file (.onnx) or a name that "
        "`python -m segment models` lists."
    )


def labels(entry: Entry) -> tuple[str, ...]:
    """The name of each class, by index."""
    return read_labels(FOLDER / f"{entry.dataset}.txt")


INT8 = "-int8"
"""Suffix of the names of int8 models."""


def model_path(name: str) -> Path:
    """The path of the converted model, whether or not it exists. NAME-int8 is the int8 model. Raises ModelError."""
    suffix = INT8 if name.endswith(INT8) else ""
    return cache() / "models" / f"{entry(name.removesuffix(INT8)).name}{suffix}.onnx"


def model_file(name: str) -> Path:
    """The path of the converted model. Raises ModelError if it has not been fetched."""
    path = model_path(name)
    if not path.exists():
        option = " --int8" if name.endswith(INT8) else ""
        raise ModelError(
            f"The model {name} has not been downloaded. `python -m segment fetch {name.removesuffix(INT8)}{option}` "
            "downloads and converts it; `python -m segment serve --model` also serves it."
        )
    return path


def fetch(name: str, url: str = "", report: Report = ignore) -> Path:
    """Download the checkpoint of a model unless it exists, and return its path. `url`: URL of a mirror of the zoo.

    The first download is checked against the SHA-256 in the table, or if that is unknown, against the first digits of
    the MD5 in the file name. Later, the file is checked against the SHA-256 of the first download. Raises ModelError
    for an unknown name or a wrong checksum, FetchError if the download fails.
    """
    found = entry(name)
    path = cache() / "zoo" / f"{found.name}.pkl"
    source = (url or found.base).rstrip("/") + "/" + found.file
    digest = found.sha256 or found.digest
    try:
        download_once(source, path, digest=digest, limit=2_000_000 * found.megabytes, report=report)
    except FetchError as error:
        raise FetchError(f"{error} A mirror of the zoo can be set with SEGMENT_ZOO_URL.") from None
    return path


def cache() -> Path:
    """The folder for downloads and converted models, in the platform's cache folder of this user."""
    return platformdirs.user_cache_path("segment", appauthor=False)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, `above` over `below`."""
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and key in below
        result[key] = merged(below[key], value) if both else value
    return result
