"""A local folder as a store, for using the bucket code on one's own machine.

A file's generation is its modification time in microseconds, like the generations of objects in a bucket. Hidden files
and folders, whose names start with a dot, are ignored in a folder of photos, but not in a folder of results, because
the objects of a bucket may have such names.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from segment.bucket.store import Object
from segment.dataset import files
from segment.errors import StorageError, StorageRefused, TooLarge

_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG}
_BEGIN, _END = ".", ".part"
"""Start and end of the names of files that are being written."""


class Folder:
    """A Store in a local folder, which is created with the first file. Metadata is not stored.

    `hidden`: whether files and folders are listed whose names start with a dot. Without it, a subfolder or a file that
    may not be read is listed with its problem; in a folder of results, it is an error.
    """

    def __init__(self, path: str | Path, hidden: bool = False) -> None:
        self.path, self._hidden = Path(path).resolve(), hidden

    @property
    def address(self) -> str:
        """The folder's path."""
        return str(self.path)

    def objects(self, prefix: str = "", start: str = "", end: str = "", most: int = 0) -> Iterator[Object]:
        """Every file whose name, relative to the folder and with slashes, starts with `prefix` and is in the range."""
        return itertools.islice(self._files(prefix, start, end), most or None)

    def _files(self, prefix: str, start: str, end: str) -> Iterator[Object]:
        with self._as_storage_error():
            for path, found in _walk(self._inside(prefix.rpartition("/")[0]), self._hidden):
                name = path.relative_to(self.path).as_posix() + "/" * isinstance(found, _Unlisted)
                if end and name >= end:
                    return
                if name.startswith(prefix) and name >= start:
                    if isinstance(found, os.stat_result):
                        yield Object(name, found.st_mtime_ns // 1000, found.st_size)
                    else:
                        yield Object(name, 0, problem=f"{path} cannot be read: {found.strerror}.")

    def read(self, item: Object, limit: int) -> bytes | None:
        """Read the file; None if it has changed or no longer exists."""
        if item.size is not None and item.size > limit:
            raise TooLarge(f"The file has {item.size:,} bytes; the maximum is {limit:,}.")
        if item.problem:
            raise StorageRefused(item.problem)
        path = self._inside(item.name)
        with self._as_storage_error():
            try:
                data = path.read_bytes()
                unchanged = path.stat().st_mtime_ns // 1000 == item.generation
            except FileNotFoundError:
                return None
        return data if unchanged else None

    def write(self, name: str, body: bytes, content_type: str, metadata: Mapping[str, str]) -> bool:
        """Write a file atomically; False if it exists already."""
        path = self._inside(name)
        with self._as_storage_error(), _temporary(path, [body]) as temporary:
            return _link(temporary, path)

    def replace(self, name: str, pieces: Iterable[bytes], content_type: str, metadata: Mapping[str, str]) -> None:
        """Write a file atomically from `pieces`, and replace an existing one."""
        path = self._inside(name)
        with self._as_storage_error(), _temporary(path, pieces) as temporary:
            os.replace(temporary, path)

    def delete(self, item: Object) -> None:
        """Delete the file, unless it has changed."""
        path = self._inside(item.name)
        with self._as_storage_error(), suppress(FileNotFoundError):
            if path.stat().st_mtime_ns // 1000 == item.generation:
                path.unlink()

    def _inside(self, name: str) -> Path:
        if name and not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise StorageRefused(f"{name!r} cannot be a file in {self.path}: a part of it is empty, '.' or '..'.")
        return self.path / name

    @contextmanager
    def _as_storage_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kind = StorageRefused if error.errno in _REFUSED else StorageError
            raise kind(f"{error.filename or self.path}: {files.reason(error).rstrip('.')}.") from error


class _Unlisted(PermissionError):
    """A folder that may not be listed."""


def _walk(folder: Path, hidden: bool) -> Iterator[tuple[Path, os.stat_result | PermissionError]]:
    """The files below `folder`, ordered by their whole names. `hidden`: also those whose names start with a dot.

    Unless `hidden`, what may not be read is returned with the error. Raises OSError.
    """
    if not folder.is_dir():
        return
    with os.scandir(folder) as listing:  # a folder sorts as if its name ended with a slash
        # A link to a folder is not followed, because it may lead back here.
        names = sorted(entry.name + "/" * entry.is_dir(follow_symlinks=False) for entry in listing)
    for name in names:
        path = folder / name
        if name.startswith(".") and (not hidden or _is_temporary(name)):
            continue
        try:
            if name.endswith("/"):
                yield from _walk(path, hidden)
            elif state := _state(path):
                yield path, state
        except PermissionError as error:
            if hidden:
                raise
            yield path, _Unlisted(*error.args) if name.endswith("/") else error


def _state(path: Path) -> os.stat_result | None:
    """The state of a regular file; None if it is something else, or was deleted. Raises OSError."""
    try:
        state = path.stat()
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise
    return state if stat.S_ISREG(state.st_mode) else None


def _is_temporary(name: str) -> bool:
    return name.startswith(_BEGIN) and name.endswith(_END)


@contextmanager
def _temporary(path: Path, pieces: Iterable[bytes]) -> Iterator[Path]:
    """Write `pieces` to a file in the folder of `path`. Yields it, and finally deletes it if it still exists.

    Unlike files of the module tempfile, it has the permissions of any new file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_BEGIN}{uuid.uuid4().hex}{_END}")
    try:
        with temporary.open("xb") as file:
            file.writelines(pieces)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _link(temporary: Path, path: Path) -> bool:
    """Move the file to `path`; False if that exists."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if path.exists():
            return False
        os.replace(temporary, path)
    return True
