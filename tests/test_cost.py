"""The cost in deploy/README.md matches the benchmark's results and the prices."""

from __future__ import annotations

import io
import re
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
BEAM = README.parents[1] / "docs" / "beam.md"


def test_arithmetic() -> None:
    # 1,000 photos of 0.2 s: 200 vCPU-seconds, 100 GiB-seconds, 1,000 requests
    assert cost.request_dollars(1000, 0.2) == pytest.approx(200 * 0.000024 + 100 * 0.0000025 + 0.0004)
    # 4,000 uploads and lists, 1,000 reads; each photo waits for four calls of 0.05 s
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


def test_a_million_photos() -> None:
    # 100,000 vCPU-seconds, 50,000 GiB-seconds, 2,000,000 writes, 1,000,000 reads
    assert cost.job_dollars(1_000_000, 0.1) == pytest.approx(1.8 + 0.1 + 10 + 0.4)
    # 50,000 and 50 x 300 machine seconds; 20 GB shuffled
    machine = 2 * 0.056 + 8 * 0.003557 + 50 * 0.000054
    assert cost.dataflow_dollars(1_000_000, 0.1, writes=0) == pytest.approx(65_000 / 3600 * machine + 0.22 + 0.4)
    text = BEAM.read_text()
    begin, end = cost.MILLION_MARKERS
    assert f"{begin}\n{cost.million()}\n{end}" in text, "run: " + begin[14:-4]
    for option, value in (
        ("max_num_workers", cost.WORKERS),
        ("machine_type", f"e2-standard-{cost.WORKER_VCPUS}"),
        ("disk_size_gb", cost.WORKER_DISK_GB),
    ):
        assert f"--{option} {value} " in text


def test_job_has_the_tasks_of_the_module() -> None:
    variables = (README.parents[1] / "terraform" / "variables.tf").read_text()
    assert re.search(r'variable "backfill_tasks" \{[^}]*default += (\d+)', variables)[1] == str(cost.JOB_TASKS)  # type: ignore[index]


def test_writing_replaces_what_stands_between_the_markers(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{cost.MARKERS[0]}\nold\n{cost.MARKERS[1]}\nafter\n")
    cost.write(path)
    assert path.read_text() == f"before\n{cost.MARKERS[0]}\n{cost.table()}\n{cost.MARKERS[1]}\nafter\n"
