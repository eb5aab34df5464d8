"""Run auto_annotate.py, in the folder given, as cvat-cli does; print [label, type, points] of each shape."""

from __future__ import annotations

import importlib
import json
import sys
from types import SimpleNamespace

import PIL.Image

path, url, photo = sys.argv[1:]
sys.path.insert(0, path)
function = importlib.import_module("auto_annotate").create(url)
names = {label.id: label.name for label in function.spec.labels}
found = []
for polygons in (False, True):
    context = SimpleNamespace(conf_threshold=0.8, conv_mask_to_poly=polygons)
    for shape in function.detect(context, PIL.Image.open(photo)):
        found.append([names[shape.label_id], str(shape.type), shape.points])
print(json.dumps(found))
