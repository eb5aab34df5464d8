"""The command shown for a missing optional package works for an installed distribution and for a clone."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import tomllib

import pytest

from devtools.server import ROOT
from segment import extras
from segment.errors import MissingPackage


def test_every_extra_is_one_of_the_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == extras.DISTRIBUTION
    assert set(extras.EXTRAS.values()) == set(project["optional-dependencies"])


def test_an_installed_distribution_is_extended_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: name)
    assert extras.command("video") == "pip install 'segment-serverless[video]'"


def test_a_clone_is_installed_by_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The distribution is not on PyPI, so a clone cannot be installed by name."""

    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    assert extras.command("convert") == f"pip install '{ROOT}[convert]'"


def test_a_missing_package_is_one_sentence_and_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage) as raised:
        extras.require("nncf")
    assert str(raised.value) == (f"The package nncf is not installed. Install it with: {extras.command('convert')}")
