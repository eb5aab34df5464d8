"""The memory of a run in addition to the loaded model: fixed, per pixel, per instance; and what is kept between runs.

It is measured in a child process.

The child process loads the file and runs it on noise with minimum score 0 and with the maximum number of instances or
one, at two areas with three shapes each, while a thread samples its anonymous memory. The peaks give the fixed bytes,
the bytes per pixel and the bytes per instance. File-backed pages are not counted, because the
kernel can reclaim them. After all runs the buffers are released; what is left are mostly weights in further layouts,
which the network keeps for some sizes.

Measuring takes some seconds. The result is stored in the folder of compiled models, if there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segment import container, process
from segment.errors import ModelError

if TYPE_CHECKING:
    from segment.engine import Engine

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
"""The folder that contains the package."""
SIDES = (320, 640)
"""Sides of two squares in pixels; each area is also run with aspect ratios of about 2:1 and 1:2."""
GRAINS = (1, 8, 64)
"""Sizes in pixels of the noise's squares, so that small and large instances occupy different pyramid levels."""
SMALL_SIDE = 128
"""Side of a small square in pixels, for which other layouts of weights are kept."""
MAX_DETECTIONS = 100
SLACK = 1.05
"""Factor for the measured peaks: runs on other sizes and photos were up to 3 % above the line."""
SAMPLE_SECONDS = 0.0005
"""Interval between two samples of the memory."""
TIMEOUT_SECONDS = 600
LARGEST = float(1 << 40)
"""Upper bound of valid values in bytes. The comparison also excludes NaN."""


@dataclass(frozen=True)
class Footprint:
    """Memory in bytes of a run in addition to the loaded model: fixed, per pixel of the image, per instance.

    `kept_bytes`: memory that remains when the buffers are released after runs on many sizes. None: as `fixed_bytes`.
    """

    fixed_bytes: int
    bytes_per_pixel: float
    bytes_per_instance: float = 0.0
    kept_bytes: int | None = None

    @property
    def kept(self) -> int:
        """Memory in bytes that the network keeps between runs; at most `fixed_bytes`, which a setting can lower."""
        fixed = int(self.fixed_bytes)
        return fixed if self.kept_bytes is None else min(fixed, int(self.kept_bytes))

    def run_bytes(self, pixels: int, instances: int) -> int:
        """Memory in bytes of a run on an image of `pixels` pixels that returns at most `instances` instances."""
        return int(self.fixed_bytes + self.bytes_per_pixel * pixels + self.bytes_per_instance * instances)

    def __post_init__(self) -> None:
        """Raise ValueError for an invalid value."""
        for name, value in vars(self).items():
            if name == "kept_bytes" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < LARGEST:
                raise ValueError(f"{name} is {value!r}; it must be a number from 0 to {LARGEST:g}")


def overridden(memory: Footprint | None, overrides: Mapping[str, float], measure: Callable[[], Footprint]) -> Footprint:
    """`memory` with the fields in `overrides` replaced; None is measured, unless `overrides` contains what it gives."""
    if memory is None:
        complete = {"fixed_bytes", "bytes_per_pixel"} <= overrides.keys()
        memory = Footprint(0, 0.0) if complete else measure()
    return replace(memory, **dict[str, Any](overrides))


def known(path: Path, threads: int = 1, cache: Path | None = None) -> Footprint:
    """The footprint of a model file: from the folder `cache`, or measured and stored there. Raises ModelError."""
    if not cache:
        return measure(path, threads)
    note = cache / f"{_digest(path)}-{threads}.footprint.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Footprint(**json.loads(note.read_text(encoding="ascii")))
    found = measure(path, threads, cache)
    with contextlib.suppress(OSError):  # the folder is read-only, so it is measured again next time
        cache.mkdir(parents=True, exist_ok=True)
        part = note.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(asdict(found)), encoding="ascii")
        part.replace(note)
    return found


def measure(path: Path, threads: int = 1, cache: Path | None = None, max_detections: int = MAX_DETECTIONS) -> Footprint:
    """Measure a model file in a child process. Raises ModelError, with the child's message if there is one."""
    command = [sys.executable, "-c", f"from {__name__} import main; main()", str(path.resolve())]
    command += [f"--threads={threads}", f"--instances={max_detections}"]
    if cache:
        command.append(f"--cache={cache.resolve()}")
    settings = "set SEGMENT_FIXED_BYTES and SEGMENT_BYTES_PER_PIXEL"
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"Measuring the memory of {path.name} took more than {TIMEOUT_SECONDS} s. Try again when this machine is "
            f"less busy, or {settings}."
        ) from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        log.warning("Measuring %s ended with %d: %s", path.name, done.returncode, done.stderr[-1000:])
        raise ModelError(
            f"The memory of {path.name} could not be measured; this instance may have too little. Give the instance "
            f"more memory, or {settings}."
        ) from None
    if "error" in answer:
        raise ModelError(answer["error"])
    return Footprint(**answer)


def main() -> None:
    """Measure the file given on the command line; print a JSON object: a Footprint, or {"error": ...}."""
    parser = argparse.ArgumentParser(description="Measure a model's memory.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--instances", type=int, default=MAX_DETECTIONS, help="the most instances per photo")
    arguments = parser.parse_args()
    from segment.engine.file import load

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


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise ModelError(f"The model {path.name} cannot be read: {error.strerror}.") from None
