"""Model families: determine the family of a model file, and the engine that runs it.

A family is recognised by a file's inputs, outputs and metadata, never by its name. Each family is a module with
`recognise(signature, labels)`, which returns a Family or None, and `EXPECTED`, a description of its signature.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segment.detections import Detections
from segment.engine import footprint
from segment.engine.families import mask_rcnn, rfdetr, torchvision, yolo
from segment.engine.footprint import Footprint
from segment.engine.openvino import Network
from segment.engine.signature import Signature
from segment.errors import ModelError
from segment.modelfile import ModelMetadata, metadata


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


class FileEngine:
    """A loaded model file. See Engine for the interface."""

    def __init__(self, network: Network, family: Family, memory: Footprint) -> None:
        self._network, self._family = network, family
        self.labels, self.stride = family.labels, family.stride
        self.footprint, self.streams = memory, network.streams
        self._idle = list(range(network.streams))
        self._changed = threading.Condition()
        self._last_size: tuple[int, int] | None = None

    def input_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        return self._family.input_size(size)

    def mask_bytes(self, size: tuple[int, int]) -> int:
        return self._family.mask_bytes(size)

    def release(self) -> None:
        with self._changed:  # no run begins meanwhile
            self._changed.wait_for(lambda: len(self._idle) == self.streams)
            self._network.release()

    def __call__(self, pixels: NDArray[np.uint8], min_score: float, max_detections: int) -> Detections:
        size = pixels.shape[1], pixels.shape[0]
        with self._request() as request:
            if self.streams == 1 and size != self._last_size:  # buffers kept for one size may add to those of another
                self._network.release()
                self._last_size = size
            outputs = self._network.run(self._family.prepare(pixels, min_score, max_detections), request)
            found = self._family.read(outputs, size, min_score, max_detections)
        if not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
            raise ModelError(
                "The model returned boxes or scores that are not finite numbers. Export or quantise it again."
            )
        if len(found) and found.classes.min() < 0:
            raise ModelError(f"The model returned class {found.classes.min()}; classes must not be negative.")
        if len(found) and found.classes.max() >= len(self.labels):
            raise ModelError(
                f"The model returned class {found.classes.max()}, but there are only {len(self.labels)} labels. "
                "Set SEGMENT_LABELS to a file with a name for every class."
            )
        return found

    @contextmanager
    def _request(self) -> Iterator[int]:
        """Wait for a request of the network that is idle."""
        with self._changed:
            self._changed.wait_for(lambda: self._idle)
            request = self._idle.pop()
        try:
            yield request
        finally:
            with self._changed:
                self._idle.append(request)
                self._changed.notify_all()


def load(
    path: Path,
    *,
    threads: int,
    cache: Path | None,
    labels: tuple[str, ...],
    memory: Footprint | None,
    overrides: Mapping[str, float],
    streams: Callable[[Footprint], int],
) -> FileEngine:
    """Load a model file; see segment.engine.load."""
    properties = metadata(path)
    converted = ModelMetadata.from_metadata(properties)
    if memory is None and converted:
        memory = Footprint(
            converted.fixed_bytes, converted.bytes_per_pixel, converted.bytes_per_instance, int(converted.kept_bytes)
        )
    if memory is None and {"fixed_bytes", "bytes_per_pixel"} <= overrides.keys():
        memory = Footprint(0, 0.0)
    # Measure before this process loads the network, as both might not fit into memory.
    memory = memory or footprint.known(path, threads=threads, cache=cache)
    memory = replace(memory, **dict[str, Any](overrides))
    network = Network(path, threads, cache, read_scales=converted is None, streams=streams(memory))
    signature = Signature(path.name, network.inputs, network.outputs, properties)
    family = recognise(signature, labels)
    if "bytes_per_pixel" not in overrides:
        memory = replace(memory, bytes_per_pixel=memory.bytes_per_pixel + family.unmeasured_bytes_per_pixel)
    return FileEngine(network, family, memory)


def recognise(signature: Signature, labels: tuple[str, ...]) -> Family:
    """The family of a file with this signature. Raises ModelError with the expected and the actual signature."""
    for family in FAMILIES:
        if reader := family.recognise(signature, labels):
            return reader
    expected = "; or ".join(family.EXPECTED for family in FAMILIES)
    raise ModelError(f"{signature.name} is not of a supported model family. Expected: {expected}. Found: {signature}.")
