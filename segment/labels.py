"""Class names: the COCO data set's, and what a class is called when a file does not say.

COCO numbers its categories from 1 to 90 and uses 80 of those numbers (cocodataset.org). A network's classes are either
those 80 in order, or the numbers themselves.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

from segment.errors import ModelError

_FILE = Path(__file__).parent / "zoo" / "coco.txt"
_UNUSED = (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83)


@functools.cache
def coco() -> tuple[str, ...]:
    """The 80 categories, in order."""
    return tuple(_FILE.read_text(encoding="utf-8").splitlines())


def coco_by_number() -> tuple[str, ...]:
    """91 names, so that COCO's category n is the n-th; a number that it does not use is called by itself."""
    names = iter(coco())
    return tuple(str(number) if number in _UNUSED else next(names) for number in range(91))


def labels_for(count: int, given: tuple[str, ...] = (), own: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The names of `count` classes: those `given`, else the file's `own`, else COCO's, else numbers.

    Raises ModelError if names are given for another number of classes.
    """
    if given and len(given) != count:
        raise ModelError(f"There are {len(given)} labels for the {count} classes of the model; give one for each.")
    named = (names for names in (given, own, coco(), coco_by_number()) if len(names) == count)
    return next(named, tuple(str(number) for number in range(count)))


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names from a text file, one per line, or from detectron2's metadata.json (`thing_classes`).

    Raises ModelError.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"The labels {path.name} cannot be read: {error}.") from None
    labels = _json_labels(path, text) if path.suffix == ".json" else [line.strip() for line in text.splitlines()]
    if not any(labels):
        raise ModelError(f"The labels file {path.name} is empty. Write one class name per line.")
    return tuple(label for label in labels if label)


def _json_labels(path: Path, text: str) -> list[str]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"The labels {path.name} are not JSON: {error}.") from None
    names = document.get("thing_classes") if isinstance(document, dict) else document
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(f"The labels {path.name} hold neither a list of names nor thing_classes.")
    return names
