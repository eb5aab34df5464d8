"""Write result files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def write(path: Path, pieces: Iterable[bytes]) -> Path:
    """Write a file of `pieces`, and return its path. An existing file is replaced when the new one is complete.

    Raises OSError, and leaves no incomplete file.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.writelines(pieces)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
