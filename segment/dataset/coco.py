"""Write one COCO dataset (https://cocodataset.org/#format-data) of many photos, with one photo in memory at a time.

`images` and `annotations` are two arrays of the same document, so the entries are read twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from segment.dataset import files
from segment.dataset.entry import Entry
from segment.output.coco import INFO, categories, dump

FILE_NAME = "instances.json"


def write(entries: Callable[[], Iterable[Entry]], labels: Sequence[str], folder: Path) -> Path:
    """Write FOLDER/instances.json; see `document` and `files.write`. Returns its path. Raises OSError."""
    return files.write(folder / FILE_NAME, document(entries, labels))


def document(entries: Callable[[], Iterable[Entry]], labels: Sequence[str]) -> Iterator[bytes]:
    """The document in small pieces. `entries()` must return the same entries each time; it is called twice.

    `file_name` is the photo's name. Ids count from 1 in the order of the entries. An instance whose mask has no pixel
    is left out, because readers refuse an annotation without an area.
    """
    yield dump({"info": INFO, "licenses": [], "categories": categories(labels)}).removesuffix(b"}")
    yield from _array("images", _images(entries()))
    yield from _array("annotations", _annotations(entries()))
    yield b"}\n"


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


def _array(name: str, rows: Iterable[dict[str, object]]) -> Iterator[bytes]:
    yield b"," + dump(name) + b":["
    for index, row in enumerate(rows):
        yield (b",\n" if index else b"\n") + dump(row)
    yield b"]"
