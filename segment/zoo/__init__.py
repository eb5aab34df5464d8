"""Models by name: what detectron2's model zoo offers of the family that converts.

`models.toml` holds the facts, one text file per data set the names of its classes: detectron2 is not needed. Downloads
and the models converted from them are kept in the user's cache folder, where the platform wants it.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import platformdirs

from segment.errors import ModelError
from segment.labels import read_labels
from segment.zoo.download import WrongChecksum, download, matches, sha256

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    `url`: its checkpoint. `megabytes`: about how much that is. `box_ap`, `mask_ap`: average precision in percent on the
    data set's validation images, as detectron2 measured it; None where it says none. `dataset`: whose classes it knows.
    `config`: its detectron2 config as nested mappings; a key that is absent has detectron2's default.
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

    @property
    def digest(self) -> str:
        """The first six digits of the checkpoint's MD5, which end its file's name (MODEL_ZOO.md)."""
        return PurePosixPath(self.file).stem.rpartition("_")[2]

    @property
    def zoo_path(self) -> str:
        """The model's config in detectron2's `configs` folder, without the extension."""
        return str(PurePosixPath(self.file).parent.parent)


@functools.cache
def entries() -> Mapping[str, Entry]:
    """Every model of the zoo by name."""
    facts = tomllib.loads((FOLDER / "models.toml").read_text(encoding="utf-8"))

    def entry(name: str, file: str, base: str = "base", parts: Sequence[str] = (), **rest: Any) -> Entry:
        config = functools.reduce(merged, [facts["parts"][part] for part in parts], facts[base])
        rest.setdefault("license", facts["license"])
        return Entry(name=name, file=file, base=facts["url"], config=config, **rest)

    return {name: entry(name, **row) for name, row in facts["models"].items()}


def entry(name: str) -> Entry:
    """The model called `name`, here or, as the path of its config, in detectron2. Raises ModelError."""
    for found in entries().values():
        if name in (found.name, found.zoo_path, found.zoo_path + ".yaml", found.zoo_path + ".py"):
            return found
    raise ModelError(
        f"There is no model called {name!r}: give a model file (.onnx) or a name that `python -m segment models` lists."
    )


def labels(entry: Entry) -> tuple[str, ...]:
    """The name of each class, by index."""
    return read_labels(FOLDER / f"{entry.dataset}.txt")


def config(entry: Entry) -> Mapping[str, Any]:
    """The model's detectron2 config as nested mappings."""
    return entry.config


def model_path(name: str) -> Path:
    """Where the converted model is kept, or will be. Raises ModelError for a name that is none."""
    return _cache() / f"{entry(name).name}.onnx"


def model_file(name: str) -> Path:
    """The converted model. Raises ModelError when it has not been fetched."""
    path = model_path(name)
    if not path.exists():
        raise ModelError(
            f"The model {name} is not on this machine yet: `python -m segment fetch {name}` downloads and converts it. "
            "Without SEGMENT_MODEL the embedded demo runs."
        )
    return path


def fetch(name: str, url: str = "") -> Path:
    """The checkpoint of a model, downloaded unless it is here already. `url`: a mirror's, instead of the zoo's own.

    The zoo publishes 24 bits of each file's MD5. The first download is checked against those, and its SHA-256 is
    recorded beside it in NAME.pkl.sha256, in the format of `sha256sum`; every later use and download is checked
    against the record. Raises ModelError for an unknown name and for a file with another checksum, FetchError when the
    download fails.
    """
    found = entry(name)
    path = _cache() / f"{found.name}.pkl"
    record = path.with_suffix(".pkl.sha256")
    expected = _recorded(record) or found.digest
    if not (path.exists() and matches(path, expected)):
        source = (url or found.base).rstrip("/") + "/" + found.file
        try:
            download(source, path, digest=expected, limit=2_000_000 * found.megabytes)
        except WrongChecksum as error:
            hint = f" If its publisher has replaced it, delete {record} first." if record.exists() else ""
            raise ModelError(f"{error}{hint}") from None
    if not record.exists():
        record.write_text(f"{sha256(path)}  {path.name}\n", encoding="ascii")
    return path


def _recorded(record: Path) -> str:
    """The SHA-256 in a file that `sha256sum` would write; empty if there is none."""
    if not record.exists():
        return ""
    digest = record.read_text(encoding="ascii", errors="replace").partition(" ")[0]
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ModelError(f"{record} does not hold a SHA-256 checksum. Delete it to accept the next download.")
    return digest


def _cache() -> Path:
    return platformdirs.user_cache_path("segment", appauthor=False) / "zoo"


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, `above` over `below`."""
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and key in below
        result[key] = merged(below[key], value) if both else value
    return result
