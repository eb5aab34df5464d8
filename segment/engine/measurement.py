"""Measure the memory of an engine's runs (footprint.py).

The process runs the engine on noise with minimum score 0 and with the maximum number of instances or one, at two areas
with three shapes each, while a thread samples its anonymous memory. The peaks give the fixed bytes, the bytes per pixel
and the bytes per instance. File-backed pages are not counted, because the kernel can reclaim them. After all runs the
buffers are released; what is left are mostly weights in further layouts, which the network keeps for some sizes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np

from segment import container, process
from segment.engine import Engine
from segment.engine.file import load
from segment.engine.footprint import MAX_DETECTIONS, Footprint
from segment.errors import ModelError

SIDES = (320, 640)
"""Sides of two squares in pixels; each area is also run with aspect ratios of about 2:1 and 1:2."""
GRAINS = (1, 8, 64)
"""Sizes in pixels of the noise's squares, so that small and large instances occupy different pyramid levels."""
SMALL_SIDE = 128
"""Side of a small square in pixels, for which other layouts of weights are kept."""
SLACK = 1.05
"""Factor for the measured peaks: runs on other sizes and photos were up to 3 % above the line."""
SAMPLE_SECONDS = 0.0005
"""Interval between two samples of the memory."""


def main() -> None:
    """Measure the file given on the command line; print a JSON object: a Footprint, or {"error": ...}."""
    parser = argparse.ArgumentParser(description="Measure a model's memory.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--instances", type=int, default=MAX_DETECTIONS, help="the most instances per photo")
    arguments = parser.parse_args()
    try:
        process.configure_malloc()
        engine = load(arguments.file, threads=arguments.threads, cache=arguments.cache, memory=Footprint(0, 0))
        print(json.dumps(asdict(measure_engine(engine, arguments.instances))))
    except ModelError as error:
        print(json.dumps({"error": str(error)}))


def measure_engine(engine: Engine, max_detections: int = MAX_DETECTIONS) -> Footprint:
    """Measure a loaded engine in this process."""
    noise = np.random.default_rng(0)
    fixed_size = engine.input_size((SIDES[0], SIDES[0]))
    # The first run prepares a layout of the weights for its size. Other sizes may need another one; both are kept. As
    # in the first run of the service (model.py), nothing is found: the layers that only run on instances prepare their
    # weights later, so these are part of the footprint.
    engine(np.zeros((SIDES[0], SIDES[0], 3), np.uint8), 1.0, 1)
    engine.release()
    process.trim_heap()
    before = container.anonymous()

    def run(size: tuple[int, int], grain: int, instances: int) -> None:
        width, height = size
        few = noise.integers(0, 256, (-(-height // grain), -(-width // grain), 3), np.uint8)
        engine(few.repeat(grain, axis=0).repeat(grain, axis=1)[:height, :width], 0.0, instances)

    def peak(instances: int, *sizes: tuple[int, int]) -> float:
        engine.release()
        process.trim_heap()
        with highest() as sampled:
            for size, grain in product(sizes, GRAINS):
                run(size, grain, instances)
        return (sampled[0] - before) * SLACK

    def kept() -> int:
        engine.release()
        process.trim_heap()
        return max(0, int((container.anonymous() - before) * SLACK))

    if fixed_size:
        return Footprint(int(peak(max_detections, fixed_size)), 0.0, kept_bytes=kept())
    small, large = SIDES
    for size in (*_shapes(small, engine.stride), *_shapes(large, engine.stride)):
        for instances in (max_detections, 1):  # so that all peaks below include the layouts that are kept
            run(size, GRAINS[0], instances)
    low, high = (peak(max_detections, *_shapes(side, engine.stride)) for side in SIDES)
    low_few, high_few = (peak(1, *_shapes(side, engine.stride)) for side in SIDES)
    per_pixel = max(0.0, (high - low) / (large**2 - small**2))
    # On large images, the peak may be in the backbone, which does not depend on the number of instances.
    per_instance = max(0.0, min(low - low_few, high - high_few) / max(max_detections - 1, 1))
    fixed = low - per_pixel * small**2 - per_instance * max_detections
    run((SMALL_SIDE, SMALL_SIDE), GRAINS[0], max_detections)
    return Footprint(max(0, int(fixed)), round(per_pixel, 2), round(per_instance, 2), kept())


def _shapes(side: int, stride: int) -> Iterator[tuple[int, int]]:
    """Sizes of about side x side pixels: a square, a wide and a tall rectangle."""
    long = round(side * 2**0.5 / stride) * stride
    short = side * side // long // stride * stride
    yield from ((side, side), (long, short), (short, long))


@contextlib.contextmanager
def highest(measure: Callable[[], int] = container.anonymous, interval: float = SAMPLE_SECONDS) -> Iterator[list[int]]:
    """Call `measure` every `interval` seconds until the context exits; yields a list with the highest value so far."""
    found, over = [measure()], threading.Event()

    def sample() -> None:
        while not over.wait(interval):
            found[0] = max(found[0], measure())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


if __name__ == "__main__":
    main()
