"""List photos together with their results, so that a finished photo needs no call of its own.

Both listings are sorted by name, but not in the same order. The results of generation G of the photo NAME are in
NAME/G/, and "/" sorts after the characters from "!" to ".": the photo `a` comes before `a.jpg`, but its folder `a/1/`
after `a.jpg/1/`. Photos are therefore brought into the order of their folders first. Only photos whose names are
prefixes of each other are held back for this, at most as many as a name has characters. Then both listings are merged.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from segment.bucket.results import Results, folder_of
from segment.bucket.store import Object, Store
from segment.errors import StorageError, StorageRefused

log = logging.getLogger(__name__)

PAUSES = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 60.0, 60.0)
"""Seconds to wait after each failure in a row of a listing, beside the retries of each call; then it ends."""
MOST_SKIPPED = 2000
"""Results of no photo, two pages of them, after which the listing is started again at the next photo's."""


@dataclass(frozen=True)
class Range:
    """The names from `start` up to `end`, which is not included; an empty `end` is no end."""

    start: str = ""
    end: str = ""


def listed(store: Store, prefix: str, names: Range = Range()) -> Iterator[Object]:
    """Every object in the range whose name starts with `prefix`. A listing that fails continues where it failed.

    Raises StorageRefused at once, StorageError after PAUSES.
    """
    last, failures = "", 0
    while True:
        try:
            for item in store.objects(prefix, last or names.start, names.end):
                if not last or item.name != last:
                    last, failures = item.name, 0
                    yield item
            return
        except StorageRefused:
            raise
        except StorageError as error:
            if failures == len(PAUSES):
                raise
            log.warning("%s To be listed again in %g s.", error, PAUSES[failures])
            time.sleep(PAUSES[failures])
            failures += 1


def beside_results(
    photos: Iterable[Object], prefix: str, results: Store, results_prefix: str, names: Range
) -> Iterator[tuple[Object, Results | None]]:
    """Each photo with its existing results below `results_prefix`, or None if that is not known.

    `photos`: those in the range `names` whose names start with `prefix`, by name. Raises StorageError.
    """
    end = results_prefix + names.end if names.end else ""
    return in_step(
        photos, lambda start: listed(results, results_prefix + prefix, Range(start, end)), results_prefix, end
    )


def in_step(
    photos: Iterable[Object], results: Callable[[str], Iterator[Object]], prefix: str = "", end: str = ""
) -> Iterator[tuple[Object, Results | None]]:
    """Each photo with its existing results.

    `photos` are ordered by name. `results(start)` lists the objects from the name `start` on, up to `end`, in order;
    it is called again to skip many that belong to no photo. `prefix` stands before each photo's name in its results'.
    A photo whose folder is beyond `end` comes with None: its results have to be looked up.
    """
    found = _Cursor(results)
    opened: list[_Opened] = []  # each folder is inside the one before it
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
    """Each photo with the folder of its results, in the order of the folders."""
    waiting: list[tuple[str, int, Object]] = []
    for number, photo in enumerate(photos):
        # The folders of this photo and of all that follow are greater than this photo's name.
        while waiting and waiting[0][0] <= prefix + photo.name:
            yield waiting[0][0], heapq.heappop(waiting)[2]
        heapq.heappush(waiting, (folder_of(prefix, photo), number, photo))
    while waiting:
        yield waiting[0][0], heapq.heappop(waiting)[2]


@dataclass(frozen=True)
class _Opened:
    """A photo whose folder the listing of results is in."""

    folder: str
    photo: Object
    items: list[Object] = field(default_factory=list)

    def add(self, item: Object) -> None:
        """Take a result, unless it is in a folder inside of this one."""
        if "/" not in item.name[len(self.folder) :]:
            self.items.append(item)

    def found(self) -> tuple[Object, Results]:
        """The photo and its results."""
        return self.photo, Results.of(self.items, self.folder)


def _closed(opened: list[_Opened], name: str) -> Iterator[tuple[Object, Results]]:
    """The photos in whose folders a listing that has come to `name` is not any more."""
    while opened and not name.startswith(opened[-1].folder):
        yield opened.pop().found()


class _Cursor:
    """A place in a listing that can be started anywhere."""

    def __init__(self, listing: Callable[[str], Iterator[Object]]) -> None:
        self._listing = listing
        self._items: Iterator[Object] | None = None
        self._next: Object | None = None

    def before(self, name: str, opened: list[_Opened]) -> Iterator[Object]:
        """The items up to `name`, or to the end if it is empty. While nothing is open, many are skipped at once."""
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
