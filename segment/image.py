"""Decode an image file to upright RGB pixels, and compute in advance the memory that decoding needs.

The header is read without decoding any pixels, so that the caller can check the size first. A JPEG is decoded at 1/2,
1/4 or 1/8 of its size where that suffices, which saves memory and time (libjpeg's scaled inverse DCT, Pillow's "draft"
mode).

All conversions to upright RGB happen here: EXIF orientation is applied; transparent pixels are blended with white;
greyscale, palette, CMYK and 16-bit images are converted; the first frame of an animation is used. Colour profiles are
not applied, as in detectron2.
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

from segment import sandbox
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

_PNG = b"\x89PNG\r\n\x1a\n"
_SCAN = b"\xff\xda"
"""Marker before each scan of a JPEG (start of scan)."""
_RAW_EXIF = "Raw profile type exif"
"""Text of a PNG with EXIF data as hexadecimal digits, as ImageMagick wrote it before PNG had a chunk for them."""
_TIFF = {b"II": "<", b"MM": ">"}
"""First bytes of a TIFF -> byte order, as in `struct`."""
_TIFF_PICTURES = (6, 7, 50001)
"""Compressions of a TIFF whose strips or tiles are files of another format: JPEG (two variants), WebP."""
_TIFF_BYTES = (1, 2, 6, 7)
"""Types of tags that contain bytes: BYTE, ASCII, SBYTE, UNDEFINED."""
MAX_SCANS = 100
"""A JPEG with several scans usually has about ten. Each takes a pass over the whole image, however short it is."""
MAX_TEXT_BYTES = 4 << 20
"""Limit for decompressed text chunks of a PNG; Pillow's default is 64 MiB."""
MAX_HEADER_READS = 5000
"""Limit for read calls while parsing a header. A photo needs a few hundred; a hostile file can cause millions."""
MAX_PNG_CHUNKS, MAX_PNG_ANCILLARY = 100_000, 1000
"""Limits for the number of all chunks of a PNG, and of chunks other than pixel data."""
MAX_TIFF_VALUES = 100_000
"""Limit for the numbers in all tags of a TIFF. Each strip has two, and takes up to 320 bytes in Pillow."""
MAX_RAW_EXIF = 1 << 18
"""Limit for EXIF data in the text of a PNG, in characters. EXIF data of a JPEG have at most 64 kB."""
MAX_BOX_BYTES = 64 << 10
"""Limit for the description of the items of an AVIF or HEIC. A photo in 200 tiles has 12 kB. libavif takes 50 times as
much memory, and time that grows with the square of the number of items."""
MAX_RUN_LENGTH_PIXELS = 16_000_000
"""Limit for a run-length encoded BMP. Pillow decodes it in Python, up to 100 ns per pixel."""
METADATA_COPIES = 3
"""Copies in memory of what is read with the header: colour profiles, EXIF data; a WebP, AVIF or HEIC as a whole."""
STRIP_BYTES = 1 << 18
"""Size of the strips in which an image is converted to RGB."""
FIXED_BYTES = 6 << 20
"""Memory of any decoder: tables, rows, read buffers, one strip."""


@dataclass(frozen=True)
class Header:
    """An image file's header.

    `size`: (width, height) in pixels, with the orientation applied. `mode`: Pillow's mode of the stored pixels.
    `orientation`: EXIF orientation, 1-8, that decode() applies. `transparent`: whether pixels may be transparent.
    `progressive`: whether it is a progressive JPEG. `decoder_bytes`: memory in bytes that the decoder needs in addition
    to its output, independent of the output's size. `sandboxed`: whether it is decoded in a process of its own.
    """

    format: str
    size: tuple[int, int]
    mode: str
    orientation: int
    transparent: bool
    progressive: bool
    decoder_bytes: int
    sandboxed: bool = False

    def decoded_size(self, target: tuple[int, int]) -> tuple[int, int]:
        """The (width, height) that decode() returns: the smallest available size that is not below `target`."""
        scale = self._scale(target)
        return -(-self.size[0] // scale), -(-self.size[1] // scale)

    def decode_bytes(self, target: tuple[int, int]) -> int:
        """Peak memory of decode() in bytes, including the returned image."""
        received = 3 * math.prod(self.decoded_size(target))
        return self.decoder_limit(target) + (sandbox.PROCESS_BYTES + received if self.sandboxed else 0)

    def decoder_limit(self, target: tuple[int, int]) -> int:
        """Peak memory of the decoder in bytes, with its output upright, in the process in which it runs."""
        pixels = math.prod(self.decoded_size(target))
        copies = 0 if self._as_stored else 4
        return FIXED_BYTES + self.decoder_bytes + pixels * (_stored_bytes(self.mode) + copies)

    def _scale(self, target: tuple[int, int]) -> int:
        """The factor by which the decoder reduces the image, chosen as in JpegImageFile.draft."""
        if self.format != "JPEG":
            return 1
        room = min(self.size[0] // max(target[0], 1), self.size[1] // max(target[1], 1))
        return next((scale for scale in (8, 4, 2) if scale <= room), 1)

    @property
    def _as_stored(self) -> bool:
        """Whether the decoder's output is already upright RGB."""
        return self.mode == "RGB" and self.orientation == 1 and not self.transparent


def read_header(data: bytes) -> Header:
    """Parse the header of the image file `data`. Raises UnsupportedImage, CorruptImage."""
    with _refusing(data), _opened(data, file := _Header(data)) as image:
        if isinstance(image, BmpImagePlugin.BmpImageFile):
            _check_bmp(image)
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
            decoder_bytes=_decoder_bytes(image, data) + METADATA_COPIES * file.bytes_read,
            sandboxed=_has_inner_size(image),
        )
    if not width or not height:
        raise CorruptImage(f"This {header.format} is {width} x {height} pixels; an image needs at least one pixel.")
    return header


def decode(data: bytes, header: Header, target: tuple[int, int]) -> Image.Image:
    """Decode to an upright RGB image of header.decoded_size(target), (width, height) in pixels.

    Raises CorruptImage if the file is truncated or does not match its header, TooLarge if memory runs out.
    """
    if not header.sandboxed:
        return decode_here(data, header, target)
    with _refusing(data):
        size = header.decoded_size(target)
        pixels = sandbox.decode(data, target, size, header.decoder_limit(target))
        return Image.frombuffer("RGB", size, pixels, "raw", "RGB", 0, 1)


def decode_here(data: bytes, header: Header, target: tuple[int, int]) -> Image.Image:
    """decode(), but in this process in any case."""
    with _refusing(data), _opened(data) as image:
        if header.format == "JPEG":
            width, height = target
            image.draft(None, (height, width) if header.orientation >= 5 else (width, height))
        image.load()
        # _new() makes a plain image of the same pixels, without a reference to the decoder.
        result = image._new(image.im) if header._as_stored else _upright_rgb(image, header.orientation)
    if result.size != header.decoded_size(target):
        raise CorruptImage(f"The size of this {header.format} differs from the size in its header.")
    return result


def resize(image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int] | None = None) -> Image.Image:
    """Resize `image`, or its pixels in `box` (left, top, right, bottom), to `size` (width, height), antialiased.

    Bilinear, as in detectron2's ResizeTransform. An image more than three times too large is first reduced by an
    integer factor, which is faster at the same quality (Pillow's `reducing_gap`).
    """
    return image.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)


@contextlib.contextmanager
def _opened(data: bytes, file: io.BytesIO | None = None) -> Iterator[Image.Image]:
    """Open the image file `data` through `file`: its header is parsed, no pixels are decoded."""
    _prepare_pillow()
    with Image.open(file or io.BytesIO(data), formats=_formats()) as image:
        yield image


class _Header(io.BytesIO):
    """A file that limits the work of parsing its header.

    Pillow reads each segment separately, decompresses every colour profile of a PNG, from 1 KiB to up to 1 MiB, and
    makes a Python object of every number in the tags of a TIFF.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads = self.bytes_read = 0
        if data.startswith(_PNG):
            _check_png(data)
        elif data[:2] in _TIFF:
            _check_tiff(data)
        elif data[4:8] == b"ftyp":
            _check_boxes(data)

    def read(self, size: int | None = -1) -> bytes:
        """Read up to `size` bytes. Raises CorruptImage after too many reads."""
        self.reads += 1
        if self.reads > MAX_HEADER_READS:
            raise CorruptImage("The header of this image has too many parts. Save the image again.")
        found = super().read(size)
        self.bytes_read += len(found)
        return found


def _check_boxes(data: bytes) -> None:
    """Raise CorruptImage for an AVIF or HEIC with too many items or samples (ISO/IEC 14496-12, 4.2 and 8.11)."""
    described = 0
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind in (b"meta", b"moov"):
            described += end - start
        if kind == b"meta":  # of which pixels and colour profiles
            for inner, first, last in _boxes(data, start + 4, end):
                described -= last - first if inner == b"idat" else _profile_bytes(data, first, last, inner)
    if described > MAX_BOX_BYTES:
        raise CorruptImage("The header of this image describes too many parts. Save the image again.")


def _profile_bytes(data: bytes, start: int, end: int, kind: bytes) -> int:
    """Size of the colour profiles (colr) in a box of item properties (iprp, ipco)."""
    if kind not in (b"iprp", b"ipco"):
        return end - start if kind == b"colr" else 0
    return sum(_profile_bytes(data, first, last, inner) for inner, first, last in _boxes(data, start, end))


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of the content of each box in data[start:end]. Raises CorruptImage if there are too many."""
    for _ in range(MAX_HEADER_READS):
        if start + 16 > end:
            return
        size, kind, large = struct.unpack_from(">I4sQ", data, start)
        head, size = (16, large) if size == 1 else (8, size or end - start)
        if size < head:
            return
        yield kind, start + head, min(start + size, end)
        start += size
    raise CorruptImage("The header of this image has too many parts. Save the image again.")


def _check_bmp(image: BmpImagePlugin.BmpImageFile) -> None:
    if image.tile and image.tile[0].codec_name == "bmp_rle" and math.prod(image.size) > MAX_RUN_LENGTH_PIXELS:
        raise CorruptImage("This BMP is run-length encoded and has more than 16 megapixels. Save it as PNG.")


def _check_png(data: bytes) -> None:
    """Raise CorruptImage for a PNG with too many chunks (www.w3.org/TR/png-3, 5.3 and 11.3)."""
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
    raise CorruptImage("This PNG has too many chunks or more than one colour profile. Save the image again.")


def _check_tiff(data: bytes) -> None:
    """Raise CorruptImage for a TIFF whose tags have too many numbers (TIFF 6.0, section 2; BigTIFF: libtiff.org)."""
    order, big = _TIFF[data[:2]], data[2] == 43
    start, length, entry = ("8xQ", "Q", "HHQ8x") if big else ("4xL", "H", "HHL4x")
    (at,) = struct.unpack_from(order + start, data)
    (entries,) = struct.unpack_from(order + length, data, at)
    size, first = struct.calcsize(order + entry), at + struct.calcsize(order + length)
    whole = min(entries, MAX_HEADER_READS, (len(data) - first) // size)
    directory = struct.iter_unpack(order + entry, data[first : first + whole * size])
    numbers = sum(count for _, kind, count in directory if kind not in _TIFF_BYTES)
    if numbers > MAX_TIFF_VALUES:
        raise CorruptImage(
            f"The tags of this TIFF have {numbers:,} values, more than {MAX_TIFF_VALUES:,}. Save it again, with fewer "
            "strips or tiles."
        )


def _formats() -> list[str]:
    return [name for name in FORMATS if name in Image.OPEN]


def _prepare_pillow() -> None:
    """Set Pillow's global limits. Idempotent and thread-safe: each call sets the same values.

    Pillow's limit on the number of pixels is disabled; the caller checks the header against the available memory.
    """
    Image.MAX_IMAGE_PIXELS = None
    PngImagePlugin.MAX_TEXT_MEMORY = MAX_TEXT_BYTES
    if "HEIF" not in Image.OPEN:
        with contextlib.suppress(ImportError):
            import pi_heif

            pi_heif.register_heif_opener(thumbnails=False)


@contextlib.contextmanager
def _refusing(data: bytes) -> Iterator[None]:
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
            start = f"it starts with {data[:8]!r}" if data else "it is empty"
            raise UnsupportedImage(
                f"The file is not an image in a supported format ({start}). Supported formats: {names}."
            ) from error
        raise CorruptImage(
            f"This {name} is truncated, damaged or of an unsupported variant. Save it again with another program."
        ) from error


def _signature(data: bytes) -> str | None:
    """The common name of the format whose signature `data` starts with, or None."""
    for name in _formats():
        accept = Image.OPEN[name][1]
        if accept and accept(data[:16]) is True:
            return NAMES.get(name, name)
    return None


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1-8. Damaged metadata is ignored, as in browsers."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return 1  # Pillow applies the orientation of a TIFF itself
    with contextlib.suppress(Exception):
        if exif := image.info.get("exif"):
            _check_tiff(exif.removeprefix(b"Exif\0\0"))
        if len(image.info.get(_RAW_EXIF, "")) > MAX_RAW_EXIF:
            return 1
        # Not image.getexif(): for a PNG it would decode the image to find EXIF data after it.
        value = Image.Image.getexif(image).get(0x0112)
        if isinstance(value, int) and 1 <= value <= 8:
            return value
    return 1


def _stored_bytes(mode: str) -> int:
    """Bytes per pixel in Pillow's storage. Three channels take four bytes, too."""
    return 1 if mode in ("1", "L", "P") else 2 if mode.startswith("I;16") else 4


def _decoder_bytes(image: Image.Image, data: bytes) -> int:
    """Memory in bytes that the decoder of `image` needs in addition to its output.

    JPEG, PNG, GIF and BMP are decoded row by row, except JPEGs with several scans. The values were measured for the
    variant of each format that needs the most memory; tests/test_image.py repeats the measurement. In a sandbox, the
    decoder has its own copy of `data`. What Pillow reads with the header is counted by the caller.
    """
    pixels = math.prod(image.size)
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        return _coefficient_bytes(image, data)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        rotated_copy = 4 * pixels if image.tag_v2.get(0x0112, 1) != 1 else 0
        if _has_inner_size(image):  # the JPEG's coefficients, or the WebP's canvases
            return 4 * _tile_bytes(image) + rotated_copy + len(data)
        return _tile_bytes(image) + rotated_copy
    if image.format == "WEBP":  # two canvases of RGBA, the frame as bytes, the decoder's own plane
        return 14 * pixels
    if image.format in ("AVIF", "HEIF"):  # up to four planes of 16 bits, twice if tiled; the frame as bytes
        return 16 * pixels + len(data)
    return 0


def _has_inner_size(image: Image.Image) -> bool:
    """Whether the decoder allocates for sizes that are stored with the coded pixels, not for those of the header."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return image.tag_v2.get(259, 1) in _TIFF_PICTURES
    return image.format in ("AVIF", "HEIF")


def _coefficient_bytes(image: JpegImagePlugin.JpegImageFile, data: bytes) -> int:
    """Memory of libjpeg's coefficients: 2 bytes each for a JPEG with several scans, independent of the scale.

    A JPEG with one scan is decoded row by row and needs none.
    """
    components = len(image.layer)
    # The header is read up to the end of the first start of scan: marker, length, number of components, ...
    end = image.fp.tell() if image.fp else 0
    first_scan = data[data.rfind(_SCAN, 0, end) : end]
    one_scan = first_scan.startswith(_SCAN + bytes((0, 6 + 2 * components, components)))
    if one_scan and not image.info.get("progressive"):
        return 0
    if data.count(_SCAN) > MAX_SCANS:
        raise CorruptImage(f"This JPEG has more than {MAX_SCANS} scans. Save it again as a baseline JPEG.")
    across, down = max(h for _, h, _, _ in image.layer), max(v for _, _, v, _ in image.layer)
    columns, rows = (-(-side // (8 * most)) for side, most in zip(image.size, (across, down), strict=True))
    return sum(2 * 64 * columns * h * rows * v for _, h, v, _ in image.layer)


def _tile_bytes(image: TiffImagePlugin.TiffImageFile) -> int:
    """The size of one decompressed tile or strip of a TIFF, as libtiff holds it. A tile may exceed the image."""
    tags = image.tag_v2
    if tags.get(259, 1) == 1:  # Compression: none. The rows are copied from the file
        return 0
    width, height = tags.get(256, max(image.size)), tags.get(257, max(image.size))  # before the orientation is applied
    bits = max(32, max(tags.get(258, (1,))) * tags.get(277, 1))  # BitsPerSample x SamplesPerPixel; YCbCr as RGBA
    across = tags.get(322, width)  # TileWidth
    down = tags.get(323, min(tags.get(278, height), height))  # TileLength, RowsPerStrip
    return int(across * down * bits // 8)


def _upright_rgb(image: Image.Image, orientation: int) -> Image.Image:
    """Convert `image` to upright RGB. Works in strips, so that no third copy is needed."""
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
"""EXIF orientation -> the transposition that applies it (as in PIL.ImageOps.exif_transpose)."""


def _converter(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """The function that converts strips of `image` to RGB."""
    if image.mode.startswith("I;16"):
        return lambda piece: _grey(np.asarray(piece) >> 8)
    if image.mode in ("I", "F"):
        low, high = _range(image)
        return lambda piece: _grey((np.nan_to_num(np.asarray(piece, np.float64)) - low) * (255 / (high - low)))
    if image.has_transparency_data:
        return _on_white
    return lambda piece: piece.convert("RGB")


def _range(image: Image.Image) -> tuple[float, float]:
    """The values of black and white in a 32-bit integer or float image.

    The first of the ranges 0-1 (float only), 0-255 and 0-65535 that contains all values, or else their own minimum and
    maximum.
    """
    extrema = np.nan_to_num(np.array(image.getextrema(), np.float64), posinf=0, neginf=0)
    low, high = float(extrema[0]), float(extrema[1])
    scales = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    top = next((scale for scale in scales if low >= 0 and high <= scale), None)
    return (0.0, top) if top else (low, max(high, low + 1))


def _grey(values: NDArray[Any]) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).convert("RGB")


def _on_white(piece: Image.Image) -> Image.Image:
    """Blend `piece` with white."""
    piece = piece.convert("RGBA")
    result = Image.new("RGB", piece.size, "white")
    result.paste(piece, mask=piece)
    return result
