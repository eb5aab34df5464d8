"""List photos together with their results, so that no separate call is needed for a finished photo.

Both listings are sorted by name, but their orders differ. The results of generation G of the photo NAME are in NAME/G/,
and "/" sorts after the characters from "!" to ".": the photo `a` comes before `a.jpg`, but its folder `a/1/` after
`a.jpg/1/`. Therefore the photos are first sorted by their folders. Only photos whose names are prefixes of each other
have to be held back for this, at most as many as a name has characters. Then the two listings are merged.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from segment.bucket.results import Results, folder_of
from segment.bucket.store import Location, Object
from segment.errors import StorageError, StorageRefused

log = logging.getLogger(__name__)

PAUSES = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 60.0, 60.0)
"""Delays in seconds after consecutive failures of a listing, in addition to the retries of each call. Then it fails."""
MOST_SKIPPED = 10_000
"""Number of consecutive results without a photo (two pages), after which the listing restarts at the next photo's."""


@dataclass(frozen=True)
class Range:
    """The names in [start, end). If `end` is empty, there is no end."""

    start: str = ""
    end: str = ""


def listed(location: Location, names: Range) -> Iterator[Object]:
    """The objects of the location in the range. A failed listing is resumed where it failed.

    Raises StorageRefused immediately, StorageError after PAUSES.
    """
    last, failures = "", 0
    while True:
        try:
            for item in location.store.objects(location.prefix, last or names.start, names.end):
                if not last or item.name != last:
                    last, failures = item.name, 0
                    yield item
            return
        except StorageRefused:
            raise
        except StorageError as error:
            if failures == len(PAUSES):
                raise
            log.warning("%s Listing again in %g s.", error, PAUSES[failures])
            time.sleep(PAUSES[failures])
            failures += 1


def beside_results(
    photos: Iterable[Object], prefix: str, results: Location, names: Range
) -> Iterator[tuple[Object, Results | None]]:
    """Each photo with its existing results in `results`, or None if they are not known.

    `photos`: the photos in the range `names` whose names start with `prefix`, sorted by name. Raises StorageError.
    """
    end = results.prefix + names.end if names.end else ""
    within = Location(results.store, results.prefix + prefix)
    return in_step(photos, lambda start: listed(within, Range(start, end)), results.prefix, end)


def in_step(
    photos: Iterable[Object], results: Callable[[str], Iterator[Object]], prefix: str = "", end: str = ""
) -> Iterator[tuple[Object, Results | None]]:
    """Each photo with its existing results.

    `photos`: sorted by name. `results(start)`: lists the objects in [start, end), sorted by name; it is called again to
    skip many objects that belong to no photo. `prefix`: precedes each photo's name in the names of its results. A photo
    whose folder is beyond `end` is returned with None, because its results were not listed.
    """
    found = _Cursor(results)
    opened: list[_Opened] = []  # each folder is inside the previous one
    folders = _by_folder(photos, prefix)
    for folder, photo in folders:
        if end and folder >= end:
            yield from ((late, None) for _, late in itertools.chain([(folder, photo)], folders))
            break
        for item in found.before(folder, opened):
            yield from _closed(opened, item.name)
            if opened:
                opened[-1].add(item)
        yield from _closed(opened, folder)
        opened.append(_Opened(folder, photo))
    for item in found.before("", opened) if opened else ():
        yield from _closed(opened, item.name)
        if not opened:
            break
        opened[-1].add(item)
    while opened:
        yield opened.pop().found()


def _by_folder(photos: Iterable[Object], prefix: str) -> Iterator[tuple[str, Object]]:
    """Each photo with the folder of its results, sorted by folder."""
    waiting: list[tuple[str, int, Object]] = []
    for number, photo in enumerate(photos):
        # The folders of this photo and of all following ones sort after this photo's name.
        while waiting and waiting[0][0] <= prefix + photo.name:
            yield waiting[0][0], heapq.heappop(waiting)[2]
        heapq.heappush(waiting, (folder_of(prefix, photo), number, photo))
    while waiting:
        yield waiting[0][0], heapq.heappop(waiting)[2]


@dataclass(frozen=True)
class _Opened:
    """A photo in whose folder the listing of results currently is."""

    folder: str
    photo: Object
    items: list[Object] = field(default_factory=list)

    def add(self, item: Object) -> None:
        """Add a result, unless it is in a folder inside this one."""
        if "/" not in item.name[len(self.folder) :]:
            self.items.append(item)

    def found(self) -> tuple[Object, Results]:
        """The photo and its results."""
        return self.photo, Results.of(self.items, self.folder)


def _closed(opened: list[_Opened], name: str) -> Iterator[tuple[Object, Results]]:
    """Remove and return the photos whose folders a listing has left when it reaches `name`."""
    while opened and not name.startswith(opened[-1].folder):
        yield opened.pop().found()


class _Cursor:
    """A position in a listing that can be restarted at any name."""

    def __init__(self, listing: Callable[[str], Iterator[Object]]) -> None:
        self._listing = listing
        self._items: Iterator[Object] | None = None
        self._next: Object | None = None

    def before(self, name: str, opened: list[_Opened]) -> Iterator[Object]:
        """The items before `name`, or all if it is empty. If no folder is open, the listing may skip to `name`."""
        if self._items is None:
            self._start(name)
        skipped = 0
        while self._next is not None and (not name or self._next.name < name):
            yield self._next
            skipped = 0 if opened else skipped + 1
            if skipped == MOST_SKIPPED:
                self._start(name)
                return
            self._advance()

    def _start(self, name: str) -> None:
        self._items = self._listing(name)
        self._advance()

    def _advance(self) -> None:
        self._next = next(self._items, None) if self._items else None
