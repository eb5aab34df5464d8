"""Low-memory instance segmentation.

import segment

model = segment.load("model.onnx")
found = model("photo.jpg")
found.boxes, found.scores, found.names, found.masks
"""

from __future__ import annotations

from segment.errors import SegmentError

try:
    from segment.detections import Detections
    from segment.mask import Mask
    from segment.model import Model, load
    from segment.results import Results
except ModuleNotFoundError as error:
    from segment import extras

    # With this name, `python -m segment` shows the message alone, without a traceback.
    raise ImportError(str(extras.explained(error)), name=__name__) from None

__version__ = "1.0.0"
"""The version of the distribution (pyproject.toml) and of the HTTP API (OpenAPI document)."""

__all__ = ["Detections", "Mask", "Model", "Results", "SegmentError", "load"]
