"""The place for the results of one photo: a folder in a store, in which files are written once."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from segment.bucket.refusal import (
    LIMITS_KEY,
    Limits,
    NameTooLong,
    SourceRefused,
    cause,
    document,
    other_name,
    recorded_cause,
)
from segment.bucket.results import ERROR_NAME, Results, Run
from segment.bucket.store import Store
from segment.errors import RequestError, StorageRefused
from segment.formats import File
from segment.wording import counted

MAX_NAME_BYTES = 1024
"""Maximum length of an object's name in Cloud Storage (https://cloud.google.com/storage/docs/objects#naming)."""


@dataclass(frozen=True)
class Target:
    """The results of one photo. `folder`: start of their names in `store`. `origin`: metadata that names the photo.

    Each method that calls the store raises StorageError, StorageRefused.
    """

    store: Store
    folder: str
    origin: Mapping[str, str]

    @property
    def address(self) -> str:
        """Store and folder."""
        return f"{self.store.address}/{self.folder}"

    def check_name(self, name: str) -> None:
        """Raise NameTooLong if a result of this name would have too long a name in the store."""
        length = len((self.folder + name).encode("utf-8", "surrogateescape"))
        if length > MAX_NAME_BYTES:
            raise NameTooLong(
                f"The name of its result {name} would have {length:,} bytes; the maximum is {MAX_NAME_BYTES:,}. "
                f"Shorten the photo's name by {counted(length - MAX_NAME_BYTES, 'byte')}."
            )

    def find(self) -> Results:
        """The existing results, in one call."""
        return Results.find(self.store, self.folder)

    def write(self, file: File, run: Run) -> bool:
        """Write a result; False if it exists already and is of another run."""
        metadata = {**self.origin, **run.metadata()}
        if self.store.write(self.folder + file.name, file.body, file.content_type, metadata):
            return True
        found = self.find().files.get(file.name)
        return found is not None and Run.from_metadata(found.metadata) == run

    def delete(self, existing: Results) -> None:
        """Delete an incomplete set of results that cannot be completed."""
        try:
            for item in existing.files.values():
                self.store.delete(item)
        except StorageRefused as error:
            raise StorageRefused(
                f"Some results in {self.folder} were made with another model or other settings. They cannot be "
                f"completed, and replacing them failed: {error} Delete this folder, and run a backfill."
            ) from error

    def write_error(self, error: RequestError | SourceRefused, limits: Limits, existing: Results) -> None:
        """Write error.json, in place of the `existing` ones or, where they cannot be deleted, beside them."""
        recorded, name = cause(error, limits), ERROR_NAME
        if not self.delete_errors(existing):
            name = other_name(recorded)
            if recorded in (recorded_cause(self.store, old) for old in existing.errors):
                return
        metadata = {**self.origin, **({LIMITS_KEY: recorded} if recorded else {})}
        body = document(error, recorded, self.origin)
        with suppress(NameTooLong):  # of the longer name
            self.check_name(name)
            self.store.write(self.folder + name, body, "application/problem+json", metadata)

    def delete_errors(self, existing: Results) -> bool:
        """Delete the photo's error.json; False if that is not allowed."""
        try:
            for error in existing.errors:
                self.store.delete(error)
        except StorageRefused:
            return False
        return True
