"""What runs a network: pixels in, detections in those pixels out.

An engine knows one runtime and nothing of photos or HTTP. `load` serves model files, each family by its own small
module (families.py), on OpenVINO; `detectron2.py` runs the original network for what does not convert.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
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
        """Sizes that are multiples of this are used without padding."""

    @property
    def footprint(self) -> Footprint:
        """What memory a run takes beside the loaded model."""

    def input_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """The (width, height) at which a photo of `size` is wanted by a file that insists on its own; None is any.

        An image of another size is admitted too and fitted by the engine; this one spares resizing it twice.
        """

    def mask_bytes(self, size: tuple[int, int]) -> int:
        """The most bytes of one instance's mask in an image of `size` (width, height)."""

    def release(self) -> None:
        """Give up what is kept between runs to make the next one faster."""

    def __call__(self, pixels: NDArray[np.uint8], min_score: float, max_detections: int) -> Detections:
        """Find the instances in `pixels`, (H, W, 3) uint8 RGB.

        Returns at most `max_detections` instances with a score above `min_score`, best first, in pixels of the image
        given. Thread-safe.
        """


def load(
    path: Path,
    *,
    threads: int,
    cache: Path | None = None,
    labels: tuple[str, ...] = (),
    memory: Footprint | None = None,
    overrides: Mapping[str, float] | None = None,
) -> Engine:
    """Load a model file of any known family. Raises ModelError.

    `cache`: folder for compiled models. `labels`: class names by index, instead of the file's own. `memory`: what the
    file takes; by default what it says itself, and for a file that does not, what footprint.py measures, which makes
    the first load slower by some seconds. `overrides`: figures of the Footprint that replace those, by name.
    """
    from segment.engine import families

    return families.load(path, threads=threads, cache=cache, labels=labels, memory=memory, overrides=overrides or {})
