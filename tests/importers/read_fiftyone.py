"""Print what FiftyOne's COCO importer reads, which needs no database: as read_supervision.py."""

from __future__ import annotations

import json
import sys

from fiftyone.utils.coco import COCODetectionDatasetImporter

photos, dataset = sys.argv[1:]
importer = COCODetectionDatasetImporter(data_path=photos, labels_path=dataset, label_types=["segmentations"])
with importer:
    found = {
        path.removeprefix(f"{photos}/"): [[one.label, int(one.mask.sum())] for one in labels.detections]
        if labels
        else []  # the labels of a photo without instances are None
        for path, _, labels in importer
    }
print(json.dumps(found))
