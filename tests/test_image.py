"""Images of each supported format are decoded to upright RGB in the planned memory; other bytes are refused."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from segment import image
from segment.errors import CorruptImage, ImageError, TooLarge, UnsupportedImage
from segment.image import header as headers
from segment.image import rgb, sandbox
from segment.image.pillow import BLOCK_BYTES
from tests import worst

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def photo(width: int = 60, height: int = 40) -> Image.Image:
    """A smooth picture with no symmetry."""
    corners = np.array([[[250, 30, 20], [20, 200, 40]], [[30, 40, 220], [240, 230, 60]]], np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def decoded(data: bytes, target: tuple[int, int] | None = None) -> Image.Image:
    header = image.read_header(data)
    target = target or header.size
    result = image.decode(data, header, target)
    assert result.mode == "RGB"
    assert result.size == header.decoded_size(target)
    return result


def difference(a: Image.Image, b: Image.Image) -> float:
    assert a.size == b.size
    return float(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).mean())


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("format", FORMATS)
def test_reads_each_format(format: str) -> None:
    data = encoded(photo(), format)
    header = image.read_header(data)
    assert (header.format, header.size) == (format, (60, 40))
    assert difference(decoded(data), photo()) < (9 if format == "GIF" else 4)


def test_reads_heic_upright() -> None:
    pytest.importorskip("pi_heif", reason="needs pi-heif: without it HEIC is refused")
    data = (Path(__file__).parent / "photos" / "turned.heic").read_bytes()
    header = image.read_header(data)
    assert (header.format, header.size) == ("HEIF", (40, 60))
    assert difference(decoded(data), photo().transpose(Image.Transpose.ROTATE_270)) < 4
    with pytest.raises(CorruptImage, match="HEIC"):
        decoded(data[:-200])


def test_reads_several_pictures_in_one_jpeg() -> None:
    """MPO, which phones write for a photo with a depth map or a second view."""
    data = encoded(photo(320, 240), "MPO", save_all=True, append_images=[photo(64, 48)])
    assert image.read_header(data).format == "JPEG"
    assert decoded(data, (80, 60)).size == (80, 60)


def test_takes_the_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), (i % 256, 90, 90)) for i in range(300)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        data = encoded(photo(8, 8), kind, save_all=True, append_images=frames)
        assert difference(decoded(data), photo(8, 8)) < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_turns_upright(format: str, orientation: int) -> None:
    options: dict[str, Any] = {"tiffinfo": {0x0112: orientation}} if format == "TIFF" else {"exif": turned(orientation)}
    data = encoded(photo(), format, **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert image.read_header(data).size == expected.size == ((40, 60) if orientation >= 5 else (60, 40))
    assert difference(decoded(data), expected) == 0


def test_turns_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rgb, "STRIP_BYTES", 7 * 4 * 60)
    for orientation in range(2, 9):
        data = encoded(photo(), "PNG", exif=turned(orientation))
        assert difference(decoded(data), ImageOps.exif_transpose(Image.open(io.BytesIO(data)))) == 0


def test_ignores_damaged_exif() -> None:
    data = encoded(photo(), "JPEG", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff")
    assert image.read_header(data).orientation == 1
    assert image.read_header(encoded(photo(), "JPEG", exif=turned(77))).orientation == 1


def test_transparency_becomes_white() -> None:
    half = photo().convert("RGBA")
    half.putalpha(Image.linear_gradient("L").resize((60, 40)))
    expected = Image.alpha_composite(Image.new("RGBA", (60, 40), "white"), half).convert("RGB")
    for kind in ("PNG", "TIFF"):
        assert difference(decoded(encoded(half, kind)), expected) < 1
    for kind in ("WEBP", "AVIF"):
        assert difference(decoded(encoded(half, kind, quality=95)), expected) < 5
    grey = half.convert("LA")
    assert difference(decoded(encoded(grey, "PNG")), decoded(encoded(grey.convert("RGBA"), "PNG"))) < 1


def test_blends_transparent_palettes_and_colours_with_white() -> None:
    palette = Image.new("P", (4, 2), 1)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((0, 0), 0)
    for kind in ("PNG", "GIF"):
        result = decoded(encoded(palette, kind, transparency=0))
        assert result.getpixel((0, 0)) == (255, 255, 255)
        assert result.getpixel((1, 0)) == (200, 100, 50)
    for mode, colour in (("RGB", (1, 2, 3)), ("L", 7)):
        plain = Image.new(mode, (4, 2), colour)
        assert decoded(encoded(plain, "PNG", transparency=colour)).getpixel((0, 0)) == (255, 255, 255)


def test_converts_cmyk_as_adobe_writes_it() -> None:
    data = encoded(photo().convert("CMYK"), "JPEG", quality=95)  # Pillow writes Adobe's marker and inverted values
    assert b"Adobe" in data
    assert difference(decoded(data), photo()) < 4


GREY = np.linspace(0, 255, 256).astype(np.uint8).reshape(16, 16)


@pytest.mark.parametrize(
    ("values", "format"),
    [
        (GREY.astype(np.uint16) * 257, "PNG"),
        (GREY.astype(np.uint16) * 257, "TIFF"),
        (GREY.astype(np.int32), "TIFF"),
        (GREY.astype(np.int32) * 257, "TIFF"),
        (GREY.astype(np.int32) * 5_000_000 - 600_000_000, "TIFF"),
        (GREY.astype(np.float32) / 255, "TIFF"),
        (GREY.astype(np.float32), "TIFF"),
        (GREY.astype(np.float32) * 3.7e5 - 1e7, "TIFF"),
    ],
    ids=["u16-png", "u16-tiff", "i32-byte", "i32-u16", "i32-wide", "f32-unit", "f32-byte", "f32-wide"],
)
def test_scales_deep_greys_without_clipping(values: NDArray[Any], format: str) -> None:
    result = np.asarray(decoded(encoded(Image.fromarray(values), format)), np.int16)
    assert np.abs(result - GREY[..., None]).max() <= 1


def test_reads_floats_that_are_no_numbers_as_black() -> None:
    values = np.full((2, 3), np.nan, np.float32)
    values[0, 0] = 1
    assert decoded(encoded(Image.fromarray(values), "TIFF")).getpixel((0, 0)) == (255, 255, 255)
    assert decoded(encoded(Image.fromarray(values), "TIFF")).getpixel((1, 1)) == (0, 0, 0)


def test_reads_deep_colours() -> None:
    """16 bits per channel, in a PNG built by hand because Pillow cannot write it."""
    rows = b"".join(b"\0" + struct.pack(">6H", 0x80FF, 0, 0xFFFF, 0x1234, 0xFFFF, 0) for _ in range(2))
    assert decoded(png((2, 2), rows, depth=16, colour=2)).getpixel((0, 0)) == (0x80, 0, 0xFF)


def test_one_bit() -> None:
    assert decoded(encoded(Image.new("1", (5, 5), 1), "PNG")).getpixel((2, 2)) == (255, 255, 255)


@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    target=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    orientation=st.sampled_from([1, 6]),
)
@example(size=(3, 3), target=(1, 1), orientation=1)
@settings(max_examples=40, deadline=None)
def test_a_jpeg_is_decoded_no_larger_than_needed(
    size: tuple[int, int], target: tuple[int, int], orientation: int
) -> None:
    header = image.read_header(encoded(photo(*size), "JPEG", exif=turned(orientation)))
    result = decoded(encoded(photo(*size), "JPEG", exif=turned(orientation)), target)
    for side, wanted, full in zip(result.size, target, header.size, strict=True):
        assert min(wanted, full) <= side <= full
    # Decoders scale to 1/2, 1/4 or 1/8 and round up: one side is at most twice the target, or the scale is 1/8.
    assert result.width <= 2 * target[0] or result.height <= 2 * target[1] or result.width == -(-header.size[0] // 8)


def png(size: tuple[int, int], rows: bytes, depth: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    end = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + (chunk(b"zTXt", extra) * 100 if extra else b"") + end


def test_decompression_bomb_is_planned_from_its_header() -> None:
    header = image.read_header(png((60_000, 60_000), b""))
    assert header.size == (60_000, 60_000)
    assert header.decode_bytes((400, 300)) > 4 * 60_000**2


def test_tile_larger_than_its_tiff_is_planned() -> None:
    tags = {256: 60, 257: 40, 258: 8, 259: 5, 262: 1, 277: 1, 322: 20_000, 323: 20_000, 324: 8, 325: 9}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(16)
    header = image.read_header(data)
    assert header.size == (60, 40)
    assert header.decode_bytes((60, 40)) > 20_000**2


@pytest.mark.parametrize("data", [b"", b"x", b"%PDF-1.7 ...", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\0" * 99])
def test_refuses_files_that_are_not_images(data: bytes) -> None:
    with pytest.raises(UnsupportedImage, match="JPEG, PNG, WebP"):
        image.read_header(data)


@pytest.mark.parametrize("format", ["PPM", "TGA", "ICO", "PCX", "JPEG2000", "EPS"])
def test_other_formats_of_pillow_are_disabled(format: str) -> None:
    with pytest.raises(UnsupportedImage):
        image.read_header(encoded(photo(), format))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_refuses_truncated_images(format: str, part: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = encoded(noise, format)
    with pytest.raises(CorruptImage, match="truncated"):
        decoded(data[: int(part * len(data))])


def test_refuses_empty_images() -> None:
    with pytest.raises(ImageError):
        decoded(png((0, 5), b""))


def test_refuses_bombs_of_scans_and_does_not_read_bombs_of_text() -> None:
    text = b"k\0\0" + zlib.compress(b"x" * 900_000)
    bomb = png((2, 2), b"\0" * 14, extra=text)
    assert _allocated(lambda: image.read_header(bomb)) < 1 << 16
    data = encoded(photo(), "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    with pytest.raises(CorruptImage, match="scans"):
        image.read_header(data[:scan] + data[scan:-2] * 200 + data[-2:])


def test_a_comment_that_looks_like_a_scan_does_not_hide_the_memory_of_several_scans() -> None:
    honest = _many_scans(3)
    whole_scan = _SCAN + bytes((0, 12, 3))
    posing = honest[:2] + b"\xff\xfe" + struct.pack(">H", 2 + len(whole_scan)) + whole_scan + honest[2:]
    target = (100, 100)
    assert image.read_header(posing).decode_bytes(target) >= image.read_header(honest).decode_bytes(target) > 8_000_000


def test_reads_an_avif_with_a_large_colour_profile() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(photo(), "AVIF", icc_profile=profile + bytes(200_000))
    assert image.read_header(data).size == (60, 40)


def test_says_too_large_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise MemoryError

    data = encoded(photo(), "PNG")
    header = image.read_header(data)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(TooLarge):
        image.decode(data, header, (60, 40))


SAMPLES = [
    encoded(photo(24, 16), "JPEG", exif=turned(6)),
    encoded(photo(24, 16), "JPEG", progressive=True),
    encoded(photo(24, 16).convert("CMYK"), "JPEG"),
    encoded(photo(24, 16), "MPO", save_all=True, append_images=[photo(8, 8)]),
    encoded(photo(24, 16), "PNG", exif=turned(3)),
    encoded(photo(24, 16).quantize(8), "PNG", transparency=1),
    encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"),
    encoded(photo(24, 16), "WEBP", exif=turned(8)),
    encoded(photo(24, 16).convert("RGBA"), "WEBP", lossless=True),
    encoded(photo(24, 16), "GIF", save_all=True, append_images=[photo(24, 16).rotate(90)]),
    encoded(photo(24, 16), "BMP"),
    encoded(photo(24, 16).quantize(8), "BMP"),
    encoded(photo(24, 16), "TIFF"),
    encoded(photo(24, 16), "TIFF", compression="tiff_lzw"),
    encoded(photo(24, 16), "TIFF", compression="jpeg"),
    encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF", compression="tiff_adobe_deflate"),
    encoded(photo(24, 16), "AVIF", exif=turned(5)),
]


def _damaged(data: bytes, seed: int) -> bytes:
    """`data` with a few bytes changed, moved, left out or cut off; mostly near the start, where the headers are."""
    chance = random.Random(seed)
    damaged = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 4, 16])):
        at = min(int(chance.expovariate(4 / len(damaged))), len(damaged) - 1)
        damage: Callable[[], None] = chance.choice(
            [
                lambda at=at: damaged.__setitem__(at, chance.randrange(256)),
                lambda at=at: damaged.__setitem__(at, chance.choice([0, 1, 127, 128, 255])),
                lambda at=at: damaged.__setitem__(slice(at, at + 4), bytes([255] * 4)),
                lambda at=at: damaged.__delitem__(slice(at, at + chance.randrange(1, 9))),
                lambda at=at: damaged.__setitem__(slice(at, at), bytes(damaged[at : at + 8])),
            ]
        )
        damage()
        if not damaged:
            break
    return bytes(damaged)


@pytest.mark.parametrize("sample", range(len(SAMPLES)))
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_decoded_or_refused(sample: int) -> None:
    for seed in range(150):
        data = _damaged(SAMPLES[sample], seed)
        try:
            header = image.read_header(data)
            if header.decode_bytes((20, 20)) < 64 << 20:  # as the caller does before it decodes
                result = image.decode_here(data, header, (20, 20))
                assert (result.mode, result.size) == ("RGB", header.decoded_size((20, 20)))
        except (ImageError, TooLarge) as error:
            assert str(error).endswith(".")  # noqa: PT017


PEAK = """
import gc, io, re, resource, sys
from PIL import Image
from segment import image
from segment.image import header as headers, sandbox
from segment.errors import CorruptImage

def status(name):
    with open("/proc/self/status") as file:
        return int(re.search(name + r":\\s+(\\d+)", file.read())[1]) << 10

def child():
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10

for kind in sys.argv[3:]:
    small = io.BytesIO()
    Image.new("RGBA", (8, 8)).save(small, kind)
    image.decode(small.getvalue(), image.read_header(small.getvalue()), (8, 8))
empty = child()
data = sys.stdin.buffer.read()
gc.collect()
before = status("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
target = int(sys.argv[1]), int(sys.argv[2])
header = image.read_header(data)
try:
    image.decode(data, header, target)
except CorruptImage:
    print("refused")
planned = header.decode_bytes(target) - header.sandboxed * sandbox.PROCESS_BYTES
print(status("VmHWM") - before + child() - empty, planned)
"""
LARGE = (2000, 1500)


@cache
def _large(mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(0).integers(-9, 9, (1500, 2000, 1))
    return Image.fromarray((np.asarray(photo(*LARGE)) + noise).clip(0, 255).astype(np.uint8)).convert(mode)


def _deep() -> Image.Image:
    return Image.fromarray(np.asarray(_large("L"), np.uint16) * 257)


def _with_profile(data: bytes, profile: bytes) -> bytes:
    """A JPEG with this colour profile. Pillow takes 1.5 s to write a large one."""
    parts = [profile[start : start + 65_000] for start in range(0, len(profile), 65_000)]
    heads = (b"ICC_PROFILE\0" + bytes([number, len(parts)]) for number in range(1, len(parts) + 1))
    blocks = (head + part for head, part in zip(heads, parts, strict=True))
    start = 20  # after the header of JFIF
    return (
        data[:start]
        + b"".join(b"\xff\xe2" + struct.pack(">H", 2 + len(block)) + block for block in blocks)
        + data[start:]
    )


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc/self/clear_refs")
@pytest.mark.parametrize(
    ("make", "target"),
    [
        (lambda: encoded(_large(), "JPEG"), LARGE),
        (lambda: encoded(_large(), "JPEG"), (400, 300)),
        (lambda: encoded(_large().resize((60_000, 48)), "JPEG"), (60_000, 48)),
        (lambda: encoded(_large(), "JPEG", exif=turned(6)), (1500, 2000)),
        (lambda: encoded(_large(), "JPEG", progressive=True, subsampling=0), (400, 300)),
        (lambda: encoded(_large("CMYK"), "JPEG"), LARGE),
        (lambda: encoded(_large("RGBA"), "PNG", compress_level=1), LARGE),
        (lambda: encoded(_deep(), "PNG", compress_level=1), LARGE),
        (lambda: encoded(_large().quantize(32, Image.Quantize.FASTOCTREE), "GIF"), LARGE),
        (lambda: encoded(_large(), "WEBP", method=0), LARGE),
        (lambda: encoded(_large("RGBA"), "WEBP", lossless=True, method=0, quality=0), LARGE),
        (lambda: encoded(_large(), "TIFF", compression="tiff_lzw", tiffinfo={0x0112: 6, 0x0116: 1500}), (1500, 2000)),
        (lambda: encoded(_large(), "TIFF"), LARGE),
        (lambda: _with_profile(encoded(photo(), "JPEG"), bytes(12_000_000)), (60, 40)),
        (lambda: encoded(photo(), "TIFF", compression="tiff_lzw", icc_profile=bytes(12_000_000)), (60, 40)),
        (lambda: encoded(_large().resize((100, 30_000)), "TIFF", compression="tiff_lzw"), (100, 30_000)),
        (lambda: encoded(_large(), "AVIF", speed=10, subsampling="4:4:4"), LARGE),
    ],
    ids=str.split(
        "jpeg jpeg-small jpeg-wide jpeg-turned jpeg-progressive jpeg-cmyk png-rgba png-16 gif webp webp-lossless "
        "tiff-turned tiff-raw jpeg-profile tiff-profile tiff-tall avif"
    ),
)
def test_decoding_takes_no_more_memory_than_planned(make: Callable[[], bytes], target: tuple[int, int]) -> None:
    peak, said = map(int, _peak(make(), target))
    assert peak <= said
    assert said <= 3 * peak + headers.FIXED_BYTES


def _peak(data: bytes, target: tuple[int, int]) -> list[str]:
    """The output of PEAK: "refused" if the file is, then peak and planned memory, without a sandbox's process."""
    # Decoded first, because imports and the first process of the sandbox are not measured.
    first = ("PNG", "AVIF") if image.read_header(data).sandboxed else ("PNG",)
    command = [sys.executable, "-c", PEAK, *map(str, target), *first]
    root = Path(__file__).resolve().parents[1]
    ended = subprocess.run(command, input=data, capture_output=True, check=True, cwd=root, timeout=600, text=False)
    return ended.stdout.decode().split()


RESIZE_PEAK = """
import re, sys
from PIL import Image
from segment import image

def status(name):
    with open("/proc/self/status") as file:
        return int(re.search(name + r":\\s+(\\d+)", file.read())[1]) << 10

width, height, target_width, target_height = map(int, sys.argv[1:])
image.resize(Image.new("RGB", (9, 9)), (2, 2))
photo = Image.new("RGB", (width, height))
before = status("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
image.resize(photo, (target_width, target_height))
result = image.PIXEL_BYTES * target_width * target_height
print(status("VmHWM") - before - result, image.resize_bytes((width, height), (target_width, target_height)))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc/self/clear_refs")
@pytest.mark.parametrize(
    "sizes",
    [(4000, 3000, 446, 334), (4000, 3000, 700, 525), (4000, 3000, 3600, 2700), (9000, 600, 1500, 100)],
    ids=["reduced", "not-reduced", "slightly", "wide"],
)
def test_resizing_takes_no_more_memory_than_planned(sizes: tuple[int, int, int, int]) -> None:
    command = [sys.executable, "-c", RESIZE_PEAK, *map(str, sizes)]
    root = Path(__file__).resolve().parents[1]
    ended = subprocess.run(command, capture_output=True, check=True, cwd=root, timeout=600, text=True)
    peak, said = map(int, ended.stdout.split())
    assert peak <= said + (1 << 20)
    assert said <= 2 * peak + (1 << 20)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc/self/clear_refs")
@pytest.mark.parametrize("kind", ["avif", "tif"])
def test_a_larger_picture_inside_a_file_is_refused_within_the_planned_memory(kind: str) -> None:
    refused, peak, said = _peak(worst.inside(kind), (400, 300))
    assert refused == "refused"
    assert int(peak) <= int(said) < 16 << 20


def test_the_process_of_a_sandbox_takes_no_more_memory_than_planned() -> None:
    script = (
        "import re, segment.image.decoder; print(re.search(r'RssAnon:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, timeout=600)
    assert int(ended.stdout) << 10 <= sandbox.PROCESS_BYTES


def test_a_sandboxed_decoder_reads_the_same_pixels() -> None:
    for data in (
        encoded(photo(300, 200), "AVIF", exif=turned(6)),
        encoded(photo(300, 200), "TIFF", compression="jpeg", tiffinfo={0x0112: 3}),
    ):
        header = image.read_header(data)
        assert header.sandboxed
        result, expected = image.decode(data, header, (30, 20)), image.decode_here(data, header, (30, 20))
        assert (result.size, result.tobytes()) == (expected.size, expected.tobytes())


@pytest.mark.parametrize("limits", [sandbox.LIMITS, sandbox.LIMITS[1:]], ids=["linux", "gvisor"])
def test_a_sandbox_limits_memory_with_what_the_kernel_applies(limits: tuple[tuple[int, str], ...]) -> None:
    script = f"""
from segment.image import sandbox
sandbox.LIMITS = {limits}
sandbox.confine(20 << 20)
bytearray(18 << 20)
try:
    bytearray(22 << 20)
except MemoryError:
    print("refused")
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, timeout=600, text=True)
    assert ended.stdout == "refused\n"


def test_an_address_space_of_the_planned_size_suffices_to_decode() -> None:
    """Where only RLIMIT_AS takes effect, it also counts thread stacks and libraries that are loaded while decoding."""
    data = encoded(photo(300, 200), "AVIF")
    limit = image.read_header(data).decoder_limit((300, 200))
    script = f"""
from segment.image import decoder, sandbox
sandbox.LIMITS = sandbox.LIMITS[1:]
decoder.main("{limit}", "300", "200")
"""
    ended = subprocess.run([sys.executable, "-c", script], input=data, capture_output=True, check=True, timeout=600)
    assert len(ended.stdout) == 300 * 200 * 3


def test_resizes_without_aliasing() -> None:
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (256, 128))).convert("RGB")
    small = image.resize(stripes, (16, 16))
    assert small.size == (16, 16)
    assert np.abs(np.asarray(small, np.int16)[:, :-1] - 127).max() <= 3  # the last averages only part of a block
    assert difference(image.resize(photo(400, 300), (60, 40)), photo()) < 3


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _laborious() -> dict[str, bytes]:
    """Files of at most 8 MB that would take seconds, or many copies of the file, to read without limits on the work."""
    png, jpeg, gif = (_encoded(kind) for kind in ("PNG", "JPEG", "GIF"))
    profile = _chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(1 << 20), 9))
    digits = _chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\n\n\n" + b"00" * 100_000, 9))
    exif = _chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + bytes(12_000))
    text = _chunk(b"tEXt", b"a\0b")
    ihdr = 8 + 25
    return {
        "profiles before the pixels": png[:ihdr] + profile * 900 + png[ihdr:],
        "profiles after the pixels": png[:-12] + profile * 900 + png[-12:],
        "Exif data": png[:ihdr] + exif * 500 + png[ihdr:-30],
        "Exif data as text": png[:ihdr] + digits * 900 + png[ihdr:-30],
        "texts": png[:ihdr] + text * 70_000 + png[ihdr:],
        "empty segments": jpeg[:2] + b"\xff\xe5\0\2" * 250_000 + jpeg[2:],
        "padding": jpeg[:2] + b"\xff" * 1_000_000 + jpeg[2:],
        "scans of one channel": _many_scans(20_000),
        "Exif segments": jpeg[:2] + (b"\xff\xe1\xff\xff" + b"Exif\0\0".ljust(65533, b"\0")) * 80 + jpeg[2:],
        "padding after the pixels": jpeg[:-2] + b"\xff" * 8_000_000 + jpeg[-2:],
        "items": _many_items(30_000),
        "items without sizes": _many_items(9_000, empty=True),
        "lines of one pixel": _run_length_encoded((8000, 8000), b"\1\7\0\0" * 8000),
        "strips": _tiff([(256, 4, 1, 1), (257, 4, 1, 60_000), (278, 4, 1, 1)], {273: [8] * 60_000, 279: [1] * 60_000}),
        "fractions": _tiff([(256, 4, 1, 1), (257, 4, 1, 1)], {282: [1] * 800_000}, kind=5),
        "comments": gif[:13] + gif[13:].replace(b"\x2c", b"\x21\xfe" + (b"\xff" + b"c" * 255) * 4000 + b"\0\x2c", 1),
    }


def _many_scans(count: int) -> bytes:
    """A baseline JPEG of one megapixel with `count` empty scans of one channel each."""
    head = encoded(photo(64, 64), "JPEG", subsampling=0)
    head = head[: head.index(_SCAN)]
    frame = head.index(b"\xff\xc0") + 5
    scans = (_SCAN + struct.pack(">HBBBBBB", 8, 1, 1 + number % 3, 0, 0, 63, 0) for number in range(count))
    return head[:frame] + struct.pack(">HH", 1000, 1000) + head[frame + 4 :] + b"".join(scans) + b"\xff\xd9"


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "text of a PNG"])
def test_an_orientation_of_many_numbers_is_ignored(kind: str) -> None:
    exif = _tiff([], {0x0112: [1] * 1_500_000}, kind=5)
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", "\n\n\n" + exif[:1_000_000].hex())
    data = _encoded("PNG", pnginfo=text) if kind.startswith("text") else _encoded(kind, exif=exif)
    start = time.process_time()
    header = image.read_header(data)
    assert time.process_time() - start < 0.3
    assert (header.size, header.orientation) == ((8, 8), 1)


def _many_items(count: int, empty: bool = False) -> bytes:
    """An AVIF with the locations of `count` items (iloc). `empty`: each has 65,535 parts that take no bytes."""

    def box(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", 8 + len(content)) + kind + content

    handler = box(b"hdlr", bytes(8) + b"pict" + bytes(13))
    items = b"".join(struct.pack(">HHHII", number, 0, 1, 0, 8) for number in range(1, 1 + count))
    if empty:
        items = b"".join(struct.pack(">HHH", number, 0, 65_535) for number in range(1, 1 + count))
    places = box(b"iloc", bytes(4) + (b"\0\0" if empty else b"\x44\0") + struct.pack(">H", count) + items)
    return box(b"ftyp", b"avif" + bytes(4) + b"avifmif1") + box(b"meta", bytes(4) + handler + places)


def _run_length_encoded(size: tuple[int, int], runs: bytes) -> bytes:
    """A BMP with 256 colours and `runs` as its run-length encoded pixels (BI_RLE8)."""
    offset = 54 + 1024
    head = struct.pack("<2sIIIIiiHHIIIIII", b"BM", offset + len(runs), 0, offset, 40, *size, 1, 8, 1, 0, 0, 0, 256, 0)
    return head + bytes(1024) + runs


_SCAN = b"\xff\xda"


def _tiff(tags: list[tuple[int, int, int, int]], arrays: dict[int, list[int]], kind: int = 4) -> bytes:
    """A greyscale TIFF with these tags (tag, type, count, value) and these arrays of numbers by tag."""
    pixels = bytes(8)
    tags = [(258, 4, 1, 8), (259, 4, 1, 1), (262, 4, 1, 1), (277, 4, 1, 1), *tags]
    for tag, numbers in arrays.items():
        tags.append((tag, kind, len(numbers) * 4 // (4 if kind == 4 else 8), 8 + len(pixels)))
        pixels += struct.pack(f"<{len(numbers)}L", *numbers)
    directory = b"".join(struct.pack("<HHLL", *tag) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<L", 8 + len(pixels)) + pixels + struct.pack("<H", len(tags)) + directory + bytes(4)


def _encoded(kind: str, **save: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, kind, **save)
    return buffer.getvalue()


@pytest.mark.parametrize(("name", "data"), _laborious().items(), ids=_laborious().keys())
def test_reading_a_header_is_bounded(name: str, data: bytes) -> None:
    start = time.process_time()
    with pytest.raises(ImageError):
        image.decode(data, image.read_header(data), (8, 8))
    assert time.process_time() - start < 0.3, name


METADATA_BYTES = 6_000_000


def _segmented(marker: int, start: bytes, size: int = METADATA_BYTES) -> bytes:
    """Segments of a JPEG that begin with `start`, of `size` bytes in all."""
    segment = (start + bytes(range(256)) * 256)[:65_000]
    return (struct.pack(">BBH", 0xFF, marker, len(segment) + 2) + segment) * (size // len(segment))


def _riff(kind: bytes, content: bytes) -> bytes:
    """A WebP with one more chunk."""
    data = _encoded("WEBP", exif=turned(6))[8:] + kind + struct.pack("<I", len(content)) + content
    return b"RIFF" + struct.pack("<I", len(data)) + data


def _inserted(kind: str, at: int, make: Callable[[], bytes]) -> bytes:
    """A file with more content at one place."""
    data = _encoded(kind)
    return data[:at] + make() + data[at:]


MUCH = bytes(range(250)) * (METADATA_BYTES // 250)
STORED = b"\x78\x01" + b"\0\0\0\xff\xff" * (METADATA_BYTES // 5) + b"\1\0\0\xff\xff" + bytes((0, 0, 0, 1))
"""As large, but inflated to nothing (RFC 1950, 1951)."""
SEGMENTS: dict[str, Callable[[], bytes]] = {
    "extended XMP": lambda: _segmented(0xE1, b"http://ns.adobe.com/xmp/extension/\0"),
    "XMP": lambda: _segmented(0xE1, b"http://ns.adobe.com/xap/1.0/\0"),
    "Exif": lambda: _segmented(0xE1, b"Exif\0\0II*\0\x08\0\0\0\0\0", 1_000_000),
    "profile": lambda: _segmented(0xE2, b"ICC_PROFILE\0"),
    "pictures": lambda: _segmented(0xE2, b"MPF\0"),
    "Photoshop": lambda: _segmented(0xED, b"Photoshop 3.0\x008BIM\4\4\0\0\0\0\xfd\xd6"),
    "comments": lambda: _segmented(0xFE, b""),
    "junk between segments": lambda: b"\0" + _segmented(0xE1, b"a") + b"\0\xff\xff\0" + _segmented(0xEB, b""),
}
CHUNKS: dict[str, Callable[[], bytes]] = {
    "text": lambda: _chunk(b"tEXt", b"k\0" + MUCH),
    "compressed text": lambda: _chunk(b"zTXt", b"k\0\0" + STORED),
    "international text": lambda: _chunk(b"iTXt", b"k\0\0\0\0\0" + b"a" * 4_000_000 + "😀".encode()),
    "profile": lambda: _chunk(b"iCCP", b"k\0\0" + STORED),
    "Exif": lambda: _chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0" + MUCH),
    "credentials": lambda: _chunk(b"caBX", MUCH),
    "private chunks": lambda: _chunk(b"prVt", MUCH[:20_000]) * 300,
    "palette": lambda: _chunk(b"PLTE", MUCH),
}
BLACK = [(256, 4, 1, 8), (257, 4, 1, 1), (273, 4, 1, 8)]
VOLUMINOUS: dict[str, Callable[[], bytes]] = {
    **{f"JPEG, {name}": partial(_inserted, "JPEG", 2, make) for name, make in SEGMENTS.items()},
    **{f"PNG, {name}": partial(_inserted, "PNG", -36, make) for name, make in CHUNKS.items()},
    **{f"PNG, {name} at the end": partial(_inserted, "PNG", -12, make) for name, make in CHUNKS.items()},
    "TIFF, Photoshop layers": lambda: _encoded("TIFF", tiffinfo={37724: MUCH}),
    "TIFF, profile": lambda: _encoded("TIFF", icc_profile=MUCH),
    "TIFF, numbers": lambda: _tiff(BLACK, {65000: [1] * 99_000}),
    "TIFF, fractions": lambda: _tiff(BLACK, {282: [1] * 99_000}, kind=5),
    **{f"WebP, {kind}": partial(_riff, kind.encode().ljust(4), MUCH) for kind in ("EXIF", "XMP", "ABCD")},
}
"""Files of 8 black pixels or 8 x 8 with megabytes of metadata, as photos may contain them."""


def _allocated(call: Callable[[], object]) -> int:
    """The most bytes that Python had allocated during the call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", VOLUMINOUS)
def test_metadata_take_no_memory(name: str) -> None:
    """Neither when the header is read, which is not planned, nor when the photo is decoded."""
    data = VOLUMINOUS[name]()
    assert _allocated(lambda: image.read_header(data)) < headers.HEADER_BYTES / 4
    header = image.read_header(data)
    if header.format != "WEBP":
        assert _allocated(lambda: image.decode(data, header, (8, 8))) < headers.HEADER_BYTES / 4
    assert difference(image.decode(data, header, (8, 8)), Image.new("RGB", header.size)) == 0


@pytest.mark.parametrize("kind", ["exif", "xmp", "icc_profile"])
def test_the_metadata_of_an_avif_are_limited(kind: str) -> None:
    """The library copies them when the header is read."""
    start = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"
    assert image.read_header(_encoded("AVIF", **{kind: start + bytes(900_000)})).size == (8, 8)
    with pytest.raises(CorruptImage, match="metadata of this image"):
        image.read_header(_encoded("AVIF", **{kind: start + bytes(1_100_000)}))


def test_strips_that_are_not_compressed_are_planned() -> None:
    def tall(height: int) -> bytes:
        tags = [(256, 4, 1, 1), (257, 4, 1, height), (278, 4, 1, 1)]
        return _tiff(tags, {273: [8] * height, 279: [1] * height})

    data = tall(10_000)
    assert _allocated(lambda: image.read_header(data)) < headers.HEADER_BYTES
    assert image.read_header(data).decoder_bytes > 10_000 * headers.STRIP_BYTES
    with pytest.raises(CorruptImage, match="10,001 strips or tiles"):
        image.read_header(tall(10_001))


def test_the_header_of_a_bmp_is_limited() -> None:
    data = _encoded("BMP")
    with pytest.raises(CorruptImage, match="header of this BMP"):
        image.read_header(data[:14] + struct.pack("<I", METADATA_BYTES) + data[18:] + bytes(METADATA_BYTES))


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [None, 3])
def test_xmp_turns_a_photo_if_exif_does_not(format: str, exif: int | None) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", XMP.decode())
    saved = {"pnginfo": text} if format == "PNG" else {"xmp": XMP}
    data = encoded(photo(), format, **saved, **({"exif": turned(exif)} if exif else {}))
    assert image.read_header(data).orientation == (exif or 6)


@pytest.mark.parametrize("big", [False, True])
def test_exif_is_found_in_either_byte_order(big: bool) -> None:
    exif = turned(6)
    exif.endian = ">" if big else "<"
    exif[0x010F] = "a camera"
    for kind in ("JPEG", "PNG", "WEBP"):
        assert image.read_header(encoded(photo(), kind, exif=exif.tobytes())).orientation == 6


@pytest.mark.parametrize("save", [{}, {"lossless": True}, {"exif": turned(6)}, {"lossless": True, "exif": turned(8)}])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_header_of_a_webp_is_as_pillow_reads_it(mode: str, save: dict[str, Any]) -> None:
    picture = photo().convert(mode)
    if mode == "RGBA":
        picture.putpixel((3, 4), (1, 2, 3, 4))
    several = {"save_all": True, "append_images": [photo().rotate(90).convert(mode)]}
    for data in (encoded(picture, "WEBP", **save), encoded(picture, "WEBP", **save, **several)):
        header = image.read_header(data)
        with Image.open(io.BytesIO(data)) as opened:
            stored = header.size[::-1] if header.orientation >= 5 else header.size
            assert (stored, header.mode, header.transparent) == (opened.size, opened.mode, opened.has_transparency_data)
            assert header.orientation == opened.getexif().get(0x0112, 1)


def test_some_fill_bytes_are_accepted() -> None:
    jpeg = _encoded("JPEG")
    data = jpeg[:-2] + b"\xff" * 200_000 + jpeg[-2:]
    assert image.decode(data, image.read_header(data), (8, 8)).size == (8, 8)


def test_images_reuse_memory_that_is_held_from_the_start() -> None:
    core: Any = vars(Image)["core"]
    try:
        image.reuse_memory()
        before = core.get_stats()
        assert before["blocks_cached"] * BLOCK_BYTES == 8 << 20
        Image.new("RGB", (1280, 960))
        after = core.get_stats()
        assert after["reused_blocks"] - before["reused_blocks"] == 5
        assert after["allocated_blocks"] == before["allocated_blocks"]
    finally:
        core.set_blocks_max(0)
        core.set_block_size(16 << 20)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_a_pillow_image_is_converted_as_its_file(mode: str) -> None:
    """Pillow's own conversion makes 16-bit images white, and shows what is below transparent pixels."""
    grey = np.asarray(photo().convert("L"))
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode in ("I", "F"):
        picture = Image.fromarray(grey.astype(np.int32 if mode == "I" else np.float32) * 200)
    elif mode in ("LA", "RGBA"):
        picture = photo().convert("RGBA")
        picture.putalpha(Image.fromarray(255 - grey))
        picture = picture.convert(mode)
    else:
        picture = photo().convert(mode)
    kept = "PNG" if mode in ("LA", "RGBA") else "TIFF"
    assert picture.mode == mode
    assert difference(image.to_rgb(picture), image.to_rgb(encoded(picture, kept))) == 0


def test_a_transparent_colour_of_a_pillow_image_is_white() -> None:
    data = encoded(Image.new("RGB", (8, 8), (10, 20, 30)), "PNG", transparency=(10, 20, 30))
    with Image.open(io.BytesIO(data)) as picture:
        assert image.to_rgb(picture).getpixel((0, 0)) == image.to_rgb(data).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_pillow_image_without_pixels_is_refused(mode: str) -> None:
    with pytest.raises(UnsupportedImage, match="0 x 5 pixels"):
        image.to_rgb(Image.new(mode, (0, 5)))
