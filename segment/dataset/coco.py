"""Write one COCO dataset (https://cocodataset.org/#format-data) of many photos, one photo in memory at a time.

`images` and `annotations` are two arrays of one document, so the entries are read twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from segment.dataset.journal import Entry
from segment.output.coco import INFO, categories, dump

FILE_NAME = "instances.json"


def write(entries: Callable[[], Iterable[Entry]], labels: Sequence[str], folder: Path) -> Path:
    """Write FOLDER/instances.json from `entries()`, which gives the same entries each time. Returns its path.

    `file_name` is the photo's name; ids count from 1 in the order of the entries. An instance whose mask has no pixel
    is left out: readers refuse an annotation without an area. An existing file is replaced when all is written.
    """
    path = folder / FILE_NAME
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(dump({"info": INFO, "licenses": [], "categories": categories(labels)}).removesuffix(b"}"))
        _write_array(file, "images", _images(entries()))
        _write_array(file, "annotations", _annotations(entries()))
        file.write(b"}\n")
    os.replace(partial, path)
    return path


def _images(entries: Iterable[Entry]) -> Iterator[dict[str, object]]:
    for number, entry in enumerate(entries, 1):
        image = entry.document["image"]
        yield {"id": number, "file_name": entry.name, "width": image["width"], "height": image["height"]}


def _annotations(entries: Iterable[Entry]) -> Iterator[dict[str, object]]:
    count = 0
    for number, entry in enumerate(entries, 1):
        for annotation in entry.document["annotations"]:
            if annotation["area"] and annotation["segmentation"]:
                count += 1
                yield {**annotation, "id": count, "image_id": number}


def _write_array(file: BinaryIO, name: str, rows: Iterable[dict[str, object]]) -> None:
    file.write(b"," + dump(name) + b":[")
    for index, row in enumerate(rows):
        file.write((b",\n" if index else b"\n") + dump(row))
    file.write(b"]")
