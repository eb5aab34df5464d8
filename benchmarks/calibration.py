"""The loss of int8 models that are calibrated on the package's photographs instead of on photos of one's own.

    python -m benchmarks.calibration

Two models, each quantised once per calibration:

- The demo model, by its average precision on scenes that it was not trained on. Its own photos are other scenes.
- The zoo's Mask R-CNN R50-FPN with random values, by the signal-to-noise ratio of its feature pyramid against the fp32
  model's, in dB; more is better. It is tested on drawn scenes, and on views of two photographs that are left out of the
  calibration here. It shows how well the ranges of activations fit. It does not show COCO AP, for which COCO and the
  zoo's weights are needed; nor can detections be compared, as those of random values change with any noise.

The table is written to benchmarks/results/calibration.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from benchmarks import accuracy, checkpoints
from benchmarks.models import CALIBRATION_PHOTOS, CALIBRATION_SEED, FULL_SIZE
from segment import convert, zoo
from segment.convert import calibration
from segment.convert import config as configs
from segment.convert.quantise import network_input, quantise
from segment.model import EMBEDDED
from segment.modelfile import ModelMetadata, metadata
from training.shapes import scene

Pictures = Callable[[], Iterator[NDArray[np.uint8]]]

HELD_OUT = ("astronaut", "coffee")
"""The photographs that the full-size model is tested on, and not calibrated on."""
SCENES, FIRST_SCENE = 20, 4_000_000
PYRAMID = [f"backbone.fpn_output{level}" for level in (2, 3, 4, 5)]
"""The names of the feature maps p2 to p5 in a converted file."""
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
    """The signal-to-noise ratio of the full-size model's feature pyramid."""
    entry = zoo.entry(FULL_SIZE)
    config = configs.parse(zoo.config(entry))
    model = convert.convert(config, checkpoints.checkpoint(config), zoo.labels(entry), "random values")
    calibrations = {
        "own": scenes(CALIBRATION_SEED, CALIBRATION_PHOTOS),
        "package": package(lambda photo: photo not in HELD_OUT),
    }
    files = [folder / "r50.onnx", *(_int8(model, pictures, folder) for pictures in calibrations.values())]
    onnx.save(model, files[0])
    wide, *narrow = [_pyramid(file) for file in files]
    tests = {
        f"{SCENES} drawn scenes": scenes(FIRST_SCENE, SCENES),
        "10 views of 2 photographs": package(HELD_OUT.__contains__),
    }
    rows = []
    for name, pictures in tests.items():
        ratios = [_decibels(wide, network, pictures) for network in narrow]
        cells = " | ".join(f"{ratio:.1f} dB" for ratio in ratios)
        rows.append(f"| R50-FPN with random values, signal to noise on {name} | | {cells} |")
    return rows


def scenes(first: int, count: int) -> Pictures:
    """Drawn scenes, as the network sees them."""

    def pictures() -> Iterator[NDArray[np.uint8]]:
        with tempfile.TemporaryDirectory() as name:
            paths = [Path(name) / f"{seed}.png" for seed in range(first, first + count)]
            for seed, path in enumerate(paths, first):
                Image.fromarray(scene(seed)[0]).save(path)
            yield from calibration.from_files(paths, _facts())

    return pictures


def package(wanted: Callable[[str], bool] = lambda photo: True) -> Pictures:
    """The default calibration, or the part of it that is of these photographs."""
    photos = [path for path in calibration.PHOTOS if wanted(path.stem)]
    return lambda: calibration.default(_facts(), photos)


def _facts() -> ModelMetadata:
    """What decides the size at which a picture is seen: render factor 25 and a stride of 32 for both models."""
    facts = ModelMetadata.from_metadata(metadata(EMBEDDED))
    assert facts
    return facts


def _int8(model: onnx.ModelProto, pictures: Pictures, folder: Path) -> Path:
    path = folder / f"int8-{len(list(folder.iterdir()))}.onnx"
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    narrow = quantise(copy, pictures())
    narrow.metadata_props.extend(model.metadata_props)
    onnx.save(narrow, path)
    return path


def _pyramid(file: Path) -> onnxruntime.InferenceSession:
    """A network that gives its feature pyramid."""
    model = onnx.load(file)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in PYRAMID)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def _decibels(wide: onnxruntime.InferenceSession, narrow: onnxruntime.InferenceSession, pictures: Pictures) -> float:
    """The ratio of signal to noise of the feature pyramid, over all pictures and levels."""
    signal = noise = 0.0
    for pixels in pictures():
        exact, rough = (network.run(PYRAMID, network_input(pixels)) for network in (wide, narrow))
        signal += sum(float(np.square(level).mean()) for level in exact)
        noise += sum(float(np.square(a - b).mean()) for a, b in zip(exact, rough, strict=True))
    return 10 * float(np.log10(signal / noise))


if __name__ == "__main__":
    main()
