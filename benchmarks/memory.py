"""The memory of the whole serving process in a cgroup with a limit: a 12 megapixel JPEG to an overlay.

Every row starts the service as the image does, with the compiled model in the cache, and sends the same photo three
times. The result is the memory that the kernel cannot reclaim: anonymous and shared memory of the cgroup, sampled every
few milliseconds. If it exceeded the limit, the kernel would kill the service.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks import cgroup, models, serving

MIB = 1 << 20
PHOTO = (4000, 3000)
REQUESTS = 3
INSTANCES = 100
"""The service's default of max_detections."""
LIMITS = {
    ("int8", 16, INSTANCES): 256,
    ("int8", 25, INSTANCES): 256,
    ("int8", 35, INSTANCES): 288,
    ("int8", 50, INSTANCES): 336,
    (models.THOROUGH, 16, INSTANCES): 272,
    (models.THOROUGH, 25, INSTANCES): 272,
    (models.THOROUGH, 35, INSTANCES): 304,
    (models.THOROUGH, 50, INSTANCES): 368,
    ("fp32", 16, INSTANCES): 480,
    ("fp32", 25, INSTANCES): 512,
    ("fp32", 35, INSTANCES): 544,
    ("fp32", 50, INSTANCES): 640,
}
"""(network, render factor, max_detections) -> the limit in MiB from which the search starts."""
SMALL = ("int8", 16, INSTANCES, 248)
"""A row at a limit in which the result is smaller than the photo."""
STEP = 8
"""Limits that are tried, in MiB, are multiples of this."""


@dataclass(frozen=True)
class Memory:
    """Peaks in MiB. `held_mib`: not reclaimable; `rss_mib`: including pages of files; `loaded_mib`: before requests."""

    name: str
    precision: str
    render_factor: int
    limit_mib: int
    statuses: list[int]
    picture: str
    loaded_mib: float
    held_mib: float
    rss_mib: float
    kills: int
    max_detections: int

    @property
    def accepted(self) -> bool:
        """Whether the response to every request was an overlay of the photo's size, and no process was killed."""
        return set(self.statuses) == {200} and self.picture == "{}x{}".format(*PHOTO) and not self.kills


def measure(precision: str, render_factor: int, max_detections: int, folder: Path) -> Memory:
    """Measure one row at the smallest limit at which such requests are accepted."""
    limit = LIMITS[precision, render_factor, max_detections]
    row = measure_at(precision, render_factor, max_detections, limit, folder)
    while not row.accepted:
        limit += STEP
        row = measure_at(precision, render_factor, max_detections, limit, folder)
    while (smaller := measure_at(precision, render_factor, max_detections, limit - STEP, folder)).accepted:
        limit, row = limit - STEP, smaller
    return row


def measure_at(precision: str, render_factor: int, max_detections: int, limit: int, folder: Path) -> Memory:
    """Measure at one limit in MiB. Without root and control groups, there is no limit, and shared pages count twice."""
    photo = models.photo(PHOTO)
    settings = {"SEGMENT_MODEL": str(models.full_size(precision, folder)), "SEGMENT_MEMORY": f"{limit}Mi"}
    loaded, held, rss = 0, [0], [0]
    with contextlib.ExitStack() as stack:
        settings["SEGMENT_CACHE"] = stack.enter_context(tempfile.TemporaryDirectory())
        with serving.serving(settings | {"SEGMENT_MEMORY": "8Gi"}):
            pass  # the compiled model is in the cache now
        group = None if cgroup.missing() else stack.enter_context(cgroup.group(limit * MIB))
        try:
            server = stack.enter_context(serving.serving(settings, group))
        except RuntimeError:
            answers = [503]  # refused: it does not fit into the limit
        else:
            held_now = group.held if group else lambda: server.usage().held
            loaded = held_now()
            with serving.peak(held_now) as held, serving.peak(lambda: server.usage().rss) as rss:
                look = models.LOOK | {"max_detections": max_detections}
                asked = {"format": "jpeg", "render_factor": render_factor, **look}
                responses = [server.segment(photo, **asked) for _ in range(REQUESTS)]
            answers = [response.status_code for response in responses]
        return Memory(
            name=f"{precision}, render factor {render_factor}, {max_detections} instances",
            precision=precision,
            render_factor=render_factor,
            limit_mib=limit,
            statuses=answers,
            picture=responses[-1].headers.get("Segment-Picture-Size", "") if loaded else "",
            loaded_mib=round(loaded / MIB, 1),
            held_mib=round(held[0] / MIB, 1),
            rss_mib=round(rss[0] / MIB, 1),
            kills=group.kills() if group else 0,
            max_detections=max_detections,
        )
