"""Fixtures and helpers shared by several test files."""

from __future__ import annotations

import gc
import io
import logging
import os
from collections.abc import Generator, Iterator

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from devtools.gcs import Cloud
from devtools.server import CACHE, Server, serve
from segment import container
from segment.bucket.store import google
from segment.memory import MARGIN_SHARE
from training.shapes import scene

OPTIONAL = ("requirements-detectron2.txt", "requirements-bench.txt", "requirements-beam.txt", "test_package.py")
"""Skips whose reason contains one of these are allowed: their Python package is optional or installed elsewhere."""

LONGEST = str.split(
    "test_page test_bucket test_server test_convert test_quantise test_terraform test_service test_soak test_dataset "
    "test_model test_startup test_image test_video test_backfill test_benchmarks test_commands test_bucket_results "
    "test_openapi test_web test_deformable test_zoo test_regnet test_bucket_dataset test_engine_files"
)
"""The files that take longest. With `--dist loadfile`, one that starts last would keep one worker busy at the end."""

settings.register_profile("tests", deadline=None)  # the default of 200 ms fails on a loaded machine
settings.load_profile("tests")


def pytest_configure() -> None:
    """Let the processes that tests start share compiled models and compiled Python code."""
    os.environ["SEGMENT_CACHE"] = str(CACHE)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_collection() -> None:
    """Collect the tests without garbage collection, which takes a quarter of the time of importing them."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Leave out what was imported from later garbage collections."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take longest; the others keep their order."""
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(LONGEST)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Restore the root logger and `logging.disable` after each test, since commands configure them for a process."""
    root = logging.getLogger()
    level, handlers, disabled = root.level, root.handlers[:], root.manager.disable
    try:
        return (yield)
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
        logging.disable(disabled)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With REQUIRE_ALL=1, fail a test that is skipped because a program, permission or kernel feature is missing."""
    report = yield
    if os.environ.get("REQUIRE_ALL") == "1" and report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if not any(name in reason for name in OPTIONAL):
            report.outcome, report.longrepr = "failed", f"REQUIRE_ALL=1 does not allow this skip: {reason}"
    return report


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The service with the demo model and limits that are small enough for tests to exceed."""
    with serve(SEGMENT_MAX_UPLOAD="2Mi", SEGMENT_FETCH_PRIVATE="true", SEGMENT_FETCH_SECONDS="10") as running:
        yield running


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """A storage server with the buckets `photos` and `results`, used by the storage client of this process."""
    with Cloud() as cloud:
        cloud.create_bucket("photos")
        cloud.create_bucket("results")
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", cloud.url)
        google.client.cache_clear()
        yield cloud
    google.client.cache_clear()


@pytest.fixture(scope="session")
def photo() -> bytes:
    """A JPEG in which the demo model finds several shapes."""
    return jpeg(scene(50_004, (320, 240))[0])


def limit_with(room: int) -> int:
    """A memory limit in bytes that leaves about `room` to a service, besides the memory this process already holds."""
    return int((container.held() + room) / (1 - MARGIN_SHARE))


def jpeg(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint8 RGB as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
