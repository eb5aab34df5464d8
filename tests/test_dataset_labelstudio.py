"""Tasks with predictions for Label Studio have the same regions as the ML backend's. test_label_studio.py (slow)
imports them into Label Studio itself."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from devtools.server import CACHE
from segment.__main__ import main
from segment.dataset import labelstudio
from segment.dataset.entry import Entry
from segment.detections import Detections
from segment.labelling.labelstudio import controls, prediction
from segment.model import load
from segment.output import brush
from segment.output.coco import annotation
from tests.compiled import compiled_once  # noqa: F401
from tests.test_brush import decode
from training.shapes import CLASSES, scene

CONFIG = """<View><Image name="picture" value="$photo"/>
<BrushLabels name="brush" toName="picture"><Label value="circle"/><Label value="Square"/></BrushLabels>
<PolygonLabels name="outline" toName="picture"><Label value="star"/><Label value="triangle"/></PolygonLabels>
<RectangleLabels name="box" toName="picture"><Label value="Round" predicted_values="ring,circle"/></RectangleLabels>
</View>"""

TWO_IMAGES = CONFIG.replace('"outline" toName="picture"', '"outline" toName="b"').replace(
    "</View>", '<Image name="b" value="$other"/></View>'
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "ünï code").mkdir(parents=True)
    for number, name in enumerate(("a.jpg", "ünï code/b c.jpg")):
        Image.fromarray(scene(number)[0]).save(folder / name)
    return folder


def run(photos: Path, out: Path, *arguments: object) -> list[dict[str, Any]]:
    words = ["image", str(photos), "-o", str(out), "-d", "label-studio,coco", *map(str, arguments)]
    assert main(words) == 0
    tasks: list[dict[str, Any]] = json.loads((out / "tasks.json").read_text())
    return tasks


def test_default_regions_are_brushes(photos: Path, tmp_path: Path) -> None:
    tasks = run(photos, tmp_path / "out")
    assert [task["data"]["image"] for task in tasks] == [
        "/data/local-files/?d=a.jpg",
        "/data/local-files/?d=%C3%BCn%C3%AF%20code/b%20c.jpg",
    ]
    config = (tmp_path / "out" / "label_config.xml").read_text()
    assert [control.kind for control in controls(config, CLASSES)] == ["brushlabels"]
    annotations = json.loads((tmp_path / "out" / "instances.json").read_text())["annotations"]
    regions = [region for task in tasks for region in task["predictions"][0]["result"]]
    assert len(regions) == len(annotations) > 2
    for region, truth in zip(regions, annotations, strict=True):
        assert region["value"]["brushlabels"] == [truth["category_name"]]
        assert region["score"] == pytest.approx(truth["score"], abs=1e-4)
        size = region["original_width"], region["original_height"]
        pixels = unpacked(bytes(region["value"]["rle"]), size)
        assert np.array_equal(pixels, coco.decode(truth["segmentation"]))
    assert tasks[0]["predictions"][0]["model_version"].startswith("shapes-")


def unpacked(packed: bytes, size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """The mask of a brush region of a photo of `size` (width, height)."""
    return np.asarray(decode(packed).reshape(size[1], size[0], brush.CHANNELS)[..., 3] == 255)


def test_regions_are_those_of_the_ml_backend() -> None:
    own, found = controls(CONFIG, CLASSES), load(threads=1, cache=CACHE)(scene(3)[0])
    truth = json.loads(b"".join(prediction(found, own, 0.0, "shapes-1")))
    (task,) = json.loads(b"".join(labelstudio.tasks([entry(found)], own, "gs://photos/", "shapes-1")))
    assert task["data"] == {"photo": "gs://photos/a b.jpg"}, "Label Studio does not decode names in cloud storage"
    (own_prediction,) = task["predictions"]
    assert {**own_prediction, "result": []} == {**truth, "result": []}
    assert {one["type"] for one in truth["result"]} == {"brushlabels", "polygonlabels", "rectanglelabels"}
    for one, other in zip(own_prediction["result"], truth["result"], strict=True):
        assert {**one, "value": one["value"][one["type"]]} == {**other, "value": other["value"][other["type"]]}
        if one["type"] == "brushlabels":
            assert one["value"] == other["value"]
        elif one["type"] == "rectanglelabels":
            for key in ("x", "y", "width", "height"):
                assert one["value"][key] == pytest.approx(other["value"][key], abs=0.01)
        else:  # polygons are traced on pixels instead of probabilities
            assert area(one["value"]["points"]) == pytest.approx(area(other["value"]["points"]), rel=0.03)


def test_command_takes_a_labelling_config(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "config.xml").write_text(CONFIG)
    tasks = run(photos, tmp_path / "out", "--label-config", tmp_path / "config.xml", "--image-root", "gs://photos/")
    assert tasks[0]["data"] == {"photo": "gs://photos/a.jpg"}
    assert not (tmp_path / "out" / "label_config.xml").exists()


def area(points: list[list[float]]) -> float:
    x, y = np.array(points).T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def entry(found: Detections) -> Entry:
    image = {"width": found.size[0], "height": found.size[1]}
    annotations = [annotation(found, index, CLASSES, "rle") for index in range(len(found))]
    return Entry("a b.jpg", 1, {"image": image, "annotations": annotations})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pytest would store each of pycocotools'
def test_memory_does_not_grow_with_the_number_of_photos(tmp_path: Path) -> None:
    own = controls(labelstudio.default_config(CLASSES), CLASSES)
    one = entry(load(threads=1, cache=CACHE)(scene(1, (96, 64))[0]))
    file, peaks, sizes = tmp_path / "tasks.json", [], []

    def photos(count: int) -> Iterator[Entry]:
        for _ in range(count):
            gc.collect()  # json's encoders are cyclic garbage, of which the collector leaves any number
            yield one

    gc.freeze()  # so that each collection is fast
    for count in (10, 40):
        tracemalloc.start()
        labelstudio.write(photos(count), own, "", "", file)
        peaks.append(tracemalloc.get_traced_memory()[1])
        sizes.append(file.stat().st_size)
        tracemalloc.stop()
    gc.unfreeze()
    assert peaks[1] - peaks[0] < (sizes[1] - sizes[0]) / 5


def test_no_photo_is_an_empty_list(tmp_path: Path) -> None:
    own = controls(labelstudio.default_config(CLASSES), CLASSES)
    assert json.loads(labelstudio.write([], own, "", "", tmp_path / "tasks.json").read_text()) == []


def test_labels_are_escaped() -> None:
    labels = ['a "b" & <c>', "d"]
    (control,) = controls(labelstudio.default_config(labels), labels)
    assert control.labels == dict(enumerate(labels))


@pytest.mark.parametrize(
    ("config", "arguments", "words"),
    [
        (None, ["--label-config", "nowhere.xml"], "--label-config: nowhere.xml cannot be read"),
        ("<View/>", [], "has none of the tags BrushLabels"),
        (TWO_IMAGES, [], "several images per task"),
        (CONFIG, ["-s", "segmentation=polygons"], "omit segmentation=polygons"),
    ],
)
def test_invalid_option_is_refused(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    config: str | None,
    arguments: list[str],
    words: str,
) -> None:
    if config:
        (tmp_path / "config.xml").write_text(config)
        arguments = ["--label-config", str(tmp_path / "config.xml"), *arguments]
    assert main(["image", str(photos), "-o", str(tmp_path / "out"), "-d", "label-studio", *arguments]) == 1
    assert words in capsys.readouterr().err
