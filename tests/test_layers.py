"""Modules import only from lower layers, and serving loads no unneeded packages."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import segment
from devtools.server import ROOT

LEVELS = (
    ("packed", "arrival", "wording"),
    ("errors", "mask", "resize", "container", "process", "log", "formats", "values", "progress"),
    ("settings", "memory", "image", "detections", "labels", "modelfile", "extras"),
    ("options", "tiles", "engine", "zoo"),
    ("output", "plan", "convert"),
    ("results", "labelling"),
    ("model",),
    ("loading", "__init__"),
    ("service",),
    ("dataset",),
    ("bucket",),
    ("web", "beam"),
    ("preparation",),
    ("commands",),
    ("__main__", "main"),
)
"""From bottom to top. A folder counts as one module; its own files must not import each other in a circle."""
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
PACKAGE = ROOT / "segment"
FILES = sorted(PACKAGE.rglob("*.py"))


def module(path: Path) -> str:
    """The module or folder directly below `segment` that the file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Every module of `segment` that a file imports anywhere, without the leading "segment."."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first == "segment":
                yield rest or "__init__"


def test_every_module_has_a_level() -> None:
    assert {module(path) for path in FILES} == set(LEVEL)
    assert sum(len(names) for names in LEVELS) == len(LEVEL), "a module is listed twice"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    here = module(path)
    upwards = {name for name in (name.split(".")[0] for name in imports(path)) if name != here}
    assert {name for name in upwards if LEVEL[name] >= LEVEL[here]} == set()


@pytest.mark.parametrize(
    "folder",
    [
        "beam",
        "bucket",
        "bucket/store",
        "convert",
        "dataset",
        "engine",
        "engine/families",
        "image",
        "labelling",
        "output",
        "preparation",
        "tiles",
        "web",
        "zoo",
    ],
)
def test_no_circles_inside_a_folder(folder: str) -> None:
    """The top-level imports between the files of a folder have no cycle; imports inside functions do not count."""
    files = {path.stem: path for path in (PACKAGE / folder).glob("*.py")}
    needs = {name: set(_at_the_top(path, folder)) & set(files) - {name} for name, path in files.items()}
    while free := [name for name, needed in needs.items() if not needed]:
        needs = {name: needed - set(free) for name, needed in needs.items() if name not in free}
    assert not needs


def _at_the_top(path: Path, folder: str) -> Iterator[str]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        package = f"segment.{folder.replace('/', '.')}"
        if isinstance(node, ast.ImportFrom) and node.module == package:
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith(f"{package}."):
            yield str(node.module).removeprefix(f"{package}.").split(".")[0]


def test_only_the_command_line_converts() -> None:
    users = {module(path) for path in FILES if any(name.split(".")[0] == "convert" for name in imports(path))}
    assert users == {"convert", "preparation", "commands"}


def test_only_one_file_imports_the_runtime() -> None:
    users = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "openvino" for alias in node.names):
                users.add(path.relative_to(PACKAGE).as_posix())
    assert {name for name in users if not name.startswith("engine/openvino")} == set()


def test_the_environment_is_only_read_by_entry_points() -> None:
    """main.py, the command line and a Beam worker read it; other modules may only set defaults (telemetry off)."""
    doors = {PACKAGE / "main.py", PACKAGE / "commands.py", PACKAGE / "beam" / "worker.py"}
    for path in FILES:
        text = path.read_text(encoding="utf-8").replace("os.environ.setdefault(", "")
        assert "os.environ" not in text or path in doors, path.name
        assert "getenv" not in text, path.name


@pytest.mark.parametrize("code", ["import main", "import segment", "import segment.bucket.backfill, segment.commands"])
def test_imports_load_no_heavy_packages(code: str) -> None:
    heavy = ["torch", "detectron2", "onnx", "onnxruntime", "openvino", "nncf", "segment.convert", "scipy", "matplotlib"]
    program = f"{code}; import sys, json; print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True, timeout=600)
    assert json.loads(done.stdout) == []


@cache
def modules_after_a_photo() -> dict[str, bool]:
    """The modules in sys.modules of a process that has segmented a photo, and whether they are not None."""
    program = (
        "import sys, json, os, numpy, segment;"
        "segment.load(threads=1, cache=os.environ['SEGMENT_CACHE'])(numpy.zeros((64, 64, 3), numpy.uint8));"
        "print(json.dumps({name: module is not None for name, module in sys.modules.items()}))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True, timeout=600)
    loaded: dict[str, bool] = json.loads(done.stdout)
    return loaded


def test_serving_a_photo_needs_neither_torch_nor_onnx() -> None:
    loaded = {name.partition(".")[0] for name in modules_after_a_photo()}
    assert "openvino" in loaded
    assert not loaded & {"torch", "detectron2", "onnx", "onnxruntime", "nncf", "matplotlib", "cv2"}


def test_no_usage_data_is_sent() -> None:
    """`import openvino` starts a process that sends usage data if openvino_telemetry can be imported."""
    assert modules_after_a_photo()["openvino_telemetry"] is False


def test_public_names() -> None:
    assert segment.__all__ == sorted(segment.__all__)
    for name in segment.__all__:
        value = getattr(segment, name)
        assert value.__module__.startswith("segment."), f"{name} is not defined in segment"
        assert value.__doc__, f"{name} has no docstring"
    own = {name for name, value in vars(segment).items() if getattr(value, "__module__", "").startswith("segment.")}
    assert own == set(segment.__all__), "__all__ must list exactly the public names"
