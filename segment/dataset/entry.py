"""The entry of one photo in a dataset: its detections, or the reason why it could not be segmented."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

ERRORS_NAME = "errors.csv"
PARQUET_NAME = "instances.parquet"
"""A folder."""


def shown(name: str) -> str:
    """A file name as valid Unicode: bytes that are not UTF-8, which Python keeps as surrogates, are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class Entry:
    """A photo that was segmented. `name`: as from `shown`.

    `generation`: the version of the photo, that is the object's generation or the file's modification time in
    nanoseconds. `document`: its JSON result, of which `image` and `annotations` are used (see output/coco.py).
    """

    name: str
    generation: int
    document: dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """A photo that could not be segmented, and the reason. `name`: as from `shown`.

    `generation`: its version if the next attempt would fail as well; None if the photo is to be tried again.
    """

    name: str
    error: str
    generation: int | None = None


def errors_csv(failures: Iterable[Failure]) -> Iterator[bytes]:
    """errors.csv in pieces: a header and one row per failure."""
    yield _row("photo", "error")
    for failure in failures:
        yield _row(failure.name, failure.error)


def _row(*cells: str) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue().encode()
