"""Open image files with Pillow: the supported formats, its global limits and its errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import IO, Any, Protocol, cast

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from segment.errors import CorruptImage, SegmentError, TooLarge, UnsupportedImage

PLUGINS = (
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    WebPImagePlugin.WebPImageFile,
    GifImagePlugin.GifImageFile,
    BmpImagePlugin.BmpImageFile,
    TiffImagePlugin.TiffImageFile,
    AvifImagePlugin.AvifImageFile,
)
"""Pillow's plugins for the supported formats. pi_heif adds HEIF if it is installed."""
FORMATS = (*(plugin.format for plugin in PLUGINS), "HEIF")
NAMES = {"WEBP": "WebP", "HEIF": "HEIC"}
"""Common names of formats, where they differ from Pillow's."""
BLOCK_BYTES, BLOCKS = 1 << 20, 8
"""Size and number of the blocks of memory that are reused, see `reuse_memory`."""


class File(Protocol):
    """What Pillow uses of a file."""

    def read(self, size: int = -1, /) -> bytes:
        """Read up to `size` bytes, or all."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Change the position."""

    def tell(self) -> int:
        """The position."""


@contextlib.contextmanager
def opened(file: File) -> Iterator[Image.Image]:
    """Open an image file: its header is parsed, no pixels are decoded."""
    _prepare_pillow()
    with Image.open(cast(IO[bytes], file), formats=_formats()) as image:
        yield image


@contextlib.contextmanager
def refusing(data: bytes) -> Iterator[None]:
    """Convert any exception of a decoder into an ImageError or TooLarge.

    On damaged files Pillow's plugins raise almost any type: OSError, SyntaxError, ValueError, struct.error, zlib.error,
    EOFError, KeyError, ... Use this only around calls to the decoder.
    """
    try:
        yield
    except SegmentError:
        raise
    except MemoryError as error:
        raise TooLarge("Decoding this image needs more memory than is available. Send a smaller image.") from error
    except Exception as error:
        name = _signature(data)
        if name is None:
            names = ", ".join(NAMES.get(name, name) for name in _formats())
            start = f"it starts with {repr(data[:8]).removeprefix('b')}" if data else "it is empty"
            raise UnsupportedImage(
                f"The file is not an image in a supported format ({start}). Supported formats: {names}."
            ) from error
        raise CorruptImage(
            f"This {name} is truncated, damaged or of an unsupported variant. Save it again with another program."
        ) from error


def reuse_memory() -> None:
    """Let Pillow keep BLOCKS of its memory for the next images, instead of returning all of it to the kernel.

    The kernel clears each page that it gives out again, which takes CPU time for every photo.
    The blocks are allocated here, so that they are counted as held when the memory for photos is determined.
    """
    core = cast(Any, Image).core
    core.set_block_size(BLOCK_BYTES)
    core.set_blocks_max(BLOCKS)
    Image.new("L", (BLOCK_BYTES >> 10, BLOCKS << 10))


def _formats() -> list[str]:
    return [name for name in FORMATS if name in Image.OPEN]


def _prepare_pillow() -> None:
    """Set Pillow's global limits. Idempotent and thread-safe: each call sets the same values.

    Pillow's limit on the number of pixels is disabled; the caller checks the header against the available memory.
    """
    Image.MAX_IMAGE_PIXELS = None
    if "HEIF" not in Image.OPEN:
        with contextlib.suppress(ImportError):
            import pi_heif

            pi_heif.register_heif_opener(thumbnails=False)


def _signature(data: bytes) -> str | None:
    """The common name of the format whose signature `data` starts with, or None."""
    for name in _formats():
        accept = Image.OPEN[name][1]
        if accept and accept(data[:16]) is True:
            return NAMES.get(name, name)
    return None
