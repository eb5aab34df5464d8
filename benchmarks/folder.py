"""`segment image` on a folder: photos per second compared with the network alone, and memory by number of photos.

    python -m benchmarks.folder speed [--models FOLDER] [--photos N] [--rounds N]
    python -m benchmarks.folder memory [--most N]

*Speed*: Mask R-CNN R50-FPN at render factor 25, photos of 1280 x 960. "The network alone" runs it on pixels that are in
memory already, one after the other, with all CPUs. It and the whole runs are measured in turns, and each turn's runs
are compared with the network alone of the same turn, because other processes use the CPUs as well. A run's CPU seconds
beside the network's are the work that decoding, drawing and encoding are; where they share the CPUs with the network,
the best that overlapping can do is the network's share of the CPU seconds.

*Memory*: photos of 32 x 32 pixels that are one file with many names, in one folder, and an engine that finds one
instance in each at once, so that only what a run keeps is seen. COCO and Parquet datasets are written. Each number of
photos is a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import models
from segment import image, load, service
from segment.container import cpus, peak
from segment.dataset import run
from segment.dataset.job import Dataset, Job
from segment.detections import Detections
from segment.engine.footprint import Footprint
from segment.formats import Format
from segment.mask import Mask
from segment.model import Model
from segment.options import Options
from segment.settings import Settings

RESULTS = Path(__file__).parent / "results"
SIZE, PHOTOS, ROUNDS = (1280, 960), 24, 5
NUMBERS = (100, 1_000, 10_000, 100_000)
WAYS: dict[str, tuple[tuple[Format, ...], tuple[Dataset, ...]]] = {
    "COCO dataset": ((), ("coco",)),
    "COCO and Parquet datasets": ((), ("coco", "parquet")),
    "JSON per photo": (("json",), ()),
    "JPEG overlays": (("jpeg",), ()),
    "PNG overlays": (("png",), ()),
}


# Speed


def speed(folder: Path, count: int, rounds: int) -> list[str]:
    """The table of photos per second."""
    path = models.full_size("fp32", folder)
    settings = Settings.from_environment({"SEGMENT_MODEL": str(path)})
    photos = folder / "photos"
    photos.mkdir(exist_ok=True)
    for number in range(count):
        (photos / f"{number:03}.jpg").write_bytes(models.photo(SIZE))
    model, whole = load(path), service.Service(settings)
    whole.load()
    pixels = [_pixels(model, file.read_bytes()) for file in sorted(photos.iterdir())]

    def network() -> None:
        for one in pixels:
            model.engine(one, 0.5, 100)

    def folder_run(formats: tuple[Format, ...], datasets: tuple[Dataset, ...]) -> None:
        with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
            job = Job(Path(out), Options.defaults(settings), formats, datasets)
            if run.run([photos], job, whole):
                raise RuntimeError("A photo failed.")

    measured: dict[str, list[tuple[float, float]]] = {}
    for turn in range(rounds + 1):  # the first warms up
        ways: dict[str, Callable[[], None]] = {"the network alone": network}
        ways |= {name: lambda way=way: folder_run(*way) for name, way in WAYS.items()}  # type: ignore[misc]
        for name, way in ways.items():
            if turn:
                measured.setdefault(name, []).append(_timed(way))
            else:
                way()
    return _speed_table(measured, count)


def _timed(way: Callable[[], None]) -> tuple[float, float]:
    """Seconds and CPU seconds."""
    start, cpu = time.perf_counter(), time.process_time()
    way()
    return time.perf_counter() - start, time.process_time() - cpu


def _pixels(model: Model, data: bytes) -> NDArray[np.uint8]:
    header = image.read_header(data)
    photo = image.decode(data, header, header.size)
    return np.asarray(image.resize(photo, model.network_size(photo.size, 25, "aspect")))


def _speed_table(measured: dict[str, list[tuple[float, float]]], count: int) -> list[str]:
    alone = measured["the network alone"]
    lines = [
        "| | photos per second | of the network alone | CPU seconds per photo | network's share of them |",
        "|---|---|---|---|---|",
    ]
    cpu_alone = statistics.median(cpu for _, cpu in alone)
    for name, times in measured.items():
        rate = count / statistics.median(seconds for seconds, _ in times)
        ratio = statistics.median(one[0] / other[0] for one, other in zip(alone, times, strict=True))
        cpu = statistics.median(cpu for _, cpu in times)
        lines.append(f"| {name} | {rate:.2f} | {ratio:.0%} | {cpu / count:.2f} | {cpu_alone / cpu:.0%} |")
    return [
        f"{count} photos, {cpus()} CPUs, load {os.getloadavg()[0]:.1f}; medians of {len(alone)} turns.",
        "",
        *lines,
    ]


# Memory


class Stub:
    """An engine that takes no time."""

    labels, stride, footprint = ("thing",), 32, Footprint(0, 0)

    def input_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """Any size."""
        return None

    def mask_bytes(self, size: tuple[int, int]) -> int:
        """That of 28 x 28 probabilities."""
        return 28 * 28 * 4

    def release(self) -> None:
        """Nothing is kept."""

    def __call__(self, pixels: NDArray[np.uint8], min_score: float, max_detections: int) -> Detections:
        """One instance in the middle."""
        height, width = pixels.shape[:2]
        box = width / 4, height / 4, 3 * width / 4, 3 * height / 4
        mask = Mask(np.ones((28, 28), np.float32), box, box)
        scores, classes = np.array([0.9], np.float32), np.array([0], np.int64)
        return Detections(np.array([box], np.float32), scores, classes, (mask,), (width, height))


def run_stub(folder: Path) -> None:
    """Segment a folder with the stub; print the peak memory of this process in bytes, and that before the run."""
    setattr(service, "from_settings", lambda settings: Model("stub", Stub()))  # noqa: B010
    settings = Settings.from_environment({"SEGMENT_RENDER_FACTOR": "4"})
    whole = service.Service(settings)
    whole.load()
    start = peak()
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        failed = run.run([folder], Job(Path(out), Options.defaults(settings), (), ("coco", "parquet")), whole)
    if failed:
        raise RuntimeError("A photo failed.")
    print(peak(), start)


def memory(most: int) -> list[str]:
    """The table of memory against the number of photos."""
    lines = ["| photos | largest resident memory, MiB | of it, before the run | s |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "photos"
        folder.mkdir()
        first = folder / "0000000.jpg"
        Image.new("RGB", (32, 32), "grey").save(first)
        made = 1
        for number in (number for number in NUMBERS if number <= most):
            for name in range(made, number):
                os.link(first, folder / f"{name:07}.jpg") if name % 50_000 else _copy(first, folder / f"{name:07}.jpg")
                if name % 50_000 == 0:
                    first = folder / f"{name:07}.jpg"  # a file system limits the names of one file
            made = number
            start = time.perf_counter()
            command = [sys.executable, "-m", "benchmarks.folder", "stub", str(folder)]
            answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            largest, before = (int(word) / (1 << 20) for word in answer.split())
            lines.append(f"| {number:,} | {largest:.0f} | {before:.0f} | {time.perf_counter() - start:.0f} |")
            print(lines[-1], flush=True)
    return lines


def _copy(one: Path, other: Path) -> None:
    other.write_bytes(one.read_bytes())


def main() -> None:
    """Measure what is asked for, print it and write it to benchmarks/results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.folder", description="segment image over a folder.")
    parser.add_argument("what", choices=("speed", "memory", "stub"))
    parser.add_argument("folder", nargs="?", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--models", type=Path, help="folder that keeps the model that is made")
    parser.add_argument("--photos", type=int, default=PHOTOS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--most", type=int, default=NUMBERS[-1])
    given = parser.parse_args()
    if given.what == "stub":
        run_stub(given.folder)
        return
    if given.what == "memory":
        head, lines = "# Memory of `segment image` against the number of photos", memory(given.most)
    else:
        head = "# `segment image` over a folder against the network alone"
        with tempfile.TemporaryDirectory() as scratch:
            folder = (given.models or Path(scratch)).resolve()
            folder.mkdir(parents=True, exist_ok=True)
            lines = speed(folder, given.photos, given.rounds)
        print("\n".join(lines))
    text = "\n".join([head, "", f"Made by `python -m benchmarks.folder {given.what}`, which says how.", "", *lines, ""])
    (RESULTS / f"folder-{given.what}.md").write_text(text)


if __name__ == "__main__":
    main()
