"""main.py, started by functions-framework."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import requests

from devtools.server import ROOT, Server, free_port, serve, start

HEAVY = ("torch", "detectron2", "onnx", "onnxruntime", "openvino", "matplotlib", "cv2")


def test_imports_load_no_heavy_packages() -> None:
    code = f"import main, sys, json; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, timeout=600)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_a_bad_setting_stops_the_start_with_one_line() -> None:
    settings = {"SEGMENT_RENDER_FACTOR": "huge"}
    process = start("segment_http", free_port(), settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1
    (line,) = output.decode().splitlines()
    assert line == "segment: SEGMENT_RENDER_FACTOR is 'huge'; it must be auto or a whole number from 4 to 256."


def test_an_unknown_setting_stops_the_start() -> None:
    settings = {"SEGMENT_RENDERFACTOR": "25"}
    process = start("segment_http", free_port(), settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1
    assert output.startswith(b"segment: Unknown setting SEGMENT_RENDERFACTOR. Valid settings: SEGMENT_MODEL, ")


def test_both_targets_answer_probes_and_stop_on_sigterm() -> None:
    with serve("segment_object", SEGMENT_OUTPUT_BUCKET="results") as server:
        assert requests.get(server.url + "/health", timeout=60).json() == {"status": "alive"}
        assert requests.get(server.url + "/ready", timeout=60).json() == {"status": "ready", "model": "shapes"}
        assert requests.get(server.url + "/", timeout=60).status_code == 405
        assert server.stop() == 0


def test_a_model_that_cannot_be_loaded_is_not_ready(tmp_path: Path) -> None:
    (damaged := tmp_path / "damaged.onnx").write_bytes(b"not a model")
    with serve(SEGMENT_MODEL=str(damaged)) as server:
        assert requests.get(server.url + "/health", timeout=60).ok
        response = requests.get(server.url + "/ready", timeout=60)
        assert (response.status_code, response.json()["title"]) == (503, "Model unavailable")
        assert '"severity": "ERROR"' in server.log()


def test_requests_are_logged_under_their_trace(server: Server, photo: bytes) -> None:
    trace = "0123456789abcdef0123456789abcdef"
    headers = {"X-Cloud-Trace-Context": f"{trace}/1;o=1", "Content-Type": "image/jpeg"}
    requests.post(server.url + "/segment", data=photo, headers=headers, timeout=60)
    entries = [json.loads(line) for line in server.log().splitlines()]
    entry = next(e for e in entries if "status" in e and e.get("logging.googleapis.com/trace") == trace)
    assert (entry["severity"], entry["message"], entry["status"]) == ("INFO", "POST /segment 200", 200)
    assert entry["photo_size"] == "320x240"
    assert int(entry["instances"]) > 0
    assert entry["ms"] > 0
