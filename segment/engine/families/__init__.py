"""Model families: determine the family of a model file.

A family is recognised by a file's inputs, outputs and metadata, never by its name. Each family is a module with
`recognise(signature, labels)`, which returns a Family or None, and `EXPECTED`, a description of its signature.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segment.detections import Detections
from segment.engine.families import mask_rcnn, rfdetr, torchvision, yolo
from segment.engine.signature import Signature
from segment.errors import ModelError


class Family(Protocol):
    """Prepares the inputs and reads the outputs of a family's files, as arrays, independent of the runtime."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of each class, by index."""

    @property
    def stride(self) -> int:
        """Images whose sides are multiples of the stride are not padded."""

    def input_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """See Engine."""

    def mask_bytes(self, size: tuple[int, int]) -> int:
        """See Engine."""

    @property
    def unmeasured_bytes_per_pixel(self) -> float:
        """Memory of outputs that grow with the number of detections, which a measurement on noise does not include."""

    def prepare(self, pixels: NDArray[np.uint8], min_score: float, max_detections: int) -> Mapping[str, NDArray[Any]]:
        """The network's inputs by name for an image (H, W, 3) uint8 RGB."""

    def read(
        self, outputs: tuple[NDArray[Any], ...], size: tuple[int, int], min_score: float, max_detections: int
    ) -> Detections:
        """The detections in an image of `size` (width, height). Must not keep views of `outputs`."""


class _Module(Protocol):
    EXPECTED: str

    def recognise(self, signature: Signature, labels: tuple[str, ...]) -> Family | None: ...


FAMILIES: tuple[_Module, ...] = (mask_rcnn, yolo, rfdetr, torchvision)


def recognise(signature: Signature, labels: tuple[str, ...]) -> Family:
    """The family of a file with this signature. Raises ModelError with the expected and the actual signature."""
    for family in FAMILIES:
        if reader := family.recognise(signature, labels):
            return reader
    expected = "; or ".join(family.EXPECTED for family in FAMILIES)
    raise ModelError(f"{signature.name} is not of a supported model family. Expected: {expected}. Found: {signature}.")
