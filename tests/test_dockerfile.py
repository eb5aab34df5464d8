"""The Dockerfile is consistent with the files that it is built from. test_image_build.py tests the image."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from segment.settings import PREFIX, Settings
from segment.web import server

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = re.sub(r"\\\n *", "", (ROOT / "Dockerfile").read_text())
STAGES = dict(
    re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM|\Z)", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.M), re.M | re.S)
)


def pins(name: str) -> dict[str, str]:
    """Versions in a requirements file, by package name as PyPI normalises it."""
    found = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / name).read_text(), re.M)
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in found}


def test_serving_is_the_default_stage() -> None:
    assert list(STAGES)[-1] == "serving"
    assert "detectron2" in STAGES


@pytest.mark.parametrize("stage", ["serving", "detectron2"])
def test_served_stages_run_without_root(stage: str) -> None:
    assert STAGES[stage].strip().splitlines()[-1] == "USER 10001"


def test_base_and_packages_are_pinned() -> None:
    assert re.search(r"^ARG BASE=\S+/python:\d+\.\d+\.\d+-slim-\w+$", DOCKERFILE, re.M)
    for name in (
        "requirements.txt",
        "requirements-convert.txt",
        "requirements-parquet.txt",
        "requirements-detectron2.txt",
        "requirements-beam.txt",
        "constraints.txt",
        "constraints-beam.txt",
    ):
        lines = [line for line in (ROOT / name).read_text().splitlines() if line and line[0] not in "#-"]
        assert all(re.fullmatch(r"[\w.-]+==\S+", line) for line in lines), name


def test_constraints_pin_all_packages_of_the_image() -> None:
    constraints = pins("constraints.txt")
    for package, version in pins("requirements.txt").items():
        assert constraints.get(package) == version, f"renew constraints.txt: {package} is {version}"
    constraints = pins("constraints-beam.txt")
    for package, version in pins("requirements-beam.txt").items():
        assert constraints.get(package) == version, f"renew constraints-beam.txt: {package} is {version}"


def test_beam_workers_have_the_packages_of_the_service() -> None:
    """Except Pillow, because apache-beam does not allow the service's version."""
    service, workers = pins("requirements.txt"), pins("requirements-beam.txt")
    assert {name: workers.get(name) for name in service.keys() - {"pillow"}} == {
        name: version for name, version in service.items() if name != "pillow"
    }
    assert f"beam_python3.11_sdk:{workers['apache-beam']}\n" in DOCKERFILE
    python = re.search(r"^ARG BASE=\S+/python:(\d+\.\d+)\.", DOCKERFILE, re.M)
    assert python
    assert python[1] == "3.11", "workers use the Python version of Beam's image"


def test_copied_files_exist_and_are_not_ignored() -> None:
    ignored = [
        line.lstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"
    ]
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            assert source not in ignored


def test_environment_of_the_image_is_valid() -> None:
    for stage in ("serving", "detectron2", "beam"):
        found = re.findall(rf"({PREFIX}[A-Z_]+)=(\S+)", STAGES["app"] + STAGES[stage])
        assert found
        Settings.from_environment(dict(found))


def test_dockerfile_uses_the_documented_detectron2() -> None:
    found = re.search(r"ARG DETECTRON2=([0-9a-f]{40})", DOCKERFILE)
    assert found
    assert found[1] in (ROOT / "requirements-detectron2.txt").read_text()


def test_detectron2_keeps_a_setuptools_with_pkg_resources() -> None:
    """detectron2.model_zoo imports it; setuptools 82 removed it."""
    assert int(pins("requirements-detectron2.txt")["setuptools"].split(".")[0]) < 82
    uninstalled = re.findall(r"uninstall (.+)", STAGES["detectron2-packages"])
    assert uninstalled
    assert not any("setuptools" in packages for packages in uninstalled)


def test_requests_end_within_cloud_runs_ten_seconds() -> None:
    assert server.STOP_SECONDS < 10
