"""Time and size of PNG files of overlays: this repository's writer against Pillow.

`python -m benchmarks.png` prints a table: CPU milliseconds and megabytes for pictures of 1280 x 960 pixels, the
photographs in segment/convert/photos with the demo model's detections drawn on them.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Iterator

from PIL import Image

from segment import load
from segment.convert.calibration import PHOTOS
from segment.output import overlay, png

SIZE, ROUNDS = (1280, 960), 5


def main() -> None:
    """Print the table."""
    pictures = list(_overlays())
    print("| writer | CPU ms | MB |\n|---|---|---|")
    for name, write in _writers().items():
        times, sizes = zip(*(_measured(write, picture) for picture in pictures), strict=True)
        print(f"| {name} | {statistics.mean(times):.0f} | {statistics.mean(sizes):.2f} |")


def _overlays() -> Iterator[Image.Image]:
    model = load()
    for path in PHOTOS:
        with Image.open(path) as photo:
            picture = photo.convert("RGB").resize(SIZE)
        overlay.draw(picture, model(picture, max_detections=20), model.labels)
        yield picture


def _writers() -> dict[str, Callable[[Image.Image], bytes]]:
    def pillow(level: int, strategy: int) -> Callable[[Image.Image], bytes]:
        def write(picture: Image.Image) -> bytes:
            file = io.BytesIO()
            picture.save(file, "PNG", compress_level=level, compress_type=strategy)
            return file.getvalue()

        return write

    return {
        "segment.output.png": png.encode,
        "Pillow, level 1, run lengths only": pillow(1, 3),
        "Pillow, level 1": pillow(1, 0),
        "Pillow, level 6 (its default)": pillow(6, 0),
    }


def _measured(write: Callable[[Image.Image], bytes], picture: Image.Image) -> tuple[float, float]:
    """CPU milliseconds and megabytes."""
    times = []
    for _ in range(ROUNDS):
        start = time.thread_time()
        size = len(write(picture))
        times.append(time.thread_time() - start)
    return statistics.median(times) * 1000, size / 1e6


if __name__ == "__main__":
    main()
