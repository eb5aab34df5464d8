"""Print what supervision reads of a COCO dataset: JSON, by photo, [class, pixels of the mask] of each instance."""

from __future__ import annotations

import json
import sys

import supervision

photos, dataset = sys.argv[1:]
read = supervision.DetectionDataset.from_coco(photos, dataset, force_masks=True)
found = {
    path.removeprefix(f"{photos}/"): [
        [read.classes[index], int(mask.sum())] for index, mask in zip(found.class_id, found.mask, strict=True)
    ]
    if len(found)
    else []  # masks of no instances are None
    for path, _, found in read
}
print(json.dumps(found))
