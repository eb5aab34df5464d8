"""Virtual environments for tools that cannot share the development environment."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from devtools.server import ROOT

LABEL_STUDIO = "label-studio==1.23.2"
FOLDER = ROOT / ".cache" / "environments"


def environment(*requirements: str) -> Path:
    """The bin folder of an environment with these packages, created once and kept in .cache/environments.

    Skips the test if the package index does not have them.
    """
    key = hashlib.sha256("\n".join((sys.version, *requirements)).encode()).hexdigest()[:8]
    place = FOLDER / f"{requirements[0].partition('=')[0]}-{key}"
    if not (place / "complete").exists():
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        command: list[str | Path] = [place / "bin" / "python", "-m", "pip", "install", "--quiet", *requirements]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "No matching distribution found" in done.stderr:
            pytest.skip(f"the package index has no {', '.join(requirements)}")
        assert done.returncode == 0, done.stderr
        (place / "complete").touch()
    return place / "bin"
