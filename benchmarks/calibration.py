"""What int8 loses when it is calibrated on the photographs that come with the package, instead of on one's own.

    python -m benchmarks.calibration

Two models, each quantised once per calibration:

- The demo model, by its average precision on scenes that it was not trained on. Its own photos are other scenes.
- The zoo's Mask R-CNN R50-FPN with random values, by the share of the fp32 model's instances that the int8 model finds
  too: the same class, boxes with an IoU of 0.5 or more; both have 300 proposals. It is tested on drawn scenes, and on
  views of two photographs that are left out of the calibration here. Random values show how well the ranges of
  activations fit. They do not show COCO AP, for which COCO and the zoo's weights are needed.

The table is written to benchmarks/results/calibration.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image

from benchmarks import accuracy, checkpoints
from benchmarks.models import CALIBRATION_PHOTOS, CALIBRATION_SEED, FULL_SIZE
from segment import convert, zoo
from segment import engine as engines
from segment.convert import calibration
from segment.convert import config as configs
from segment.convert.quantise import quantise
from segment.detections import Detections
from segment.engine.footprint import Footprint
from segment.model import EMBEDDED
from training.shapes import scene

Pictures = Callable[[], Iterator[NDArray[np.uint8]]]

RENDER_FACTOR, STRIDE = 25, 32
HELD_OUT = ("astronaut", "coffee")
"""The photographs that the full-size model is tested on, and not calibrated on."""
SCENES, FIRST_SCENE = 20, 4_000_000
MIN_SCORE, MAX_DETECTIONS, SAME_IOU = 0.3, 50, 0.5
RESULT = Path(__file__).parent / "results" / "calibration.md"


def main() -> None:
    """Measure and write the table."""
    with tempfile.TemporaryDirectory() as name:
        rows = [*demo(Path(name)), *full_size(Path(name))]
    text = "\n".join([__doc__.partition("\n\n")[2].partition("\n\n")[2].rpartition("\n\n")[0], "", *HEAD, *rows, ""])
    RESULT.write_text(text, encoding="utf-8")
    print("\n".join([*HEAD, *rows]))


HEAD = (
    "| model, measure | fp32 | int8, calibrated on one's own | int8, on the package's photographs |",
    "|---|---|---|---|",
)


def demo(folder: Path) -> list[str]:
    """The demo model's average precision."""
    model = convert.load(EMBEDDED)
    calibrations: dict[str, Pictures] = {"own": scenes(CALIBRATION_SEED, CALIBRATION_PHOTOS), "package": package()}
    files = {"fp32": EMBEDDED} | {kind: _int8(model, pictures, folder) for kind, pictures in calibrations.items()}
    results = [accuracy.measure(file, kind) for kind, file in files.items()]
    return [
        "| demo, box AP on 200 scenes | " + " | ".join(f"{result.box:.2f}" for result in results) + " |",
        "| demo, mask AP on 200 scenes | " + " | ".join(f"{result.mask:.2f}" for result in results) + " |",
    ]


def full_size(folder: Path) -> list[str]:
    """How many of the full-size model's instances are found again."""
    entry = zoo.entry(FULL_SIZE)
    config = configs.parse(zoo.config(entry))
    model = convert.convert(config, checkpoints.checkpoint(config), zoo.labels(entry), "random values")
    convert.limit(model, convert.INT8_PROPOSALS)
    calibrations = {
        "own": scenes(CALIBRATION_SEED, CALIBRATION_PHOTOS),
        "package": package(lambda photo: photo not in HELD_OUT),
    }
    wide = folder / "fp32.onnx"
    onnx.save(model, wide)
    files = [_int8(model, pictures, folder) for pictures in calibrations.values()]
    tests = {
        f"{SCENES} drawn scenes": scenes(FIRST_SCENE, SCENES),
        "10 views of 2 photographs": package(HELD_OUT.__contains__),
    }
    rows = []
    for name, pictures in tests.items():
        truth = [list(_found(wide, pictures))] * len(files)
        found = [list(_found(file, pictures)) for file in files]
        shares = [_share(*pair) for pair in zip(truth, found, strict=True)]
        count = sum(len(each) for each in truth[0])
        cells = " | ".join(f"{100 * share:.1f} %" for share in shares)
        rows.append(f"| R50-FPN with random values, instances found again on {name} | {count} | {cells} |")
    return rows


def scenes(first: int, count: int) -> Pictures:
    """Drawn scenes, as the network sees them."""

    def pictures() -> Iterator[NDArray[np.uint8]]:
        with tempfile.TemporaryDirectory() as name:
            paths = [Path(name) / f"{seed}.png" for seed in range(first, first + count)]
            for seed, path in enumerate(paths, first):
                Image.fromarray(scene(seed)[0]).save(path)
            yield from calibration.from_files(paths, RENDER_FACTOR, STRIDE)

    return pictures


def package(wanted: Callable[[str], bool] = lambda photo: True) -> Pictures:
    """The default calibration, or the part of it that is of these photographs."""
    photos = [path for path in calibration.PHOTOS if wanted(path.stem)]
    return lambda: calibration.default(RENDER_FACTOR, STRIDE, photos)


def _int8(model: onnx.ModelProto, pictures: Pictures, folder: Path) -> Path:
    path = folder / f"{len(list(folder.iterdir()))}.onnx"
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    narrow = quantise(copy, pictures())
    narrow.metadata_props.extend(model.metadata_props)
    onnx.save(narrow, path)
    return path


def _found(file: Path, pictures: Pictures) -> Iterator[Detections]:
    engine = engines.load(file, threads=2, memory=Footprint(0, 0))
    for pixels in pictures():
        yield engine(pixels, MIN_SCORE, MAX_DETECTIONS)


def _share(truth: list[Detections], found: list[Detections]) -> float:
    """The share of the instances of `truth` that are in `found`."""
    again, count = 0, 0
    for wide, narrow in zip(truth, found, strict=True):
        count += len(wide)
        for box, label in zip(wide.boxes, wide.classes, strict=True):
            again += bool((_iou(box, narrow.boxes[narrow.classes == label]) >= SAME_IOU).any())
    return again / count


def _iou(box: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1) + np.prod(box[2:] - box[:2])
    ratio: NDArray[np.float32] = shared / np.maximum(areas - shared, 1e-6)
    return ratio


if __name__ == "__main__":
    main()
