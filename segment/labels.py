"""Class names: from a file, or those of the COCO data set.

COCO numbers its categories from 1 to 90 but uses only 80 of these numbers (cocodataset.org). Networks trained on COCO
have either 80 classes in that order, or 91 classes indexed by the category number.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

from segment.errors import ModelError, OptionError
from segment.values import split
from segment.wording import counted

_FILE = Path(__file__).parent / "zoo" / "coco.txt"
_UNUSED = (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83)


@functools.cache
def coco() -> tuple[str, ...]:
    """The names of COCO's 80 categories, in the order of their numbers."""
    return tuple(_FILE.read_text(encoding="utf-8").splitlines())


def coco_by_number() -> tuple[str, ...]:
    """91 names indexed by COCO's category number. An unused number has itself as its name."""
    names = iter(coco())
    return tuple(str(number) if number in _UNUSED else next(names) for number in range(91))


def labels_for(count: int, given: tuple[str, ...] = (), own: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The names of `count` classes: `given`, or else `own` (from the model file), or else COCO's, or else numbers.

    Raises ModelError if the number of given names is not `count`.
    """
    if given and len(given) != count:
        raise ModelError(
            f"There must be one label per class: the model has {counted(count, 'class', 'classes')}, and "
            f"{counted(len(given), 'label')} {'was' if len(given) == 1 else 'were'} given."
        )
    named = (names for names in (given, own, coco(), coco_by_number()) if len(names) == count)
    return next(named, tuple(str(number) for number in range(count)))


def class_indices(names: Sequence[str], labels: Sequence[str]) -> frozenset[int]:
    """The indices of the classes with these names. Raises OptionError for an unknown name."""
    if unknown := [name for name in names if name not in labels]:
        raise OptionError("classes", f"The model has no class {unknown[0]!r}. Its classes: {listed(labels)}.")
    return frozenset(index for index, label in enumerate(labels) if label in names)


def named(words: Sequence[str], labels: Sequence[str]) -> tuple[str, ...]:
    """The class names in `words`, the parts of a text between its commas.

    A name may contain commas itself: from left to right, as many parts as possible are joined to a label.
    """
    joined = {parts: label for label in labels if (parts := split(label))}
    longest = max(map(len, joined), default=0)
    names, start = [], 0
    while start < len(words):
        ends = range(min(len(words), start + longest), start, -1)
        end = next((end for end in ends if tuple(words[start:end]) in joined), start + 1)
        names.append(joined.get(tuple(words[start:end]), words[start]))
        start = end
    return tuple(names)


def listed(labels: Sequence[str], most: int = 20) -> str:
    """The first `most` of these names, separated by commas, for a message."""
    return ", ".join(labels[:most]) + (", ..." if len(labels) > most else "")


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names from a text file, one per line, or from detectron2's metadata.json (`thing_classes`).

    Raises ModelError.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(f"The labels file {path.name} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ModelError(f"The labels file {path.name} is not text in UTF-8. Save it as UTF-8.") from None
    labels = _json_labels(path, text) if path.suffix == ".json" else [line.strip() for line in text.splitlines()]
    if not any(labels):
        raise ModelError(f"The labels file {path.name} is empty. Write one class name per line.")
    return tuple(label for label in labels if label)


def _json_labels(path: Path, text: str) -> list[str]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"The labels file {path.name} is not valid JSON: {error}.") from None
    names = document.get("thing_classes") if isinstance(document, dict) else document
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(
            f"The labels file {path.name} must contain a list of class names, or an object with the list thing_classes."
        )
    return names
