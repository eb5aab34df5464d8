"""CPU time and memory of one run of ViTDet, compared with Mask R-CNN R50-FPN, at several sizes.

    python -m benchmarks.vitdet

Models have the zoo's shapes and random values (checkpoints.py). Each is loaded in a new process and run twice on a
photo of 4:3; the second run is measured. CPU time of all threads is used because a busy machine changes it less than
elapsed time. It still grows with the load, so only compare it with that of the first row.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import checkpoints
from benchmarks.serving import ROOT
from segment import container, convert, process, zoo
from segment.convert import config as configs
from segment.convert.architecture import SimplePyramid
from segment.engine import measurement
from segment.engine.file import load
from segment.engine.footprint import Footprint
from segment.resize import fitted_size, square_size

BASELINE, MODEL, SQUARE = "mask_rcnn_R_50_FPN_3x", "mask_rcnn_vitdet_b_100ep", 1024
PHOTO = (4000, 3000)
ROWS = (
    (BASELINE, None, fitted_size(PHOTO, 25, "aspect")),
    (MODEL, 0, fitted_size(PHOTO, 25, "aspect")),
    (MODEL, 0, square_size(PHOTO, SQUARE)),
    (MODEL, SQUARE, square_size(PHOTO, SQUARE)),
)
"""(model, square_pad or 0 for any size, size of the network's input as (width, height))."""


def write(name: str, square: int | None, path: Path) -> None:
    """Write a model of the zoo with random values in fp32. `square`: the square_pad, or None for the zoo's."""
    config = configs.parse(zoo.entry(name).config)
    if square is not None:
        assert isinstance(config.pyramid, SimplePyramid)
        config = replace(config, pyramid=replace(config.pyramid, square=square))
    model = convert.convert(config, checkpoints.checkpoint(config), zoo.labels(zoo.entry(name)))
    path.write_bytes(model.SerializeToString())


def run(path: Path, size: tuple[int, int]) -> str:
    """Load a model in this process and run it twice. Returns CPU seconds of the second run, MiB loaded and of runs."""
    process.configure_malloc()
    before = container.anonymous()
    engine = load(path, threads=2, memory=Footprint(0, 0.0))
    width, height = size
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    engine.release()
    process.trim_heap()
    loaded = container.anonymous()
    with measurement.highest() as peak:
        for _ in range(2):
            start = time.process_time()
            engine(image, 0.01, 20)
            seconds = time.process_time() - start
    return f"{seconds:.2f} CPU s, {(loaded - before) >> 20} MiB loaded, {(max(peak) - loaded) >> 20} MiB for a run"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what ViTDet costs.")
    parser.add_argument("--one", nargs=3, metavar=("FILE", "WIDTH", "HEIGHT"), help="measure a file in this process")
    one = parser.parse_args().one
    if one:
        print(run(Path(one[0]), (int(one[1]), int(one[2]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        for name, square, size in ROWS:
            write(name, square, path)
            command = [sys.executable, "-m", "benchmarks.vitdet", "--one", str(path), *map(str, size)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            print(f"{name}, square {square}, {size[0]} x {size[1]}: {done.stdout.strip()}", flush=True)


if __name__ == "__main__":
    main()
