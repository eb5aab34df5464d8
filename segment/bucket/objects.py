"""One object of a bucket or a folder: read it, segment it, write its results exactly once.

The results' names follow from the object's name and generation (NAME/GENERATION/overlay.png and detections.json), and
they are written only where nothing is. So whoever comes to an object finds all of its results and has nothing to do, or
writes what is missing. Nothing else needs to be remembered.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast

from segment import container
from segment.bucket.store import Object, Store
from segment.errors import Busy, RequestError
from segment.formats import FORMATS, Format
from segment.options import Options
from segment.service import Service

log = logging.getLogger(__name__)

ERROR_NAME = "error.json"
SOURCE_KEY = "segment-source"
"""Custom metadata that marks an object as a result."""
MAX_NAME_BYTES = 1024
"""Length of an object's name in Cloud Storage (https://cloud.google.com/storage/docs/objects#naming)."""


@dataclass(frozen=True)
class Outcome:
    """What became of an object; `reason` says why it was refused."""

    kind: Literal["segmented", "done before", "gone", "refused"]
    instances: int | None = None
    reason: str = ""


def segment_object(service: Service, source: Store, item: Object, destination: Store, prefix: str) -> Outcome:
    """Read one generation of an object, segment it, write what is missing of its results. Log what became of it.

    Raises StorageError, Busy or ModelError for what may pass later.
    """
    start = time.perf_counter()
    outcome = _segment_object(service, source, item, destination, prefix)
    level = logging.WARNING if outcome.kind == "refused" else logging.INFO
    message = f"{item.name}: {outcome.kind}" + (f": {outcome.reason}" if outcome.reason else "")
    fields: dict[str, object] = {"milliseconds": round((time.perf_counter() - start) * 1000, 1)}
    if outcome.instances is not None:
        fields["instances"] = outcome.instances
    log.log(level, message, extra=describe(source, item) | fields)
    return outcome


def describe(source: Store, item: Object) -> dict[str, object]:
    """The fields of a log entry about an object."""
    return {
        "object": f"{source.address}/{item.name}",
        "generation": str(item.generation),
        "peak_memory": container.peak(),
    }


def _segment_object(service: Service, source: Store, item: Object, destination: Store, prefix: str) -> Outcome:
    settings = service.settings
    folder = f"{prefix}{item.name}/{item.generation}/"
    formats = cast("tuple[Format, ...]", settings.output_formats)
    names = {FORMATS[wanted].file_name: folder + FORMATS[wanted].file_name for wanted in formats}
    if len(max(*names.values(), folder + ERROR_NAME, key=len).encode()) > MAX_NAME_BYTES:
        return Outcome("refused", reason=f"The results' names would be longer than {MAX_NAME_BYTES} bytes.")
    there = {found.name for found in destination.objects(folder)}
    if there.issuperset(names.values()) or folder + ERROR_NAME in there:
        return Outcome("done before")
    address, generation = f"{source.address}/{item.name}", str(item.generation)
    metadata = {SOURCE_KEY: address, "segment-generation": generation}
    options = Options.defaults(settings)
    with _in_hand(settings.wait_seconds):
        try:
            data = source.read(item, settings.max_upload)
            if data is None:
                return Outcome("gone")
            # All formats, though some may be there: what is missing then agrees with them.
            result = service.segment(data, options, formats)
        except RequestError as error:
            title = _words(type(error).__name__)
            problem = {"title": title, "detail": str(error), "source": address, "generation": generation}
            body = json.dumps(problem, ensure_ascii=False).encode()
            destination.write(folder + ERROR_NAME, body, "application/problem+json", metadata)
            return Outcome("refused", reason=str(error))
        del data
        metadata |= {"segment-model": service.model_name, "segment-settings": _settings(options)}
        for file in result.files:
            if names[file.name] not in there:
                destination.write(names[file.name], file.body, file.content_type, metadata)
    return Outcome("segmented", result.instances)


_hand = threading.Lock()


@contextmanager
def _in_hand(wait_seconds: float) -> Iterator[None]:
    """One object's bytes at a time in this process: photos that wait and results on their way are in no budget.

    Raises Busy.
    """
    if not _hand.acquire(timeout=wait_seconds):
        raise Busy(f"Other objects were in hand for {wait_seconds:g} s.", 5)
    try:
        yield
    finally:
        _hand.release()


def _words(name: str) -> str:
    """CorruptImage -> Corrupt image."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).capitalize()


def _settings(options: Options) -> str:
    asked = ("render_factor", "fit", "detail", "min_score", "max_detections")
    return json.dumps({key: getattr(options, key) for key in asked})


def is_result(item: Object) -> bool:
    """Whether this was written here."""
    return SOURCE_KEY in item.metadata
