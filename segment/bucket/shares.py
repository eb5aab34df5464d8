"""Divide the photos of a bucket among tasks, so that each task lists only its own share.

A share consists of ranges of names. Cloud Storage lists names in order, a page at a time, starting at any name, but
does not tell how many names there are. The names are therefore explored as a tree of their characters (a trie): listing
from a character on returns the next name, and with it the next branch. The branches that seem to contain the most names
are followed further, until each is small compared with a share, or the maximum number of calls is reached. The number
of names in a branch is estimated from its first page: from the part of the branch that the page covers, given the
numbers of different characters at the same positions of other names.

This assumes that branches are alike. If a sample shows that folders are not, as with the photos of many users, a page
of each folder is listed, and further pages where the folder would continue if it had 8 times as many photos, 64 times
and so on. This takes about one call per folder; with fewer, a large folder cannot be distinguished from a small one.

All tasks must use the same ranges, because photos between different ranges would be missed. The ranges are therefore
stored in an object next to the results, which is written only once: task 0 creates it, and the other tasks wait for it.
A task that is restarted reads it again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from segment.bucket.listing import Range
from segment.bucket.results import SOURCE_KEY
from segment.bucket.store import Listing, Location, Store, find
from segment.errors import StorageError

log = logging.getLogger(__name__)

PAGE = 1000
"""Number of names that a call lists for dividing them."""
RANGES_PER_TASK = 2
"""Number of ranges of a task. They are far apart, so that an error of an estimate affects several tasks."""
CALLS_PER_TASK, LEAST_CALLS = 3, 300
"""Maximum number of calls for dividing the names. More of them, or more ranges, do not make the shares more equal: for
50 million photos in folders by day and 100 tasks, the largest share is 1.6 times the mean, with 6 calls and 4 ranges it
is 2.3 times. benchmarks/results/shares.md has other layouts."""
FOLDERS_SAMPLED = 40
"""Number of folders that are compared to find out whether folders are alike."""
FOLDER_CALLS = 2000
"""Maximum number of calls for bounding the sizes of folders that are not alike."""
FOLDER_STEP = 8
"""Ratio of the sizes at which a folder is probed."""
SAMPLES_PER_PAGE = 20
"""Number of names per page that are kept as possible starts of ranges."""
FOLDER = "_segment/shares/"
"""The folder of the object with the ranges, relative to the results."""
PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, *(60.0,) * 14)
"""Delays in seconds between the attempts of other tasks to read the ranges. Then they create the ranges themselves.
Task 0 may make thousands of calls, one after the other."""
_SMALL = 1 << 20
_DIGITS = frozenset("0123456789")


@dataclass(frozen=True)
class Shares:
    """The ranges of each task, which together contain all names."""

    ranges: tuple[tuple[Range, ...], ...]

    def text(self) -> str:
        """As JSON."""
        return json.dumps([[[names.start, names.end] for names in own] for own in self.ranges])

    @classmethod
    def parse(cls, text: bytes) -> Shares:
        """From JSON. Raises ValueError."""
        try:
            return cls(tuple(tuple(Range(str(start), str(end)) for start, end in own) for own in json.loads(text)))
        except TypeError as error:
            raise ValueError(str(error)) from None


def agreed(photos: Location, results: Location, run: str, index: int, count: int) -> Sequence[Range]:
    """The ranges of task `index` of `count` tasks, which all tasks agree on. `run`: name of the job's execution.

    Raises StorageError.
    """
    if count == 1:
        return [Range()]
    store, name = results.store, f"{results.prefix}{FOLDER}{run or 'tasks'}-{digest(photos.address, count)}.json"
    found = _read(store, name, count)
    for pause in PAUSES:
        if found or index == 0:
            break
        time.sleep(pause)
        found = _read(store, name, count)
    if not found:
        made = divided(photos.store, photos.prefix, count)
        store.write(name, made.text().encode(), "application/json", {SOURCE_KEY: photos.address})
        found = _read(store, name, count)
    if not found:
        raise StorageError(f"{store.address}/{name} was deleted while tasks were reading it. Start them again.")
    return found.ranges[index]


def digest(*about: object) -> str:
    """A short digest of what temporary objects are about, for their names."""
    return hashlib.sha256("\n".join(map(str, about)).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _read(store: Store, name: str, count: int) -> Shares | None:
    """The shares in this object; None if it does not exist. Raises StorageError."""
    item = find(store, name)
    text = store.read(item, _SMALL) if item else None
    if text is None:
        return None
    try:
        found = Shares.parse(text)
    except ValueError:
        found = Shares(())
    if len(found.ranges) != count:
        raise StorageError(f"{store.address}/{name} does not contain the shares of {count} tasks. Delete it.")
    return found


def divided(photos: Listing, prefix: str, count: int) -> Shares:
    """Shares of about equal size for `count` tasks. Raises StorageError."""
    tree = _Tree(photos, prefix)
    tree.grow(count * RANGES_PER_TASK, max(LEAST_CALLS, count * CALLS_PER_TASK))
    starts = list(_cut(tree.places(), count * RANGES_PER_TASK))
    ranges = [Range(start, end) for start, end in itertools.pairwise(["", *starts, ""])]
    log.info("Divided the names among %d tasks with %d calls.", count, tree.calls)
    return Shares(tuple(tuple(ranges[task::count]) for task in range(count)))


def _cut(places: Sequence[tuple[str, float]], count: int) -> Iterator[str]:
    """The starts of `count` ranges except the first. `places`: sorted names, and the number of names up to the next."""
    part = sum(weight for _, weight in places) / count
    passed, due = 0.0, part
    for name, weight in places:
        if passed >= due - part / 2 and passed:
            yield name
            due = (math.floor(passed / part + 0.5) + 1) * part
        passed += weight


@dataclass
class _Branch:
    """More than one page of names that start with `prefix`. `names`: the first page.

    `least`, `most`: bounds of their number if it was probed, otherwise 0.
    """

    prefix: str
    names: list[str]
    estimate: float = 0.0
    least: int = 0
    most: int = 0


@dataclass
class _Tree:
    """The names in a store as far as they are known: branches of unknown size, and names between the branches."""

    store: Listing
    root: str
    calls: int = 0
    branches: list[_Branch] = field(default_factory=list)
    known: list[tuple[str, float]] = field(default_factory=list)
    characters: dict[tuple[int, int], set[str]] = field(default_factory=lambda: defaultdict(set))
    """The characters seen at each place. A place is the number of folders before a character, and its offset in its
    folder."""
    branching: dict[tuple[int, int], list[int]] = field(default_factory=lambda: defaultdict(list))
    """For each place, the number of different next characters of each branch that was followed there."""

    def grow(self, ranges: int, most_calls: int) -> None:
        """Look at the names until the largest branch is small compared with one of `ranges` ranges.

        Following branches takes about `most_calls` calls at most, and FOLDER_CALLS and as many again if folders differ.
        """
        names = self._page(self.root, self.root)
        if len(names) < PAGE:
            self._know(names)
        else:
            self.branches.append(_Branch(self.root, names))
        self._follow_largest(ranges, most_calls)
        several = [branch for branch in self.branches if "/" in branch.names[-1][len(branch.prefix) :]]
        if not self._differ(several):
            return
        end = self.calls + FOLDER_CALLS
        for branch in several:
            if self.calls < end:
                self.branches.remove(branch)
                self._divide_by_folder(branch, end)
        self._follow_largest(ranges, self.calls + most_calls)

    def _follow_largest(self, ranges: int, most_calls: int) -> None:
        """Follow the largest branches until each is small compared with a range, or until `most_calls` calls."""
        while self.branches and self.calls < most_calls:
            for branch in self.branches:
                branch.estimate = self._estimate(branch)
            total = sum(branch.estimate for branch in self.branches) + sum(weight for _, weight in self.known)
            largest = max(self.branches, key=lambda branch: branch.estimate)
            if largest.estimate < total / ranges / 2:
                break
            self.branches.remove(largest)
            self._follow(largest)

    def _differ(self, branches: Sequence[_Branch]) -> bool:
        """Whether folders differ much in size, from a sample of branches that contain several."""
        step = len(branches) // FOLDERS_SAMPLED or 1
        return len({self._first_folder(branch).most for branch in branches[::step]}) > 1

    def _first_folder(self, branch: _Branch) -> _Branch:
        """The first folder of a branch that contains one in its first page; files beside folders are left out."""
        names = [name for name in branch.names if _inside(name, branch.prefix)]
        if len(names) < len(branch.names) and branch.names[-1].startswith(_folder_of(names[0])):
            names = self._page(branch.prefix, names[0])  # the folder may continue after the page
        return self._folder(branch.prefix, names)[0]

    def _divide_by_folder(self, branch: _Branch, most_calls: int) -> None:
        """Replace a branch by its folders, with bounds of their sizes. What remains after `most_calls` is a branch."""
        names, is_last_page = branch.names, False
        while names:
            if self.calls >= most_calls:
                self.branches.append(_Branch(branch.prefix, names))
                return
            last = names[-1]
            folder, names = self._folder(branch.prefix, names)
            if folder.most:
                self.branches.append(folder)
                is_last_page = len(names) < PAGE
                continue
            self._know(folder.names)
            next_folder = _folder_of(names[0]) if names else ""
            breaks_off = len(next_folder) >= max(len(branch.prefix), 1) and last.startswith(next_folder)
            if not is_last_page and (breaks_off or not names):
                names = self._page(branch.prefix, names[0] if names else last + "\0")
                is_last_page = len(names) < PAGE

    def _folder(self, prefix: str, names: list[str]) -> tuple[_Branch, list[str]]:
        """The folder of the first of `names`, and the names after it. `names`: from a page of names with `prefix`.

        If the folder fills the page, bounds of its size are found, and the names after it are another page.
        """
        if not _inside(names[0], prefix):
            return _Branch(names[0], names[:1]), names[1:]
        place = _folder_of(names[0])
        own = [name for name in names if name.startswith(place)]
        found = _Branch(place, own)
        if len(own) < PAGE:
            return found, names[len(own) :]
        found.most = PAGE
        while names and names[0].startswith(place):
            found.least, found.most = found.most, found.most * FOLDER_STEP
            names = self._page(prefix, _ahead(own, found.most // PAGE) or _after(place) or place + chr(0x10FFFF))
        return found, names

    def places(self) -> list[tuple[str, float]]:
        """Sorted names, each with an estimate of the number of names from it to the next."""
        return sorted(itertools.chain(self.known, *map(self._spread, self.branches)))

    def _spread(self, branch: _Branch) -> Iterator[tuple[str, float]]:
        """Places in a branch, under the assumption that names are distributed evenly over the characters seen there."""
        prefix, depth, places = branch.prefix, len(_common(branch.names)), _places(branch.names[-1])
        while len(prefix) < depth and len(self.characters[places[len(prefix)]]) == 1:
            prefix = branch.names[0][: len(prefix) + 1]
        own = branch.names[0][len(prefix) :][:1]
        following = sorted(one for one in self.characters[places[min(len(prefix), depth)]] if one > own)
        weight = self._estimate(branch) / (len(following) + 1)
        return ((name, weight) for name in [branch.names[0], *(prefix + one for one in following)])

    def _follow(self, branch: _Branch) -> None:
        """Replace a branch by its own branches."""
        prefix, places = self._stem(branch), _places(branch.names[-1])  # the first name can be the stem itself
        for place in places[len(branch.prefix) : len(prefix)]:
            self.branching[place].append(1)
        count, names = 0, branch.names
        while names:
            last = names[-1][: len(prefix) + 1] if len(names) == PAGE else ""
            whole = [name for name in names if not (last and name.startswith(last))]
            self._know(whole)
            count += len({name[: len(prefix) + 1] for name in whole})
            if not last:
                break
            if whole:  # the page breaks off in the middle of the last branch
                names = self._page(prefix, last)
                if len(names) < PAGE or not names[-1].startswith(last):
                    continue
            count += 1
            self.branches.append(_Branch(last, names))
            following = _after(last)
            names = self._page(prefix, following) if following else []
        self.branching[places[len(prefix)]].append(count)

    def _stem(self, branch: _Branch) -> str:
        """The longest common prefix of all names of the branch, by bisection."""
        low, high = len(branch.prefix), len(_common(branch.names))
        while low < high:
            middle = (low + high + 1) // 2
            following = _after(branch.names[0][:middle])
            if following and self._page(branch.prefix, following, 1):
                high = middle - 1
            else:
                low = middle
        return branch.names[0][:low]

    def _know(self, names: Sequence[str]) -> None:
        """Add names that are a complete listing of their range."""
        step = -(-len(names) // SAMPLES_PER_PAGE) or 1
        self.known += [(names[start], len(names[start : start + step])) for start in range(0, len(names), step)]

    def _page(self, prefix: str, start: str, limit: int = 0) -> list[str]:
        """The first names with this prefix from `start` on: at most `limit`, or a page."""
        self.calls += 1
        names = [item.name for item in self.store.objects(prefix, start, most=limit or PAGE)]
        for name in names[:: max(1, len(names) // SAMPLES_PER_PAGE)]:
            for place, character in zip(_places(name), name, strict=False):
                self.characters[place].add(character)
        return names

    def _branching(self, place: tuple[int, int]) -> float:
        """The average number of branches at a place, of those that were followed there."""
        counts = self.branching.get(place) or [len(self.characters[place])]
        return sum(counts) / len(counts)

    def _estimate(self, branch: _Branch) -> float:
        """The estimated number of names in a branch: the size of its first page, divided by the share it covers."""
        if branch.most:
            return math.sqrt(branch.least * branch.most)
        first, last = branch.names[0], branch.names[-1]
        depth, places = len(_common(branch.names)), _places(last)
        branching = math.prod(self._branching(place) for place in places[len(branch.prefix) : depth])
        alphabet = sorted({*self.characters[places[depth]], *first[depth : depth + 1], *last[depth : depth + 1]})
        covered = len([one for one in alphabet if first[depth : depth + 1] <= one <= last[depth : depth + 1]])
        return PAGE * branching * len(alphabet) / max(covered, 1)


def _places(name: str) -> list[tuple[int, int]]:
    """The place of each character: the number of folders before it, and its offset in its folder."""
    places, folder, offset = [], 0, 0
    for character in name:
        places.append((folder, offset))
        folder, offset = (folder + 1, 0) if character == "/" else (folder, offset + 1)
    return places


def _common(names: Sequence[str]) -> str:
    """The longest common prefix of these sorted names."""
    first, last = names[0], names[-1]
    length = next((place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), None)
    return first[: min(len(first), len(last)) if length is None else length]


def _after(prefix: str) -> str:
    """The smallest text that is greater than all texts starting with `prefix`; empty if there is none."""
    code = ord(prefix[-1]) + 1
    if code > 0x10FFFF:
        return ""
    return prefix[:-1] + chr(0xE000 if 0xD800 <= code <= 0xDFFF else code)


def _folder_of(name: str) -> str:
    """The folder that a name is in, with the "/" at its end."""
    return name[: name.rfind("/") + 1]


def _inside(name: str, prefix: str) -> bool:
    """Whether a name that starts with `prefix` is in a folder, not a file beside the folders."""
    return len(_folder_of(name)) >= max(len(prefix), 1)


def _ahead(names: Sequence[str], pages: int) -> str:
    """The name at which a folder would continue after `pages` pages, if its files were numbered as in this page.

    Empty if they are not numbered, or if the number has more digits than there are.
    """
    first, last = names[0], names[-1]
    start = end = len(_common(names))
    while start and first[start - 1] in _DIGITS:
        start -= 1
    while end < min(len(first), len(last)) and first[end] in _DIGITS and last[end] in _DIGITS:
        end += 1
    if start == end or first[:start] != last[:start]:
        return ""
    number = int(first[start:end]) + (int(last[start:end]) - int(first[start:end])) * pages
    return f"{first[:start]}{number:0{end - start}}" if len(str(number)) <= end - start else ""
