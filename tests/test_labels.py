"""Class names: those that are chosen by the option `classes`, and messages that contain their number."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from devtools.server import CACHE
from segment.detections import Detections
from segment.errors import ModelError
from segment.labels import class_indices, labels_for, named
from segment.options import Options
from segment.output.font import BESIDE
from segment.results import Results
from segment.service import Service
from segment.settings import Settings
from tests.test_overlay import font_file

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


def test_names_in_any_script_are_drawn_with_a_font_file(photo: bytes, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("圆形\n正方形\n三角形\n星形\n环\n", encoding="utf-8")
    font = font_file(tmp_path / "bars.ttf", BESIDE + "圆形正方三角星环")
    given = Settings(labels=str(tmp_path / "labels.txt"), font=str(font), cache=str(CACHE))
    service, options = Service(given), Options.parse({}, given)
    (file,) = service.segment(photo, options, ("png",)).files
    drawn = list[NDArray[np.uint8]]()

    def draw(found: Detections) -> Iterator[bytes]:
        results = Results.of(found, service.labels)
        drawn.extend(np.asarray(results.draw(photo, font=path)) for path in (font, ""))
        yield b""

    with ExitStack() as until:
        service.annotate(photo, options, draw, until)
    assert (np.asarray(Image.open(io.BytesIO(file.body))) == drawn[0]).all()
    assert (drawn[0] != drawn[1]).any()


def test_a_font_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"SEGMENT_FONT: There is no font file none\.ttf\."):
        Service(Settings(font=str(tmp_path / "none.ttf"), cache=str(CACHE))).load()


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
