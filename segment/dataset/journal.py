"""The journal of a run: which photos are done, and what was found in them.

It is a SQLite file in the output folder. A run that was stopped, even by SIGKILL, continues from it. Datasets are
written from it one photo at a time, so memory does not grow with the number of photos.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Self

from segment.dataset.entry import Entry, Failure
from segment.errors import StorageError

FILE_NAME = ".segment.sqlite"
_TABLE = """
CREATE TABLE IF NOT EXISTS photos (
    name TEXT PRIMARY KEY, key TEXT NOT NULL, generation INTEGER, run INTEGER NOT NULL, document BLOB, error TEXT
)"""


class Journal:
    """The journal in the folder `output`, for one thread. Raises StorageError if another run has opened it."""

    def __init__(self, output: Path) -> None:
        self._path = output / FILE_NAME
        try:
            self._database = sqlite3.connect(self._path, timeout=1)
            # The file does not have to survive a crash of the machine: photos without an entry are segmented again.
            self._database.execute("PRAGMA synchronous = OFF")
            self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                self._database.execute(_TABLE)
            (last,) = self._database.execute("SELECT max(run) FROM photos").fetchone()
        except sqlite3.OperationalError as error:
            raise StorageError(f"{output} cannot be written: {error}. Is another run writing to it?") from None
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from None
        self._run = (last or 0) + 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with closing(self._database), self._as_storage_error():
            self._database.commit()

    def resume(self, name: str, key: str) -> bool:
        """Whether an earlier run finished the photo with this `key`; if so, add it to this run."""
        query = "UPDATE photos SET run = ? WHERE name = ? AND key = ? AND error IS NULL"
        with self._as_storage_error():
            return self._database.execute(query, (self._run, name, key)).rowcount > 0

    def resume_inside(self, name: str, key: str) -> None:
        """Add the recorded parts of `name`, whose names are NAME/..., to this run."""
        query = "UPDATE photos SET run = ? WHERE name > ? AND name < ? AND key = ?"
        with self._as_storage_error():
            self._database.execute(query, (self._run, f"{name}/", f"{name}0", key))

    def done(self, name: str, key: str, generation: int, document: bytes | None) -> None:
        """Record a photo that was segmented. `document`: its JSON, if a dataset is wanted."""
        self._write(name, key, generation, document, None)

    def failed(self, name: str, error: str, key: str = "") -> None:
        """Record a photo that could not be segmented. The next run tries it again, unless `key` is given."""
        self._write(name, key, None, None, error)

    def entries(self) -> Iterator[Entry]:
        """The photos of this run that have a document, sorted by name."""
        query = "SELECT name, generation, document FROM photos WHERE run = ? AND document IS NOT NULL ORDER BY name"
        with self._as_storage_error():
            for name, generation, document in self._database.execute(query, (self._run,)):
                yield Entry(name, generation, json.loads(document))

    def failures(self) -> Iterator[Failure]:
        """The photos of this run that failed, sorted by name."""
        query = "SELECT name, error FROM photos WHERE run = ? AND error IS NOT NULL ORDER BY name"
        with self._as_storage_error():
            for name, error in self._database.execute(query, (self._run,)):
                yield Failure(name, error)

    def _write(self, name: str, key: str, generation: int | None, document: bytes | None, error: str | None) -> None:
        row = (name, key, generation, self._run, document, error)
        with self._as_storage_error(), self._database:
            self._database.execute("REPLACE INTO photos VALUES (?, ?, ?, ?, ?, ?)", row)

    @contextmanager
    def _as_storage_error(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StorageError(
                f"{self._path} cannot be written: {error}. The same command continues with the photos that are left."
            ) from None
        except (sqlite3.DatabaseError, ValueError) as error:  # the latter of a document that is no longer JSON
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> StorageError:
        return StorageError(f"{self._path} is damaged ({error}). Delete it to segment all photos again.")
