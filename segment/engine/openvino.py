"""OpenVINO: runs this project's model files on the CPU.

One compiled network, one run at a time: a run already uses every core it is given, and each further one would need its
own memory.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segment.detections import Detections, from_boxes
from segment.errors import ModelError
from segment.modelfile import Facts


class OpenVino:
    """A model file, compiled. See Engine for the interface. Raises ModelError."""

    def __init__(self, path: Path, facts: Facts, threads: int, cache: Path | None = None) -> None:
        self.facts = facts
        self._lock = threading.Lock()
        self._network = compile_network(path, threads, cache)
        self._run = self._network.create_infer_request()

    @property
    def labels(self) -> tuple[str, ...]:
        return self.facts.labels

    @property
    def stride(self) -> int:
        return self.facts.stride

    @property
    def fixed_bytes(self) -> int:
        return self.facts.fixed_bytes

    @property
    def bytes_per_pixel(self) -> float:
        return self.facts.bytes_per_pixel

    def __call__(self, pixels: NDArray[np.uint8], min_score: float, max_detections: int) -> Detections:
        inputs = {
            "image": np.ascontiguousarray(pixels),
            "min_score": np.array(min_score, np.float32),
            "max_detections": np.array(max_detections, np.int64),
        }
        with self._lock:
            result = self._run.infer(inputs, share_inputs=True)
            boxes, scores, classes, masks = (result[name].copy() for name in ("boxes", "scores", "classes", "masks"))
        found = from_boxes(boxes, scores, classes, masks, (pixels.shape[1], pixels.shape[0]))
        solid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        return found if solid.all() else found.select(np.flatnonzero(solid))


def compile_network(path: Path, threads: int, cache: Path | None) -> Any:
    """Compile a model file for this machine, or take it from the cache. Raises ModelError."""
    os.environ.setdefault("OPENVINO_TELEMETRY_DISABLED", "1")
    import openvino

    properties: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",  # the default is bf16 where the CPU has it, and other answers
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    if cache:
        properties["CACHE_DIR"] = str(cache)
    try:
        return openvino.Core().compile_model(str(path), "CPU", properties)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ModelError(f"The model {path.name} cannot be compiled: {reason}") from None
