"""The parts of an image file that are needed to decode it, as a file for Pillow.

Pillow makes several copies of a file's metadata before the memory of a request is planned. Photos
may contain megabytes of them, such as depth maps and Photoshop resources. Pillow does not see these here: what it sees
besides pixels is small, whatever the file contains. No part of the file is copied before it is read.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

from segment.image.pillow import File


@dataclass(frozen=True)
class Essential:
    """A file for Pillow, and what is in the parts that it leaves out.

    `orientation`: EXIF orientation, 1-8, or None if Pillow has to find it. `first_scan`: where the first scan of a JPEG
    begins. `hidden_bytes`: size of a TIFF's tags that Pillow does not see; libtiff copies them.
    """

    file: File
    orientation: int | None = None
    first_scan: int = 0
    hidden_bytes: int = 0


class Pieces:
    """Pieces of `data` as one file. `pieces`: (start, end) of each, in ascending order."""

    def __init__(self, data: bytes, pieces: list[tuple[int, int]]) -> None:
        self._data = data
        self._pieces = [(start, min(end, len(data))) for start, end in pieces if start < min(end, len(data))]
        self._starts = [0, *accumulate(end - start for start, end in self._pieces)]
        self._at = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Change the position."""
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._starts[-1]}[whence])
        return self._at

    def tell(self) -> int:
        """The position."""
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        """Read up to `size` bytes, or all."""
        until = self._starts[-1] if size < 0 else min(self._at + size, self._starts[-1])
        parts = []
        while self._at < until:
            index = bisect_right(self._starts, self._at) - 1
            start, end = self._pieces[index]
            first = start + self._at - self._starts[index]
            parts.append(self._data[first : min(end, first + until - self._at)])
            self._at += len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)
