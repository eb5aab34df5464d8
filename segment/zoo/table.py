"""The models that can be had by name, as a table: how good each is, and what it takes.

`measured.json` holds file sizes, memory and time of full-size models with random values, which `python -m
benchmarks.zoo` measures and writes: they depend on the shapes of the weights, not on their values. A model that was not
measured has dashes there.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from segment import zoo
from segment.errors import OptionError

PRECISIONS = ("fp32", "int8")
MEASURED = zoo.FOLDER / "measured.json"


@dataclass(frozen=True)
class Measured:
    """What one model takes in one precision.

    `file_mb`: its file, in MB. `held_mib`: the most memory that the whole service held, which the kernel cannot take
    back, in MiB. `ms`: the network's time for a photo; None if the machine was too busy to tell.
    """

    file_mb: float
    held_mib: float
    ms: float | None


@dataclass(frozen=True)
class Column:
    """A column: the two lines of its heading, its value in a row (None if unknown), and how that is written.

    `high_first`: whether the best value is the highest.
    """

    heading: tuple[str, str]
    value: Callable[[zoo.Entry], Any]
    form: str = ""
    high_first: bool = False

    def text(self, entry: zoo.Entry) -> str:
        value = self.value(entry)
        return "-" if value is None else format(value, self.form)


def text(dataset: str = "", sort: str = "") -> str:
    """The table as text, for one data set or all, in the zoo's order or sorted by a column with the best row first.

    Raises OptionError if the data set or the column does not exist.
    """
    rows = list(zoo.entries().values())
    datasets = sorted({row.dataset for row in rows})
    if dataset:
        rows = [row for row in rows if row.dataset == dataset]
        if not rows:
            raise OptionError("dataset", f"--dataset is {dataset!r}; it must be one of {', '.join(datasets)}.")
    if sort:
        if sort not in COLUMNS:
            raise OptionError("sort", f"--sort is {sort!r}; it must be one of {', '.join(COLUMNS)}.")
        rows = _sorted(rows, COLUMNS[sort])
    headings = [[column.heading[line] for column in COLUMNS.values()] for line in (0, 1)]
    lines = [*headings, *([column.text(row) for column in COLUMNS.values()] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    table = ["  ".join(map(_cell, line, widths, COLUMNS.values())).rstrip() for line in lines]
    return "\n".join([*table, "", *_notes()])


def _sorted(rows: list[zoo.Entry], column: Column) -> list[zoo.Entry]:
    known = [row for row in rows if column.value(row) is not None]
    unknown = [row for row in rows if column.value(row) is None]
    return sorted(known, key=column.value, reverse=column.high_first) + unknown


def _cell(text: str, width: int, column: Column) -> str:
    return text.rjust(width) if column.form else text.ljust(width)


def _notes() -> list[str]:
    facts = _document()
    return [
        "AP: average precision in percent on the data set's validation images, as detectron2 measured it. MB: the "
        "download, and the",
        "files it is converted to. MiB held: the most that the service holds while it segments a 12 megapixel photo. "
        "ms: the network.",
        f"Measured at render factor {facts['render_factor']} on {facts['machine']}; int8 looks at "
        f"{facts['int8_proposals']} proposals; - is not measured.",
        f"All are from detectron2's model zoo ({next(iter(zoo.entries().values())).base}).",
    ]


@functools.cache
def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(MEASURED.read_text(encoding="utf-8"))
    return document


def measured(entry: zoo.Entry) -> Mapping[str, Measured]:
    """What the model takes, by precision; without those that were not measured."""
    return {precision: Measured(**row) for precision, row in _document()["models"].get(entry.name, {}).items()}


def _measured(precision: str, field: str) -> Callable[[zoo.Entry], float | None]:
    return lambda entry: getattr(measured(entry).get(precision), field, None)


COLUMNS = {
    "name": Column(("", "NAME"), lambda entry: entry.name),
    "dataset": Column(("DATA", "SET"), lambda entry: entry.dataset),
    "classes": Column(("", "CLASSES"), lambda entry: len(zoo.labels(entry)), "d", high_first=True),
    "box-ap": Column(("BOX", "AP"), lambda entry: entry.box_ap, ".1f", high_first=True),
    "mask-ap": Column(("MASK", "AP"), lambda entry: entry.mask_ap, ".1f", high_first=True),
    "download": Column(("DOWNLOAD", "MB"), lambda entry: entry.megabytes, "d"),
    "file-fp32": Column(("FP32", "MB"), _measured("fp32", "file_mb"), ".0f"),
    "file-int8": Column(("INT8", "MB"), _measured("int8", "file_mb"), ".0f"),
    "held-fp32": Column(("FP32", "MiB HELD"), _measured("fp32", "held_mib"), ".0f"),
    "held-int8": Column(("INT8", "MiB HELD"), _measured("int8", "held_mib"), ".0f"),
    "ms-fp32": Column(("FP32", "ms"), _measured("fp32", "ms"), ".0f"),
    "ms-int8": Column(("INT8", "ms"), _measured("int8", "ms"), ".0f"),
    "licence": Column(("", "LICENCE"), lambda entry: entry.license),
    "fetched": Column(("", "FETCHED"), lambda entry: "yes" if zoo.model_path(entry.name).exists() else ""),
}
"""By the name that `--sort` takes."""
