"""Where photos are read from and results are written to: the `Store` interface of buckets and folders.

Reading names the generation of the object, writing succeeds only where there is no object, and deleting names the
generation too. This is enough to have exactly one result of each photo, however often it is asked for. Only `replace`
overwrites: it is for what is made of many photos, such as a dataset. `google.py` is Cloud Storage, `folder.py` a
folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from segment.errors import SettingsError


@dataclass(frozen=True)
class Object:
    """One generation of one object; a name that is written again is another generation.

    `size` in bytes, `crc32c` as Cloud Storage writes it (base64) and `metadata`, the custom one, are as far as known.
    """

    name: str
    generation: int
    size: int | None = None
    crc32c: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


class Store(Protocol):
    """A place of objects. Thread-safe.

    Each method raises StorageError for a failure that may pass later, StorageRefused for one that will not.
    """

    @property
    def address(self) -> str:
        """What users call it, such as gs://bucket."""

    def objects(self, prefix: str = "", start: str = "", end: str = "") -> Iterator[Object]:
        """Every object whose name starts with `prefix`, is not less than `start` and is less than `end`, if given.

        They are ordered by name, character by character, which is the order of their bytes in UTF-8.
        """

    def read(self, item: Object, limit: int) -> bytes | None:
        """The content of that generation; None if it is not there any more.

        Raises TooLarge above `limit` bytes, CorruptImage if the content cannot be unpacked.
        """

    def write(self, name: str, body: bytes, content_type: str, metadata: Mapping[str, str]) -> bool:
        """Write an object where none is, whole or not at all; False if there is one, which stays as it is."""

    def replace(self, name: str, file: Path, content_type: str, metadata: Mapping[str, str]) -> None:
        """Write an object from a file, a part at a time, in place of the one that is there. It appears whole."""

    def delete(self, item: Object) -> None:
        """Delete that generation; nothing happens if it is not there any more."""


def open_store(address: str, seconds: float) -> tuple[Store, str]:
    """The store and the prefix that gs://bucket/prefix names, or the folder. Raises SettingsError."""
    if not address.startswith("gs://"):
        from segment.bucket.store.folder import Folder

        return Folder(address), ""
    bucket, _, prefix = address.removeprefix("gs://").partition("/")
    if not bucket:
        raise SettingsError(f"{address!r} names no bucket; write gs://bucket or gs://bucket/prefix.")
    from segment.bucket.store.google import Bucket  # 17 MB that a folder does not need

    return Bucket(bucket, seconds), prefix


def overlap(source: str, destination: str) -> bool:
    """Whether results at `destination` could be found at `source`; both are an address, a slash and a prefix."""
    return source.startswith(destination) or destination.startswith(source)
