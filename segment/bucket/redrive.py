"""Handle dead letters again: bucket events whose deliveries have all failed.

Each is pulled from its subscription and handled as a bucket event (events.py). It is acknowledged in the same cases as
a bucket event. Dead letters that fail again stay in the subscription.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TypeVar

from cloudevents.http import CloudEvent
from werkzeug.exceptions import HTTPException

from segment.bucket import events
from segment.bucket.pubsub import Letter, Subscription
from segment.errors import StorageError, StorageRefused
from segment.service import Service
from segment.settings import Settings

Result = TypeVar("Result")
log = logging.getLogger(__name__)

LETTERS = 16
"""Number of dead letters that are handled at once; see backfill.WORKERS."""
LEASE_SECONDS = 600
"""Acknowledgement deadline of a letter; the maximum of Pub/Sub."""
DELIVERY_SECONDS = 540.0
"""Time limit for one letter, which leaves time to acknowledge it."""
EMPTY_PULLS, PAUSE_SECONDS = 3, 2.0
"""Number of consecutive empty pulls after which the run ends. A pull can be empty although there are messages."""
PAUSES = (1.0, 5.0, 15.0, 30.0)
"""Delays in seconds after consecutive failed calls. After the last one, the run ends."""


def patient(settings: Settings) -> Settings:
    """The settings for handling dead letters, with time limits that use the whole lease."""
    return replace(
        settings,
        wait_seconds=DELIVERY_SECONDS,
        delivery_seconds=DELIVERY_SECONDS,
        queue=max(settings.queue, LETTERS),
    )


def run(name: str, service: Service, environment: Mapping[str, str]) -> int:
    """Handle all letters in the subscription `name`, each once.

    PUBSUB_EMULATOR_HOST in `environment` sets another server, as for Google's client libraries. Returns 0 if all
    letters were acknowledged, 1 if any failed. Raises SettingsError, ModelError, StorageError.
    """
    events.check(service.settings)
    subscription = Subscription(name, environment.get("PUBSUB_EMULATOR_HOST", ""))
    service.load()
    handled, failed, empty = 0, set[str](), 0
    with ThreadPoolExecutor(LETTERS) as pool:
        while empty < EMPTY_PULLS:
            letters = _patiently(partial(subscription.pull, LETTERS))
            new = [letter for letter in letters if letter.id not in failed]
            if not new:
                empty += 1
                time.sleep(PAUSE_SECONDS)
                continue
            empty = 0
            _patiently(partial(subscription.extend, new, LEASE_SECONDS))
            results = list(pool.map(partial(_handled, service, subscription), new))
            done = [letter for letter, ok in zip(new, results, strict=True) if ok]
            _patiently(partial(subscription.acknowledge, done))
            handled += len(done)
            failed |= {letter.id for letter, ok in zip(new, results, strict=True) if not ok}
    counts = {"handled": handled, "failed": len(failed)}
    level = logging.WARNING if failed else logging.INFO
    log.log(level, "Dead letters: %d handled, %d failed and were kept.", handled, len(failed), extra={"counts": counts})
    return 1 if failed else 0


def _handled(service: Service, subscription: Subscription, letter: Letter) -> bool:
    """Whether the letter can be acknowledged."""
    attributes = {"type": events.PUBLISHED, "source": f"//pubsub.googleapis.com/{subscription.name}", "id": letter.id}
    event = CloudEvent(attributes, {"message": dict(letter.message), "subscription": subscription.name})
    try:
        events.handle(service, event)
    except HTTPException:
        return False
    return True


def _patiently(call: Callable[[], Result]) -> Result:
    """Make a call, with retries after PAUSES. Raises StorageError; StorageRefused without a retry."""
    for pause in PAUSES:
        try:
            return call()
        except StorageRefused:
            raise
        except StorageError as error:
            log.warning("%s Retrying in %g s.", error, pause)
            time.sleep(pause)
    return call()
