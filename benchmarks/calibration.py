"""The loss of int8 models that are calibrated on the package's photographs instead of on photos of one's own.

    python -m benchmarks.calibration

Two models are quantised with three calibrations: photos of one's own (here drawn scenes), the default of `--int8`, and
the default's views without stronger contrast and colours.

- The demo model is evaluated by its average precision on scenes that it was not trained on.
- The demo model and the zoo's Mask R-CNN R50-FPN with random values are evaluated by the signal-to-noise ratio of their
  feature pyramid, compared with fp32, in dB (more is better), on drawn scenes and on views of two photographs, which
  are then left out of the calibration. This shows how well the ranges of activations fit. It does not show COCO AP,
  which needs COCO and the zoo's weights. Detections of random values change with any noise and cannot be compared.

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
from segment.modelfile import ModelMetadata
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
        folder = Path(name)
        rows = [
            *demo(folder),
            *signal_to_noise("demo", convert.load(EMBEDDED), folder),
            *signal_to_noise("R50-FPN with random values", full_size(), folder),
        ]
    text = "\n".join([__doc__.partition("\n\n")[2].partition("\n\n")[2].rpartition("\n\n")[0], "", *HEAD, *rows, ""])
    RESULT.write_text(text, encoding="utf-8")
    print("\n".join([*HEAD, *rows]))


HEAD = (
    "| model, measure | fp32 | int8, calibrated on one's own | on the package's photographs | on these as they are |",
    "|---|---|---|---|---|",
)


def demo(folder: Path) -> list[str]:
    """The demo model's average precision."""
    model = convert.load(EMBEDDED)
    calibrations: dict[str, Pictures] = {
        "own": scenes(CALIBRATION_SEED, CALIBRATION_PHOTOS),
        "package": package(),
        "plain": plain(),
    }
    files = {"fp32": EMBEDDED} | {kind: _int8(model, pictures, folder) for kind, pictures in calibrations.items()}
    results = [accuracy.measure(file, kind) for kind, file in files.items()]
    return [
        "| demo, box AP on 200 scenes | " + " | ".join(f"{result.box:.2f}" for result in results) + " |",
        "| demo, mask AP on 200 scenes | " + " | ".join(f"{result.mask:.2f}" for result in results) + " |",
    ]


def full_size() -> onnx.ModelProto:
    """The zoo's Mask R-CNN R50-FPN with random values."""
    entry = zoo.entry(FULL_SIZE)
    config = configs.parse(entry.config)
    return convert.convert(config, checkpoints.checkpoint(config), zoo.labels(entry), "random values")


def signal_to_noise(name: str, model: onnx.ModelProto, folder: Path) -> list[str]:
    """The signal-to-noise ratio of a model's feature pyramid."""
    calibrations = {
        "own": scenes(CALIBRATION_SEED, CALIBRATION_PHOTOS),
        "package": package(lambda photo: photo not in HELD_OUT),
        "plain": plain(lambda photo: photo not in HELD_OUT),
    }
    exact = folder / f"{name}.onnx"
    onnx.save(model, exact)
    files = [exact, *(_int8(model, pictures, folder) for pictures in calibrations.values())]
    wide, *narrow = [_pyramid(file) for file in files]
    tests = {
        f"{SCENES} drawn scenes": scenes(FIRST_SCENE, SCENES),
        "10 views of 2 photographs": plain(HELD_OUT.__contains__),
    }
    rows = []
    for test, pictures in tests.items():
        ratios = [_decibels(wide, network, pictures) for network in narrow]
        cells = " | ".join(f"{ratio:.1f} dB" for ratio in ratios)
        rows.append(f"| {name}, signal to noise on {test} | | {cells} |")
    return rows


def scenes(first: int, count: int) -> Pictures:
    """Drawn scenes, at the size of the network's input."""

    def pictures() -> Iterator[NDArray[np.uint8]]:
        with tempfile.TemporaryDirectory() as name:
            paths = [Path(name) / f"{seed}.png" for seed in range(first, first + count)]
            for seed, path in enumerate(paths, first):
                Image.fromarray(scene(seed)[0]).save(path)
            yield from calibration.from_files(paths, _facts())

    return pictures


def package(wanted: Callable[[str], bool] = lambda photo: True) -> Pictures:
    """The default calibration, or its views of these photographs."""
    photos = [path for path in calibration.PHOTOS if wanted(path.stem)]
    return lambda: calibration.default(_facts(), photos)


def plain(wanted: Callable[[str], bool] = lambda photo: True) -> Pictures:
    """The same views without stronger contrast and colours."""

    def pictures() -> Iterator[NDArray[np.uint8]]:
        with tempfile.TemporaryDirectory() as name:
            for path in filter(lambda path: wanted(path.stem), calibration.PHOTOS):
                with Image.open(path) as photo:
                    for number, view in enumerate(calibration.views(photo.convert("RGB"))):
                        view.save(Path(name) / f"{path.stem}-{number}.png")
            yield from calibration.from_files(sorted(Path(name).iterdir()), _facts())

    return pictures


def _facts() -> ModelMetadata:
    """The metadata that determine the size of the network's input: render factor 25 and stride 32 for both models."""
    facts = ModelMetadata.read(EMBEDDED)
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
    """A network whose outputs are its feature pyramid."""
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
