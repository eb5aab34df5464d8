"""The `Store` interface for reading photos and writing results. `google.py` is Cloud Storage, `folder.py` a folder.

Reading and deleting specify the generation of the object, and writing fails if the object exists. This ensures exactly
one result per photo, however often it is requested. Only `replace` overwrites; it is for objects made from many photos,
such as a dataset.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from segment.errors import SettingsError
from segment.extras import require

BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
"""Valid bucket names (https://cloud.google.com/storage/docs/buckets#naming)."""
CLIENT = "google.cloud.storage"
"""The client library of Cloud Storage."""


@dataclass(frozen=True)
class Object:
    """One generation of an object. Writing the same name again creates another generation.

    `size`: in bytes. `crc32c`: base64, as in Cloud Storage. `metadata`: custom metadata. Each may be unknown.
    `problem`: why the object cannot be read, if the listing shows that. A folder of a file system that cannot be listed
    is such an object, whose name ends with a slash.
    """

    name: str
    generation: int
    size: int | None = None
    crc32c: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder that Cloud Storage's tools have created as an object, without content."""
        return self.name.endswith("/") and not self.problem


class Listing(Protocol):
    """A bucket or folder whose objects can be listed. Errors as of a Store."""

    def objects(self, prefix: str = "", start: str = "", end: str = "", most: int = 0) -> Iterator[Object]:
        """The objects whose names start with `prefix` and are in [start, end), if given; at most `most`, if not 0.

        They are sorted by name, by code point, which is the order of the names' bytes in UTF-8.
        """


class Store(Listing, Protocol):
    """A bucket or folder of objects. Thread-safe.

    Each method raises StorageError if a retry may succeed, StorageRefused if it fails until somebody intervenes.
    """

    @property
    def address(self) -> str:
        """The address in messages, such as gs://bucket."""

    def read(self, item: Object, limit: int) -> bytes | None:
        """Read that generation; None if it no longer exists.

        Raises TooLarge if it exceeds `limit` bytes, CorruptImage if its content cannot be decompressed.
        """

    def write(self, name: str, body: bytes, content_type: str, metadata: Mapping[str, str]) -> bool:
        """Write an object atomically; False if it exists already, in which case it is not changed."""

    def replace(self, name: str, pieces: Iterable[bytes], content_type: str, metadata: Mapping[str, str]) -> None:
        """Write an object of any size from `pieces`, atomically, and replace an existing one.

        A few MiB are in memory at a time. If `pieces` raises an error, nothing is written.
        """

    def delete(self, item: Object) -> None:
        """Delete that generation, if it still exists."""


@dataclass(frozen=True)
class Location:
    """The objects of a store whose names start with `prefix`."""

    store: Store
    prefix: str = ""

    @property
    def address(self) -> str:
        """Such as gs://bucket/prefix."""
        return f"{self.store.address}/{self.prefix}"


def open_store(address: str, seconds: float, hidden: bool = False) -> Location:
    """The location with an address: gs://bucket/prefix or the path of a folder. Calls are retried for `seconds`.

    `hidden`: whether hidden files of a folder are listed, as those of a bucket always are. Raises SettingsError, and
    MissingPackage if the client library of Cloud Storage is not installed.
    """
    if not address.startswith("gs://"):
        from segment.bucket.store.folder import Folder

        return Location(Folder(address, hidden))
    bucket, _, prefix = address.removeprefix("gs://").partition("/")
    if not BUCKET.fullmatch(bucket):
        raise SettingsError(f"{address!r} does not name a bucket. Use gs://bucket or gs://bucket/prefix.")
    require(CLIENT)
    from segment.bucket.store.google import Bucket  # 17 MB that a folder does not need

    return Location(Bucket(bucket, seconds), prefix)


def open_results(address: str, seconds: float) -> Location:
    """The location of results with an address: as `open_store`, but the prefix is that of a folder."""
    found = open_store(address, seconds, hidden=True)
    is_folder = not found.prefix or found.prefix.endswith("/")
    return found if is_folder else replace(found, prefix=found.prefix + "/")


def find(store: Store, name: str) -> Object | None:
    """The object with this name, if it exists. Raises StorageError."""
    return next((item for item in store.objects(name, name, most=1) if item.name == name), None)


def overlap(source: str, destination: str) -> bool:
    """Whether results at `destination` could be read as photos from `source`; both are ADDRESS/PREFIX."""
    return source.startswith(destination) or destination.startswith(source)


def check_apart(source: str, destination: str) -> None:
    """Raise SettingsError if results at `destination` could be read as photos from `source` (see overlap)."""
    if overlap(source, destination):
        raise SettingsError(
            f"The results at {destination} would be read as photos from {source}: one is inside the other. Choose "
            "another place for the results."
        )
