"""Result files are read back with the libraries that users read them with: Pillow, pycocotools, zipfile."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as pycoco
from pycocotools.coco import COCO

from segment.detections import Detections
from segment.formats import JPEG_BYTES, OverlayFormat
from segment.mask import THRESHOLD, Mask
from segment.options import Segmentation
from segment.output.coco import coco
from segment.output.pictures import cutouts, ids, picture
from tests.strategies import detections, empty, frames, masks, ring, solid

SIZE = (120, 80)
LABELS = ("person", "ring/of: fire", "日本", "../..")


def some() -> Detections:
    found = [ring(10, 10, 70, 60), solid(50, 30, 110, 75), empty(5, 5, 20, 20), solid(3, 3, 3, 9)]
    return detections(found, SIZE, [1, 0, 2, 3])


def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8))


def document(found: Detections, segmentation: Segmentation = "rle") -> Any:
    return json.loads(coco(found, LABELS, segmentation, {"file_name": "a.jpg"}).body)


@pytest.mark.parametrize(
    ("format", "name", "kind"),
    [
        ("png", "overlay.png", "image/png"),
        ("jpeg", "overlay.jpg", "image/jpeg"),
        ("webp", "overlay.webp", "image/webp"),
    ],
)
def test_pictures(format: OverlayFormat, name: str, kind: str) -> None:
    flat = Image.new("RGB", SIZE, (200, 80, 40))
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    flat.info["exif"] = exif.tobytes()
    file = picture(flat, format)
    assert (file.name, file.content_type) == (name, kind)
    opened = Image.open(io.BytesIO(file.body))
    assert (opened.format, opened.size) == (format.upper(), SIZE)
    assert np.abs(np.asarray(opened.convert("RGB"), int) - np.asarray(flat, int)).max() < 6
    assert not opened.getexif()


def test_a_jpeg_of_any_pixels_is_within_the_planned_size() -> None:
    """Coloured noise takes 1.15 bytes per pixel at quality 90; a photo keeps this quality."""
    dice = np.random.default_rng(0)
    fine = dice.integers(0, 2, (600, 800, 3), np.uint8) * 255
    coarse = (dice.integers(0, 2, (300, 400, 3), np.uint8) * 255).repeat(2, 0).repeat(2, 1)
    noise = Image.fromarray(np.where(dice.random((600, 800, 1)) < 0.5, fine, coarse))
    file = picture(noise, "jpeg")
    assert len(file.body) < JPEG_BYTES * 600 * 800 + (64 << 10)
    assert Image.open(io.BytesIO(file.body)).size == noise.size
    plain, expected = noise.resize((80, 60)).resize((800, 600)), io.BytesIO()
    plain.save(expected, "jpeg", quality=90)
    assert picture(plain, "jpeg").body == expected.getvalue()


def test_coco_contains_the_detections() -> None:
    found = document(some())
    assert found["image"] == {"width": 120, "height": 80, "file_name": "a.jpg"}
    assert found["images"] == [{"id": 1, "file_name": "", "width": 120, "height": 80}]
    assert [(one["id"], one["name"]) for one in found["categories"]] == list(enumerate(LABELS, 1))
    first = found["annotations"][0]
    assert {**first, "segmentation": None, "area": None} == {
        "id": 1,
        "image_id": 1,
        "category_id": 2,
        "category_name": "ring/of: fire",
        "score": 0.99,
        "bbox": [10, 10, 60, 50],
        "area": None,
        "iscrowd": 0,
        "segmentation": None,
    }
    assert [each["id"] for each in found["annotations"]] == [1, 2, 3, 4]
    assert [each["area"] > 0 for each in found["annotations"]] == [True, True, False, False]


def test_coco_is_read_by_pycocotools() -> None:
    for annotation, mask in zip(document(some())["annotations"], some().masks, strict=True):
        dense = mask.paste((0, 0, *SIZE)) >= THRESHOLD
        assert (pycoco.decode(annotation["segmentation"]) == dense).all()
        assert annotation["area"] == dense.sum()


@pytest.mark.parametrize("segmentation", ["rle", "polygons"])
def test_the_document_is_a_coco_dataset(segmentation: Segmentation, tmp_path: Path) -> None:
    """pycocotools loads the file unchanged and decodes its masks in the size of their image."""
    (tmp_path / "detections.json").write_bytes(coco(some(), LABELS, segmentation, {}).body)
    dataset = COCO(tmp_path / "detections.json")
    (image,) = dataset.loadImgs(dataset.getImgIds())
    assert (image["width"], image["height"]) == SIZE
    assert [one["name"] for one in dataset.loadCats(dataset.getCatIds())] == list(LABELS)
    dataset.info()
    found = dataset.loadAnns(dataset.getAnnIds(imgIds=image["id"]))
    for annotation, mask in zip(found, some().masks[:2], strict=False):
        dense = mask.paste((0, 0, *SIZE)) >= THRESHOLD
        assert (dataset.annToMask(annotation) != dense).mean() < (0.02 if segmentation == "polygons" else 1e-9)
    assert dataset.loadCats(found[0]["category_id"])[0]["name"] == found[0]["category_name"] == LABELS[1]


@given(st.lists(masks(), max_size=3), frames, st.sampled_from(["rle", "polygons"]))
@settings(deadline=None)
def test_coco_of_anything(drawn: list[Mask], size: tuple[int, int], segmentation: Segmentation) -> None:
    found = detections(drawn, size)
    body = coco(found, LABELS, segmentation, {}).body
    assert body == coco(found, LABELS, segmentation, {}).body
    for annotation in json.loads(body)["annotations"]:
        if segmentation == "polygons":
            assert bool(annotation["segmentation"]) <= bool(annotation["area"])


def test_numbers_are_rounded_in_json() -> None:
    found = detections([solid(1 / 3, -0.001, 20 / 3, 9)], SIZE)
    text = coco(found, LABELS, "polygons", {}).body.decode()
    assert '"bbox":[0.33,0.0,6.33,9.0]' in text
    assert '"score":0.99' in text
    assert "-0.0" not in text


def test_no_instances_give_an_empty_list_and_zip() -> None:
    nothing = detections([], SIZE)
    assert document(nothing)["annotations"] == []
    assert not np.asarray(Image.open(io.BytesIO(ids(nothing).body))).any()
    assert zipfile.ZipFile(io.BytesIO(cutouts(photo(), nothing, LABELS).body)).namelist() == []


def test_ids_show_the_best_instance_on_top() -> None:
    image = Image.open(io.BytesIO(ids(some()).body))
    assert (image.mode, image.size) == ("L", SIZE)
    values = np.asarray(image)
    first, second = (mask.paste((0, 0, *SIZE)) >= THRESHOLD for mask in some().masks[:2])
    assert (values[first] == 1).all()
    assert (values[second & ~first] == 2).all()
    assert not values[~first & ~second].any()


def test_ids_above_255_take_16_bits() -> None:
    found = detections([solid(i % 120, i // 120 * 4, i % 120 + 1, i // 120 * 4 + 4) for i in range(300)], SIZE)
    image = Image.open(io.BytesIO(ids(found).body))
    assert image.mode == "I;16"
    assert set(np.asarray(image).ravel().tolist()) == set(range(301))


def test_cutouts_are_the_photo_where_the_mask_is() -> None:
    file = cutouts(photo(), some(), LABELS)
    assert (file.name, file.content_type) == ("cutouts.zip", "application/zip")
    archive = zipfile.ZipFile(io.BytesIO(file.body))
    assert archive.testzip() is None
    assert archive.namelist() == ["01_ring-of-fire_0.99.png", "02_person_0.98.png"]  # the other masks have no pixels
    cut = Image.open(archive.open("01_ring-of-fire_0.99.png"))
    assert cut.mode == "RGBA"
    colours, alpha = np.asarray(cut)[..., :3], np.asarray(cut)[..., 3]
    assert alpha[[0, -1]].any(axis=1).all()
    assert alpha[:, [0, -1]].any(axis=0).all()
    assert alpha[alpha.shape[0] // 2, alpha.shape[1] // 2] == 0, "the hole must be transparent"
    assert ((alpha > 0) & (alpha < 255)).any(), "edges must be antialiased"
    left, top = 10, 10
    assert (colours == np.asarray(photo())[top : top + cut.height, left : left + cut.width]).all()
    whole = some().masks[0].paste((left, top, left + cut.width, top + cut.height)) >= THRESHOLD
    assert ((alpha >= 128) == whole).mean() > 0.99


def test_names_in_the_zip_are_safe() -> None:
    found = detections([solid(0, 0, 9, 9), solid(9, 9, 20, 20)], SIZE, [2, 3])
    names = zipfile.ZipFile(io.BytesIO(cutouts(photo(), found, LABELS).body)).namelist()
    assert names == ["01_日本_0.99.png", "02_instance_0.98.png"]


def test_files_are_the_same_each_time() -> None:
    assert ids(some()) == ids(some())
    assert cutouts(photo(), some(), LABELS) == cutouts(photo(), some(), LABELS)
    assert picture(photo(), "png") == picture(photo(), "png")
