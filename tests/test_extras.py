"""The command shown for a missing optional package works for an installed distribution and for a clone."""

from __future__ import annotations

import ast
import contextlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy
import pytest

from devtools.server import ROOT
from segment import extras
from segment.errors import MissingPackage


def test_every_extra_is_one_of_the_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == extras.DISTRIBUTION
    assert set(extras.EXTRAS.values()) == set(project["optional-dependencies"])


def required(distribution: str, found: set[str]) -> set[str]:
    """The distribution and all that it requires, without its extras. Only those that are installed."""
    name = re.sub(r"[-_.]+", "-", distribution).lower()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        if name not in found:
            found.add(name)
            for requirement in importlib.metadata.requires(name) or []:
                if "extra ==" not in requirement:
                    required(re.split(r"[^\w.-]", requirement)[0], found)
    return found


def test_every_package_that_is_imported_is_a_dependency_or_in_an_extra() -> None:
    imported = set()
    for path in (ROOT / "segment").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).partition(".")[0])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    dependencies: set[str] = set()
    for requirement in project["dependencies"]:
        required(re.split(r"[^\w.-]", requirement)[0], dependencies)
    distributions = importlib.metadata.packages_distributions()
    optional = {
        name
        for name in imported - {"segment", "_typeshed", *sys.stdlib_module_names}
        if not {re.sub(r"[-_.]+", "-", own).lower() for own in distributions.get(name, [])} & dependencies
    }
    assert optional <= set(extras.EXTRAS)


def test_installed_distribution_is_extended_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: name)
    assert extras.command("video") == "pip install 'segment-serverless[video]'"


def test_a_clone_is_installed_by_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The distribution is not on PyPI, so a clone cannot be installed by name."""

    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    assert extras.command("convert") == f"pip install '{ROOT}[convert]'"


def test_missing_package_message_has_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage) as raised:
        extras.require("nncf")
    assert str(raised.value) == (f"The package nncf is not installed. Install it with: {extras.command('convert')}")


def test_a_missing_part_of_a_package_is_named() -> None:
    with pytest.raises(MissingPackage, match=r"google\.cloud\.nothing is not installed\. .*\[gcp\]"):
        extras.require("google.cloud.nothing")
    with pytest.raises(MissingPackage, match=r"google\.nothing\.inside is not installed\. .*\[gcp\]"):
        extras.require("google.nothing.inside")


@pytest.mark.parametrize("absent", ["numpy", "isal"])
def test_without_a_required_package_the_commands_say_what_is_missing(absent: str, tmp_path: Path) -> None:
    """`import segment` needs NumPy, only the commands need isal."""
    for entry in Path(numpy.__file__).parents[1].iterdir():
        if not entry.name.startswith(absent):
            (tmp_path / entry.name).symlink_to(entry)
    command = [sys.executable, "-S", "-m", "segment", "models"]  # -S: without the environment's own packages
    ran = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1
    assert f"The package {absent} is not installed. Install it with: pip install " in ran.stderr
    assert not ran.stdout


def test_a_missing_module_of_this_distribution_is_not_called_a_package() -> None:
    with pytest.raises(ModuleNotFoundError):
        extras.explained(ModuleNotFoundError(name="segment.nothing"))
