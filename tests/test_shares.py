"""Tests of dividing the names in a bucket among tasks."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segment.bucket import shares
from segment.bucket.listing import Range
from segment.bucket.store import Location, Object
from segment.bucket.store.folder import Folder
from segment.errors import StorageError
from tests.compiled import compiled_once  # noqa: F401


class Names:
    """A listing of `count` sorted names, which are generated when needed. Counts the pages listed."""

    def __init__(self, name: Callable[[int], str], count: int) -> None:
        self.name, self.count, self.pages = name, count, 0

    def before(self, text: str) -> int:
        """The number of names less than `text`."""
        low, high = 0, self.count
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self.name(middle) < text else (low, middle)
        return low

    def objects(self, prefix: str = "", start: str = "", end: str = "", most: int = 0) -> Iterator[Object]:
        first = self.before(max(prefix, start))
        for taken, number in enumerate(range(first, min(first + most, self.count) if most else self.count)):
            self.pages += taken % shares.PAGE == 0
            if not (name := self.name(number)).startswith(prefix):
                return
            yield Object(name, 1)


def sizes(names: Names, divided: shares.Shares) -> list[int]:
    """The number of names of each task."""

    def size(part: Range) -> int:
        return (names.before(part.end) if part.end else names.count) - names.before(part.start)

    return [sum(map(size, own)) for own in divided.ranges]


def number(n: int) -> str:
    return f"photos/IMG_{n:08}.jpg"


def date(n: int) -> str:
    day, one = divmod(n, 1000)
    month, day = divmod(day, 28)
    year, month = divmod(month, 12)
    return f"{2000 + year}/{month + 1:02}/{day + 1:02}/DSC{one:05}.JPG"


def hexadecimal(n: int) -> str:
    return f"{n * 0x1F3D5B79:016x}.png"


def one_large_folder(n: int) -> str:
    if n < 1000:
        return f"a/{n:06}"
    return f"b/deeper/and deeper/{n:06}" if n < 499_000 else f"c/{n:06}"


@pytest.mark.parametrize(
    ("name", "count"), [(number, 5_000_000), (date, 3_000_000), (hexadecimal, 2_000_000), (one_large_folder, 500_000)]
)
@pytest.mark.parametrize("tasks", [3, 20])
def test_shares_are_about_equal(name: Callable[[int], str], count: int, tasks: int) -> None:
    names = Names(name, count)
    found = sizes(names, shares.divided(names, "", tasks))
    assert sum(found) == count
    assert max(found) < 1.5 * count / tasks
    assert names.pages <= 1.2 * max(shares.LEAST_CALLS, tasks * shares.CALLS_PER_TASK)


def zipf(folders: int, photos: int) -> list[str]:
    """Names in folders whose sizes follow Zipf's law: the nth largest has 1/n of the names of the largest."""
    ranks = list(range(1, folders + 1))
    random.Random(0).shuffle(ranks)
    largest = photos / sum(1 / rank for rank in ranks)
    return [f"{folder:05}/IMG_{n:06}.jpg" for folder, rank in enumerate(ranks) for n in range(int(largest / rank) or 1)]


@pytest.mark.parametrize(("tasks", "most"), [(4, 1.4), (20, 1.6)])
def test_folders_of_different_sizes(tasks: int, most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few of 1,000 folders have most of the photos. With pages of 100, 500,000 names have the pages of 5 million."""
    monkeypatch.setattr(shares, "PAGE", 100)
    ordered = zipf(1_000, 500_000)
    names = Names(ordered.__getitem__, len(ordered))
    found = sizes(names, shares.divided(names, "", tasks))
    assert sum(found) == len(ordered)
    assert max(found) < most * len(ordered) / tasks
    assert names.pages < 1.5 * 1_000, "there must be at most about one call per folder"


@settings(max_examples=50, deadline=None)
@given(
    st.sets(st.text(st.sampled_from("a1/.é\U0010ffff\ud7ff"), min_size=1, max_size=9), max_size=80), st.integers(1, 9)
)
def test_every_name_is_in_one_share(names: set[str], tasks: int) -> None:
    """The ranges are disjoint and complete. Pages of three names make the division descend into folders."""
    ordered = sorted(names)
    store = Names(ordered.__getitem__, len(ordered))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shares, "PAGE", 3)
        divided = shares.divided(store, "", tasks)
    assert len(divided.ranges) == tasks
    ranges = sorted((part.start, part.end) for own in divided.ranges for part in own)
    assert [start for start, _ in ranges] == ["", *(end for _, end in ranges[:-1])]
    assert ranges[-1][1] == ""
    assert all(start < end for start, end in itertools.pairwise(start for start, _ in ranges))


def test_files_beside_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files beside the folders, also first on each page, do not hide that the folders differ, and take few calls."""
    monkeypatch.setattr(shares, "PAGE", 100)
    ordered = sorted(
        [*zipf(200, 50_000), *(f"{n:05}.jpg" for n in range(200)), *(f"{n:05}" for n in range(200, 9_000))]
    )
    names = Names(ordered.__getitem__, len(ordered))
    found = sizes(names, shares.divided(names, "", 8))
    assert sum(found) == len(ordered)
    assert max(found) < 1.2 * len(ordered) / 8
    assert names.pages < 500


def test_a_name_that_all_others_start_with() -> None:
    """For example the empty object that cloud consoles create for a folder."""

    def name(n: int) -> str:
        return f"2026/{n:06}.jpg" if n else "2026/"

    names = Names(name, 50_000)
    found = sizes(names, shares.divided(names, "", 4))
    assert sum(found) == 50_000
    assert max(found) < 1.5 * 50_000 / 4


def test_names_outside_the_prefix_are_not_listed() -> None:
    names = Names(date, 3_000_000)
    divided = shares.divided(names, "2003/", 4)
    own = [part.start for task in divided.ranges for part in task if part.start]
    assert own
    assert all(start.startswith("2003/") for start in own)


def test_the_first_task_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, results = (Location(Folder(tmp_path / name)) for name in ("photos", "results"))
    for n in range(10):
        photos.store.write(f"{n}.jpg", b"", "", {})
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    late = shares.agreed(photos, results, "run-1", 1, 2)
    assert pauses == list(shares.PAUSES), "it must wait for the first task"
    for n in range(90):
        photos.store.write(f"{n}.png", b"", "", {})
    first = shares.agreed(photos, results, "run-1", 0, 2)
    assert shares.agreed(photos, results, "run-1", 1, 2) == late
    assert sorted([*first, *late], key=lambda part: part.start)[0].start == ""
    assert shares.agreed(photos, results, "run-2", 0, 2) != first, "each execution must divide anew"
    assert len(list(results.store.objects())) == 2
    assert shares.agreed(photos, results, "run-1", 0, 1) == [Range()]


def test_damaged_shares_are_explained(tmp_path: Path) -> None:
    photos, results = (Location(Folder(tmp_path / name)) for name in ("photos", "results"))
    shares.agreed(photos, results, "", 0, 2)
    (item,) = results.store.objects()
    (tmp_path / "results" / item.name).write_text("[1]")
    with pytest.raises(StorageError, match=r"does not contain the shares of 2 tasks. Delete it"):
        shares.agreed(photos, results, "", 0, 2)
