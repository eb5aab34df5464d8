"""File size, memory and time of each model of the zoo, in fp32 and int8.

    python -m benchmarks.zoo                     models without measurements
    python -m benchmarks.zoo NAME ...            these models, also if they were measured before
    python -m benchmarks.zoo --models FOLDER     keep the generated models, because generating takes minutes each

Writes segment/zoo/measured.json after each model; `segment models` shows it. The weights are random (checkpoints.py):
size, memory and time depend on their shapes. Models that differ only in their weights are measured once. The service
runs as in the image. Memory is the peak of non-reclaimable memory, as in memory.py, while it segments a 12 megapixel
photo; time is the median of the network's time, as in latency.py. If other processes keep the machine busy (a load
above QUIET), no time is measured. Run the script again when the machine is quiet: with `--models`, the files and the
compiled models are kept, so that only the times are measured, which takes seconds each.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image
from tqdm import tqdm

from benchmarks import checkpoints, latency, memory, models, serving
from benchmarks.report import processor
from segment import convert, zoo
from segment.convert import config as configs
from segment.convert import storage
from segment.zoo import table
from training.shapes import scene

RENDER_FACTOR = latency.RENDER_FACTOR
CALIBRATION_PHOTOS = 2
"""Enough to generate an int8 model whose detections are not used."""
QUIET = 1.0
Row = dict[str, float | None]
NO_LIMIT = {"SEGMENT_MEMORY": "64Gi", "SEGMENT_FIXED_BYTES": "0", "SEGMENT_BYTES_PER_PIXEL": "0"}


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description="Measure the zoo's models.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of `segment models`; default: those not measured yet")
    parser.add_argument("--models", type=Path, help="folder that keeps the models that are made")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.models or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for name in tqdm(arguments.names or [name for name in zoo.entries() if not _complete(name)]):
            if arguments.names or not _complete(name):  # skip if a model of the same shapes was measured meanwhile
                known = {} if arguments.names else _known().get(name, {})
                row = {
                    precision: measure(name, precision, folder, known.get(precision)) for precision in table.PRECISIONS
                }
                _save(dict.fromkeys(twins(name), row))


def measure(name: str, precision: str, folder: Path, known: Row | None = None) -> Row:
    """Measure a model in one precision: the fields of table.Measured. `known`: an earlier row without the time."""
    path = _model(name, precision, folder)
    cache = path.with_suffix("")
    settings = {"SEGMENT_MODEL": str(path), "SEGMENT_CACHE": str(cache), **NO_LIMIT}
    if not cache.exists():
        with serving.serving(settings):
            pass  # the compiled model is in the cache now
    with serving.serving(settings) as server:
        held = known["held_mib"] if known else _held(server)
        quiet = os.getloadavg()[0] < QUIET + len(os.sched_getaffinity(0))  # this script's threads are part of the load
        times = [_ask(server, latency.PHOTO) for _ in range(latency.REQUESTS if quiet else 0)]
    return {
        "file_mb": round(path.stat().st_size / 1e6, 1),
        "held_mib": held,
        "ms": round(median(times), 1) if times else None,
    }


def _held(server: serving.Server) -> float:
    """The peak of non-reclaimable memory in MiB while the server segments large photos."""
    with serving.peak(lambda: server.usage().held) as held:
        for _ in range(memory.REQUESTS):
            _ask(server, memory.PHOTO)
    return round(held[0] / memory.MIB, 1)


def _ask(server: serving.Server, size: tuple[int, int]) -> float:
    """Segment a photo and return the network's time in milliseconds."""
    answer = server.segment(models.photo(size), format="jpeg", render_factor=RENDER_FACTOR, **models.LOOK)
    answer.raise_for_status()
    return float(re.findall(r"network;dur=([\d.]+)", answer.headers["Server-Timing"])[0])


def _model(name: str, precision: str, folder: Path) -> Path:
    """The model's file, generated unless it is in `folder`."""
    path = folder / f"{name}-{precision}.onnx"
    if path.exists():
        return path
    if precision == "fp32":
        config = configs.parse(zoo.entry(name).config)
        model = convert.convert(config, checkpoints.checkpoint(config), zoo.labels(zoo.entry(name)), "random values")
    else:
        photos = [folder / f"{seed}.png" for seed in range(CALIBRATION_PHOTOS)]
        for seed, photo in enumerate(photos):
            Image.fromarray(scene(models.CALIBRATION_SEED + seed, (640, 480))[0]).save(photo)
        model = convert.quantised(convert.load(_model(name, "fp32", folder)), photos)
    storage.save(model, path)
    return path


def twins(name: str) -> list[str]:
    """The models of the same shapes: their configs differ only in the means and deviations of pixels."""

    def shapes(other: str) -> tuple[Any, ...]:
        config = vars(configs.parse(zoo.entry(other).config))
        return tuple(value for key, value in config.items() if key not in ("mean", "std"))

    return [other for other in zoo.entries() if shapes(other) == shapes(name)]


def _complete(name: str) -> bool:
    row = _known().get(name, {})
    return all(row.get(precision, {}).get("ms") for precision in table.PRECISIONS)


def _machine() -> str:
    return f"{processor()}, {len(os.sched_getaffinity(0))} CPUs, OpenVINO {metadata.version('openvino')}"


def _known() -> dict[str, dict[str, Row]]:
    """The rows measured on this machine, by model and precision."""
    document = json.loads(table.MEASURED.read_text())
    rows: dict[str, dict[str, Row]] = document["models"] if document["machine"] == _machine() else {}
    return rows


def _save(rows: Mapping[str, Mapping[str, Row]]) -> None:
    """Add rows to those measured on this machine. Rows of other machines are dropped."""
    known = {**_known(), **rows}
    document = {
        "machine": _machine(),
        "render_factor": RENDER_FACTOR,
        "int8_proposals": convert.INT8_PROPOSALS,
        "models": {name: known[name] for name in zoo.entries() if name in known},
    }
    part = table.MEASURED.with_suffix(".part")
    part.write_text(json.dumps(document, indent=1) + "\n")
    part.replace(table.MEASURED)


if __name__ == "__main__":
    main()
