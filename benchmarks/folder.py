"""`segment image` on a folder: photos per second compared with the network alone, and memory by number of photos.

    python -m benchmarks.folder speed [--models FOLDER] [--photos N] [--rounds N]
    python -m benchmarks.folder memory [--most N]
    python -m benchmarks.folder video [--most N]

*Speed*: Mask R-CNN R50-FPN at render factor 25 with 20 instances per photo, as in the other benchmarks; photos of
1280 x 960. "The network alone" runs it on decoded pixels in memory, one photo after the other, on all CPUs, as the
service does. "Runs side by side" are one run per CPU at the same time, each on one thread, as in a folder run. All runs
are measured in turns, and each is compared with the network alone of the same turn, because other processes may use
the CPUs as well. Decoding, drawing and encoding use the same CPUs as the network.

*Memory*: photos of 32 x 32 pixels (one file with many names) in one folder, or videos of 320 x 240, and a stub engine
that returns one instance for each, so that only the memory of the run is measured. COCO and Parquet datasets are
written for photos; Parquet keeps up to 10,000 rows in memory, which is most of the growth. For a video, a COCO dataset
and the overlay video are written. Each row is measured in its own process.
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import models
from segment import image, loading
from segment.container import cpus, peak
from segment.dataset import run
from segment.dataset.job import Dataset, Job
from segment.dataset.video import Writer
from segment.detections import Detections
from segment.engine import Engine
from segment.engine.footprint import Footprint
from segment.formats import Format
from segment.mask import Mask
from segment.model import Model, from_settings
from segment.options import Options
from segment.service import Service
from segment.settings import Settings

RESULTS = Path(__file__).parent / "results"
SIZE, PHOTOS, ROUNDS = (1280, 960), 60, 3
NUMBERS = (100, 1_000, 10_000, 100_000)
FRAMES = (100, 1_000, 3_000)
ALONE, SIDE_BY_SIDE = "the network alone", "the network alone, runs side by side"
WAYS: dict[str, tuple[tuple[Format, ...], tuple[Dataset, ...]]] = {
    "COCO dataset": ((), ("coco",)),
    "COCO and Parquet datasets": ((), ("coco", "parquet")),
    "JPEG overlays": (("jpeg",), ()),
    "WebP overlays": (("webp",), ()),
    "PNG overlays": (("png",), ()),
}


# Speed


def speed(precision: str, folder: Path, count: int, rounds: int) -> list[str]:
    """The table of photos per second; `precision`: fp32 or int8."""
    settings = Settings.from_environment({"SEGMENT_MODEL": str(models.full_size(precision, folder))})
    options = Options.parse({name: str(value) for name, value in models.LOOK.items()}, settings)
    batch = run.batch([folder], options)
    whole = Service(settings, batch)
    whole.load()
    model = from_settings(settings)
    several = from_settings(settings, streams=lambda _: cpus())
    with tempfile.TemporaryDirectory() as scratch:
        photos = Path(scratch)
        for number in range(count):
            (photos / f"{number:03}.jpg").write_bytes(models.photo(SIZE, number))
        pixels = [_pixels(model, file.read_bytes()) for file in sorted(photos.iterdir())]

        def find(engine: Engine, one: NDArray[np.uint8]) -> None:
            engine(one, float(models.LOOK["min_score"]), int(models.LOOK["max_detections"]))

        def alone() -> None:
            for one in pixels:
                find(model.engine, one)

        def side_by_side() -> None:
            with ThreadPoolExecutor(several.streams) as pool:
                list(pool.map(lambda one: find(several.engine, one), pixels))

        def folder_run(formats: tuple[Format, ...], datasets: tuple[Dataset, ...]) -> None:
            with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
                if run.run([photos], Job(Path(out), options, formats, datasets), whole, batch.jobs):
                    raise RuntimeError("A photo failed.")

        ways: dict[str, Callable[[], None]] = {ALONE: alone, SIDE_BY_SIDE: side_by_side}
        ways |= {name: lambda way=way: folder_run(*way) for name, way in WAYS.items()}  # type: ignore[misc]
        for way in list(ways.values())[:3]:  # warm up
            way()
        measured: dict[str, list[_Times]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                measured[name].append(_timed(way))
    return _speed_table(precision, measured, count)


@dataclass(frozen=True)
class _Times:
    """Seconds and CPU seconds of a run."""

    wall: float
    cpu: float

    @property
    def busy(self) -> float:
        """The share of the CPUs' time, 0 to 1."""
        return self.cpu / self.wall / cpus()


def _timed(way: Callable[[], None]) -> _Times:
    start, cpu = time.perf_counter(), time.process_time()
    way()
    return _Times(time.perf_counter() - start, time.process_time() - cpu)


def _pixels(model: Model, data: bytes) -> NDArray[np.uint8]:
    header = image.read_header(data)
    size = model.network_size(header.size, 25, "aspect")
    return np.asarray(image.resize(image.decode(data, header, size), size))


def _speed_table(precision: str, measured: dict[str, list[_Times]], count: int) -> list[str]:
    lines = [
        f"| {precision} | photos per second | of the network alone | of runs side by side | CPUs busy "
        "| CPU ms per photo |",
        "|---|---|---|---|---|---|",
    ]
    for name, times in measured.items():
        rate = count / statistics.median(one.wall for one in times)
        ratio, best = (
            statistics.median(one.wall / other.wall for one, other in zip(measured[base], times, strict=True))
            for base in (ALONE, SIDE_BY_SIDE)
        )
        busy, cpu = (statistics.median(values) for values in zip(*((one.busy, one.cpu) for one in times), strict=True))
        cells = f"{rate:.2f}", f"{ratio:.0%}", f"{best:.0%}", f"{busy:.0%}", f"{cpu / count * 1000:.0f}"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


# Memory


class Stub:
    """An engine that takes no time."""

    labels, stride, footprint, streams = ("thing",), 32, Footprint(0, 0), 1

    def input_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """None: any size is accepted."""
        return None

    def mask_bytes(self, size: tuple[int, int]) -> int:
        """The size of 28 x 28 probabilities."""
        return 28 * 28 * 4

    def release(self) -> None:
        """Do nothing: no memory is kept."""

    def __call__(self, pixels: NDArray[np.uint8], min_score: float, max_detections: int) -> Detections:
        """One instance in the middle."""
        height, width = pixels.shape[:2]
        box = width / 4, height / 4, 3 * width / 4, 3 * height / 4
        mask = Mask(np.ones((28, 28), np.float32), box, box)
        scores, classes = np.array([0.9], np.float32), np.array([0], np.int64)
        return Detections(np.array([box], np.float32), scores, classes, (mask,), (width, height))


def stub_service(settings: Settings) -> Service:
    """A service that has loaded the stub instead of a model."""
    service = Service(settings)
    with patch.object(loading, "from_settings", lambda settings: Model("stub", Stub())):
        service.load()
    if service.model_name != "stub":
        raise RuntimeError(f"The service has loaded {service.model_name}, not the stub.")
    return service


def run_stub(folder: Path, formats: tuple[Format, ...]) -> None:
    """Segment a folder with the stub, and print this process's peak memory in bytes, at the end and before the run."""
    settings = Settings.from_environment({"SEGMENT_RENDER_FACTOR": "4"})
    whole = stub_service(settings)
    start = peak()
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        datasets: tuple[Dataset, ...] = ("coco",) if formats else ("coco", "parquet")
        jobs = cpus() + 1
        failed = run.run([folder], Job(Path(out), Options.defaults(settings), formats, datasets), whole, jobs)
    if failed:
        raise RuntimeError("A photo failed.")
    print(peak(), start)


def memory(most: int) -> list[str]:
    """The table of memory by number of photos."""
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
                    first = folder / f"{name:07}.jpg"  # file systems limit the number of hard links to a file
            made = number
            lines.append(_memory_row(number, folder))
    return lines


def video(most: int) -> list[str]:
    """The table of memory by length of the video."""
    lines = ["| frames of a video | largest resident memory, MiB | of it, before the run | s |", "|---|---|---|---|"]
    for number in (number for number in FRAMES if number <= most):
        with tempfile.TemporaryDirectory() as folder:
            _write_video(Path(folder) / "clip.mp4", number)
            lines.append(_memory_row(number, Path(folder), "jpeg"))
    return lines


def _memory_row(number: int, folder: Path, *formats: str) -> str:
    start = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.folder", "stub", str(folder), *formats]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    largest, before = (int(word) / (1 << 20) for word in answer.split())
    row = f"| {number:,} | {largest:.0f} | {before:.0f} | {time.perf_counter() - start:.0f} |"
    print(row, flush=True)
    return row


def _write_video(path: Path, frames: int) -> None:
    """A video in which a square moves."""
    background = Image.effect_noise((320, 240), 40).convert("RGB")
    with Writer(path) as writer:
        for number in range(frames):
            picture = background.copy()
            picture.paste("red", (number % 280, 100, number % 280 + 40, 140))
            buffer = io.BytesIO()
            picture.save(buffer, "BMP")
            writer.add(Fraction(number, 30), buffer.getvalue())


def _copy(one: Path, other: Path) -> None:
    other.write_bytes(one.read_bytes())


def main() -> None:
    """Run the benchmark named on the command line, print its table and write it to benchmarks/results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.folder", description="segment image over a folder.")
    parser.add_argument("what", choices=("speed", "memory", "video", "stub"))
    parser.add_argument("folder", nargs="?", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("formats", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--models", type=Path, help="folder that keeps the model that is made")
    parser.add_argument("--photos", type=int, default=PHOTOS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--most", type=int, default=NUMBERS[-1])
    given = parser.parse_args()
    if given.what == "stub":
        run_stub(given.folder, tuple(given.formats))
        return
    if given.what == "memory":
        head, lines = "# Memory of `segment image` against the number of photos", memory(given.most)
    elif given.what == "video":
        head, lines = "# Memory of `segment image` against the length of a video", video(given.most)
    else:
        head = "# `segment image` over a folder against the network alone"
        with tempfile.TemporaryDirectory() as scratch:
            folder = (given.models or Path(scratch)).resolve()
            folder.mkdir(parents=True, exist_ok=True)
            load = os.getloadavg()[0]
            tables = [speed(precision, folder, given.photos, given.rounds) for precision in models.PRECISIONS]
        about = f"{given.photos} photos, {cpus()} CPUs, load {load:.1f} before; medians of {given.rounds} turns."
        lines = [about, "", *tables[0], "", *tables[1]]
        print("\n".join(lines))
    made = f"Made by `python -m benchmarks.folder {given.what}` (see its docstring)."
    text = "\n".join([head, "", made, "", *lines, ""])
    (RESULTS / f"folder-{given.what}.md").write_text(text)


if __name__ == "__main__":
    main()
