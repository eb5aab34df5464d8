"""Write the default calibration photographs of `--int8`: `python -m training.photos` writes segment/convert/photos.

They come with scikit-image (skimage.data) and are re-encoded as JPEG. According to its documentation, they are in the
public domain or have no known copyright restrictions. NOTICE lists the sources too. Needs `pip install scikit-image`.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).parent.parent / "segment" / "convert" / "photos"
SOURCES = {
    "astronaut": "Eileen Collins, NASA Great Images database (flic.kr/p/r9qvLn); public domain",
    "camera": "a cameraman, by Lav Varshney; CC0",
    "cat": "Chelsea the cat, by Stefan van der Walt; CC0",
    "clock": "a wall clock, by Stefan van der Walt; public domain",
    "coffee": "a cup of coffee, by Rachel Michetti, courtesy of Pikolo Espresso Bar; CC0",
    "coins": "Greek coins from Pompeii, Brooklyn Museum Collection; no known copyright restrictions",
    "rocket": "the launch of DSCOVR, SpaceX Photos (flickr.com/photos/spacexphotos/16511594820); public domain",
}
QUALITY = 90


def main() -> None:
    """Write all photographs."""
    from skimage import data

    for name in SOURCES:
        Image.fromarray(getattr(data, name)()).convert("RGB").save(FOLDER / f"{name}.jpg", quality=QUALITY)


if __name__ == "__main__":
    main()
