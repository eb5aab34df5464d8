"""The table of the zoo's models: average precision, licence, size, memory and time of each.

`measured.json` contains file sizes, memory and time, which `python -m benchmarks.zoo` measures with random weights, as
they depend on the shapes of the weights only. Models that were not measured have dashes in these columns.
"""

from __future__ import annotations

import functools
import json
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from segment import zoo
from segment.errors import OptionError

PRECISIONS = ("fp32", "int8")
MEASURED = zoo.FOLDER / "measured.json"
NOTES_WIDTH = 120
"""Maximum length of the lines of text below the table."""


@dataclass(frozen=True)
class Measured:
    """The measurements of one model in one precision.

    `file_mb`: size of the model file in MB. `held_mib`: peak memory of the whole service that the kernel cannot
    reclaim, in MiB. `ms`: time of the network per photo in milliseconds; None if the machine was too busy to tell.
    """

    file_mb: float
    held_mib: float
    ms: float | None


@dataclass(frozen=True)
class Column:
    """A column: the two lines of its heading, the function that returns its value (None if unknown), and its format.

    `high_first`: whether the highest value is the best.
    """

    heading: tuple[str, str]
    value: Callable[[zoo.Entry], Any]
    form: str = ""
    high_first: bool = False

    def text(self, entry: zoo.Entry) -> str:
        """The value in the row of `entry`, formatted."""
        value = self.value(entry)
        return "-" if value is None else format(value, self.form)


def text(dataset: str = "", sort: str = "") -> str:
    """The table as text: all models or those of one data set, in the zoo's order or sorted by a column, best first.

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
    document = _document()
    columns = (
        "AP: average precision in percent on the data set's validation images, as published by detectron2. MB: size of "
        "the download and of the converted files. MiB held: peak memory of the service with a photo of 12 megapixels. "
        "ms: time of the network."
    )
    return [
        *textwrap.wrap(columns, NOTES_WIDTH),
        f"Measured at render factor {document['render_factor']} on {document['machine']}; int8 with "
        f"{document['int8_proposals']} proposals; - is not measured.",
        f"All are from detectron2's model zoo ({next(iter(zoo.entries().values())).base}).",
    ]


@functools.cache
def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(MEASURED.read_text(encoding="utf-8"))
    return document


def measured(entry: zoo.Entry) -> Mapping[str, Measured]:
    """The measurements of a model by precision, without those that were not measured."""
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
"""The columns by the names that `--sort` accepts."""
