"""The models and photos for benchmarks, generated from this repository alone.

The demo model is the embedded one. The full-size one is the zoo's Mask R-CNN R50-FPN with 80 classes and random values
(checkpoints.py): memory and speed depend on shapes and on the number of detections, not on trained weights. Both are
available in fp32 and in int8, quantised as by the command line.
"""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml
from PIL import Image

from benchmarks import checkpoints
from benchmarks.serving import ROOT
from segment import convert, zoo
from segment.convert import config as configs
from segment.model import EMBEDDED
from training import families
from training.shapes import CLASSES, scene

FULL_SIZE = "mask_rcnn_R_50_FPN_3x"
POINTREND = "pointrend_rcnn_R_50_FPN_3x_coco"
FAMILIES = {
    "mask_rcnn": "Mask R-CNN, mask head trained as long as PointRend's",
    "pointrend": "PointRend",
    "c4": "C4",
    "scales": "Mask R-CNN, trained for shapes of all sizes",
}
"""Models of training.families with trained weights, and their names in tables."""
CALIBRATION_SEED = 3_000_000
"""First seed of the calibration scenes, which are not used for training or evaluation."""
CALIBRATION_PHOTOS = 64
PRECISIONS = ("fp32", "int8")
ALL_PROPOSALS = 1000
THOROUGH = f"int8, {ALL_PROPOSALS:,} proposals"
NETWORKS = (*PRECISIONS, THOROUGH)
"""Kinds of the full-size model. fp32 has the zoo's 1,000 proposals; int8 has 300 by default."""
LOOK: dict[str, str | int] = {"min_score": "0.01", "max_detections": 20}
"""Options with which every full-size model has 20 detections, although random scores differ between precisions."""


def demo(precision: str, folder: Path) -> Path:
    """The file of the demo model. Files are created in `folder`."""
    if precision == "fp32":
        return EMBEDDED
    return _quantised(EMBEDDED, folder / "demo-int8.onnx", _calibration(folder, None))


def family(name: str, precision: str, folder: Path) -> Path:
    """A model of another family, trained on the demo's scenes. `name`: a key in training.families."""
    path = folder / f"{name}.onnx"
    if not path.exists():
        config = configs.read(families.config_file(name))
        convert.finish(convert.convert(config, families.trained(name), CLASSES), path)
    if precision == "fp32":
        return path
    return _quantised(path, folder / f"{name}-int8.onnx", _calibration(folder, None))


def full_size_config(folder: Path) -> Path:
    """The full-size model's config, without the values that are detectron2's defaults."""
    path = folder / "r50.yaml"
    path.write_text(yaml.safe_dump(zoo.entry(FULL_SIZE).config))
    return path


def full_size_checkpoint(folder: Path) -> Path:
    """The full-size model's weights in the format of the model zoo."""
    path = folder / "r50.pkl"
    if not path.exists():
        subprocess.run([sys.executable, "-m", "benchmarks.checkpoints", FULL_SIZE, str(path)], cwd=ROOT, check=True)
    return path


def full_size(network: str, folder: Path, name: str = FULL_SIZE) -> Path:
    """The file of a full-size model. `network`: one of NETWORKS; `name`: of the zoo. Files are created in `folder`."""
    stem = "r50" if name == FULL_SIZE else name
    path = folder / f"{stem}-fp32.onnx"
    if not path.exists():
        entry = zoo.entry(name)
        config = configs.parse(entry.config)
        model = convert.convert(config, checkpoints.checkpoint(config), zoo.labels(entry), "random values")
        convert.finish(model, path)
    if network == "fp32":
        return path
    photos = _calibration(folder, (1280, 960))
    if network == THOROUGH:
        return _quantised(path, folder / f"{stem}-int8-{ALL_PROPOSALS}.onnx", photos, f"--proposals={ALL_PROPOSALS}")
    return _quantised(path, folder / f"{stem}-int8.onnx", photos)


def demo_with(proposals: int, folder: Path) -> Path:
    """The demo model with 1,000 proposals, also per level, as in the zoo's configs, limited to fewer proposals.

    Its own config has 200.
    """
    path = folder / f"demo-{proposals}-proposals.onnx"
    if not path.exists():
        own = configs.read(ROOT / "training" / "shapes.yaml")
        many = replace(own.proposals, before_nms=ALL_PROPOSALS, after_nms=ALL_PROPOSALS)
        tensors = convert.checkpoint.read(ROOT / "training" / "shapes.pkl")
        model = convert.convert(replace(own, proposals=many), tensors)
        convert.limit(model, proposals)
        convert.finish(model, path)
    return path


def photo(size: tuple[int, int], seed: int = 0, quality: int = 90) -> bytes:
    """A JPEG of an enlarged scene with `size` (width, height)."""
    image = Image.fromarray(scene(seed, (640, 480))[0]).resize(size, Image.Resampling.BICUBIC)
    body = io.BytesIO()
    image.save(body, "JPEG", quality=quality)
    return body.getvalue()


def _calibration(folder: Path, size: tuple[int, int] | None) -> Path:
    """A folder of scenes at their original size, or enlarged to `size`."""
    photos = folder / ("scenes" if size is None else "photos")
    if not photos.exists():
        photos.mkdir(parents=True)
        for seed in range(CALIBRATION_SEED, CALIBRATION_SEED + (CALIBRATION_PHOTOS if size is None else 16)):
            if size is None:
                Image.fromarray(scene(seed)[0]).save(photos / f"{seed}.png")
            else:
                (photos / f"{seed}.jpg").write_bytes(photo(size, seed))
    return photos


def _quantised(model: Path, path: Path, photos: Path, *options: str) -> Path:
    if not path.exists():
        _segment("quantise", str(model), "--output", str(path), "--calibrate", str(photos), *options)
    return path


def _segment(*arguments: str | Path) -> None:
    """Run a segment command and show its errors."""
    command: Sequence[str | Path] = (sys.executable, "-m", "segment", *arguments)
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
