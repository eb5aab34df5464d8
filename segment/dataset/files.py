"""Write result files."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

NAME_BYTES, PATH_BYTES = 255, 4095
"""Maximum lengths of a file name and of a path on Linux (limits.h), in bytes."""


def write(path: Path, pieces: Iterable[bytes]) -> Path:
    """Write a file of `pieces`, and return its path. An existing file is replaced when the new one is complete.

    Raises OSError, and leaves no incomplete file.
    """
    incomplete = partial(path)
    try:
        with incomplete.open("wb") as file:
            file.writelines(pieces)
        incomplete.replace(path)
    finally:
        incomplete.unlink(missing_ok=True)
    return path


def partial(path: Path) -> Path:
    """The file beside `path` that becomes it when it is complete.

    The name is short, because that of `path` may have the maximum length, and always the same, so that a killed run
    leaves at most one such file.
    """
    return path.with_name(f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.partial")


def reason(error: OSError) -> str:
    """Why a file could not be read or written; of a name that is too long, with its length and the maximum."""
    if error.errno != errno.ENAMETOOLONG:
        return error.strerror or str(error)
    path = os.fsencode(error.filename2 or error.filename)
    name = max(path.split(b"/"), key=len)
    kind, long, most = ("file name", name, NAME_BYTES) if len(name) > NAME_BYTES else ("path", path, PATH_BYTES)
    return (
        f"The {kind} {os.fsdecode(long)!r} has {len(long):,} bytes; the maximum is {most:,}. Shorten the photo's name."
    )
