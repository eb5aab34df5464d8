"""Engines: run a network on pixels and return detections in those pixels.

An engine wraps one runtime and is independent of image files and HTTP. `file.py` runs model files with OpenVINO, with
one module per model family (families/). `detectron2.py` runs detectron2 itself, for models that cannot be converted.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from segment.detections import Detections
from segment.engine.footprint import Footprint


class Engine(Protocol):
    """A loaded network."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of each class, by index."""

    @property
    def stride(self) -> int:
        """Images whose sides are multiples of the stride are not padded."""

    @property
    def footprint(self) -> Footprint:
        """The memory of a run in addition to the loaded model."""

    @property
    def streams(self) -> int:
        """Number of runs that may take place at the same time; further ones wait."""

    def input_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """The (width, height) to which a photo of `size` should be scaled; None if any size is accepted.

        Only networks with an input of a fixed size return one. The engine accepts images of other sizes too and scales
        them itself; with this size, they are not scaled twice.
        """

    def mask_bytes(self, size: tuple[int, int]) -> int:
        """Maximum bytes of one instance's mask in an image of `size` (width, height)."""

    def release(self) -> None:
        """Free the buffers that are kept between runs."""

    def __call__(self, pixels: NDArray[np.uint8], min_score: float, max_detections: int) -> Detections:
        """Detect the instances in `pixels`, (H, W, 3) uint8 RGB.

        Returns at most `max_detections` instances with scores above `min_score`, sorted by descending score, in pixels
        of this image. Thread-safe.
        """
