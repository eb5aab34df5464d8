"""The header of an image file, and the memory that decoding it needs, computed without decoding any pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import BmpImagePlugin, Image, JpegImagePlugin, TiffImagePlugin

from segment.errors import CorruptImage
from segment.image import bounds, sandbox, webp
from segment.image.essential import essential
from segment.image.orientation import UPRIGHT, in_exif, in_xmp
from segment.image.pieces import Essential
from segment.image.pillow import NAMES, opened, refusing

_SCAN = b"\xff\xda"
"""Marker before each scan of a JPEG (start of scan)."""
_TIFF_PICTURES = (6, 7, 50001)
"""Compressions of a TIFF whose strips or tiles are files of another format: JPEG (two variants), WebP."""
MAX_SCANS = 100
"""A JPEG with several scans usually has about ten. Each takes a pass over the whole image, however short it is."""
HEADER_BYTES = 4 << 20
"""Memory that reading a header takes at most in addition to the file."""
STRIP_BYTES = 320
"""Memory of a strip or tile of a TIFF without compression, in addition to its pixels."""
METADATA_COPIES = 3
"""Copies in memory of what the decoder reads besides pixels: tables, a TIFF's tags; a WebP, AVIF or HEIC as a whole."""
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
    """Parse the header of the image file `data`. Raises UnsupportedImage, CorruptImage.

    This takes at most HEADER_BYTES of memory, whatever the file contains.
    """
    with refusing(data):
        bounds.check(data)
        header = _webp_header(data) if webp.is_webp(data) else _header(data)
    if not all(header.size):
        width, height = header.size
        raise CorruptImage(f"This {header.name} is {width} x {height} pixels; an image needs at least one pixel.")
    return header


def _header(data: bytes) -> Header:
    parts = essential(data)
    file = bounds.BoundedFile(parts.file)
    with opened(file) as image:
        if isinstance(image, BmpImagePlugin.BmpImageFile):
            bounds.check_bmp(image)
        turned = _orientation(image) if parts.orientation is None else parts.orientation
        return Header(
            format="JPEG" if isinstance(image, JpegImagePlugin.JpegImageFile) else str(image.format),
            size=_turned(image.size, turned),
            mode=image.mode,
            orientation=turned,
            transparent=image.has_transparency_data,
            progressive=bool(image.info.get("progressive")),
            decoder_bytes=_decoder_bytes(image, data, parts) + METADATA_COPIES * file.bytes_read,
            sandboxed=_has_inner_size(image),
        )


def _webp_header(data: bytes) -> Header:
    """The decoder has two canvases of RGBA, the frame as bytes, its own plane, and copies of the file."""
    found = webp.read(data)
    return Header(
        format="WEBP",
        size=_turned(found.size, found.orientation),
        mode="RGBA" if found.transparent else "RGB",
        orientation=found.orientation,
        transparent=found.transparent,
        progressive=False,
        decoder_bytes=14 * math.prod(found.size) + METADATA_COPIES * len(data),
    )


def _turned(size: tuple[int, int], turned: int) -> tuple[int, int]:
    return (size[1], size[0]) if turned >= 5 else size


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1-8, in the metadata of a format whose parts Pillow reads."""
    exif, xmp = image.info.get("exif", b""), image.info.get("xmp", b"")
    return in_exif(exif) or in_xmp(xmp, 0, len(xmp)) or UPRIGHT


def _stored_bytes(mode: str) -> int:
    """Bytes per pixel in Pillow's storage. Three channels take four bytes, too."""
    return 1 if mode in ("1", "L", "P") else 2 if mode.startswith("I;16") else 4


def _decoder_bytes(image: Image.Image, data: bytes, parts: Essential) -> int:
    """Memory in bytes that the decoder of `image` needs in addition to its output.

    JPEG, PNG, GIF and BMP are decoded row by row, except JPEGs with several scans. The values were measured for the
    variant of each format that needs the most memory; tests/test_image.py repeats the measurement. In a sandbox, the
    decoder has its own copy of `data`. What Pillow reads with the header is counted by the caller.
    """
    pixels = math.prod(image.size)
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        return _coefficient_bytes(image, data, parts.first_scan)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        copies = 4 * pixels if image.tag_v2.get(0x0112, 1) != 1 else 0
        if image.tag_v2.get(259, 1) == 1:  # Compression: none
            copies += STRIP_BYTES * len(image.tile)
        else:  # libtiff reads the tags that Pillow does not see
            copies += METADATA_COPIES * parts.hidden_bytes
        if _has_inner_size(image):  # the JPEG's coefficients, or the WebP's canvases
            return 4 * _tile_bytes(image) + copies + len(data)
        return _tile_bytes(image) + copies
    if image.format in ("AVIF", "HEIF"):  # up to four planes of 16 bits, twice if tiled; the frame as bytes
        return 16 * pixels + len(data)
    return 0


def _has_inner_size(image: Image.Image) -> bool:
    """Whether the decoder allocates for sizes that are stored with the coded pixels, not for those of the header."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return image.tag_v2.get(259, 1) in _TIFF_PICTURES
    return image.format in ("AVIF", "HEIF")


def _coefficient_bytes(image: JpegImagePlugin.JpegImageFile, data: bytes, first_scan: int) -> int:
    """Memory of libjpeg's coefficients: 2 bytes each for a JPEG with several scans, independent of the scale.

    A JPEG with one scan is decoded row by row and needs none.
    """
    components = len(image.layer)
    # Marker, length, number of components, ...
    one_scan = data.startswith(_SCAN + bytes((0, 6 + 2 * components, components)), first_scan)
    if one_scan and not image.info.get("progressive"):
        return 0
    if data.count(_SCAN, first_scan) > MAX_SCANS:
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
