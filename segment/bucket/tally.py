"""The number of objects by outcome, shown while a backfill runs."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)

LOG_SECONDS = 30.0
"""Interval at which the counts are logged if there is no terminal."""
FAILED = "failed for now"
"""The outcome of objects for which a later run may succeed."""


class Tally:
    """The number of objects by outcome, shown on a progress bar or logged every LOG_SECONDS."""

    def __init__(self, bar: Any = None) -> None:
        self.counts: Counter[str] = Counter()
        self._bar = bar
        self._logged = time.monotonic()

    def count(self, kind: str) -> None:
        """Count an object with this outcome."""
        self.counts[kind] += 1
        if self._bar is not None:
            self._bar.set_postfix_str(summary(self.counts), refresh=False)
            self._bar.update()
        elif time.monotonic() - self._logged > LOG_SECONDS:
            self._logged = time.monotonic()
            log.info("Backfill: %s", summary(self.counts))


@contextmanager
def shown_tally() -> Iterator[Tally]:
    """Show a bar on a terminal, or else write log entries; log a summary at the end."""
    if sys.stderr.isatty():
        from tqdm import tqdm
        from tqdm.contrib.logging import logging_redirect_tqdm

        with tqdm(unit=" objects") as bar, logging_redirect_tqdm(), _only_warnings("segment.bucket.objects"):
            yield (tally := Tally(bar))
    else:
        yield (tally := Tally())
    level = logging.WARNING if tally.counts[FAILED] else logging.INFO
    log.log(level, "Backfill done: %s", summary(tally.counts), extra={"counts": dict(tally.counts)})


@contextmanager
def _only_warnings(name: str) -> Iterator[None]:
    """Raise a logger's level to WARNING while a progress bar is shown."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def summary(counts: Mapping[str, int]) -> str:
    """The counts as text, such as "3 segmented, 1 refused"."""
    return ", ".join(f"{number} {kind}" for kind, number in counts.items() if number) or "nothing to do"
