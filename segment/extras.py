"""Packages that are not installed, and the command that installs each.

The distribution has extras (pyproject.toml, optional-dependencies). If it is installed, `pip install` adds an extra by
the distribution's name. In a clone it is not installed, so the command has the clone's path instead.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from segment.errors import MissingPackage

DISTRIBUTION = "segment-serverless"
EXTRAS = {
    **dict.fromkeys(("onnx", "onnxruntime", "nncf", "networkx", "yaml"), "convert"),
    **dict.fromkeys(("torch", "detectron2", "omegaconf", "fvcore", "yacs"), "detectron2"),
    **dict.fromkeys(("google", "google_crc32c", "requests"), "gcp"),
    "pyarrow": "parquet",
    "av": "video",
    "apache_beam": "beam",
    "apitools": "dataflow",
}
"""The extra that installs each optional package, by the first part of its import name."""


def require(package: str) -> None:
    """Raise MissingPackage if the package, such as google.cloud.storage, is not installed."""
    try:
        found = importlib.util.find_spec(package)
    except ModuleNotFoundError:  # of a package that contains it
        found = None
    if found is None:
        raise missing(package)


def missing(package: str) -> MissingPackage:
    """The error for a package that is not installed, with the command that installs it."""
    extra = EXTRAS.get(package.partition(".")[0], "")
    advice = f"Install it with: {command(extra)}"
    if not extra:
        advice += " (In a clone, `make run` installs it into .venv; activate that with: . .venv/bin/activate)"
    return MissingPackage(f"The package {package} is not installed. {advice}")


def explained(error: ModuleNotFoundError) -> MissingPackage:
    """The error for the package that an import did not find. Raises `error` if that is a module of this package."""
    if not error.name or error.name.partition(".")[0] == "segment":
        raise error
    return missing(error.name)


def command(extra: str = "") -> str:
    """The command that installs the distribution, with an extra if one is given."""
    try:
        importlib.metadata.distribution(DISTRIBUTION)
        source = DISTRIBUTION
    except importlib.metadata.PackageNotFoundError:
        source = str(Path(__file__).resolve().parents[1])
    return f"pip install '{source}[{extra}]'" if extra else f"pip install '{source}'"
