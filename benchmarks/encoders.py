"""Time, size and quality of overlays as PNG, JPEG and WebP, and of other settings of their encoders.

    python -m benchmarks.encoders

The pictures are the photographs in segment/convert/photos at 1280 x 960 pixels, with the demo model's detections drawn
on them. Quality is the PSNR of the luma (ITU-R BT.601), which is not affected by the reduced resolution of chroma that
JPEG and WebP have in common. It writes benchmarks/results/encoders.md.
"""

from __future__ import annotations

import io
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from segment import load
from segment.convert.calibration import PHOTOS
from segment.output import overlay, pictures

RESULTS = Path(__file__).parent / "results"
SIZE, ROUNDS = (1280, 960), 5


@dataclass(frozen=True)
class _Measured:
    """One picture and writer: CPU milliseconds (the shortest of all rounds), megabytes, luma PSNR in dB."""

    milliseconds: float
    megabytes: float
    quality: float


def main() -> None:
    """Print the table and write it to benchmarks/results."""
    measured = [_measured(picture) for picture in _overlays()]
    lines = ["| | CPU ms | MB | luma PSNR, dB |", "|---|---|---|---|"]
    for name, values in zip(_writers(), zip(*measured, strict=True), strict=True):
        cells = (
            f"{statistics.mean(value.milliseconds for value in values):.0f}",
            f"{statistics.mean(value.megabytes for value in values):.2f}",
            f"{statistics.mean(value.quality for value in values):.1f}".replace("inf", "no loss"),
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    print("\n".join(lines))
    about = f"Means of {len(measured)} photographs of {SIZE[0]} x {SIZE[1]} pixels."
    made = f"Made by `python -m benchmarks.encoders` (see its docstring). {about}"
    head = "# Formats of overlays: time, size and quality"
    (RESULTS / "encoders.md").write_text("\n".join([head, "", made, "", *lines, ""]))


def _overlays() -> Iterator[Image.Image]:
    model = load()
    for path in PHOTOS:
        with Image.open(path) as photo:
            picture = photo.convert("RGB").resize(SIZE)
        overlay.draw(picture, model(picture, max_detections=20), model.labels)
        yield picture


def _writers() -> dict[str, Callable[[Image.Image], bytes]]:
    def pillow(format: str, **options: int) -> Callable[[Image.Image], bytes]:
        def write(picture: Image.Image) -> bytes:
            file = io.BytesIO()
            picture.save(file, format, **options)
            return file.getvalue()

        return write

    return {
        "**`format=jpeg`**": lambda picture: pictures.picture(picture, "jpeg").body,
        "**`format=png`**": lambda picture: pictures.picture(picture, "png").body,
        "PNG by Pillow, level 1, run lengths only": pillow("PNG", compress_level=1, compress_type=3),
        "PNG by Pillow, level 1": pillow("PNG", compress_level=1, compress_type=0),
        "PNG by Pillow, level 6 (its default)": pillow("PNG", compress_level=6, compress_type=0),
        "**`format=webp`**": lambda picture: pictures.picture(picture, "webp").body,
        "WebP, quality 85, method 1": pillow("WEBP", quality=85, method=1),
        "WebP, quality 85, method 4": pillow("WEBP", quality=85, method=4),
        "WebP, quality 80, method 0": pillow("WEBP", quality=80, method=0),
        "WebP, quality 80, method 4 (Pillow's default)": pillow("WEBP", quality=80, method=4),
        "WebP, lossless, fastest": pillow("WEBP", lossless=True, quality=0, method=0),
    }


def _measured(picture: Image.Image) -> list[_Measured]:
    """Each writer with this picture. The writers are measured in turns, because other processes use the CPUs too."""
    writers = list(_writers().values())
    times: list[list[float]] = [[] for _ in writers]
    for _ in range(ROUNDS):
        for write, own in zip(writers, times, strict=True):
            start = time.thread_time()
            write(picture)
            own.append(time.thread_time() - start)
    files = [write(picture) for write in writers]
    return [
        _Measured(min(own) * 1000, len(file) / 1e6, _quality(file, picture))
        for own, file in zip(times, files, strict=True)
    ]


def _quality(file: bytes, picture: Image.Image) -> float:
    """The luma PSNR in dB; infinite without loss."""
    with Image.open(io.BytesIO(file)) as image:
        error = float(((_luma(image.convert("RGB")) - _luma(picture)) ** 2).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def _luma(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.asarray(image.convert("L"), np.float64)


if __name__ == "__main__":
    main()
