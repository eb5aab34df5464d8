"""Time and memory of PointRend compared with Mask R-CNN, measured in one run.

Both have a ResNet-50 with FPN and 80 classes, the zoo's shapes, and find 20 instances at render factor 25. Both are
served at the same time and requested in turns, so that other load on the machine affects both equally. Then each is
started alone and its memory is sampled during requests with a photo of 12 megapixels.

The ratio depends on where a hypervisor places the virtual CPUs. PointRend's point head has many small operators, each
split between the threads, which read each other's results. If two CPUs do not share an L3 cache, these reads cost as
much as the second thread saves. A machine can change between both states within minutes.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import latency, memory, models, serving

NAMES = {"Mask R-CNN": models.FULL_SIZE, "PointRend": models.POINTREND}
REQUESTS = 20


@dataclass(frozen=True)
class Rendering:
    """Medians in milliseconds, and the peak in MiB of memory that the kernel cannot reclaim.

    `cpu_seconds`: of one request. `times`: request, network, CPU time and memory relative to Mask R-CNN's.
    """

    name: str
    precision: str
    request_ms: float
    network_ms: float
    cpu_seconds: float
    held_mib: float
    times: tuple[float, float, float, float]


def measure(precision: str, folder: Path) -> list[Rendering]:
    """A row for each of NAMES; the others are compared with the first."""
    figures: dict[str, tuple[float, float, float, float]] = {}
    with tempfile.TemporaryDirectory() as cache:
        settings = {
            name: {"SEGMENT_MODEL": str(models.full_size(precision, folder, zoo_name)), "SEGMENT_CACHE": cache}
            for name, zoo_name in NAMES.items()
        }
        times = _times(settings)
        for name, own in settings.items():
            figures[name] = (*times[name], _held(own) / memory.MIB)
    first = next(iter(figures.values()))
    return [
        Rendering(
            f"{name} {precision}",
            precision,
            round(request, 1),
            round(network, 1),
            round(cpu, 3),
            round(held, 1),
            (
                round(request / first[0], 2),
                round(network / first[1], 2),
                round(cpu / first[2], 2),
                round(held / first[3], 2),
            ),
        )
        for name, (request, network, cpu, held) in figures.items()
    ]


def _times(settings: Mapping[str, Mapping[str, str]]) -> dict[str, tuple[float, float, float]]:
    """By name: milliseconds of a request and of the network, and CPU seconds of a request."""
    photo = models.photo(latency.PHOTO)
    walls: dict[str, list[tuple[float, float, float]]] = {name: [] for name in settings}
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(serving.serving(own)) for name, own in settings.items()}
        for number in range(latency.WARM_UP + REQUESTS):
            for name, server in servers.items():
                before, start = server.cpu_seconds(), time.perf_counter()
                answer = server.segment(photo, format="jpeg", render_factor=latency.RENDER_FACTOR, **models.LOOK)
                wall = (time.perf_counter() - start) * 1000
                answer.raise_for_status()
                assert answer.headers["Segment-Instances"] == "20"
                if number >= latency.WARM_UP:
                    walls[name].append((wall, latency.stage_times(answer)["network"], server.cpu_seconds() - before))
    return {
        name: (
            median(wall for wall, _, _ in rows),
            median(network for _, network, _ in rows),
            median(cpu for _, _, cpu in rows),
        )
        for name, rows in walls.items()
    }


def _held(settings: Mapping[str, str]) -> int:
    photo = models.photo(memory.PHOTO)
    with serving.serving(settings) as server, serving.peak(lambda: server.usage().held) as held:
        for _ in range(memory.REQUESTS):
            server.segment(photo, format="jpeg", render_factor=latency.RENDER_FACTOR, **models.LOOK).raise_for_status()
    return held[0]
