"""in_step pairs photos with their results from two sorted listings, for names that sort in unexpected ways."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from segment.bucket.listing import MOST_SKIPPED, in_step
from segment.bucket.results import ERROR_NAME, Results, folder_of
from segment.bucket.store import Object

FILES = ("overlay.png", "detections.json")
NAME = st.text(st.sampled_from("a1/!.-0é\U0001f600\uffee"), min_size=1, max_size=6)
"""Names of characters that sort before and after "/", with digits, which look like a generation."""


class Listing:
    """A sorted listing of names that counts how often it is started and how many names are read."""

    def __init__(self, names: set[str], end: str = "") -> None:
        self.names, self.end = sorted(names, key=lambda name: name.encode()), end
        self.starts = self.taken = 0

    def __call__(self, start: str) -> Iterator[Object]:
        self.starts += 1
        for name in self.names:
            if name >= start and not (self.end and name >= self.end):
                self.taken += 1
                yield Object(name, 1)


def photos(names: dict[str, int]) -> list[Object]:
    """The listing of a bucket of photos, in the order of their names in UTF-8."""
    return [Object(name, generation) for name, generation in sorted(names.items(), key=lambda one: one[0].encode())]


def found(results: Results | None) -> set[str] | None:
    if results is None:
        return None
    return {*results.files, *([ERROR_NAME] if results.error else [])}


@given(
    st.dictionaries(NAME, st.integers(1, 12), max_size=12),
    st.sets(st.tuples(NAME, st.integers(1, 12), st.sampled_from((*FILES, ERROR_NAME, "x"))), max_size=20),
    st.data(),
)
@example({"a": 17, "a.jpg": 1, "a/1": 5, "a/17": 88, "a/2": 3}, {("a", 17, FILES[0]), ("a/17", 88, FILES[0])}, None)
def test_each_photo_is_listed_once_with_its_results(
    names: dict[str, int], others: set[tuple[str, int, str]], data: st.DataObject | None
) -> None:
    there = {f"out/{name}/{generation}/{file}" for name, generation, file in others}
    if data:  # add some results of these photos
        mine = itertools.product(photos(names), (*FILES, ERROR_NAME))
        there |= {folder_of("out/", photo) + file for photo, file in mine if data.draw(st.booleans())}
    listing = Listing(there)
    pairs = list(in_step(photos(names), listing, "out/"))
    assert sorted(pair[0].name for pair in pairs) == sorted(names)
    for photo, results in pairs:
        folder = folder_of("out/", photo)
        assert found(results) == {file for file in (*FILES, ERROR_NAME) if folder + file in there}
    assert listing.starts <= 1


@given(st.dictionaries(NAME, st.integers(1, 12), max_size=12), st.sets(NAME, max_size=3))
def test_ranges_contain_all_names(names: dict[str, int], cuts: set[str]) -> None:
    """A photo whose results are in the next range is returned without them."""
    there = {folder_of("", photo) + FILES[0] for photo in photos(names)}
    edges = ["", *sorted(cuts), ""]
    seen = []
    for start, end in itertools.pairwise(edges):
        own = [photo for photo in photos(names) if photo.name >= start and not (end and photo.name >= end)]
        pairs = list(in_step(own, Listing(there, end), "", end))
        assert all(found(results) in ({FILES[0]}, None) for _, results in pairs)
        assert all(end.startswith(photo.name) for photo, results in pairs if results is None)
        seen += [photo.name for photo, _ in pairs]
    assert sorted(seen) == sorted(names)


def test_results_of_no_photo_are_skipped() -> None:
    """Results remain in the bucket when their photos are deleted."""
    there = {f"{n:06}/1/{file}" for n in range(20_000) for file in FILES}
    listing = Listing(there)
    kept = [Object(f"{n:06}", 1) for n in (5, 6, 19_000)]
    assert [found(results) for _, results in in_step(kept, listing)] == [set(FILES)] * 3
    assert listing.starts == 2
    assert listing.taken < MOST_SKIPPED + 20


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_nothing_is_listed_for_no_photo(count: int) -> None:
    listing = Listing({"a/1/overlay.png"})
    pairs = list(in_step([Object(f"b{n:04}", 1) for n in range(count)], listing))
    assert [found(results) for _, results in pairs] == [set()] * count
    assert listing.starts == min(count, 1)
