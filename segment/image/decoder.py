"""The child process of sandbox.py: reads an image file from standard input, writes its pixels to standard output."""

from __future__ import annotations

import sys

from PIL import AvifImagePlugin

from segment import image
from segment.errors import SegmentError
from segment.image import rgb, sandbox
from segment.process import configure_malloc


def main(limit: str, width: str, height: str) -> int:
    """Decode the file within `limit` bytes, with `width` and `height` as in image.decode(). Returns 1 on failure."""
    configure_malloc()
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    data = sys.stdin.buffer.read()
    try:
        header = image.read_header(data)
        sandbox.confine(int(limit))
        result = image.decode_here(data, header, (int(width), int(height)))
    except SegmentError:
        return 1
    for top in range(0, result.height, rows := max(1, rgb.STRIP_BYTES // (3 * result.width))):
        sys.stdout.buffer.write(result.crop((0, top, result.width, min(top + rows, result.height))).tobytes())
    sys.stdout.buffer.flush()
    return 0
