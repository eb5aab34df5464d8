"""Process one photo of a bucket or a folder: read it, segment it, write its results exactly once.

Reading, running the network and writing overlap for different photos. Until the results are written, the photo's file
is reserved in the budget for received bytes, and the results in the budget for requests (segment/service.py), so that
memory is bounded for any number of concurrent photos. results.py defines the results and when they are made again.
"""

from __future__ import annotations

import json
import logging
import math
import re
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

from segment import container
from segment.bucket.results import (
    ERROR_NAME,
    LIMITS_KEY,
    SOURCE_KEY,
    Limits,
    NameTooLong,
    Results,
    Run,
    folder_of,
    limits_of,
    other_error_name,
    refused_by,
)
from segment.bucket.store import Object, Store
from segment.dataset.entry import shown
from segment.errors import Busy, Cancelled, RequestError, StorageError, StorageRefused, TooLarge
from segment.formats import FORMATS, File
from segment.options import Options
from segment.service import Result, Service

log = logging.getLogger(__name__)

MAX_NAME_BYTES = 1024
"""Maximum length of an object's name in Cloud Storage (https://cloud.google.com/storage/docs/objects#naming)."""
ATTEMPTS = 3
"""Number of attempts when another process writes results of a different run at the same time."""


@dataclass(frozen=True)
class Outcome:
    """The outcome for one object.

    `reason`: why it was refused, or why its error.json could not be written. `document`: the JSON result, if the object
    was segmented now and JSON is among the formats.
    """

    kind: Literal["segmented", "done before", "gone", "refused", "lost"]
    instances: int | None = None
    reason: str = ""
    document: bytes | None = None

    @property
    def failed(self) -> bool:
        """Whether the photo cannot be segmented."""
        return self.kind in ("refused", "lost")


def segment_object(
    service: Service,
    source: Store,
    item: Object,
    destination: Store,
    prefix: str,
    deadline: float = math.inf,
    existing: Results | None = None,
    options: Options | None = None,
) -> Outcome:
    """Segment one generation of an object and write the missing results. Logs the outcome.

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
    photo = _Photo(service, source, item, destination, folder_of(prefix, item), deadline, options)
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
    options = options or Options.defaults(service.settings)
    return existing.complete(_file_names(service)) or any(
        _is_final(service, options, destination, error) for error in reversed(existing.errors)
    )


def read_photo(
    service: Service, source: Store, item: Object, held: ExitStack, seconds: float = math.inf
) -> bytes | None:
    """The content of an object; None if it no longer exists. Its memory is reserved until `held` is closed.

    Waits at most `seconds` for that memory. Raises TooLarge, CorruptImage, Busy, StorageError.
    """
    limit = service.upload_limit
    reservation = held.enter_context(service.receive())
    reserved = min(limit if item.size is None else item.size, limit)
    reservation.grow(reserved, seconds)
    data = source.read(item, limit)
    if data is not None and len(data) > reserved:  # it was stored compressed
        reservation.grow(len(data) - reserved, seconds)
    return data


def _file_names(service: Service) -> Sequence[str]:
    return [FORMATS[kind].file_name for kind in service.settings.output_formats]


def _is_final(service: Service, options: Options, destination: Store, error: Object) -> bool:
    """Whether an error.json would be the same again."""
    limits = refused_by(destination, error)
    return limits is None or limits == _limits(service, options).text()


def _limits(service: Service, options: Options) -> Limits:
    settings = service.settings
    asked = (options, settings.output_formats, settings.fixed_bytes, settings.bytes_per_pixel)
    return Limits(
        memory=container.memory_limit(settings.memory),
        max_upload=settings.max_upload,
        model=f"{service.model_name} {service.model_digest}",
        settings=repr(asked),
    )


def describe(source: Store, item: Object) -> dict[str, object]:
    """The fields of a log entry about an object."""
    return {
        "object": f"{source.address}/{item.name}",
        "generation": str(item.generation),
        "peak_memory": container.peak(),
    }


@dataclass(frozen=True)
class _Photo:
    """One generation of an object. `folder`: prefix of its results in `destination`."""

    service: Service
    source: Store
    item: Object
    destination: Store
    folder: str
    deadline: float
    options: Options

    def segment(self, existing: Results | None = None) -> Outcome:
        """Segment the photo if it is not finished. `existing`: see segment_object."""
        if self._too_long(ERROR_NAME):
            return Outcome("lost", reason=_TOO_LONG)
        # Four deliveries at once do the work once: three wait, and then find the results.
        with _turn(f"{self.destination.address}/{self.folder}", self._wait_seconds()):
            for _ in range(ATTEMPTS):
                existing = existing or Results.find(self.destination, self.folder)
                if is_done(self.service, self.destination, existing, self.options):
                    return Outcome("done before")
                if outcome := self._make(existing):
                    return outcome
                existing = None
        raise StorageError(f"Results of {self.item.name} made with other settings were written at the same time.")

    def _late(self) -> bool:
        return time.monotonic() > self.deadline

    def _wait_seconds(self) -> float:
        """Maximum time to wait for memory or for another delivery of the same photo."""
        return min(self.service.settings.wait_seconds, max(self.deadline - time.monotonic(), 0.0))

    def _too_long(self, name: str) -> bool:
        return len((self.folder + name).encode("utf-8", "surrogateescape")) > MAX_NAME_BYTES

    def _make(self, existing: Results) -> Outcome | None:
        """Segment the photo and write the missing results; None if another process wrote results of another run."""
        with ExitStack() as held:
            try:
                if any(map(self._too_long, _file_names(self.service))):
                    raise NameTooLong(_TOO_LONG)
                data = self._read(held)
                if data is None:
                    return Outcome("gone")
                result, options, replaces = self._run(data, existing, held)
            except Cancelled:
                raise Busy("The time limit of this delivery was reached before the photo was segmented.", 5) from None
            except (RequestError, _SourceRefused) as error:
                self._write_error(error, existing)
                return Outcome("refused", reason=str(error))
            del data
            service = self.service
            run = Run.of(service.model_name, service.model_digest, options, result.render_factor, result.detail)
            if replaces:
                self._delete(existing)
            missing = [file for file in result.files if replaces or file.name not in existing.files]
            if not all(self._write(file, run) for file in missing):
                return None
        self._delete_errors(existing)  # where it fails, they are ignored, as results exist
        documents = [file.body for file in result.files if file.name == FORMATS["json"].file_name]
        return Outcome("segmented", result.instances, document=documents[0] if documents else None)

    def _read(self, held: ExitStack) -> bytes | None:
        """Read the photo's file, with its memory reserved until `held` is closed; None if it no longer exists."""
        try:
            return read_photo(self.service, self.source, self.item, held, self._wait_seconds())
        except StorageRefused as error:
            raise _SourceRefused(str(error)) from error

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

    def _write(self, file: File, run: Run) -> bool:
        """Write a result; False if it exists already and is of another run."""
        metadata = self._metadata() | run.metadata()
        if self.destination.write(self.folder + file.name, file.body, file.content_type, metadata):
            return True
        found = Results.find(self.destination, self.folder).files.get(file.name)
        return found is not None and Run.from_metadata(found.metadata) == run

    def _delete(self, existing: Results) -> None:
        """Delete an incomplete set of results that cannot be completed."""
        try:
            for item in existing.files.values():
                self.destination.delete(item)
        except StorageRefused as error:
            raise StorageRefused(
                f"Some results in {self.folder} were made with another model or other settings. They cannot be "
                f"completed, and replacing them failed: {error}"
            ) from error

    def _write_error(self, error: RequestError | StorageRefused, existing: Results) -> None:
        kind = "StorageRefused" if isinstance(error, StorageRefused) else type(error).__name__
        problem: dict[str, object] = {"title": _words(kind), "detail": str(error)}
        metadata = self._metadata()
        problem |= {"source": metadata[SOURCE_KEY], "generation": str(self.item.generation)}
        if limits := limits_of(error, _limits(self.service, self.options)):
            problem["limits"] = json.loads(limits)
            metadata[LIMITS_KEY] = limits
        name = ERROR_NAME
        if not self._delete_errors(existing):
            name = other_error_name(limits)
            if self._too_long(name) or any(
                (refused_by(self.destination, old) or "") == limits for old in existing.errors
            ):
                return
        body = json.dumps(problem, ensure_ascii=False).encode()
        self.destination.write(self.folder + name, body, "application/problem+json", metadata)

    def _delete_errors(self, existing: Results) -> bool:
        """Delete the photo's error.json; False if that is not allowed."""
        try:
            for error in existing.errors:
                self.destination.delete(error)
        except StorageRefused:
            return False
        return True

    def _metadata(self) -> dict[str, str]:
        address = shown(f"{self.source.address}/{self.item.name}")
        return {SOURCE_KEY: address, "segment-generation": str(self.item.generation)}


_TOO_LONG = (
    f"The names of the results would be longer than {MAX_NAME_BYTES:,} bytes, the maximum. Shorten the photo's name."
)


class _SourceRefused(StorageRefused):
    """The photo cannot be read, for lack of permission or the like."""


_guard = threading.Lock()
_turns: weakref.WeakValueDictionary[str, threading.Lock] = weakref.WeakValueDictionary()


@contextmanager
def _turn(key: str, wait_seconds: float) -> Iterator[None]:
    """A lock per key, within this process. Raises Busy after `wait_seconds`."""
    with _guard:
        lock = _turns.get(key) or _turns.setdefault(key, threading.Lock())
    if not lock.acquire(timeout=min(wait_seconds, threading.TIMEOUT_MAX)):
        raise Busy(f"Timed out after {wait_seconds:g} s waiting for another delivery of the same photo.", 5)
    try:
        yield
    finally:
        lock.release()


def _words(name: str) -> str:
    """CorruptImage -> Corrupt image."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).capitalize()
