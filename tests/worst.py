"""Faulty files as they may be uploaded to a bucket: truncated, damaged, with false headers, or not photos."""

from __future__ import annotations

import gzip
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator

from PIL import Image

from training.shapes import scene

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
SIGNATURES = {
    "JPEG": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01",
    "PNG": b"\x89PNG\r\n\x1a\n",
    "WEBP": b"RIFF\x24\x00\x00\x00WEBPVP8 ",
    "GIF": b"GIF89a",
    "BMP": b"BM",
    "TIFF little": b"II*\x00",
    "TIFF big": b"MM\x00*",
    "AVIF": b"\x00\x00\x00\x20ftypavif",
    "HEIC": b"\x00\x00\x00\x18ftypheic",
}


def files(seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files. Some damaged ones may still be decodable."""
    dice = random.Random(seed)
    for kind in FORMATS:
        photo = _photo(kind)
        for percent in range(0, 96, 3):
            yield f"cut off/{percent}.{kind}", photo[: len(photo) * percent // 100]
        for number in range(24):
            yield f"damaged/{number}.{kind}", _damaged(photo, dice)
        for number in range(4):
            yield f"shuffled/{number}.{kind}", photo[:24] + bytes(dice.sample(photo[24:], len(photo) - 24))
    for name, signature in SIGNATURES.items():
        yield f"only a signature/{name}", signature
        for number in range(8):
            yield f"a signature and noise/{name} {number}", signature + dice.randbytes(40 << number)
    for number in range(20):
        yield f"noise/{number}", dice.randbytes(1 << number % 16)
    yield from _lies()
    yield from _no_photos()


def _photo(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(scene(0, (96, 64))[0]).save(buffer, kind)
    return buffer.getvalue()


def _damaged(photo: bytes, dice: random.Random) -> bytes:
    """The photo with some bytes changed, and a piece removed or doubled."""
    content = bytearray(photo)
    for _ in range(dice.randrange(1, 40)):
        content[dice.randrange(len(content))] = dice.randrange(256)
    start = dice.randrange(len(content))
    piece = content[start : start + dice.randrange(64)]
    content[start : start + len(piece)] = piece * dice.randrange(3)
    return bytes(content)


def _lies() -> Iterator[tuple[str, bytes]]:
    """Headers with false or excessive sizes, and small files that decompress to very large ones."""
    for width, height in ((0, 0), (0, 5), (1, 2**31 - 1), (65535, 65535), (2**31 - 1, 2**31 - 1), (2**32 - 1, 1)):
        yield f"lies/{width}x{height}.png", _png(width, height)
        yield f"lies/{width}x{height}.bmp", _bmp(width, height)
        yield f"lies/{width}x{height}.gif", b"GIF89a" + struct.pack("<HH", width % 65536, height % 65536) + b"\0\0\0;"
        yield f"lies/{width}x{height}.tif", _tiff(width, height)
    jpeg = bytearray(_photo("JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    for size in (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\1\xff\xff"):
        jpeg[at : at + 4] = size
        yield f"lies/{size.hex()}.jpg", bytes(jpeg)
    rows = zlib.compress(bytes(30_000 * (30_000 // 8 + 1)), 9)  # 900 megapixels in 110 kB
    yield "lies/inside.avif", inside("avif")
    yield "lies/inside.tif", inside("tif")
    yield "lies/bomb.png", _png(30_000, 30_000, rows)
    text = b"zTXt" + b"comment\0\0" + zlib.compress(bytes(64 << 20), 9)
    yield "lies/text.png", _png(8, 8, zlib.compress(bytes(16)), _chunk(text))
    yield "lies/loop.tif", b"II*\0" + struct.pack("<I", 8) + struct.pack("<HI", 0, 8)


def inside(kind: str) -> bytes:
    """A file with a header of 64 x 64 pixels (TIFF: 5000 x 4) whose compressed image has 25 megapixels."""
    coded, side = io.BytesIO(), 5000
    if kind == "avif":
        Image.new("L", (side, side)).save(coded, "AVIF", speed=10)
        true = b"ispe" + struct.pack(">III", 0, side, side)
        return coded.getvalue().replace(true, b"ispe" + struct.pack(">III", 0, 64, 64))
    Image.new("L", (side, side)).save(coded, "JPEG", progressive=True)
    strip = coded.getvalue()
    tags = [(256, side), (257, 4), (258, 8), (259, 7), (262, 1), (273, 8), (277, 1), (278, 4), (279, len(strip))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + struct.pack("<H", len(tags)) + entries + bytes(4)


def _png(width: int, height: int, rows: bytes = b"", extra: bytes = b"") -> bytes:
    header = _chunk(b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return SIGNATURES["PNG"] + header + extra + _chunk(b"IDAT" + rows) + _chunk(b"IEND")


def _chunk(content: bytes) -> bytes:
    return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))


def _bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IIIIIIHHIIIIII", 58, 0, 54, 40, width, height, 1, 24, 0, 4, 0, 0, 0, 0) + bytes(4)


def _tiff(width: int, height: int) -> bytes:
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 4)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 12) + bytes(4) + struct.pack("<H", len(tags)) + entries + bytes(4)


def _no_photos() -> Iterator[tuple[str, bytes]]:
    """Files of other types."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("photo.jpg", _photo("JPEG"))
    yield "empty.jpg", b""
    yield "one byte.jpg", b"\xff"
    yield "zeros.jpg", bytes(100_000)
    yield "notes.txt", "Kein Foto. 写真ではない。".encode()
    yield "page.html", b"<!doctype html><img src='photo.jpg'>"
    yield "drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg' width='10' height='10'><rect/></svg>"
    yield "photos.zip", archive.getvalue()
    yield "photo.jpg.gz", gzip.compress(_photo("JPEG"))
    yield "paper.pdf", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj <<>> endobj"
    yield "film.mp4", b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(100)
    yield "program", b"\x7fELF\2\1\1" + bytes(100)
    yield "page.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(run) system"
    yield "data.json", b'{"bucket": "photos", "name": "a.jpg"}'
    yield "script.jpg", b"#!/bin/sh\nrm -rf /\n"
    yield "windows.ico", b"\0\0\1\0\1\0\x10\x10" + bytes(100)
