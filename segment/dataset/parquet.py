"""Write instances as Parquet (https://parquet.apache.org), one row per instance, one row group in memory at a time.

The files lie in FOLDER/instances.parquet/model=NAME/part-00000.parquet: Hive partitioning, which DuckDB, BigQuery and
Spark read as a column `model`.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

import pyarrow
import pyarrow.parquet

from segment.dataset.journal import Entry

FOLDER_NAME = "instances.parquet"
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
    """Write FOLDER/instances.parquet/model=MODEL/ from `entries`, whose masks are RLE. Returns its path.

    What an earlier run wrote there is replaced when all is written; other models' partitions stay.
    """
    place = folder / FOLDER_NAME / f"model={quote(model, safe='')}"
    partial = folder / f".{FOLDER_NAME}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    rows = _rows(entries)
    for number in itertools.count():
        first = _group(rows)
        if number and not first.num_rows:
            break
        with pyarrow.parquet.ParquetWriter(partial / f"part-{number:05}.parquet", SCHEMA, compression="zstd") as file:
            file.write_table(first)
            for _ in range(GROUPS_PER_FILE - 1):
                if not (group := _group(rows)).num_rows:
                    break
                file.write_table(group)
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(exist_ok=True)
    partial.rename(place)
    return place


def _group(rows: Iterator[dict[str, object]]) -> pyarrow.Table:
    return pyarrow.Table.from_pylist(list(itertools.islice(rows, ROWS_PER_GROUP)), SCHEMA)


def _rows(entries: Iterable[Entry]) -> Iterator[dict[str, object]]:
    for entry in entries:
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
