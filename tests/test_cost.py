"""The cost in deploy/README.md is what the benchmark's results and the prices make it."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import cost
from devtools.events import pubsub
from devtools.gcs import Cloud
from devtools.server import serve
from training.shapes import scene

README = Path(__file__).resolve().parents[1] / "deploy" / "README.md"


def test_arithmetic() -> None:
    # 1,000 photos of 0.2 s: 200 vCPU-seconds, 100 GiB-seconds, 1,000 requests
    assert cost.request_dollars(1000, 0.2) == pytest.approx(200 * 0.000024 + 100 * 0.0000025 + 0.0004)
    # 4,000 uploads and lists, 1,000 reads; four calls of 0.05 s are waited for
    assert cost.storage_dollars(1000) == pytest.approx(0.0204)
    assert cost.bucket_dollars(1000, 0.2) == pytest.approx(cost.request_dollars(1000, 0.4) + 0.0204)
    assert cost.free_photos(0.2) == 900_000  # the vCPU-seconds are used up first


def test_storage_calls_are_those_of_the_handler() -> None:
    with Cloud() as cloud:
        cloud.create_bucket("photos")
        cloud.create_bucket("results")
        settings = {"SEGMENT_OUTPUT_BUCKET": "results", "SEGMENT_RENDER_FACTOR": "6"}
        with serve("segment_object", STORAGE_EMULATOR_HOST=cloud.url, **settings) as handler:
            buffer = io.BytesIO()
            Image.fromarray(scene(1, (96, 64))[0]).save(buffer, "PNG")
            item = cloud.put("photos", "photo.png", buffer.getvalue())
            cloud.requests.clear()
            assert pubsub(handler.url, item).ok
    methods = Counter("read" if "alt=media" in path or "/download/" in path else m for m, path in cloud.requests)
    assert methods == {"GET": cost.LISTS, "read": cost.READS, "POST": cost.WRITES}, cloud.requests


@pytest.mark.parametrize(("cpu_seconds", "billed"), [(0.05, 0.1), (0.1, 0.1), (0.11, 0.2), (1, 1)])
def test_time_is_billed_in_steps(cpu_seconds: float, billed: float) -> None:
    assert cost.billed_seconds(cpu_seconds) == pytest.approx(billed)


def test_readme_holds_the_table() -> None:
    text = README.read_text()
    assert f"{cost.MARKERS[0]}\n{cost.table()}\n{cost.MARKERS[1]}" in text, "run: " + cost.MARKERS[0][11:-4]


def test_writing_replaces_what_stands_between_the_markers(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{cost.MARKERS[0]}\nold\n{cost.MARKERS[1]}\nafter\n")
    cost.write(path)
    assert path.read_text() == f"before\n{cost.MARKERS[0]}\n{cost.table()}\n{cost.MARKERS[1]}\nafter\n"
