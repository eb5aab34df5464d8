"""Draw the example scenes that the page offers: `python -m training.examples`."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from training.shapes import scene

SEEDS = (50_004, 50_010, 50_024)
"""Seeds of the scenes; none of them is in the training data."""
FOLDER = Path(__file__).parent.parent / "segment" / "web" / "page"


def main() -> None:
    """Write scene-1.jpg and so on, 640 x 480."""
    for number, seed in enumerate(SEEDS, 1):
        image, _, _ = scene(seed, (640, 480))
        Image.fromarray(image).save(FOLDER / f"scene-{number}.jpg", quality=85, optimize=True)


if __name__ == "__main__":
    main()
