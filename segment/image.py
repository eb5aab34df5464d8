"""Bytes of a photo -> upright RGB pixels, and how much memory that takes before it is spent.

A header is read without decoding a pixel, so the caller can judge a photo's size and refuse it; decoding then reads no
more than is wanted: a JPEG can be decoded at 1/2, 1/4 or 1/8 of its size for a fraction of the memory and time (the
scaled inverse DCT of libjpeg, "draft" in Pillow).

Everything becomes upright RGB here and nowhere else: EXIF orientation is applied; transparency is laid on white; grey,
palette, CMYK and 16-bit pictures are converted; of an animation the first frame is taken. Colour profiles are not
applied: detectron2 does not apply them either.
"""

from __future__ import annotations

import contextlib
import io
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
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
"""What is read of Pillow's formats; its many others are never tried. pi_heif adds HEIF, where it is installed."""
FORMATS = (*(plugin.format for plugin in PLUGINS), "HEIF")
NAMES = {"WEBP": "WebP", "HEIF": "HEIC"}
"""What people call a format, where that is not its name in Pillow."""

_PNG = b"\x89PNG\r\n\x1a\n"
MAX_SCANS = 100
"""A progressive JPEG has about ten scans; each costs a pass over the whole picture."""
MAX_TEXT_BYTES = 4 << 20
"""Text in a PNG, unpacked; Pillow's own limit is 64 MiB."""
MAX_HEADER_READS = 5000
"""Reads that a header may take. A photo's takes some hundreds at most; one made of tiny segments takes millions."""
MAX_PNG_CHUNKS, MAX_PNG_ANCILLARY = 100_000, 1000
"""Chunks of a PNG in all, and of those that are not pixels."""
STRIP_BYTES = 1 << 18
"""How much is converted at once."""
FIXED_BYTES = 6 << 20
"""What any decoder needs for itself: tables, rows, read buffers, one strip."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself, read without decoding it.

    `size`: (width, height) in pixels, upright. `mode`: Pillow's name of the stored pixels. `orientation`: EXIF's 1-8,
    what decoding still has to turn. `transparent`: whether some pixels may be. `progressive`: a progressive JPEG.
    `decoder_bytes`: memory in bytes that the decoder holds beside the pixels that it writes, whatever the target.
    """

    format: str
    size: tuple[int, int]
    mode: str
    orientation: int
    transparent: bool
    progressive: bool
    decoder_bytes: int

    def decoded_size(self, target: tuple[int, int]) -> tuple[int, int]:
        """The (width, height) that decode() will return: the smallest on offer that is not below `target`."""
        scale = self._scale(target)
        return -(-self.size[0] // scale), -(-self.size[1] // scale)

    def decode_bytes(self, target: tuple[int, int]) -> int:
        """The most memory in bytes, the returned image included, that decode() takes."""
        pixels = math.prod(self.decoded_size(target))
        copies = 0 if self._as_stored else 4
        return FIXED_BYTES + self.decoder_bytes + pixels * (_stored_bytes(self.mode) + copies)

    def _scale(self, target: tuple[int, int]) -> int:
        """The divisor that the decoder applies, as JpegImageFile.draft picks it."""
        if self.format != "JPEG":
            return 1
        room = min(self.size[0] // max(target[0], 1), self.size[1] // max(target[1], 1))
        return next((scale for scale in (8, 4, 2) if scale <= room), 1)

    @property
    def _as_stored(self) -> bool:
        """Whether the decoder's own picture is already upright RGB."""
        return self.mode == "RGB" and self.orientation == 1 and not self.transparent


def read_header(data: bytes) -> Header:
    """Read what `data` says of itself. Raises UnsupportedImage, CorruptImage."""
    with _refusing(data), _opened(data, _Header(data)) as image:
        orientation = _orientation(image)
        jpeg = isinstance(image, JpegImagePlugin.JpegImageFile)
        width, height = image.size
        header = Header(
            format="JPEG" if jpeg else str(image.format),
            size=(height, width) if orientation >= 5 else (width, height),
            mode=image.mode,
            orientation=orientation,
            transparent=image.has_transparency_data,
            progressive=bool(image.info.get("progressive")),
            decoder_bytes=_decoder_bytes(image, data),
        )
    if not width or not height:
        raise CorruptImage(
            f"This {header.format} says that it is {width} x {height} pixels; there is nothing to see in it."
        )
    if header.progressive and data.count(b"\xff\xda") > MAX_SCANS:  # start of scan
        raise CorruptImage(f"This progressive JPEG has more than {MAX_SCANS} scans; save it anew.")
    return header


def decode(data: bytes, header: Header, target: tuple[int, int]) -> Image.Image:
    """Decode to an upright RGB image of header.decoded_size(target), (width, height) in pixels.

    Raises CorruptImage when the file is cut off or is not what its header says, TooLarge when memory runs out.
    """
    with _refusing(data), _opened(data) as image:
        if header.format == "JPEG":
            width, height = target
            image.draft(None, (height, width) if header.orientation >= 5 else (width, height))
        image.load()
        # _new: a plain image over the same pixels, which lets go of the file's decoder
        result = image._new(image.im) if header._as_stored else _upright_rgb(image, header.orientation)
    if result.size != header.decoded_size(target):
        raise CorruptImage(f"This {header.format} does not have the size that its header says.")
    return result


def resize(image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int] | None = None) -> Image.Image:
    """A new image of `size` (width, height), antialiased; of the pixels in `box` (left, top, right, bottom) if given.

    Bilinear, as detectron2's ResizeTransform does it. What is more than three times too large is first reduced by a
    whole number, which is faster and looks the same (Pillow's `reducing_gap`).
    """
    return image.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)


@contextlib.contextmanager
def _opened(data: bytes, file: io.BytesIO | None = None) -> Iterator[Image.Image]:
    """The image behind `data`, read through `file`, its header read, nothing decoded."""
    _prepare_pillow()
    with Image.open(file or io.BytesIO(data), formats=_formats()) as image:
        yield image


class _Header(io.BytesIO):
    """A file whose header must not take much work to read: a bounded number of reads, one colour profile in a PNG.

    Pillow reads each segment of a header on its own and unpacks every colour profile, up to 1 MiB from 1 KiB.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads = 0
        if data.startswith(_PNG):
            _check_png(data)

    def read(self, size: int | None = -1) -> bytes:
        """Read; raises CorruptImage when there have been too many reads."""
        self.reads += 1
        if self.reads > MAX_HEADER_READS:
            raise CorruptImage("This image has a header of too many parts; save it anew.")
        return super().read(size)


def _check_png(data: bytes) -> None:
    """Raise CorruptImage for a PNG with more chunks than a picture needs (www.w3.org/TR/png-3, 5.3 and 11.3)."""
    at, ancillary, profiles = len(_PNG), 0, 0
    for _ in range(MAX_PNG_CHUNKS):
        if at + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        at += length + 12
        ancillary += kind not in (b"IDAT", b"fdAT")
        profiles += kind == b"iCCP"
        if profiles > 1 or ancillary > MAX_PNG_ANCILLARY:
            break
    raise CorruptImage("This PNG has more colour profiles or other chunks than a picture needs; save it anew.")


def _formats() -> list[str]:
    return [name for name in FORMATS if name in Image.OPEN]


def _prepare_pillow() -> None:
    """Set what Pillow only has as globals. Each call sets the same, so it does not matter which thread is first.

    Pillow's own limit on the number of pixels warns or refuses by a fixed number; here the caller judges, from the
    header, by the memory that there is.
    """
    Image.MAX_IMAGE_PIXELS = None
    PngImagePlugin.MAX_TEXT_MEMORY = MAX_TEXT_BYTES
    if "HEIF" not in Image.OPEN:
        with contextlib.suppress(ImportError):
            import pi_heif

            pi_heif.register_heif_opener(thumbnails=False)


@contextlib.contextmanager
def _refusing(data: bytes) -> Iterator[None]:
    """Turn whatever a decoder raises on hostile bytes into the error tree.

    Pillow's plugins raise nearly anything: OSError, SyntaxError, ValueError, struct.error, zlib.error, EOFError,
    KeyError, ... The block holds nothing but decoding.
    """
    try:
        yield
    except SegmentError:
        raise
    except MemoryError as error:
        raise TooLarge("This image needs more memory to decode than there is; send a smaller one.") from error
    except Exception as error:
        name = _signature(data)
        if name is None:
            names = ", ".join(NAMES.get(name, name) for name in _formats())
            start = f"it starts with {data[:8]!r}" if data else "it is empty"
            raise UnsupportedImage(f"This is no image of a known format ({start}). What is read: {names}.") from error
        raise CorruptImage(f"This {name} is cut off, damaged or of a rare kind; save it anew.") from error


def _signature(data: bytes) -> str | None:
    """What people call the format whose signature `data` starts with; None if it is none that is read."""
    for name in _formats():
        accept = Image.OPEN[name][1]
        if accept and accept(data[:16]) is True:
            return NAMES.get(name, name)
    return None


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1-8. Damaged metadata is passed over, as browsers do."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return 1  # Pillow turns TIFF itself
    with contextlib.suppress(Exception):
        # Not image.getexif(): PNG's would decode the picture to look for EXIF behind it.
        value = Image.Image.getexif(image).get(0x0112)
        if isinstance(value, int) and 1 <= value <= 8:
            return value
    return 1


def _stored_bytes(mode: str) -> int:
    """Bytes per pixel of Pillow's storage: three channels take four bytes too."""
    return 1 if mode in ("1", "L", "P") else 2 if mode.startswith("I;16") else 4


def _decoder_bytes(image: Image.Image, data: bytes) -> int:
    """Memory in bytes that the decoder of `image` holds beside the pixels it writes.

    JPEG, PNG, GIF and BMP are decoded row by row, but for JPEGs with several scans. The figures are measured
    (tests/test_image.py measures them again) and are those of the dearest variant of each format.
    """
    pixels = math.prod(image.size)
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        return _coefficient_bytes(image, data)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        turning = 4 * pixels if image.tag_v2.get(0x0112, 1) != 1 else 0  # Pillow turns TIFF in a copy
        return _tile_bytes(image) + turning
    if image.format == "WEBP":  # two canvases of RGBA, the frame as bytes, the decoder's own plane
        return 14 * pixels + 2 * len(data)
    if image.format in ("AVIF", "HEIF"):  # up to four planes of 16 bits, twice if tiled; the frame as bytes
        return 16 * pixels + 2 * len(data)
    return 0


def _coefficient_bytes(image: JpegImagePlugin.JpegImageFile, data: bytes) -> int:
    """What libjpeg holds of a JPEG with several scans: every coefficient, 2 bytes each, whatever the scale.

    A JPEG with one scan is decoded row by row.
    """
    components = len(image.layer)
    scan = image.fp.tell() if image.fp else 0
    # The header is read up to the end of the first start of scan: marker, length, number of components, ...
    one_scan = data[:scan].rfind(bytes((0xFF, 0xDA, 0, 6 + 2 * components, components))) >= 0
    if one_scan and not image.info.get("progressive"):
        return 0
    across, down = max(h for _, h, _, _ in image.layer), max(v for _, _, v, _ in image.layer)
    columns, rows = (-(-side // (8 * most)) for side, most in zip(image.size, (across, down), strict=True))
    return sum(2 * 64 * columns * h * rows * v for _, h, v, _ in image.layer)


def _tile_bytes(image: TiffImagePlugin.TiffImageFile) -> int:
    """The size of one unpacked tile or strip of a TIFF, which libtiff holds whole; a tile may exceed the image."""
    tags, (width, height) = image.tag_v2, image.size
    bits = max(32, max(tags.get(258, (1,))) * tags.get(277, 1))  # BitsPerSample x SamplesPerPixel; YCbCr as RGBA
    across = tags.get(322, max(width, height))  # TileWidth; the image may lie on its side
    down = tags.get(323, min(tags.get(278, height), max(width, height)))  # TileLength, RowsPerStrip
    return int(across * down * bits // 8)


def _upright_rgb(image: Image.Image, orientation: int) -> Image.Image:
    """`image` as RGB and turned upright, a strip at a time: no third copy is made."""
    width, height = image.size
    swapped, backwards = orientation >= 5, orientation in (3, 4, 6, 7)
    turn = _TURNS.get(orientation)
    convert = _converter(image)
    result = Image.new("RGB", (height, width) if swapped else (width, height))
    step = max(1, STRIP_BYTES // (4 * width))
    for top in range(0, height, step):
        bottom = min(top + step, height)
        strip = convert(image.crop((0, top, width, bottom)))
        if turn is not None:
            strip = strip.transpose(turn)
        start = height - bottom if backwards else top
        result.paste(strip, (start, 0) if swapped else (0, start))
    return result


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientation -> what makes it upright (as PIL.ImageOps.exif_transpose)."""


def _converter(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """How pieces of `image` become RGB."""
    if image.mode.startswith("I;16"):
        return lambda piece: _grey(np.asarray(piece) >> 8)
    if image.mode in ("I", "F"):
        low, high = _range(image)
        return lambda piece: _grey((np.nan_to_num(np.asarray(piece, np.float64)) - low) * (255 / (high - low)))
    if image.has_transparency_data:
        return _on_white
    return lambda piece: piece.convert("RGB")


def _range(image: Image.Image) -> tuple[float, float]:
    """The values of a 32-bit or float image that are black and white.

    The usual scale that it fits into, 0-1 (float), 0-255 or 0-65535; else its own least and greatest values.
    """
    extrema = np.nan_to_num(np.array(image.getextrema(), np.float64), posinf=0, neginf=0)
    low, high = float(extrema[0]), float(extrema[1])
    scales = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    top = next((scale for scale in scales if low >= 0 and high <= scale), None)
    return (0.0, top) if top else (low, max(high, low + 1))


def _grey(values: NDArray[Any]) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).convert("RGB")


def _on_white(piece: Image.Image) -> Image.Image:
    """`piece` with its transparency laid on white."""
    piece = piece.convert("RGBA")
    result = Image.new("RGB", piece.size, "white")
    result.paste(piece, mask=piece)
    return result
