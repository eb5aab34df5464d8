"""Models by name: what detectron2's model zoo offers of the family that converts.

`models.yaml` holds the facts, one text file per data set the names of its classes. detectron2 is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from segment.errors import ModelError

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    `file`: its checkpoint, below the zoo's URL. `box_ap`, `mask_ap`: COCO's average precision in percent on the data
    set's validation images, as detectron2 measured it; None where it did not. `labels_name`: whose classes it knows.
    `config`: its detectron2 config as nested mappings; what is absent has detectron2's default.
    """

    name: str
    url: str
    file: str
    license: str
    labels_name: str
    box_ap: float | None
    mask_ap: float | None
    config: Mapping[str, Any]

    @property
    def md5_prefix(self) -> str:
        """The first digits of the checkpoint's MD5, which its file name ends in (MODEL_ZOO.md)."""
        return PurePosixPath(self.file).stem.rpartition("_")[2]

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of each class, by index."""
        return tuple((FOLDER / f"{self.labels_name}.txt").read_text(encoding="utf-8").splitlines())


@cache
def entries() -> Mapping[str, Entry]:
    """Every model of the zoo by name."""
    table = yaml.safe_load((FOLDER / "models.yaml").read_text(encoding="utf-8"))
    return {
        name: Entry(
            name=name,
            url=table["url"],
            file=row["file"],
            license=table["license"],
            labels_name=row["labels"],
            box_ap=row["box_ap"],
            mask_ap=row["mask_ap"],
            config=_nested({**table["base"], **row.get("config", {})}),
        )
        for name, row in table["models"].items()
    }


def find(name: str) -> Entry:
    """The model called `name`: ours, or the path of its config in detectron2's zoo. Raises ModelError."""
    for entry in entries().values():
        path = str(PurePosixPath(entry.file).parent.parent)
        if name in (entry.name, path, path + ".yaml", path + ".py"):
            return entry
    raise ModelError(f"There is no model called {name!r}. There are: {', '.join(entries())}.")


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"A.B": 1} -> {"A": {"B": 1}}."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        place = nested
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return nested
