"""The pipeline shared by HTTP, bucket events and the command line: takes an image file and options, returns results.

To stay within the memory limit, the pipeline first reads the header, then plans and reserves the memory of the whole
request, and only then decodes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace

from PIL import Image

from segment import container, image, process
from segment.detections import Detections
from segment.engine.footprint import Footprint
from segment.errors import Cancelled, ModelError
from segment.formats import OVERLAY_FORMATS, File, Format
from segment.labels import class_indices, named
from segment.memory import Budget, Reservation, capacity
from segment.model import Model, from_settings, locate
from segment.options import Options
from segment.output import coco, overlay, pictures
from segment.plan import Constraints, Plan, Size, plan, shows_photo
from segment.resize import MAX_RENDER_FACTOR, pixels
from segment.settings import Settings

TRAFFIC_SHARE = 0.1
"""Share of the memory for requests that is set aside for received files, until their results are made."""
CROWDED_SECONDS = 1.0
"""After a request has waited this long for memory, clients must not read results slowly. It waits for others, too."""

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
class Result:
    """The result for one photo.

    `files`: one per requested format. Sizes are (width, height) in pixels; `picture_size` is smaller than `photo_size`
    if the result was reduced to fit the memory. `render_factor`: None if the network's input has a fixed size.
    `timings`: milliseconds by stage, in the order of the stages.
    """

    files: tuple[File, ...]
    instances: int
    photo_size: Size
    network_size: Size
    picture_size: Size
    render_factor: int | None
    detail: int
    timings: Mapping[str, float]


@dataclass
class _Stopwatch:
    """Measures milliseconds by stage. Raises Cancelled instead of starting a stage of a cancelled request."""

    cancelled: Callable[[], bool]
    timings: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        if self.cancelled():
            raise Cancelled
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[stage] = self.timings.get(stage, 0.0) + (time.perf_counter() - start) * 1000

    @contextmanager
    def waiting(self, reservation: AbstractContextManager[Reservation]) -> Iterator[None]:
        """Enter a reservation; the time until it is granted is measured as the stage "wait"."""
        with ExitStack() as stack:
            with self("wait"):
                stack.enter_context(reservation)
            yield


@dataclass(frozen=True)
class _Loaded:
    """A loaded model, and the budgets of the remaining memory."""

    model: Model
    budget: Budget
    traffic: Budget
    constraints: Constraints


class Service:
    """The pipeline with one model, which is loaded on first use. Thread-safe.

    By default, the network runs on one photo at a time, on all threads, which gives the shortest response times.
    `batch`: the only photos that will be segmented. Several of them are run at a time if that is faster; the results
    are the same.
    """

    def __init__(self, settings: Settings, batch: Batch | None = None) -> None:
        self.settings, self._batch = settings, batch
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._loaded: _Loaded | None = None
        self._failure = ""

    @property
    def ready(self) -> bool:
        """Whether the model is loaded."""
        return self._loaded is not None

    def load(self) -> None:
        """Load the model if it is not loaded. Raises ModelError."""
        self._load()

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names by index; loads the model."""
        return self._load().model.labels

    @property
    def model_name(self) -> str:
        """The model file's name without its extension; loads the model."""
        return self._load().model.name

    @property
    def model_digest(self) -> str:
        """A digest of the model's files and of the labels file; loads the model."""
        return self._load().model.digest

    @property
    def footprint(self) -> Footprint:
        """The memory that a run of the network takes; loads the model."""
        return self._load().model.footprint

    def check(self, options: Options) -> None:
        """Check the class names in `options`; loads the model. Raises OptionError, ModelError."""
        class_indices(named(options.classes, self.labels), self.labels)

    def describe(self) -> dict[str, object]:
        """The model's labels, size and memory, in bytes, for the page and for operators; loads the model."""
        loaded = self._load()
        model, constraints = loaded.model, loaded.constraints
        return {
            "name": model.name,
            "labels": list(model.labels),
            **asdict(model.footprint),
            "memory_limit": container.memory_limit(self.settings.memory),
            "memory_free": constraints.capacity,
            "largest_render_factor": None if model.fixed_size else constraints.largest_render_factor(),
            "milliseconds_per_megapixel": round(model.milliseconds_per_megapixel, 1),
        }

    @property
    def upload_limit(self) -> int:
        """Maximum bytes of a request body or a fetched photo; loads the model, as it depends on the memory left."""
        return min(self.settings.max_upload, self._load().traffic.capacity)

    def receive(self) -> AbstractContextManager[Reservation]:
        """A reservation for a received file: grow it as bytes arrive, and hold it until the results are made.

        Loads the model, as the budget depends on the memory left. Raises Busy, ModelError.
        """
        return self._load().traffic.reserve()

    @property
    def uploads_wait(self) -> bool:
        """Whether an upload waits for memory."""
        return self._loaded is not None and self._loaded.traffic.longest_wait() > 0

    @property
    def requests_wait(self) -> bool:
        """Whether a request has waited for memory for CROWDED_SECONDS."""
        return self._loaded is not None and self._loaded.budget.longest_wait() > CROWDED_SECONDS

    def segment(
        self,
        data: bytes,
        options: Options,
        formats: Sequence[Format] | None = None,
        until: ExitStack | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Result:
        """Detect the instances in the image file `data`, and encode them in `formats` (by default options.format).

        If the stack `until` is given, the memory of the results stays reserved until it is closed, for example while
        the response is sent. `cancelled` is called before each stage and each tile.

        Raises OptionError, UnsupportedImage, CorruptImage, TooLarge, Busy, ModelError, and Cancelled when `cancelled`
        returns True.
        """
        formats = tuple(formats or (options.format,))
        loaded, watch = self._load(), _Stopwatch(cancelled)
        with self._detected(data, options, formats, watch) as (header, planned, photo, found):
            if planned.keep:
                files = self._write(photo, found, planned, options, formats, watch)
                _hold(files, loaded.budget, until)
        if not planned.keep:
            del photo
            with watch.waiting(loaded.budget.reserve(planned.output_bytes, 0, cancelled)):
                picture = None
                if shows_photo(formats):
                    with watch("decode"):
                        picture = image.decode(data, header, planned.picture_size)
                files = self._write(picture, found, planned, options, formats, watch)
                _hold(files, loaded.budget, until)
        return Result(
            files=files,
            instances=len(found),
            photo_size=header.size,
            network_size=planned.network_size,
            picture_size=planned.picture_size,
            render_factor=None if loaded.model.fixed_size else planned.render_factor,
            detail=planned.detail,
            timings=watch.timings,
        )

    def annotate(
        self,
        data: bytes,
        options: Options,
        write: Callable[[Detections], Iterable[bytes]],
        until: ExitStack,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> list[bytes]:
        """Find the instances in the photo `data`, and return the pieces that `write` makes of them.

        `write` is given the instances in pixels of the photo. The memory of the pieces is reserved one by one and held
        until `until` is closed. Options of formats are not used. Raises what `segment` raises.
        """
        budget = self._load().budget
        with self._detected(data, options, ("json",), _Stopwatch(cancelled)) as (_, planned, photo, found):
            del photo
        pieces = []
        with budget.reserve(planned.output_bytes, 0, cancelled) as held:
            for piece in write(found):
                held.grow(len(piece))
                pieces.append(piece)
            until.enter_context(budget.hold(sum(map(len, pieces))))
        return pieces

    @contextmanager
    def _detected(
        self, data: bytes, options: Options, formats: Sequence[Format], watch: _Stopwatch
    ) -> Iterator[tuple[image.Header, Plan, Image.Image, Detections]]:
        """The photo's header, the plan of the request, the decoded photo, and the instances in the photo's pixels.

        The memory of the detection is reserved while the context runs.
        """
        loaded = self._load()
        classes = class_indices(named(options.classes, loaded.model.labels), loaded.model.labels)
        header = self._read_header(data)
        planned = plan(header, options, formats, loaded.constraints)
        with watch.waiting(loaded.budget.reserve(planned.own_bytes, planned.network_bytes, watch.cancelled)):
            with watch("decode"):
                photo = image.decode(data, header, planned.detect_size)
            with watch("network"):
                found = loaded.model.find(
                    photo,
                    planned.network_size,
                    options.min_score,
                    options.max_detections,
                    planned.detail,
                    classes,
                    self.settings.max_detections,
                    watch.cancelled,
                )
            yield header, planned, photo, found.at(header.size)

    def _read_header(self, data: bytes) -> image.Header:
        """Read one header at a time, because the metadata take memory before the plan can reserve any."""
        with self._reading:
            return image.read_header(data)

    def _load(self) -> _Loaded:
        if self._loaded is None:
            with self._lock:
                if self._failure:
                    raise ModelError(self._failure)
                if self._loaded is None:
                    try:
                        self._loaded = _load(self.settings, self._batch)
                    except ModelError as error:
                        self._failure = str(error)  # another attempt would fail in the same way
                        raise
        return self._loaded

    def _write(
        self,
        photo: Image.Image | None,
        found: Detections,
        planned: Plan,
        options: Options,
        formats: Sequence[Format],
        watch: _Stopwatch,
    ) -> tuple[File, ...]:
        """Encode the results. `found` is in pixels of the full-size photo; `photo` may be smaller and is drawn on."""
        labels, files = self.labels, dict[Format, File]()
        with watch("encode"):
            if "json" in formats:
                about: dict[str, object] = {"model": self.model_name}
                if not self._load().model.fixed_size:
                    about |= {"render_factor": planned.render_factor, "fit": options.fit}
                about["detail"] = planned.detail
                files["json"] = coco.coco(found, labels, options.segmentation, about)
            if "ids" in formats:
                files["ids"] = pictures.ids(found)
        if photo is None:
            return tuple(files[kind] for kind in formats)
        with watch("draw"):
            picture = photo if photo.size == planned.picture_size else image.resize(photo, planned.picture_size)
        found = found.at(planned.picture_size)
        if "cutouts" in formats:
            with watch("encode"):
                files["cutouts"] = pictures.cutouts(picture, found, labels)
        if wanted := [kind for kind in OVERLAY_FORMATS if kind in formats]:
            with watch("draw"):
                shown = {"masks": options.masks, "boxes": options.boxes, "text": options.labels}
                overlay.draw(picture, found, labels, colours=options.colours, **shown)
            for kind in wanted:
                with watch("encode"):
                    files[kind] = pictures.picture(picture, kind)
        return tuple(files[kind] for kind in formats)


def _hold(files: Sequence[File], budget: Budget, until: ExitStack | None) -> None:
    if until:
        until.enter_context(budget.hold(sum(len(file.body) for file in files)))


def _expected(settings: Settings, file_bytes: int) -> int:
    """The memory in bytes that a loaded service is expected to hold. `file_bytes`: size of the model's files."""
    return EXPECTED_BYTES[settings.engine] + int(EXPECTED_PER_FILE_BYTE * file_bytes)


def _model(settings: Settings, batch: Batch | None) -> Model:
    if not batch:
        return from_settings(settings)

    def streams(footprint: Footprint) -> int:
        expected = _expected(settings, locate(settings).stat().st_size)
        room = int(capacity(container.memory_limit(settings.memory), expected) * (1 - TRAFFIC_SHARE))
        return batch.streams(settings.threads or container.cpus(), room, settings.max_detections, footprint)

    return from_settings(settings, streams=streams)


def _load(settings: Settings, batch: Batch | None) -> _Loaded:
    start = time.perf_counter()
    process.configure_malloc()
    process.limit_blas_threads()
    if batch and batch.jobs > 1:
        image.reuse_memory()
    model = _model(settings, batch)
    limit = container.memory_limit(settings.memory)
    room = capacity(limit, container.held())
    traffic = int(room * TRAFFIC_SHARE)
    expected = _expected(settings, model.file_bytes)
    constraints = Constraints(
        capacity=room - traffic,
        auto_capacity=int(capacity(limit, expected) * (1 - TRAFFIC_SHARE)),
        run=model.footprint,
        network_size=model.network_size,
        mask_bytes=model.engine.mask_bytes,
        max_detections=settings.max_detections,
        detail_pixels=settings.detail_megapixels * 1e6,
    )
    kept = model.footprint.kept
    budget = Budget(constraints.capacity, settings.queue, settings.wait_seconds, model.release, kept, model.streams)
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
            (capacity(limit, expected) - room) >> 20,
            model.name,
        )
    seconds = round(time.perf_counter() - start, 3)
    log.info(
        "Loaded the model %s",
        model.name,
        extra={"seconds": seconds, "memory_limit": limit, "memory_free": room, "streams": model.streams},
    )
    return _Loaded(model, budget, Budget(traffic, settings.queue, settings.wait_seconds), constraints)
