"""Run a model file of any supported family with OpenVINO."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segment.detections import Detections
from segment.engine import footprint
from segment.engine.families import Family, recognise
from segment.engine.footprint import Footprint
from segment.engine.openvino import Network
from segment.engine.signature import Signature
from segment.errors import ModelError
from segment.modelfile import ModelMetadata, metadata
from segment.wording import counted


def one_stream(memory: Footprint) -> int:
    """1: runs of the network take turns."""
    return 1


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
                f"The model returned class {found.classes.max()}, but has only {counted(len(self.labels), 'label')}. "
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
    cache: Path | None = None,
    labels: tuple[str, ...] = (),
    memory: Footprint | None = None,
    overrides: Mapping[str, float] | None = None,
    streams: Callable[[Footprint], int] = one_stream,
) -> FileEngine:
    """Load a model file of any supported family. Raises ModelError.

    `cache`: folder for compiled models. `labels`: class names by index; replace the file's own. `memory`: memory of a
    run; by default from the file's metadata or, if missing, measured by footprint.py, which takes some seconds at the
    first load. `overrides`: fields of the Footprint to replace. `streams`: the number of runs that may take place at
    the same time, given the memory of one; each has an equal share of the threads.
    """
    properties, overrides = metadata(path), overrides or {}
    converted = ModelMetadata.from_metadata(properties)
    if memory is None and converted:
        memory = Footprint(
            converted.fixed_bytes, converted.bytes_per_pixel, converted.bytes_per_instance, int(converted.kept_bytes)
        )
    # Measured before this process loads the network, as both might not fit into memory.
    memory = footprint.overridden(memory, overrides, lambda: footprint.known(path, threads, cache))
    network = Network(path, threads, cache, read_scales=converted is None, streams=streams(memory))
    family = recognise(Signature(path.name, network.inputs, network.outputs, properties), labels)
    if "bytes_per_pixel" not in overrides:
        memory = replace(memory, bytes_per_pixel=memory.bytes_per_pixel + family.unmeasured_bytes_per_pixel)
    return FileEngine(network, family, memory)
