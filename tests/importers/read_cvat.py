"""Print [label, pixels] of each shape that a function answered, as CVAT's server makes and its SDK reads them.

What is done with a shape is what cvat/apps/lambda_manager/views.py does (_call_detector, parse_anno).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from cvat_sdk.masks import decode_mask
from cvat_sdk.models import LabeledShapeRequest

found = []
for shape in json.loads(Path(sys.argv[1]).read_bytes()):
    float(shape["confidence"])
    *pixels, left, top, right, bottom = shape["mask"]
    edges = np.flatnonzero(np.diff(pixels, prepend=0, append=1 - pixels[-1]))
    points = [*np.diff(edges, prepend=0).tolist(), left, top, right, bottom]
    mask = LabeledShapeRequest(type=shape["type"], frame=0, label_id=1, points=[float(n) for n in points])
    LabeledShapeRequest(type="polygon", frame=0, label_id=1, points=[float(n) for n in shape["points"]])
    dense = decode_mask(mask.points, image_width=320, image_height=240)
    found.append([shape["label"], int(dense.sum())])
print(json.dumps(found))
