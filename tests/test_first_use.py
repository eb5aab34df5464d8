"""The first use: clone, `make run MODEL=NAME`, open the page, send a photo; with a local mirror of the zoo.

The checkpoint has the zoo's tensor names and shapes with random values (benchmarks/checkpoints.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from playwright.sync_api import expect

from devtools.server import ROOT, free_port
from tests import mirror as mirrors
from tests.browser import browser, chromium
from tests.mirror import Mirror

NAME = "mask_rcnn_R_50_FPN_3x"
LOWEST = 0.05
"""Random weights give low scores."""
HELD_BYTES = 60_000_000
"""The part of the checkpoint that the mirror sends before it waits until the page has been checked."""
INSTALL_SECONDS, PREPARE_SECONDS, AT_ONCE_SECONDS = 900.0, 600.0, 30.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="needs Chromium (apt-get install chromium)"),
    pytest.mark.skipif(not (shutil.which("git") and shutil.which("make")), reason="needs git and make"),
]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean clone of this repository's last commit."""
    folder = tmp_path_factory.mktemp("clone") / "segment"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def mirror() -> Iterator[Mirror]:
    """A mirror of the zoo with one full-size checkpoint."""
    with mirrors.run() as running:
        running.files.update(mirrors.zoo_file(NAME))
        running.before_gate = HELD_BYTES
        running.gate.clear()
        yield running


@contextlib.contextmanager
def make_run(clone: Path, mirror: Mirror, *variables: str) -> Iterator[str]:
    """Start `make run MODEL=NAME`, yield the URL that it will serve on, and end it with Ctrl-C."""
    port = free_port()
    own = {"SEGMENT_ZOO_URL": mirror.url, "XDG_CACHE_HOME": str(clone.parent / "cache"), "PYTHON": sys.executable}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SEGMENT_")} | own
    command = ["make", "run", f"MODEL={NAME}", f"PORT={port}", *variables]
    process = subprocess.Popen(command, cwd=clone, env=environment, start_new_session=True)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(30)


def wait_for(url: str, seconds: float) -> float:
    """Wait until `url` responds with 200; return the seconds that this took."""
    start = time.monotonic()
    while time.monotonic() < start + seconds:
        with contextlib.suppress(requests.ConnectionError):
            if requests.get(url, timeout=60).ok:
                return time.monotonic() - start
        time.sleep(0.05)
    raise AssertionError(f"{url} did not answer in {seconds:g} s")


def segmented(url: str) -> int:
    """Run README's curl command; return the number of objects found."""
    command = ["curl", "--silent", "--show-error", "--fail", "-F", f"file=@{ROOT / 'docs' / 'coins-photo.png'}"]
    done = subprocess.run(
        [*command, f"{url}/segment?format=json&min_score={LOWEST}"], capture_output=True, check=True, timeout=600
    )
    return len(json.loads(done.stdout)["annotations"])


def test_unknown_model_name_stops_with_advice(clone: Path) -> None:
    command = ["make", "run", "MODEL=mask_rcnn_R_51", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode != 0
    assert "There is no model called mask_rcnn_R_51" in done.stderr
    assert not (clone / ".venv").exists(), "the name must be refused before anything is installed"


def test_two_commands_to_a_segmented_photo(clone: Path, mirror: Mirror, capsys: pytest.CaptureFixture[str]) -> None:
    spent = {}
    with make_run(clone, mirror) as url, browser() as chrome:
        spent["installed and listening"] = wait_for(url + "/health", INSTALL_SECONDS)
        page = chrome.new_page(viewport={"width": 1280, "height": 800})
        page.goto(url)
        expect(page.locator("#loading-text")).to_contain_text(f"Downloading {NAME}.pkl", timeout=60_000)
        expect(page.locator("#loading-amount")).to_contain_text("of 178 MB")
        expect(page.locator("#loading-amount")).to_have_text("60 of 178 MB", timeout=60_000)
        if folder := os.environ.get("SCREENSHOTS"):
            page.screenshot(path=Path(folder) / "preparing.png")
        page.set_input_files("#file", str(ROOT / "docs" / "coins-photo.png"))
        start = time.monotonic()
        mirror.gate.set()
        expect(page.locator("#model-chip")).to_contain_text(f"{NAME} · 80 classes", timeout=PREPARE_SECONDS * 1000)
        spent["rest of the download, converted and loaded"] = time.monotonic() - start
        expect(page.locator("#photos .state")).to_contain_text("object", timeout=60_000)
        expect(page.locator("#demo")).to_be_hidden()
        expect(page.locator("#examples")).to_be_hidden()
        assert segmented(url) > 0
    asked = len(mirror.ranges)
    with make_run(clone, mirror) as url:
        spent["second start, until /ready"] = wait_for(url + "/ready", AT_ONCE_SECONDS)
        assert segmented(url) > 0
    assert len(mirror.ranges) == asked
    with capsys.disabled():
        print("\n" + "\n".join(f"{what}: {seconds:.1f} s" for what, seconds in spent.items()))
