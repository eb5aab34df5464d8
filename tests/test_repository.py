"""The workflow, issue forms, Makefile and documentation are consistent with the rest of the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from devtools import architecture
from devtools.server import ROOT
from tests.test_layers import LEVELS
from tests.test_package import PYTHONS

GITHUB = ROOT / ".github"
WORKFLOW: dict[str, Any] = yaml.safe_load((GITHUB / "workflows" / "test.yml").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_python_versions_are_consistent() -> None:
    classifiers = [c.rpartition(" :: ")[2] for c in PROJECT["classifiers"] if c.startswith("Programming Language")]
    assert tuple(WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python"]) == PYTHONS
    assert tuple(classifiers) == PYTHONS
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"


def test_workflow_runs_make_test_without_skips() -> None:
    commands = [step["run"] for step in WORKFLOW["jobs"]["test"]["steps"] if "run" in step]
    assert any(command.endswith("make test") and "REQUIRE_ALL=1" in command for command in commands)


def test_actions_are_pinned_by_commit() -> None:
    used = [step["uses"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "uses" in step]
    assert used
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", action) for action in used)


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("", ""),
        ("mask_rcnn_R_50_FPN_3x", ""),
        ("mask_rcnn_R_50_FPN_3x-int8", ""),
        ("https://example.com/model.pkl", ""),
        ("segment/models/shapes.onnx", ""),
        ("mask_rcnn_R_51", "There is no model called mask_rcnn_R_51."),
        ("output/my model.onnx", "There is no file output/my model.onnx."),
        (
            "docs/coins.jpg",
            "docs/coins.jpg is not a model: the name of a model file ends in .onnx, .pkl, .pth, .pt or .ckpt.",
        ),
    ],
)
def test_make_checks_the_model_before_it_installs(model: str, message: str) -> None:
    command = ["make", "check-model", f"MODEL={model}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode == 0) == (not message), done.stderr
    assert message in done.stderr


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_installs_the_converter_only_if_needed() -> None:
    def planned(model: str) -> str:
        command = ["make", "--dry-run", "--always-make", "run", f"MODEL={model}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True).stdout

    assert "requirements-convert.txt" in planned("mask_rcnn_R_50_FPN_3x")
    assert "requirements-convert.txt" not in planned("segment/models/shapes.onnx")


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_creates_an_unfinished_environment_again(tmp_path: Path) -> None:
    """An environment without pip is left behind if ensurepip is missing or venv was interrupted."""

    def planned() -> str:
        command = ["make", "--dry-run", "run", f"VENV={tmp_path}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True).stdout

    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    assert f"-m venv {tmp_path}\n" in planned()
    (tmp_path / "bin" / "pip").touch()
    assert f"-m venv {tmp_path}\n" not in planned()


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_alone_prints_every_command() -> None:
    command = ["make", "--no-print-directory"]  # make prints the directory when the tests themselves run under make
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True).stdout
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (targets,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.M)
    described = re.findall(r"^make ([\w-]+) ", shown, re.M)
    assert set(described) == set(targets.split()) - {"help", "check-model", "lint", "style", "clean"}
    assert all(line.startswith(("make ", "  ")) for line in shown.splitlines())


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize("failing", [None, "ruff", "mypy", "pytest"])
def test_make_test_fails_if_a_check_fails(tmp_path: Path, failing: str | None) -> None:
    """With programs that only exit: mypy runs in the background of pytest."""
    for file in (ROOT / "Makefile", *ROOT.glob("requirements*.txt")):
        shutil.copy(file, tmp_path)
    for made in ("pip", "dev", ".cache/terraform/installed"):
        (tmp_path / made).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / made).touch()
    for program in ("ruff", "mypy", "pytest"):
        (tmp_path / program).write_text(f"#!/bin/sh\necho output of {program}\nexit {int(program == failing)}\n")
        (tmp_path / program).chmod(0o755)
    command = ["make", "test", "VENV=.", "BIN=."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode == 0) == (failing is None), done.stderr
    assert ("output of mypy" in done.stdout) == (failing != "ruff")


@pytest.mark.parametrize("form", ["bug", "feature"])
def test_issue_forms_are_valid(form: str) -> None:
    """Required keys: docs.github.com, "Syntax for issue forms"."""
    document = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / f"{form}.yml").read_text(encoding="utf-8"))
    assert document["name"]
    assert document["description"]
    ids = [part["id"] for part in document["body"] if part["type"] != "markdown"]
    assert len(set(ids)) == len(ids) > 0
    assert all(part["attributes"]["label"] for part in document["body"] if part["type"] != "markdown")


def test_pre_commit_runs_the_linters_of_make_lint() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    for hook in config["repos"][0]["hooks"]:
        program = hook["entry"].removeprefix(".venv/bin/").removesuffix(" --fix")
        assert f"$(BIN)/{program}" in makefile


def test_the_picture_of_the_architecture_shows_the_layers() -> None:
    described = {name for level in LEVELS for name in level}
    assert set(architecture.ABOUT) == described, "describe each module in devtools/architecture.py"
    drawn = architecture.PICTURE.read_text(encoding="utf-8")
    assert drawn == architecture.draw(LEVELS), "run: python -m devtools.architecture"


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "docs/architecture.md"])
def test_every_file_named_in_a_page_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    files = re.findall(r"`((?:segment|tests|terraform|devtools|benchmarks|web)/[\w./]+)`", text)
    files = [f"segment/{file}" if file.startswith("web/") else file for file in files]
    assert files
    for file in [*files, *re.findall(r"\]\((?!http|#)([^)#]+)", text)]:
        assert (ROOT / file).exists() or (ROOT / name).parent.joinpath(file).exists(), file
