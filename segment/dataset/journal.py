"""The journal of a run: which photos are done, with what was found in them.

It is a SQLite file in the output folder. A run that was stopped, even by SIGKILL, continues from it,
and datasets are written from it one photo at a time, so that memory does not grow with their number.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from segment.errors import StorageError

FILE_NAME = ".segment.sqlite"
_TABLE = """
CREATE TABLE IF NOT EXISTS photos (
    name TEXT PRIMARY KEY, key TEXT NOT NULL, generation INTEGER, run INTEGER NOT NULL, document BLOB, error TEXT
)"""


@dataclass(frozen=True)
class Entry:
    """A photo that is done.

    `generation`: the file's modification time in nanoseconds. `document`: its JSON, see output/coco.py.
    """

    name: str
    generation: int
    document: dict[str, Any]


class Journal:
    """The journal in the folder `output`. Used by one thread. Raises StorageError if another run has it open."""

    def __init__(self, output: Path) -> None:
        self._path = output / FILE_NAME
        try:
            self._database = sqlite3.connect(self._path, timeout=1)
            # The file need not survive a crash of the machine: photos whose entries are lost are segmented again.
            self._database.execute("PRAGMA synchronous = OFF")
            self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                self._database.execute(_TABLE)
            (last,) = self._database.execute("SELECT max(run) FROM photos").fetchone()
        except sqlite3.OperationalError as error:
            raise StorageError(f"{output} cannot be written: {error}. Is another run writing to it?") from None
        except sqlite3.DatabaseError as error:
            raise StorageError(f"{self._path} is damaged ({error}). Delete it to segment all photos again.") from None
        self._run = (last or 0) + 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._database.commit()
        self._database.close()

    def resume(self, name: str, key: str) -> bool:
        """Whether the photo was done with this `key` before; if so it belongs to this run too."""
        done = self._database.execute(
            "UPDATE photos SET run = ? WHERE name = ? AND key = ? AND error IS NULL", (self._run, name, key)
        )
        return done.rowcount > 0

    def resume_inside(self, name: str, key: str) -> None:
        """Let what was recorded of the parts of `name`, which are named NAME/..., belong to this run too."""
        self._database.execute(
            "UPDATE photos SET run = ? WHERE name > ? AND name < ? AND key = ?",
            (self._run, f"{name}/", f"{name}0", key),
        )

    def done(self, name: str, key: str, generation: int, document: bytes | None) -> None:
        """Record a photo that was segmented. `document`: its JSON, if a dataset is to be written."""
        self._write(name, key, generation, document, None)

    def failed(self, name: str, error: str, key: str = "") -> None:
        """Record a photo that could not be segmented. It is tried again in the next run, or else has a `key`."""
        self._write(name, key, None, None, error)

    def entries(self) -> Iterator[Entry]:
        """The photos of this run that are done and have a document, in order of their names."""
        query = "SELECT name, generation, document FROM photos WHERE run = ? AND document IS NOT NULL ORDER BY name"
        with closing(self._database.execute(query, (self._run,))) as rows:
            for name, generation, document in rows:
                yield Entry(name, generation, json.loads(document))

    def failures(self) -> Iterator[tuple[str, str]]:
        """Name and error of each photo of this run that failed, in order of their names."""
        query = "SELECT name, error FROM photos WHERE run = ? AND error IS NOT NULL ORDER BY name"
        with closing(self._database.execute(query, (self._run,))) as rows:
            yield from rows

    def _write(self, name: str, key: str, generation: int | None, document: bytes | None, error: str | None) -> None:
        with self._database:
            row = (name, key, generation, self._run, document, error)
            self._database.execute("REPLACE INTO photos VALUES (?, ?, ?, ?, ?, ?)", row)
