"""Process one photo of a bucket or a folder: read it, segment it, write its results exactly once.

Reading, running the network and writing overlap for different photos. Until the results are written, the photo's file
is reserved in the budget for received bytes, and the results in the budget for requests (segment/service.py), so that
memory is bounded for any number of concurrent photos. results.py defines the results and when they are made again,
refusal.py when a photo that was refused is tried again, and target.py writes both.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, Literal

from segment import container
from segment.bucket.refusal import Limits, NameTooLong, SourceRefused, is_final
from segment.bucket.results import ERROR_NAME, Results, Run, folder_of, in_order, origin
from segment.bucket.store import Location, Object, Store
from segment.bucket.target import Target
from segment.bucket.turns import turn
from segment.errors import Busy, Cancelled, RequestError, StorageError, StorageRefused, TooLarge
from segment.formats import FORMATS
from segment.memory import Reservation
from segment.options import Options
from segment.service import Result, Service

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Number of attempts when another process writes results of a different run at the same time."""
DONE: Final = "done before"
"""The kind of outcome of a photo that has its results already."""


@dataclass(frozen=True)
class Outcome:
    """The outcome for one object.

    `reason`: why it was refused, or why its error.json could not be written. `document`: the JSON result, if the object
    was segmented now and JSON is among the formats. `existing`: the results, if it was done before.
    """

    kind: Literal["segmented", "done before", "gone", "refused", "lost"]
    instances: int | None = None
    reason: str = ""
    document: bytes | None = None
    existing: Results | None = None

    @property
    def failed(self) -> bool:
        """Whether the photo cannot be segmented."""
        return self.kind in ("refused", "lost")


def segment_object(
    service: Service,
    source: Store,
    item: Object,
    results: Location,
    deadline: float = math.inf,
    existing: Results | None = None,
    options: Options | None = None,
) -> Outcome:
    """Segment one generation of an object and write the missing ones of its results in `results`. Logs the outcome.

    `existing`: the object's existing results; if None, they are listed, which is one call. `options`: by default those
    of the settings. After `deadline` (time.monotonic()), no stage is started and waiting ends. Calls of stores have
    their own deadline.

    Raises StorageError, Busy or ModelError if a retry may succeed, StorageRefused if results can be neither listed nor
    written, or for an object with a `problem`.
    """
    if item.problem:
        raise StorageRefused(item.problem)
    start = time.perf_counter()
    options = options or Options.defaults(service.settings)
    target = Target(results.store, folder_of(results.prefix, item), origin(source.address, item))
    photo = _Photo(service, source, item, target, deadline, options)
    outcome = photo.segment(existing)
    levels = {"refused": logging.WARNING, "lost": logging.ERROR}
    level = levels.get(outcome.kind, logging.INFO)
    message = f"{item.name}: {outcome.kind}" + (f": {outcome.reason}" if outcome.reason else "")
    fields: dict[str, object] = {"milliseconds": round((time.perf_counter() - start) * 1000, 1)}
    if outcome.instances is not None:
        fields["instances"] = outcome.instances
    log.log(level, message, extra=describe(source, item) | fields)
    return outcome


def is_done(service: Service, destination: Store, existing: Results, options: Options | None = None) -> bool:
    """Whether a photo with these `existing` results is finished. `options`: see segment_object."""
    if existing.complete(_file_names(service)):
        return True
    limits = Limits.of(service, options or Options.defaults(service.settings))
    return any(is_final(destination, error, limits) for error in reversed(existing.errors))


def read_photo(
    service: Service, source: Store, item: Object, held: ExitStack, seconds: float = math.inf
) -> bytes | None:
    """The content of an object; None if it no longer exists. Its memory is reserved until `held` is closed.

    Waits at most `seconds` for that memory. Raises TooLarge, CorruptImage, Busy, StorageError.
    """
    return read_into(held.enter_context(service.receive()), source, item, service.upload_limit, seconds)


def read_into(held: Reservation, source: Store, item: Object, limit: int, seconds: float | None = None) -> bytes | None:
    """The content of an object of at most `limit` bytes, for which `held` grows; None if it no longer exists.

    `seconds`, and errors: as of `read_photo`; by default, it waits as long as `held` does.
    """
    reserved = min(limit if item.size is None else item.size, limit)
    held.grow(reserved, seconds)
    data = source.read(item, limit)
    if data is not None and len(data) > reserved:  # it was stored compressed
        held.grow(len(data) - reserved, seconds)
    return data


def _file_names(service: Service) -> Sequence[str]:
    return [FORMATS[kind].file_name for kind in service.settings.output_formats]


def describe(source: Store, item: Object) -> dict[str, object]:
    """The fields of a log entry about an object."""
    return {
        "object": f"{source.address}/{item.name}",
        "generation": str(item.generation),
        "peak_memory": container.peak(),
    }


@dataclass(frozen=True)
class _Photo:
    """One generation of an object, and the place for its results."""

    service: Service
    source: Store
    item: Object
    target: Target
    deadline: float
    options: Options

    def segment(self, existing: Results | None = None) -> Outcome:
        """Segment the photo if it is not finished. `existing`: see segment_object."""
        try:
            self.target.check_name(ERROR_NAME)
        except NameTooLong as error:
            return Outcome("lost", reason=str(error))
        # Four deliveries at once do the work once: three wait, and then find the results.
        with turn(self.target.address, self._wait_seconds()):
            for _ in range(ATTEMPTS):
                existing = existing or self.target.find()
                if is_done(self.service, self.target.store, existing, self.options):
                    return Outcome(DONE, existing=existing)
                if outcome := self._make(existing):
                    return outcome
                existing = None
        raise StorageError(f"Results of {self.item.name} made with other settings were written at the same time.")

    def _late(self) -> bool:
        return time.monotonic() > self.deadline

    def _wait_seconds(self) -> float:
        """Maximum time to wait for memory or for another delivery of the same photo."""
        return min(self.service.settings.wait_seconds, max(self.deadline - time.monotonic(), 0.0))

    def _make(self, existing: Results) -> Outcome | None:
        """Segment the photo and write the missing results; None if another process wrote results of another run."""
        service, target = self.service, self.target
        with ExitStack() as held:
            try:
                target.check_name(max(_file_names(service), key=len))
                data = self._read(held)
                if data is None:
                    return Outcome("gone")
                result, options, replaces = self._run(data, existing, held)
            except Cancelled:
                raise Busy("The time limit of this delivery was reached before the photo was segmented.", 5) from None
            except (RequestError, SourceRefused) as error:
                target.write_error(error, Limits.of(service, self.options), existing)
                return Outcome("refused", reason=str(error))
            del data
            run = Run.of(service.model_name, service.model_digest, options, result.render_factor, result.detail)
            if replaces:
                target.delete(existing)
            missing = [file for file in in_order(result.files) if replaces or file.name not in existing.files]
            if not all(target.write(file, run) for file in missing):
                return None
        target.delete_errors(existing)  # where it fails, they are ignored, as results exist
        documents = [file.body for file in result.files if file.name == FORMATS["json"].file_name]
        return Outcome("segmented", result.instances, document=documents[0] if documents else None)

    def _read(self, held: ExitStack) -> bytes | None:
        """Read the photo's file, with its memory reserved until `held` is closed; None if it no longer exists."""
        try:
            return read_photo(self.service, self.source, self.item, held, self._wait_seconds())
        except StorageRefused as error:
            raise SourceRefused(str(error)) from error

    def _run(self, data: bytes, existing: Results, held: ExitStack) -> tuple[Result, Options, bool]:
        """The results in all formats, the options they were made with, and whether they replace existing results."""
        service, defaults, formats = self.service, self.options, self.service.settings.output_formats
        options = existing.resume(service.model_name, service.model_digest, defaults)
        if options is not None:
            try:
                return service.segment(data, options, formats, held, self._late), options, False
            except TooLarge:
                if not existing.files:
                    raise
        return service.segment(data, defaults, formats, held, self._late), defaults, True
