"""The pictures on which a model is calibrated when it is quantised to int8.

Calibration only records the range of each layer's activations, so it needs neither labels nor the photos that will be
segmented, but pictures with similar statistics. By default these are seven photographs in the public domain
(`photos/`; NOTICE has their sources), each seen whole and in four overlapping parts: objects of several sizes, colour
and grey, bright and dark, sharp and blurred. How much that costs against calibrating on photos of one's own is measured
by `python -m benchmarks.calibration`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segment import image
from segment.errors import ConversionError, ImageError
from segment.modelfile import ModelMetadata
from segment.resize import fitted_size, square_size

PHOTOS = tuple(sorted((Path(__file__).parent / "photos").glob("*.jpg")))
"""The photographs that come with this package."""
PART = 0.6
"""Width and height of a part of a photograph, as a share of the whole."""
MOST_PHOTOS = 300
"""Of a user's photos; more only take longer."""


def from_files(photos: Sequence[Path], facts: ModelMetadata) -> Iterator[NDArray[np.uint8]]:
    """Each photo at the size that `facts` give it when the model is served, (H, W, 3) uint8 RGB.

    Raises ConversionError.
    """
    for path in photos[:MOST_PHOTOS]:
        try:
            data = path.read_bytes()
            header = image.read_header(data)
            size = _seen_size(header.size, facts)
            yield np.asarray(image.resize(image.decode(data, header, size), size))
        except (ImageError, OSError) as error:
            raise ConversionError(f"{path.name} cannot be calibrated with: {error}") from None


def default(facts: ModelMetadata, photos: Sequence[Path] = PHOTOS) -> Iterator[NDArray[np.uint8]]:
    """The whole and four parts of each of the package's photographs, as `from_files` gives them."""
    for path in photos:
        with Image.open(path) as file:
            photo = file.convert("RGB")
        width, height = round(photo.width * PART), round(photo.height * PART)
        right, bottom = photo.width - width, photo.height - height
        corners = [(left, top) for left in (0, right) for top in (0, bottom)]
        boxes = [(0, 0, *photo.size), *((left, top, left + width, top + height) for left, top in corners)]
        for box in boxes:
            part = photo.crop(box)
            yield np.asarray(image.resize(part, _seen_size(part.size, facts)))


def _seen_size(size: tuple[int, int], facts: ModelMetadata) -> tuple[int, int]:
    """The (width, height) at which the network sees a photo of `size`."""
    if facts.square:
        return square_size(size, facts.square)
    return fitted_size(size, facts.render_factor, "aspect", facts.stride)
