"""Run benchmarks and write the results to benchmarks/results.

    python -m benchmarks                        everything
    python -m benchmarks accuracy memory        some of accuracy, families, memory, latency, rendering, original

Each row is measured in its own process. Existing results of other benchmarks are kept. `--models FOLDER` keeps the
generated models for later runs, because generating them takes minutes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import accuracy, latency, memory, models, original, rendering, report
from segment import convert

Row = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function that returns a dataclass or a list of them, and its arguments."""


def accuracy_rows(folder: Path) -> Iterator[Row]:
    """AP at the original size in both precisions, by render factor for both fits, and by number of proposals."""
    for precision in models.PRECISIONS:
        yield accuracy.measure, (models.demo(precision, folder), precision)
    for factor in accuracy.FACTORS:
        for fit in ("aspect", "square"):
            yield accuracy.measure, (models.demo("fp32", folder), "fp32", fit, factor)
    for proposals in (models.ALL_PROPOSALS, convert.INT8_PROPOSALS, 100):
        yield accuracy.measure_crowds, (models.demo_with(proposals, folder), proposals)


def family_rows(folder: Path) -> Iterator[Row]:
    """AP of the demo model and of other families trained on the same scenes, in both precisions."""
    for precision in models.PRECISIONS:
        yield accuracy.measure_family, (models.demo(precision, folder), "Mask R-CNN (the demo)", precision)
        for name, title in models.FAMILIES.items():
            yield accuracy.measure_family, (models.family(name, precision, folder), title, precision)


def rendering_rows(folder: Path) -> Iterator[Row]:
    """PointRend compared with Mask R-CNN, in both precisions."""
    for precision in models.PRECISIONS:
        for name in rendering.NAMES.values():
            models.full_size(precision, folder, name)
        yield rendering.measure, (precision, folder)


def memory_rows(folder: Path) -> Iterator[Row]:
    """The smallest limit for each precision and render factor, and what a smaller one allows."""
    for precision, factor, instances in memory.LIMITS:
        models.full_size(precision, folder)
        yield memory.measure, (precision, factor, instances, folder)
    yield memory.measure_at, (*memory.SMALL, folder)


def latency_rows(folder: Path) -> Iterator[Row]:
    """Warm requests by render factor, then cold starts."""
    for precision in models.NETWORKS:
        models.full_size(precision, folder)
    for factor in latency.SWEEP:
        yield latency.measure, (folder, factor)
    for precision in models.NETWORKS:
        yield latency.cold_start, (precision, folder)


def original_rows(folder: Path) -> Iterator[Row]:
    """The original approach, then the service, measured right after it. No rows without detectron2."""
    if not original.python():
        tqdm.write("original: left out, detectron2 cannot be imported (BENCH_DETECTRON2_PYTHON names another Python)")
        return
    models.full_size("int8", folder)
    checkpoint, photo = models.full_size_checkpoint(folder), folder / "photo.jpg"
    photo.write_bytes(models.photo(latency.PHOTO))
    yield original.measure, (models.full_size_config(folder), checkpoint, photo, folder)
    yield latency.measure, (folder,)
    yield latency.cold_start, ("int8", folder)


SUITES = {
    "accuracy": accuracy_rows,
    "families": family_rows,
    "memory": memory_rows,
    "latency": latency_rows,
    "rendering": rendering_rows,
    "original": original_rows,
}


def main() -> None:
    """Run the benchmarks named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure, and write benchmarks/results.")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; without any, all")
    parser.add_argument("--models", type=Path, help="folder that keeps the models that are made")
    arguments = parser.parse_args()
    if unknown := set(arguments.suites) - set(SUITES):
        parser.error(f"there is no suite {', '.join(unknown)}; there are {', '.join(SUITES)}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.models or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for suite in arguments.suites or SUITES:
            load = os.getloadavg()[0]
            rows = [
                row for function, given in tqdm(list(SUITES[suite](folder)), suite) for row in _fresh(function, given)
            ]
            if rows:
                report.save(suite, rows, load)
    report.write()


def _fresh(function: Callable[..., Any], arguments: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Call a function in a new process and return its rows."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        answer = process.submit(function, *arguments).result()
    return [asdict(row) for row in (answer if isinstance(answer, list) else [answer])]


if __name__ == "__main__":
    main()
