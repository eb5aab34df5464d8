"""`make bucket`: the results of a photo dropped into one folder are written to another."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from devtools.server import ROOT


def test_photo_dropped_into_a_folder_is_segmented(tmp_path: Path) -> None:
    photos, results = tmp_path / "photos", tmp_path / "results"
    command = [sys.executable, "-m", "devtools.bucket", str(photos), str(results)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().decode().strip() == f"Drop photos into {photos}"
        Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(photos / "black.png")
        for _ in range(600):
            found = sorted(path.name for path in results.rglob("*.*") if path.is_file() and path.parent.name.isdigit())
            if found == ["detections.json", "overlay.png"]:
                break
            time.sleep(0.1)
        assert found == ["detections.json", "overlay.png"]
        assert next(results.rglob("overlay.png")).parent.parent.name == "black.png"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=600)
