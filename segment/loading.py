"""Load the model of a service, and divide the memory that is left between received files and requests."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace

from segment import container, image, process
from segment.engine.footprint import Footprint
from segment.errors import ModelError, OptionError
from segment.memory import Budget, capacity
from segment.model import Model, from_settings, locate
from segment.options import Options
from segment.output.font import Font, open_font
from segment.plan import Constraints
from segment.resize import MAX_RENDER_FACTOR, pixels
from segment.settings import Settings

TRAFFIC_SHARE = 0.1
"""Share of the memory for requests that is set aside for received files, until their results are made."""

EXPECTED_BYTES = {"openvino": 96 << 20, "detectron2": 640 << 20}
EXPECTED_PER_FILE_BYTE = 1.25
"""Memory that a loaded service is expected to hold: a constant per engine, and per byte of the model's files. A little
more than measured. `auto` plans with it, because the memory that a process really holds varies between processes."""

PHOTO_BYTES = 64 << 20
"""Memory of a photo that is processed beside others, with which the number of streams is chosen: an overlay of 12
megapixels. Larger photos are processed too, but then fewer at the same time."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """Many photos with the same options, of which `jobs` are processed at a time."""

    options: Options
    jobs: int

    def streams(self, threads: int, room: int, max_detections: int, footprint: Footprint) -> int:
        """The number of runs of the network at a time, each on an equal share of the `threads`.

        Runs side by side take less CPU time than one run on all threads. There are as many as threads, or as fit into
        `room` bytes; 1 if the options run the network several times per photo (see Budget).
        """
        if self.options.detail != 1:
            return 1
        run = footprint.run_bytes(pixels(self.options.render_factor or MAX_RENDER_FACTOR), max_detections)
        counts = (count for count in range(min(threads, self.jobs), 1, -1) if threads % count == 0)
        return next((count for count in counts if count * run + (count + 1) * PHOTO_BYTES <= room), 1)


@dataclass(frozen=True)
class Loaded:
    """A loaded model, and the budgets of the remaining memory. `font`: for names that the built-in fonts lack."""

    model: Model
    budget: Budget
    traffic: Budget
    constraints: Constraints
    font: Font | None = None


def load(settings: Settings, batch: Batch | None) -> Loaded:
    """Load the model and the font that the settings name.

    Raises ModelError, also if too little memory is left for any run.
    """
    start = time.perf_counter()
    process.configure_malloc()
    process.limit_blas_threads()
    if batch and batch.jobs > 1:
        image.reuse_memory()
    font = _font(settings)
    model = _model(settings, batch)
    limit = container.memory_limit(settings.memory)
    held = container.held()
    if model.streams > 1:
        process.keep_blocks()
        held += process.KEPT_BYTES
    room = capacity(limit, held)
    traffic = int(room * TRAFFIC_SHARE)
    expected = capacity(limit, _expected(settings, model.file_bytes))
    constraints = _constraints(settings, model, room - traffic, int(expected * (1 - TRAFFIC_SHARE)))
    if not replace(constraints, max_detections=1).largest_render_factor():
        raise ModelError(
            f"With the model {model.name} loaded, {room >> 20} MiB of this instance's {limit >> 20} MiB are left, too "
            "little for the smallest render factor. Give the instance more memory (SEGMENT_MEMORY), or use a smaller "
            "or int8 model."
        )
    if model.streams == 1 and constraints.for_auto.capacity < (constraints.auto_capacity or 0):
        log.warning(
            "This process holds %d MiB more than expected for the model %s. render_factor=auto may choose a smaller "
            "value than in other processes.",
            (expected - room) >> 20,
            model.name,
        )
    queue, wait = settings.queue, settings.wait_seconds
    budget = Budget(constraints.capacity, queue, wait, model.release, model.footprint.kept, model.streams)
    fields = {"memory_limit": limit, "memory_free": room, "streams": model.streams}
    log.info("Loaded the model %s", model.name, extra={"seconds": round(time.perf_counter() - start, 3), **fields})
    return Loaded(model, budget, Budget(traffic, queue, wait), constraints, font)


def _font(settings: Settings) -> Font | None:
    try:
        return open_font(settings.font) if settings.font else None
    except OptionError as error:
        raise ModelError(f"SEGMENT_FONT: {error}") from None


def _constraints(settings: Settings, model: Model, room: int, auto_room: int) -> Constraints:
    """What requests are planned with, in `room` bytes; `auto_room` for automatic options."""
    return Constraints(
        capacity=room,
        auto_capacity=auto_room,
        run=model.footprint,
        network_size=model.network_size,
        mask_bytes=model.engine.mask_bytes,
        max_detections=settings.max_detections,
        detail_pixels=settings.detail_megapixels * 1e6,
    )


def _model(settings: Settings, batch: Batch | None) -> Model:
    """The model. For a batch, it has as many streams as are fastest and fit into the memory."""
    if not batch:
        return from_settings(settings)

    def streams(footprint: Footprint) -> int:
        expected = _expected(settings, locate(settings).stat().st_size)
        held = expected + process.KEPT_BYTES
        room = int(capacity(container.memory_limit(settings.memory), held) * (1 - TRAFFIC_SHARE))
        return batch.streams(settings.threads or container.cpus(), room, settings.max_detections, footprint)

    return from_settings(settings, streams=streams)


def _expected(settings: Settings, file_bytes: int) -> int:
    """The memory in bytes that a loaded service is expected to hold. `file_bytes`: size of the model's files."""
    return EXPECTED_BYTES[settings.engine] + int(EXPECTED_PER_FILE_BYTE * file_bytes)
