"""The photos of a run: what matches an address, with or without wildcards, in a bucket or a folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from apache_beam.io.filesystem import FileSystem

from segment.bucket import shares
from segment.bucket.listing import Range, listed
from segment.bucket.results import is_result
from segment.bucket.store import Location, Object, open_store
from segment.errors import SettingsError

LISTINGS = 64
"""Number of ranges of names into which a bucket is divided."""
_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Source:
    """Objects of the bucket or folder at `address` whose names start with `prefix` and match `expression`.

    `expression`: a regular expression for the whole name; empty matches every name.
    """

    address: str
    prefix: str = ""
    expression: str = ""

    @classmethod
    def parse(cls, text: str) -> Source:
        """gs://bucket/prefix, a folder, a file, or any of them with wildcards.

        The wildcards are Beam's: `*` is any text without a slash, `**` any text, `?` one character, `[ab]` a or b.
        Raises SettingsError.
        """
        return cls._of_bucket(text) if text.startswith("gs://") else cls._of_folder(text)

    @classmethod
    def _of_bucket(cls, text: str) -> Source:
        bucket, _, pattern = text.removeprefix("gs://").partition("/")
        if not bucket or _WILDCARD.search(bucket):
            raise SettingsError(
                f"{text!r} does not name a bucket; use gs://bucket, gs://bucket/prefix or gs://bucket/**.jpg."
            )
        wildcard = _WILDCARD.search(pattern)
        if not wildcard:
            return cls(f"gs://{bucket}", pattern)
        return cls(f"gs://{bucket}", pattern[: wildcard.start()], FileSystem.translate_pattern(pattern))

    @classmethod
    def _of_folder(cls, text: str) -> Source:
        path, wildcard = Path(text), _WILDCARD.search(text)
        if path.is_dir():
            return cls(str(path.resolve()))
        if path.is_file():
            return cls(str(path.resolve().parent), path.name, re.escape(path.name) + r"\Z")
        folder, slash, pattern = text[: wildcard.start()].rpartition("/") if wildcard else ("", "", "")
        if not wildcard or not Path(folder or slash or ".").is_dir():
            raise SettingsError(
                f"{text!r} is not a folder; use a folder, a pattern such as photos/**.jpg, or gs://bucket/**."
            )
        pattern += text[wildcard.start() :]
        return cls(str(Path(folder or slash or ".").resolve()), expression=FileSystem.translate_pattern(pattern))

    def location(self, seconds: float) -> Location:
        """The objects whose names start with `prefix`; calls are retried for `seconds`."""
        return Location(open_store(self.address, seconds).store, self.prefix)

    def ranges(self, seconds: float) -> list[Range]:
        """Ranges of names that together contain all photos, for listing in parallel. Raises StorageError."""
        if not self.address.startswith("gs://"):
            return [Range()]
        store = self.location(seconds).store
        divided = shares.divided(store, self.prefix, LISTINGS // shares.RANGES_PER_TASK)
        return sorted((names for own in divided.ranges for names in own), key=lambda names: names.start)

    def objects(self, seconds: float, names: Range) -> Iterator[Object]:
        """The photos in the range, sorted by name, without results of earlier runs. Raises StorageError."""
        matches = re.compile(self.expression or ".*", re.DOTALL).match
        for item in listed(self.location(seconds), names):
            if not item.is_folder and not is_result(item) and (item.problem or matches(item.name)):
                yield item
