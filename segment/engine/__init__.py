"""What runs a network: pixels in, detections in those pixels out.

An engine knows one runtime and nothing of photos, files or HTTP. `openvino.py` serves model files; `detectron2.py`
runs the original network for what does not convert.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from segment.detections import Detections


class Engine(Protocol):
    """A loaded network."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of each class, by index."""

    @property
    def stride(self) -> int:
        """Sizes that are multiples of this are used without padding."""

    @property
    def fixed_bytes(self) -> int:
        """Memory in bytes that a loaded model holds, whatever the image."""

    @property
    def bytes_per_pixel(self) -> float:
        """Memory in bytes that one run needs per pixel of its image, on top of `fixed_bytes`."""

    def __call__(self, pixels: NDArray[np.uint8], min_score: float, max_detections: int) -> Detections:
        """Find the instances in `pixels`, (H, W, 3) uint8 RGB.

        Returns at most `max_detections` instances with a score above `min_score`, best first, in pixels of the image
        given. Thread-safe.
        """
