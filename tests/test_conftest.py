"""REQUIRE_ALL=1 turns skips because of missing programs or rights into failures."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SKIPS = """
import pytest

@pytest.mark.skipif(True, reason="needs Chromium (apt-get install chromium)")
def test_of_a_program(): ...

def test_of_a_right():
    pytest.skip("needs root")

@pytest.mark.skipif(True, reason="detectron2 is not installed (requirements-detectron2.txt)")
def test_of_an_optional_package(): ...
"""


@pytest.mark.parametrize(("required", "outcome"), [("", "3 skipped"), ("1", "1 failed, 1 skipped, 1 error")])
def test_skips_fail_where_everything_is_required(tmp_path: Path, required: str, outcome: str) -> None:
    (tmp_path / "test_skips.py").write_text(SKIPS)
    plugins = ["-p", "tests.conftest", "-p", "no:cacheprovider", "-p", "no:schemathesis", "-p", "no:anyio"]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, str(tmp_path)]
    environment = {**os.environ, "REQUIRE_ALL": required}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert outcome in done.stdout
    assert ("needs root" in done.stdout) == bool(required)


def test_schemathesis_is_imported_by_the_tests_that_use_it() -> None:
    """Each test process imports all test files. It takes seconds to import."""
    files = (ROOT / "tests").glob("*.py")
    assert not [file.name for file in files if re.search("^(import|from) schemathesis", file.read_text(), re.M)]
