"""The COCO dataset written for a folder of photos is read by the importers of other tools.

Slow: each tool is installed into an environment of its own. pycocotools and DuckDB are in test_dataset.py.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import ExifTags, Image
from pycocotools.coco import COCO

from devtools.server import ROOT
from segment.__main__ import main
from tests.environments import LABEL_STUDIO, environment
from training.shapes import scene

pytestmark = pytest.mark.slow

TOOLS = {
    "supervision": ("supervision==0.31.2",),
    "fiftyone": ("fiftyone==1.22.1", "pycocotools"),
    "datumaro": ("datumaro==1.13.12",),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos in nested folders: two of the same name, one with an odd name that Exif turns, one without objects."""
    folder = tmp_path_factory.mktemp("photos")
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    for number, name in enumerate(("IMG_0001.jpg", "deeper/IMG_0001.jpg", "deeper/b.png", "日本/100% café & 1.jpg")):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(scene(number, (480, 640))[0]).save(path, exif=turned if number == 3 else Image.Exif())
    Image.new("RGB", (200, 150), "grey").save(folder / "nothing.jpg")
    return folder


@pytest.fixture(scope="module")
def datasets(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The dataset with masks as run lengths and as polygons."""
    found = {}
    for kind in ("rle", "polygons"):
        out = tmp_path_factory.mktemp(kind)
        assert main(["image", str(photos), "-o", str(out), "-d", "coco", "-s", f"segmentation={kind}"]) == 0
        found[kind] = out / "instances.json"
    return found


def expected(dataset: Path) -> dict[str, list[tuple[str, int]]]:
    truth = COCO(dataset)
    return {
        image["file_name"]: [
            (one["category_name"], one["area"]) for one in truth.loadAnns(truth.getAnnIds(imgIds=image["id"]))
        ]
        for image in truth.dataset["images"]
    }


@pytest.mark.parametrize("kind", ["rle", "polygons"])
@pytest.mark.parametrize("tool", TOOLS)
def test_every_instance_is_read(tool: str, kind: str, photos: Path, datasets: dict[str, Path]) -> None:
    program = ROOT / "tests" / "importers" / f"read_{tool}.py"
    command = [environment(*TOOLS[tool]) / "python", program, photos, datasets[kind]]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    read: dict[str, list[Any]] = json.loads(done.stdout.splitlines()[-1])
    truth = expected(datasets[kind])
    assert set(read) == set(truth)
    for name, instances in truth.items():
        assert {label for label, _ in read[name]} == {label for label, _ in instances}
        if kind == "rle":
            assert sorted(map(tuple, read[name])) == sorted(instances), "each mask must have the same number of pixels"
        else:  # tools differ by part of a pixel along outlines, and some return the parts of a mask separately
            total = sum(area for _, area in instances)
            assert sum(area for _, area in read[name]) == pytest.approx(total, rel=0.06)


def test_label_studio_imports_polygons(datasets: dict[str, Path], tmp_path: Path) -> None:
    """Its COCO converter reads polygons only (label_studio_sdk/converter/imports/coco.py)."""
    command = [environment(LABEL_STUDIO) / "label-studio-converter", "import", "coco", "-i", datasets["polygons"]]
    command += ["-o", tmp_path / "tasks.json", "--out-type", "predictions"]
    subprocess.run([*map(str, command)], capture_output=True, check=True)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    truth = expected(datasets["polygons"])
    assert len(tasks) == len(truth)
    for task, (name, instances) in zip(tasks, truth.items(), strict=True):
        assert unquote(task["data"]["image"]).endswith(name)
        regions = task["predictions"][0]["result"]
        boxes = [one["value"]["rectanglelabels"] for one in regions if one["type"] == "rectanglelabels"]
        assert boxes == [[label] for label, _ in instances]
        assert sum(one["type"] == "polygonlabels" for one in regions) >= len(instances)
