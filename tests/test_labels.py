"""Class names: those that are chosen by the option `classes`, and messages that contain their number."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from devtools.server import CACHE
from segment.errors import ModelError
from segment.labels import class_indices, labels_for, named
from segment.options import Options
from segment.service import Service
from segment.settings import Settings

LABELS = ("cat", "dog, hound", "hound", "dog, hound, wolf", "hat,straw")


@pytest.mark.parametrize(
    ("given", "indices"),
    [
        ("cat", {0}),
        ("dog, hound", {1}),
        ("dog,hound", {1}),
        ("hound,cat", {0, 2}),
        ("hound, dog, hound", {1, 2}),
        ("cat, dog, hound, wolf, hat, straw", {0, 3, 4}),
    ],
)
def test_a_class_may_contain_commas(given: str, indices: set[int]) -> None:
    classes = Options.parse({"classes": given}, Settings()).classes
    assert class_indices(named(classes, LABELS), LABELS) == indices


def test_a_result_has_only_a_class_with_a_comma(photo: bytes, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("circle\nsquare\ntriangle, red\nred\ntriangle\n")
    service = Service(Settings(labels=str(tmp_path / "labels.txt"), cache=str(CACHE)))
    options = Options.parse({"classes": "circle,triangle, red", "format": "json"}, service.settings)
    (file,) = service.segment(photo, options).files
    assert {found["category_name"] for found in json.loads(file.body)["annotations"]} == {"circle", "triangle, red"}


def test_many_classes_take_little_time() -> None:
    words, start = ("dog", "cat") * 10_000, time.process_time()
    assert len(named(words, LABELS)) == 20_000
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("count", "given", "message"),
    [
        (2, ("a",), "the model has 2 classes, and 1 label was given"),
        (1, ("a", "b"), "the model has 1 class, and 2 labels were given"),
    ],
)
def test_a_wrong_number_of_labels_is_told(count: int, given: tuple[str, ...], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        labels_for(count, given)
