"""The time of a request over HTTP on this machine: a JPEG of 1280 x 960 pixels to a JPEG overlay.

fp32 and int8 are served at the same time and requested in turns, so that other load on the machine affects both
equally. `network` is the network's time from the Server-Timing header. A cold start is the time from starting a new
process, with the compiled model in the cache, to the first response.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import requests

from benchmarks import models, serving
from benchmarks.serving import Server

PHOTO = (1280, 960)
WARM_UP, REQUESTS, COLD_STARTS = 3, 20, 3
RENDER_FACTOR = 25
SWEEP = (16, 25, 35, 50)


@dataclass(frozen=True)
class Latency:
    """Medians in milliseconds. `cpu_seconds`: CPU time of one request, of all processes, in user and kernel mode."""

    name: str
    precision: str
    render_factor: int
    request_ms: float
    network_ms: float
    ratio: float
    stages_ms: dict[str, float]
    cpu_seconds: float
    instances: int


@dataclass(frozen=True)
class ColdStart:
    """Seconds from starting the process to the response to the first photo, by stage; those of the median run.

    `start_seconds`: the interpreter, imports, the web server. `load_seconds`: the runtime, the compiled model, a first
    run that lays out the weights. `request_seconds`: the stages of the request. `peak_rss_mib`: until that response.
    """

    name: str
    precision: str
    seconds: float
    start_seconds: float
    load_seconds: float
    request_seconds: float
    peak_rss_mib: float


def measure(folder: Path, render_factor: int = RENDER_FACTOR) -> list[Latency]:
    """One row per kind of network, measured together."""
    photo = models.photo(PHOTO)
    walls: dict[str, list[float]] = {precision: [] for precision in models.NETWORKS}
    stages: dict[str, list[dict[str, float]]] = {precision: [] for precision in models.NETWORKS}
    spent: dict[str, list[float]] = {precision: [] for precision in models.NETWORKS}
    found: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        cache = stack.enter_context(tempfile.TemporaryDirectory())
        servers = {
            precision: stack.enter_context(serving.serving(_settings(precision, folder, cache)))
            for precision in models.NETWORKS
        }
        for number in range(WARM_UP + REQUESTS):
            for precision, server in servers.items():
                before, start = server.cpu_seconds(), time.perf_counter()
                answer = server.segment(photo, format="jpeg", render_factor=render_factor, **models.LOOK)
                wall = (time.perf_counter() - start) * 1000
                answer.raise_for_status()
                if number >= WARM_UP:
                    walls[precision].append(wall)
                    stages[precision].append(stage_times(answer))
                    spent[precision].append(server.cpu_seconds() - before)
                    found[precision] = int(answer.headers["Segment-Instances"])
    return [
        _row(precision, render_factor, walls[precision], stages[precision], spent[precision], found[precision])
        for precision in models.NETWORKS
    ]


def cold_start(precision: str, folder: Path) -> ColdStart:
    """The median time from starting the process to the first response, with the compiled model in the cache."""
    photo = models.photo(PHOTO)
    runs: list[tuple[float, float, float]] = []
    peaks: list[int] = []
    with tempfile.TemporaryDirectory() as cache:
        settings = _settings(precision, folder, cache)
        with serving.serving(settings):
            pass
        for _ in range(COLD_STARTS):
            start = time.perf_counter()
            with serving.serving(settings, until="") as server, serving.peak(partial(_resident, server)) as rss:
                answer = _first_answer(server, photo)
                seconds = time.perf_counter() - start
                runs.append((seconds, _load_seconds(server), sum(stage_times(answer).values()) / 1000))
            peaks.append(rss[0])
    whole, load, request = sorted(runs)[len(runs) // 2]
    return ColdStart(
        name=f"cold start {precision}",
        precision=precision,
        seconds=round(whole, 2),
        start_seconds=round(whole - load - request, 2),
        load_seconds=round(load, 2),
        request_seconds=round(request, 2),
        peak_rss_mib=round(median(peaks) / (1 << 20), 1),
    )


def _load_seconds(server: Server) -> float:
    """The time to load the model, from the log of the service."""
    entries = (json.loads(line) for line in server.log().splitlines() if line.startswith("{"))
    return next(float(entry["seconds"]) for entry in entries if entry["message"].startswith("Loaded the model"))


def _resident(server: Server) -> int:
    return server.usage().rss


def _first_answer(server: Server, photo: bytes) -> requests.Response:
    while server.process.poll() is None:
        with contextlib.suppress(requests.ConnectionError):
            answer = server.segment(photo, format="jpeg", render_factor=RENDER_FACTOR, **models.LOOK)
            answer.raise_for_status()
            return answer
        time.sleep(0.005)
    raise RuntimeError(f"The service ended:\n{server.log()}")


def _settings(precision: str, folder: Path, cache: str) -> dict[str, str]:
    return {"SEGMENT_MODEL": str(models.full_size(precision, folder)), "SEGMENT_CACHE": cache}


def stage_times(answer: requests.Response) -> dict[str, float]:
    """The milliseconds of each stage, as reported by the service."""
    return {name: float(ms) for name, ms in re.findall(r"(\w+);dur=([\d.]+)", answer.headers["Server-Timing"])}


def _row(
    precision: str,
    render_factor: int,
    walls: list[float],
    stages: list[dict[str, float]],
    spent: list[float],
    instances: int,
) -> Latency:
    network = median(one["network"] for one in stages)
    wall = median(walls)
    return Latency(
        name=f"R50-FPN {precision}, render factor {render_factor}",
        precision=precision,
        render_factor=render_factor,
        request_ms=round(wall, 1),
        network_ms=round(network, 1),
        ratio=round(wall / network, 2),
        stages_ms={name: round(median(one[name] for one in stages), 1) for name in stages[0]},
        cpu_seconds=round(sum(spent) / len(spent), 3),
        instances=instances,
    )
