"""The entry of a bucket's photo in a dataset, from its JSON result: made now, or written by an earlier run."""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack
from typing import Any

from segment.bucket.objects import Outcome, describe, read_photo
from segment.bucket.store import Object, Store
from segment.bucket.tally import FAILED
from segment.dataset.entry import Entry, Failure, shown
from segment.errors import Busy, ModelError, OptionError, RequestError, StorageError, TooLarge
from segment.formats import FORMATS
from segment.options import Options
from segment.output.coco import categories
from segment.service import Service

log = logging.getLogger(__name__)

MAX_BYTES = 1 << 30
"""Maximum size of a JSON result that is read."""


def entry(service: Service, item: Object, outcome: Outcome, results: Store) -> Entry | Failure | None:
    """The photo's entry in a dataset; a Failure if it has none; None if the photo no longer exists.

    `results`: the store of its results. Raises StorageError.
    """
    if outcome.failed:
        return Failure(shown(item.name), outcome.reason)
    if outcome.kind == "gone":
        return None
    document, existing = outcome.document, outcome.existing
    if existing:
        file = existing.files.get(FORMATS["json"].file_name)
        if file is None and existing.error:
            return Failure(shown(item.name), _reason(results, existing.error))
        document = results.read(file, file.size or MAX_BYTES) if file else None
    if document is None:
        return Failure(shown(item.name), "Its results were deleted during this run. Run it again.")
    return _entry(service, item, json.loads(document))


def segment(service: Service, source: Store, item: Object, options: Options) -> tuple[str, Entry | Failure | None]:
    """Segment a photo without writing files. Returns the kind of outcome, and the entry (see `entry`).

    Raises OptionError, StorageError, Busy or ModelError.
    """
    try:
        with ExitStack() as held:
            data = read_photo(service, source, item, held)
            if data is None:
                return "gone", None
            (file,) = service.segment(data, options, ("json",), held).files
    except OptionError:
        raise
    except RequestError as error:
        log.warning("%s: refused: %s", item.name, error, extra=describe(source, item))
        again = isinstance(error, TooLarge)  # the limits may be higher next time
        return "refused", Failure(shown(item.name), str(error), None if again else item.generation)
    return "segmented", _entry(service, item, json.loads(file.body))


def failed(source: Store, item: Object, error: Exception) -> Failure:
    """Log the error that prevented a photo from being segmented. Returns its entry in a dataset.

    An error of the storage or the service is its own reason; of any other, the log has the traceback.
    """
    if isinstance(error, (StorageError, Busy, ModelError)):
        log.error("%s: %s: %s", item.name, FAILED, error, extra=describe(source, item))
        return Failure(shown(item.name), str(error))
    log.error("%s: %s: unexpected error", item.name, FAILED, extra=describe(source, item), exc_info=error)
    return Failure(shown(item.name), "Unexpected error; see the log.")


def _entry(service: Service, item: Object, document: dict[str, Any]) -> Entry | Failure:
    if document["categories"] != categories(service.labels):
        return Failure(
            shown(item.name),
            f"It was segmented before with the model {document['image'].get('model')}, which has other classes. "
            "Delete its results, or choose another output, to segment it again.",
        )
    return Entry(shown(item.name), item.generation, {key: document[key] for key in ("image", "annotations")})


def _reason(results: Store, error: Object) -> str:
    """The reason in an error.json."""
    try:
        problem = json.loads(results.read(error, MAX_BYTES) or b"{}")
        return str(problem["detail"])
    except (ValueError, TypeError, KeyError):
        return "It could not be segmented in an earlier run; its error.json was deleted or is damaged."
