"""Write instances as Parquet (https://parquet.apache.org): one row per instance, one row group in memory at a time.

The files are FOLDER/instances.parquet/model=NAME/part-00000.parquet and so on. This is Hive partitioning: DuckDB,
BigQuery and Spark read a column `model` from it.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Self
from urllib.parse import quote

import pyarrow
import pyarrow.parquet

from segment.dataset.entry import PARQUET_NAME, Entry

CONTENT_TYPE = "application/vnd.apache.parquet"
ROWS_PER_GROUP, GROUPS_PER_FILE = 10_000, 100
SCHEMA = pyarrow.schema(
    [
        ("photo", pyarrow.string()),
        ("generation", pyarrow.int64()),
        ("photo_width", pyarrow.int32()),
        ("photo_height", pyarrow.int32()),
        ("instance", pyarrow.int32()),
        ("category_id", pyarrow.int32()),
        ("class", pyarrow.string()),
        ("score", pyarrow.float64()),
        ("x_min", pyarrow.float64()),
        ("y_min", pyarrow.float64()),
        ("x_max", pyarrow.float64()),
        ("y_max", pyarrow.float64()),
        ("area", pyarrow.int64()),
        ("rle", pyarrow.string()),
    ]
)
"""Columns. Lengths are in pixels of the photo.

`rle`: the counts of COCO's compressed RLE; its size is [photo_height, photo_width].
"""


def write(entries: Iterable[Entry], model: str, folder: Path) -> Path:
    """Write the partition FOLDER/instances.parquet/model=MODEL/ from `entries`, whose masks are RLE. Returns its path.

    Existing files of the partition are replaced when the new ones are complete. Other partitions are not changed.
    """
    place = folder / PARQUET_NAME / partition(model)
    partial = folder / f".{PARQUET_NAME}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    remaining = iter(entries)
    for number in itertools.count():
        first = next(remaining, None)
        if number and first is None:
            break
        with Part(partial / f"part-{number:05}.parquet") as part:
            for entry in itertools.chain([first] if first else [], remaining):
                part.add(entry)
                if part.groups == GROUPS_PER_FILE:
                    break
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(exist_ok=True)
    partial.rename(place)
    return place


def partition(model: str) -> str:
    """The name of the folder with a model's rows: model=NAME."""
    return f"model={quote(model, safe='')}"


class Part:
    """A Parquet file that is being written. A context manager.

    `groups`: number of row groups written so far. `rows_per_group`: number of rows that are kept in memory before they
    are written.
    """

    def __init__(self, sink: Path | BinaryIO, rows_per_group: int = ROWS_PER_GROUP) -> None:
        self.groups = 0
        self._rows: list[dict[str, object]] = []
        self._rows_per_group = rows_per_group
        self._writer = pyarrow.parquet.ParquetWriter(sink, SCHEMA, compression="zstd")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind:
            self._writer.close()
        else:
            self.close()

    def add(self, entry: Entry) -> None:
        """Append the instances of a photo."""
        self._rows += _rows(entry)
        while len(self._rows) >= self._rows_per_group:
            self._write(self._rows[: self._rows_per_group])
            del self._rows[: self._rows_per_group]

    def close(self) -> None:
        """Write the remaining rows and the end of the file."""
        if self._rows or not self.groups:
            self._write(self._rows)
        self._writer.close()

    def _write(self, rows: list[dict[str, object]]) -> None:
        self._writer.write_table(pyarrow.Table.from_pylist(rows, SCHEMA))
        self.groups += 1


def _rows(entry: Entry) -> Iterator[dict[str, object]]:
    image = entry.document["image"]
    for found in entry.document["annotations"]:
        x, y, width, height = found["bbox"]
        yield {
            "photo": entry.name,
            "generation": entry.generation,
            "photo_width": image["width"],
            "photo_height": image["height"],
            "instance": found["id"],
            "category_id": found["category_id"],
            "class": found["category_name"],
            "score": found["score"],
            "x_min": x,
            "y_min": y,
            "x_max": x + width,
            "y_max": y + height,
            "area": found["area"],
            "rle": found["segmentation"]["counts"],
        }
