"""Letterbox: scale an image into the centre of a canvas of another aspect ratio and fill the margins with grey.

`LetterboxInput` does this for the input of a network.

Rounding is the same as in Ultralytics' LetterBox (ultralytics/data/augment.py): sides are rounded to the nearest pixel,
and the smaller half of an odd margin is at the left or top.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segment.engine.signature import ImageInput
from segment.image import resize

Size = tuple[int, int]
GREY = 114


@dataclass(frozen=True)
class Letterbox:
    """The position of an image in a canvas. Sizes are (width, height) in pixels.

    `image`: size of the image. `inner`: size to which it is scaled. `offset`: its left and top in the canvas.
    """

    image: Size
    inner: Size
    offset: Size
    canvas: Size

    @classmethod
    def fit(cls, image: Size, canvas: Size) -> Letterbox:
        """Scale the image to the largest size that fits into `canvas`."""
        gain = min(canvas[0] / image[0], canvas[1] / image[1])
        inner = max(round(image[0] * gain), 1), max(round(image[1] * gain), 1)
        return cls(image, inner, _centred(inner, canvas), canvas)

    @classmethod
    def pad(cls, image: Size, stride: int) -> Letterbox:
        """Keep the image's size, in the smallest canvas whose sides are multiples of `stride`."""
        canvas = math.ceil(image[0] / stride) * stride, math.ceil(image[1] / stride) * stride
        return cls(image, image, _centred(image, canvas), canvas)

    @classmethod
    def stretch(cls, image: Size, canvas: Size) -> Letterbox:
        """Stretch the image to the whole `canvas`."""
        return cls(image, canvas, (0, 0), canvas)

    def paint(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The canvas with the image `pixels`, (H, W, 3) uint8, as (3, height, width) float32 in 0-1."""
        if self.inner != self.image:
            pixels = np.asarray(resize(Image.fromarray(pixels), self.inner))
        (left, top), (width, height) = self.offset, self.inner
        canvas = np.full((3, self.canvas[1], self.canvas[0]), GREY / 255, np.float32)
        np.divide(pixels.transpose(2, 0, 1), np.float32(255), out=canvas[:, top : top + height, left : left + width])
        return canvas

    def to_image(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Convert boxes (..., 4) XYXY from pixels of the canvas to pixels of the image."""
        return (boxes - self._offsets) / self._gains

    def clip_to_image(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """As `to_image`, clipped to the image. Boxes outside the image have no area."""
        clipped: NDArray[np.float32] = np.clip(self.to_image(boxes), 0, np.array(self.image * 2, np.float32))
        return clipped

    def to_canvas(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Convert boxes (..., 4) XYXY from pixels of the image to pixels of the canvas."""
        return boxes * self._gains + self._offsets

    @property
    def _gains(self) -> NDArray[np.float32]:
        return np.array([self.inner[0] / self.image[0], self.inner[1] / self.image[1]] * 2, np.float32)

    @property
    def _offsets(self) -> NDArray[np.float32]:
        return np.array(self.offset * 2, np.float32)


@dataclass(frozen=True)
class LetterboxInput:
    """An input for one image: letterboxed if its size is fixed, otherwise padded to multiples of `stride`."""

    image: ImageInput
    stride: int

    def size(self, size: Size) -> Size | None:
        """The size at which an image of `size` is not scaled again; None if any size is accepted."""
        return Letterbox.fit(size, self.image.size).inner if self.image.size else None

    def letterbox(self, size: Size) -> Letterbox:
        """The position of an image of `size` (width, height) in the input."""
        return Letterbox.fit(size, self.image.size) if self.image.size else Letterbox.pad(size, self.stride)

    def feed(self, pixels: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        """The input by name for an image (H, W, 3) uint8 RGB."""
        return self.image.feed(self.letterbox((pixels.shape[1], pixels.shape[0])).paint(pixels))


def _centred(inner: Size, canvas: Size) -> Size:
    return round((canvas[0] - inner[0]) / 2 - 0.1), round((canvas[1] - inner[1]) / 2 - 0.1)
