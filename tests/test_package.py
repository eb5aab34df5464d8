"""The wheel, installed into an empty environment: segmentation, and errors that name the missing extra of a command."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import requests

from devtools.server import ROOT, serve

PYTHONS = ("3.11", "3.12", "3.13")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the checkout so that no build files are left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):
        if (ROOT / name).is_file() and name.startswith(
            ("segment/", "pyproject", "docs/library.md", "LICENSE", "NOTICE")
        ):
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(folder / "source")]
    subprocess.run(command, check=True)
    (found,) = folder.glob("*.whl")
    return found


def interpreter(version: str) -> Path | None:
    """A Python of that version from PATH or pyenv's folder. pyenv's shims run selected versions only."""
    on_path = shutil.which(f"python{version}")
    candidates = [Path(on_path)] if on_path else []
    candidates += sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python{version}"))

    def runs(path: Path) -> bool:
        return subprocess.run([path, "--version"], capture_output=True, check=False).returncode == 0

    return next(filter(runs, candidates), None)


NEEDS = {
    "convert": "convert config.yaml weights.pkl -o model.onnx",
    "gcp": "backfill gs://photos gs://results",
    "parquet": "image photo.jpg -o out -d parquet",
    "beam": "beam --input photos --output out",
}
"""Commands that need an extra."""


@pytest.mark.slow
def test_the_wheel_holds_data_types_and_licences(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tracked = subprocess.run(["git", "ls-files", "segment"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(tracked.stdout.split()) <= names
    assert {name.rpartition("/")[2] for name in names} >= {"py.typed", "LICENSE", "NOTICE"}
    assert {name.partition("/")[0] for name in names if "dist-info" not in name} == {"segment"}


@pytest.mark.slow
@pytest.mark.parametrize("version", PYTHONS)
def test_the_wheel_segments_in_an_empty_environment(version: str, wheel: Path, tmp_path: Path) -> None:
    python = interpreter(version)
    if not python:
        pytest.skip(f"needs python{version}, on PATH or installed by pyenv")
    subprocess.run([python, "-m", "venv", tmp_path / "venv"], check=True)
    programs = tmp_path / "venv" / "bin"
    subprocess.run([programs / "pip", "install", "--quiet", str(wheel)], check=True)
    photo = ROOT / "docs" / "coins-photo.png"
    command: list[str | Path] = [programs / "segment", "image", photo, "-o", "out", "-f", "png,json"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == [
        "coins-photo.detections.json",
        "coins-photo.overlay.png",
    ]
    elsewhere = f"cd '{tmp_path}' && exec '{programs}/segment' serve"  # not in the checkout, which it would import
    with serve(command=("sh", "-c", elsewhere)) as server:
        assert requests.get(server.url + "/ready", timeout=600).ok
        assert "<title>Segment</title>" in requests.get(server.url, timeout=60).text
    for extra, arguments in NEEDS.items():
        done = subprocess.run(
            [programs / "segment", *arguments.split()], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert done.stderr.startswith("segment: The package ")
        assert done.stderr.endswith(f"Install it with: pip install 'segment-serverless[{extra}]'\n")


@pytest.mark.slow
@pytest.mark.parametrize("library", ["supervision==0.31.2", "fiftyone==1.22.1"])
def test_results_convert_to(library: str, wheel: Path, tmp_path: Path) -> None:
    """Run tests/test_results.py in an environment with the library and the wheel."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    programs = tmp_path / "venv" / "bin"
    subprocess.run([programs / "pip", "install", "--quiet", str(wheel), "pytest", library], check=True)
    name = library.partition("=")[0]
    command: list[str | Path] = [programs / "python", "-m", "pytest", "-p", "no:cacheprovider", "--noconftest"]
    command += ["-k", name, ROOT / "tests" / "test_results.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
