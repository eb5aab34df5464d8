"""The header of an image file, and the memory that decoding it needs, computed without decoding any pixels."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

from PIL import BmpImagePlugin, Image, JpegImagePlugin, TiffImagePlugin

from segment.errors import CorruptImage
from segment.image import sandbox
from segment.image.bounds import EXIF, BoundedFile, check_bmp, check_tiff
from segment.image.pillow import NAMES, opened, refusing

_SCAN = b"\xff\xda"
"""Marker before each scan of a JPEG (start of scan)."""
_RAW_EXIF = "Raw profile type exif"
"""Text of a PNG with EXIF data as hexadecimal digits, as ImageMagick wrote it before PNG had a chunk for them."""
_TIFF_PICTURES = (6, 7, 50001)
"""Compressions of a TIFF whose strips or tiles are files of another format: JPEG (two variants), WebP."""
MAX_SCANS = 100
"""A JPEG with several scans usually has about ten. Each takes a pass over the whole image, however short it is."""
MAX_RAW_EXIF = 1 << 18
"""Limit for EXIF data in the text of a PNG, in characters. EXIF data of a JPEG have at most 64 kB."""
METADATA_COPIES = 3
"""Copies in memory of what is read with the header: colour profiles, EXIF data; a WebP, AVIF or HEIC as a whole."""
FIXED_BYTES = 6 << 20
"""Memory of a decoder other than JPEG's: tables, rows, read buffers, one strip."""
JPEG_FIXED_BYTES, JPEG_ROW_BYTES = 2 << 20, 64
"""The same for JPEG: in any case, and per pixel of a row. libjpeg has at most about 20 rows in memory."""


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

    @property
    def name(self) -> str:
        """The common name of the format."""
        return NAMES.get(self.format, self.format)

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
        copies = 0 if self.as_stored else 4
        return self._fixed_bytes + self.decoder_bytes + pixels * (_stored_bytes(self.mode) + copies)

    @property
    def _fixed_bytes(self) -> int:
        return JPEG_FIXED_BYTES + JPEG_ROW_BYTES * max(self.size) if self.format == "JPEG" else FIXED_BYTES

    def _scale(self, target: tuple[int, int]) -> int:
        """The factor by which the decoder reduces the image, chosen as in JpegImageFile.draft."""
        if self.format != "JPEG":
            return 1
        room = min(self.size[0] // max(target[0], 1), self.size[1] // max(target[1], 1))
        return next((scale for scale in (8, 4, 2) if scale <= room), 1)

    @property
    def as_stored(self) -> bool:
        """Whether the decoder's output is already upright RGB."""
        return self.mode == "RGB" and self.orientation == 1 and not self.transparent


def read_header(data: bytes) -> Header:
    """Parse the header of the image file `data`. Raises UnsupportedImage, CorruptImage."""
    with refusing(data), opened(data, file := BoundedFile(data)) as image:
        if isinstance(image, BmpImagePlugin.BmpImageFile):
            check_bmp(image)
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
        raise CorruptImage(f"This {header.name} is {width} x {height} pixels; an image needs at least one pixel.")
    return header


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1-8. Damaged metadata is ignored, as in browsers."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return 1  # Pillow applies the orientation of a TIFF itself
    with contextlib.suppress(Exception):
        if exif := image.info.get("exif"):
            check_tiff(exif.removeprefix(EXIF))
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
