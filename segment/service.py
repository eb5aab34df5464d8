"""The pipeline shared by HTTP, bucket events and the command line: takes an image file and options, returns results.

To stay within the memory limit, the pipeline first reads the header, then plans and reserves the memory of the whole
request, and only then decodes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field

from PIL import Image

from segment import container, image
from segment.detections import Detections
from segment.engine.footprint import Footprint
from segment.errors import Cancelled, ModelError
from segment.formats import File, Format
from segment.loading import Batch, Loaded, load
from segment.memory import Budget, Reservation
from segment.options import Options
from segment.output.encoding import encode
from segment.plan import Plan, Size, plan, shows_photo
from segment.settings import Settings

CROWDED_SECONDS = 1.0
"""After a request has waited this long for memory, clients must not read results slowly. It waits for others, too."""


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
        self._loaded: Loaded | None = None
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
        options.class_indices(self.labels)

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
                files = self._encode(photo, found, planned, options, formats, watch)
                _hold(files, loaded.budget, until)
        if not planned.keep:
            del photo
            with watch.waiting(loaded.budget.reserve(planned.output_bytes, 0, cancelled)):
                picture = None
                if shows_photo(formats):
                    with watch("decode"):
                        picture = image.decode(data, header, planned.picture_size)
                files = self._encode(picture, found, planned, options, formats, watch)
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
        classes = options.class_indices(loaded.model.labels)
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
        """Read one header at a time: what that takes (image.header.HEADER_BYTES) is not reserved."""
        with self._reading:
            return image.read_header(data)

    def _load(self) -> Loaded:
        if self._loaded is None:
            with self._lock:
                if self._failure:
                    raise ModelError(self._failure)
                if self._loaded is None:
                    try:
                        self._loaded = load(self.settings, self._batch)
                    except ModelError as error:
                        self._failure = str(error)  # another attempt would fail in the same way
                        raise
        return self._loaded

    def _encode(
        self,
        photo: Image.Image | None,
        found: Detections,
        planned: Plan,
        options: Options,
        formats: Sequence[Format],
        watch: _Stopwatch,
    ) -> tuple[File, ...]:
        """Encode the results. `found` is in pixels of the full-size photo; `photo` may be smaller and is drawn on."""
        loaded = self._load()
        model = loaded.model
        about: dict[str, object] = {"model": model.name}
        if not model.fixed_size:
            about |= {"render_factor": planned.render_factor, "fit": options.fit}
        about["detail"] = planned.detail
        return encode(found, model.labels, formats, options, about, photo, planned.picture_size, watch, loaded.font)


def _hold(files: Sequence[File], budget: Budget, until: ExitStack | None) -> None:
    if until:
        until.enter_context(budget.hold(sum(len(file.body) for file in files)))
