"""The approach of the original blog post: detectron2's DefaultPredictor on a square, its Visualizer, and resizing back.

It runs with this Python if detectron2 can be imported, or with that of BENCH_DETECTRON2_PYTHON. That Python needs
detectron2, torch and Pillow. It runs this file as a script, which therefore imports no other module of the project.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

SQUARE = 16 * 25
"""The side in pixels at render factor 25."""
REQUESTS = 5
MIN_SCORE, INSTANCES = 0.01, 20
"""models.LOOK, for a Python without this package's requirements."""


@dataclass(frozen=True)
class Original:
    """The original approach: peak resident memory in MiB, and seconds per image when warm and from a cold start."""

    name: str
    peak_rss_mib: float
    predict_seconds: float
    draw_seconds: float
    image_seconds: float
    cold_seconds: float
    instances: int


def python() -> str:
    """The path of a Python with detectron2; empty if there is none."""
    candidate = os.environ.get("BENCH_DETECTRON2_PYTHON", sys.executable)
    done = subprocess.run([candidate, "-c", "import detectron2"], capture_output=True, check=False, timeout=120)
    return candidate if done.returncode == 0 else ""


def measure(config: Path, checkpoint: Path, photo: Path, folder: Path) -> Original:
    """Run the original approach in a new process, with the Python that has detectron2."""
    command = [python(), str(Path(__file__)), str(config), str(checkpoint), str(photo), str(folder / "original.jpg")]
    start = time.time()
    done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=550, cwd=folder)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    cold = answer.pop("first_answer_at") - start
    return Original(name="detectron2, the original way", cold_seconds=round(cold, 2), **answer)


def main(config_file: str, checkpoint: str, photo: str, output: str) -> None:
    """The approach of the blog post: one predictor, which processes one image after the other."""
    import numpy as np
    from detectron2.config import get_cfg
    from detectron2.data import MetadataCatalog
    from detectron2.engine import DefaultPredictor
    from detectron2.utils.visualizer import Visualizer
    from PIL import Image

    config = get_cfg()
    config.merge_from_file(config_file)
    config.MODEL.DEVICE = "cpu"
    config.MODEL.WEIGHTS = checkpoint
    config.MODEL.ROI_HEADS.SCORE_THRESH_TEST = MIN_SCORE
    config.TEST.DETECTIONS_PER_IMAGE = INSTANCES
    predictor = DefaultPredictor(config)
    metadata = MetadataCatalog.get("coco_2017_val")
    predict, draw = [], []
    first_answer_at, instances = 0.0, 0
    for _ in range(1 + REQUESTS):
        start = time.perf_counter()
        with Image.open(photo) as opened:
            size = opened.size
            square = np.asarray(opened.convert("RGB").resize((SQUARE, SQUARE), Image.Resampling.BILINEAR))
        found = predictor(square[:, :, ::-1])["instances"].to("cpu")
        predict.append(time.perf_counter() - start)
        start = time.perf_counter()
        drawn = Visualizer(square, metadata, scale=1.0).draw_instance_predictions(found).get_image()
        Image.fromarray(drawn).resize(size, Image.Resampling.BILINEAR).save(output, quality=90)
        draw.append(time.perf_counter() - start)
        first_answer_at = first_answer_at or time.time()
        instances = len(found)
    status = Path("/proc/self/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak
    print(
        json.dumps(
            {
                "peak_rss_mib": round(int(peak[1]) / 1024, 1),
                "predict_seconds": round(median(predict[1:]), 3),
                "draw_seconds": round(median(draw[1:]), 3),
                "image_seconds": round(median(map(sum, zip(predict[1:], draw[1:], strict=True))), 3),
                "first_answer_at": first_answer_at,
                "instances": instances,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
