"""Print what datumaro, with which CVAT imports COCO, reads: as read_supervision.py.

It wants the folders annotations/ and images/default/, as CVAT makes them of an upload.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from datumaro import Dataset
from datumaro.components.annotation import AnnotationType

photos, dataset = sys.argv[1:]
with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    (root / "annotations").mkdir()
    shutil.copy(dataset, root / "annotations" / "instances_default.json")
    shutil.copytree(photos, root / "images" / "default")
    read = Dataset.import_from(folder, "coco_instances")
    names = [label.name for label in read.categories()[AnnotationType.label]]
    found = {
        Path(item.media.path).relative_to(root / "images" / "default").as_posix(): [
            [names[one.label], int(one.get_area())]
            for one in item.annotations
            if one.type in {AnnotationType.mask, AnnotationType.polygon}
        ]
        for item in read
    }
print(json.dumps(found))
