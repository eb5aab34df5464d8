"""Pictures for calibrating a model that is quantised to int8.

Calibration only records the range of each layer's activations, so it needs neither labels nor the photos that will be
segmented, but pictures with similar statistics. The default is seven photographs in the public domain (`photos/`; see
NOTICE for the sources) with objects of several sizes, in colour and grey, bright and dark, sharp and blurred. Each is
used whole and in four overlapping parts. The parts get stronger contrast and colours, because the few photographs alone
have smaller activations than other photos: the ranges would be too narrow, and larger activations would be clipped.

`python -m benchmarks.calibration` compares this with calibration on photos of one's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from segment import image
from segment.errors import ConversionError, ImageError
from segment.modelfile import ModelMetadata
from segment.resize import fitted_size, square_size

PHOTOS = tuple(sorted((Path(__file__).parent / "photos").glob("*.jpg")))
"""The photographs that come with this package."""
PART = 0.6
"""Width and height of a part of a photograph, as a share of the whole."""
CONTRAST, COLOUR = 1.6, 2.5
"""Factors of a part's contrast and colour saturation (PIL.ImageEnhance)."""
MOST_PHOTOS = 300
"""Maximum number of a user's photos that are used. More take longer without improving the ranges."""


def from_files(photos: Sequence[Path], facts: ModelMetadata) -> Iterator[NDArray[np.uint8]]:
    """Photos at the size of the network's input in serving, (H, W, 3) uint8 RGB. Raises ConversionError."""
    for path in photos[:MOST_PHOTOS]:
        try:
            data = path.read_bytes()
            header = image.read_header(data)
            size = _seen_size(header.size, facts)
            yield np.asarray(image.resize(image.decode(data, header, size), size))
        except (ImageError, OSError) as error:
            raise ConversionError(f"{path.name} cannot be used for calibration: {error}") from None


def default(facts: ModelMetadata, photos: Sequence[Path] = PHOTOS) -> Iterator[NDArray[np.uint8]]:
    """Views of the package's photographs, in the format of `from_files`."""
    for path in photos:
        with Image.open(path) as file:
            photo = file.convert("RGB")
        whole, *parts = views(photo)
        for view in (whole, *map(strengthened, parts)):
            yield np.asarray(image.resize(view, _seen_size(view.size, facts)))


def views(photo: Image.Image) -> Iterator[Image.Image]:
    """The whole photo, then four overlapping parts of it."""
    yield photo
    width, height = round(photo.width * PART), round(photo.height * PART)
    for left in (0, photo.width - width):
        for top in (0, photo.height - height):
            yield photo.crop((left, top, left + width, top + height))


def strengthened(photo: Image.Image) -> Image.Image:
    """The photo with stronger contrast and colours."""
    return ImageEnhance.Color(ImageEnhance.Contrast(photo).enhance(CONTRAST)).enhance(COLOUR)


def _seen_size(size: tuple[int, int], facts: ModelMetadata) -> tuple[int, int]:
    """The (width, height) of the network's input for a photo of `size`."""
    if facts.square:
        return square_size(size, facts.square)
    return fitted_size(size, facts.render_factor, "aspect", facts.stride)
