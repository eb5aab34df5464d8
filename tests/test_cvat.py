"""The function for CVAT, called as nuclio calls it; its shapes are read with CVAT's own packages."""

from __future__ import annotations

import base64
import importlib.util
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import requests
import yaml

from devtools.server import ROOT, serve
from segment.__main__ import main
from segment.labelling import cvat
from tests.environments import environment
from training.shapes import CLASSES

FOLDER = ROOT / "deploy" / "cvat"


class Context:
    """The attributes of nuclio_sdk.Context that a handler uses."""

    Response = SimpleNamespace

    def __init__(self) -> None:
        self.user_data = SimpleNamespace()


@pytest.fixture(scope="module")
def function() -> Any:
    """deploy/cvat/function.py, loaded as nuclio loads it."""
    spec = importlib.util.spec_from_file_location("function", FOLDER / "function.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def context(function: Any) -> Context:
    made = Context()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGMENT_MIN_SCORE", "0.4")
        function.init_context(made)
    return made


def test_nuclio_finds_what_it_calls_first(function: Any) -> None:
    """nuclio's wrapper calls `init_context` of the module in which the handler is defined."""
    assert function.handler.__module__ == function.init_context.__module__ == function.__name__


def test_the_function_answers_shapes(function: Any, context: Context, photo: bytes) -> None:
    body = {"image": base64.b64encode(photo).decode()}
    answer = function.handler(context, SimpleNamespace(body=body))
    assert (answer.status_code, answer.content_type) == (200, "application/json")
    shapes = json.loads(answer.body)
    assert shapes
    assert min(float(shape["confidence"]) for shape in shapes) >= 0.4
    fewer = function.handler(context, SimpleNamespace(body={**body, "threshold": 0.99}))
    assert len(json.loads(fewer.body)) < len(shapes)
    assert context.user_data.service._load().traffic._own == 0


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"no json", 400, "must be JSON"),
        ({"image": 1}, 400, "must be JSON"),
        ({"image": "AAAA"}, 415, ""),
        ({"image": "****"}, 400, "base64"),
        ({"image": "AAAA", "threshold": 3}, 400, "min_score is '3'"),
    ],
)
def test_bad_input_is_a_problem(function: Any, context: Context, body: Any, status: int, words: str) -> None:
    answer = function.handler(context, SimpleNamespace(body=body))
    assert (answer.status_code, answer.content_type) == (status, "application/problem+json")
    assert words in json.loads(answer.body)["detail"]


def test_the_configuration_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cvat"]) == 0
    assert capsys.readouterr().out == (FOLDER / "function.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["mask_rcnn_R_50_FPN_3x", "mask_rcnn_R_50_FPN_3x-int8"])
def test_a_model_of_the_zoo_does_not_have_to_be_downloaded(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["cvat", name, "--image", "registry/segment:1"]) == 0
    about = yaml.safe_load(capsys.readouterr().out)["metadata"]["annotations"]
    assert about["name"] == f"Segment: {name}"
    assert [label["name"] for label in json.loads(about["spec"])][:2] == ["person", "bicycle"]


def test_the_configuration_is_what_cvat_reads() -> None:
    text = cvat.function_yaml('a "model": 1', ["hair drier", "it's #1: ünï", "a\nb"], "registry/segment:1")
    configuration = yaml.safe_load(text)
    about = configuration["metadata"]["annotations"]
    assert about["name"] == 'Segment: a "model": 1'
    assert about["type"] == "detector"
    assert [(label["name"], label["type"]) for label in json.loads(about["spec"])] == [
        ("hair drier", "mask"),
        ("it's #1: ünï", "mask"),
        ("a\nb", "mask"),
    ]
    assert configuration["spec"]["build"]["baseImage"] == "registry/segment:1"
    module, _, name = configuration["spec"]["handler"].partition(":")
    assert name in (FOLDER / f"{module}.py").read_text(encoding="utf-8")
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    version = configuration["spec"]["runtime"].partition(":")[2]
    assert f"python:{version}." in dockerfile, "the runtime of nuclio's wrapper is the image's Python version"
    assert "WORKDIR " + configuration["spec"]["env"][0]["value"] in dockerfile


@pytest.mark.slow
def test_cvats_packages_take_the_shapes(function: Any, context: Context, photo: bytes, tmp_path: Path) -> None:
    """The response is read as in CVAT's lambda_manager: nuclio's Response, datumaro's masks and the API's models."""
    (tmp_path / "body.json").write_text(json.dumps({"image": base64.b64encode(photo).decode()}))
    answer = function.handler(context, SimpleNamespace(body=json.loads((tmp_path / "body.json").read_text())))
    (tmp_path / "shapes.json").write_bytes(answer.body)
    program = ROOT / "tests" / "importers" / "read_cvat.py"
    command = [environment("cvat-sdk==2.80.0", "numpy") / "python", program, tmp_path / "shapes.json"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    labels, areas = zip(*json.loads(done.stdout), strict=True)
    shapes = json.loads(answer.body)
    assert list(labels) == [shape["label"] for shape in shapes]
    assert set(labels) <= set(CLASSES)
    assert list(areas) == [sum(shape["mask"][:-4]) for shape in shapes]


@pytest.mark.slow
def test_auto_annotation_from_the_command_line(photo: bytes, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(photo)
    with serve(SEGMENT_LABELLING="cvat") as server:
        program = ROOT / "tests" / "importers" / "run_auto_annotate.py"
        python = environment("cvat-sdk==2.80.0", "numpy") / "python"
        command = [python, program, FOLDER, server.url, tmp_path / "photo.jpg"]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        answer = requests.post(server.url + "/segment?format=json&min_score=0.8", data=photo, timeout=60).json()
    areas: dict[str, dict[str, float]] = {}
    for label, kind, points in json.loads(done.stdout):
        pixels = sum(points[1:-4:2]) if kind == "mask" else enclosed(points)
        areas.setdefault(kind, {}).setdefault(label, 0)
        areas[kind][label] += pixels
    truth: dict[str, float] = {}
    for one in answer["annotations"]:
        truth[one["category_name"]] = truth.get(one["category_name"], 0) + one["area"]
    assert set(areas) == {"mask", "polygon"}
    assert areas["mask"] == pytest.approx(truth, rel=0.1), "the photo is encoded again before it is sent"
    assert areas["polygon"] == pytest.approx(truth, rel=0.2), "polygons have no holes"


def enclosed(points: list[float]) -> float:
    x, y = np.array(points).reshape(-1, 2).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
