"""Low-memory instance segmentation.

import segment

model = segment.load("model.onnx")
found = model(PIL.Image.open("photo.jpg"))
found.boxes, found.scores, [model.labels[i] for i in found.classes], found.masks
"""

from __future__ import annotations

from segment.detections import Detections
from segment.errors import SegmentError
from segment.mask import Mask
from segment.model import Model, load

__all__ = ["Detections", "Mask", "Model", "SegmentError", "load"]
