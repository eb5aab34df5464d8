"""The cost of photos on Google Cloud, computed from CPU seconds per photo and published prices.

    python -m benchmarks.cost                          1,000 on Cloud Run, measured rows from benchmarks/results first
    python -m benchmarks.cost million                  1,000,000 by the backfill job and on Dataflow
    python -m benchmarks.cost --write deploy/README.md put a table between the file's markers

A request is billed for its duration, not for its CPU time. On the default instance (1 vCPU, 512 MiB) both are the same
while requests do not overlap. The time that overlapping requests share on an instance is billed once; waiting for the
network is billed although it uses no CPU. The cost of a photo over HTTP excludes its upload, whose time depends on the
client. The cost of a photo in a bucket assumes that it is alone on its instance, and includes the price and the waiting
time of every storage call (tests/test_cost.py counts the calls of the handler).

A job and a pipeline process many photos at a time, so waiting for storage overlaps with computing. They are billed for
the running time of their machines.

Measured rows are the objects with `cpu_seconds` and a `name`, at any depth, in the files of benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
MARKERS = ("<!-- cost: python -m benchmarks.cost --write deploy/README.md -->", "<!-- /cost -->")
MILLION_MARKERS = ("<!-- million: python -m benchmarks.cost --write docs/beam.md -->", "<!-- /million -->")

# US dollars, tier 1 regions, request-based billing: https://cloud.google.com/run/pricing
VCPU_SECOND = 0.000024
GIB_SECOND = 0.0000025
REQUEST = 0.40 / 1e6
FREE_VCPU_SECONDS, FREE_GIB_SECONDS, FREE_REQUESTS = 180_000, 360_000, 2_000_000  # a month, per billing account
GRAIN = 0.1
"""Billing increment in seconds of a request alone on its instance."""
# Standard storage in one region, per operation: https://cloud.google.com/storage/pricing
CLASS_A, CLASS_B = 0.005 / 1000, 0.0004 / 1000
"""Uploading and listing; reading."""
UPLOADS_BY_USER = 1
LISTS, READS, WRITES = 1, 1, 2
"""Storage calls of the events service for a photo with the default two results."""
CALL_SECONDS = 0.05
"""Time in seconds to wait for a storage call from the same region. Assumed, not measured."""

VCPUS, GIB = 1, 0.5

# Cloud Run jobs, instance-based billing: https://cloud.google.com/run/pricing
JOB_VCPU_SECOND, JOB_GIB_SECOND = 0.000018, 0.000002
JOB_TASKS = 4
"""Number of concurrent tasks of the job (backfill_tasks in terraform/variables.tf)."""
# Dataflow, batch, us-central1: https://cloud.google.com/dataflow/pricing
DATAFLOW_VCPU_HOUR, DATAFLOW_GB_HOUR, DATAFLOW_DISK_GB_HOUR, SHUFFLE_GB = 0.056, 0.003557, 0.000054, 0.011
WORKERS, WORKER_VCPUS, WORKER_GB, WORKER_DISK_GB = 50, 2, 8, 50
"""The workers in docs/beam.md: e2-standard-2 machines."""
IDLE_SECONDS = 300
"""Billed time of each worker in addition to its photos, for the start and the last step. Assumed, not measured."""
SHUFFLED_BYTES = 20_000
"""Shuffled bytes per photo: its name and its JSON, each written and read. Assumed, not measured."""


def billed_seconds(cpu_seconds: float) -> float:
    """The billed time of one photo that is alone on an instance with 1 vCPU."""
    return math.ceil(round(cpu_seconds / GRAIN, 6)) * GRAIN


def request_dollars(photos: int, cpu_seconds: float) -> float:
    """The charges of Cloud Run for `photos`, without the free tier."""
    seconds = photos * billed_seconds(cpu_seconds)
    return seconds * (VCPUS * VCPU_SECOND + GIB * GIB_SECOND) + photos * REQUEST


def storage_dollars(photos: int) -> float:
    """The charges of Cloud Storage for the calls of photos in a bucket, including the upload by the user."""
    return photos * ((UPLOADS_BY_USER + LISTS + WRITES) * CLASS_A + READS * CLASS_B)


def bucket_dollars(photos: int, cpu_seconds: float) -> float:
    """The cost of photos in a bucket: Cloud Run, including the time of storage calls, and Cloud Storage."""
    waiting = (LISTS + READS + WRITES) * CALL_SECONDS
    return request_dollars(photos, cpu_seconds + waiting) + storage_dollars(photos)


def job_dollars(photos: int, cpu_seconds: float) -> float:
    """The cost of photos with the backfill job, with two results per photo."""
    seconds = photos * cpu_seconds
    return seconds * (VCPUS * JOB_VCPU_SECOND + GIB * JOB_GIB_SECOND) + photos * (WRITES * CLASS_A + READS * CLASS_B)


def dataflow_dollars(photos: int, cpu_seconds: float, writes: int = WRITES) -> float:
    """The cost of a Dataflow job that reads `photos`, and writes `writes` results of each and a dataset of all."""
    hours = (photos * cpu_seconds / WORKER_VCPUS + WORKERS * IDLE_SECONDS) / 3600
    worker = WORKER_VCPUS * DATAFLOW_VCPU_HOUR + WORKER_GB * DATAFLOW_GB_HOUR + WORKER_DISK_GB * DATAFLOW_DISK_GB_HOUR
    shuffled = photos * SHUFFLED_BYTES / 1e9 * SHUFFLE_GB
    return hours * worker + shuffled + photos * (writes * CLASS_A + READS * CLASS_B)


def free_photos(cpu_seconds: float) -> int:
    """Number of photos per month in the free tier."""
    seconds = billed_seconds(cpu_seconds)
    most = min(FREE_VCPU_SECONDS / (seconds * VCPUS), FREE_GIB_SECONDS / (seconds * GIB), FREE_REQUESTS)
    return int(round(most, 6))


def measured() -> dict[str, float]:
    """CPU seconds of one photo by name, from the results of the benchmarks."""

    def found(value: Any) -> Iterator[tuple[str, float]]:
        if isinstance(value, dict):
            if "cpu_seconds" in value and "name" in value:
                yield str(value["name"]), float(value["cpu_seconds"])
            value = list(value.values())
        if isinstance(value, list):
            for item in value:
                yield from found(item)

    return dict(pair for path in sorted(RESULTS.glob("*.json")) for pair in found(json.loads(path.read_text())))


def table() -> str:
    """The calculation of the first row, then a row for each measured result and for round numbers."""
    rows = measured() | {f"if it were {seconds:g} s": seconds for seconds in (0.1, 0.25, 0.5, 1.0)}
    name, cpu_seconds = next(iter(rows.items()))
    billed = billed_seconds(cpu_seconds)
    waited = billed_seconds(cpu_seconds + (LISTS + READS + WRITES) * CALL_SECONDS)
    vcpu, memory = billed * VCPUS * VCPU_SECOND, billed * GIB * GIB_SECOND
    uploads = UPLOADS_BY_USER + WRITES
    lines = [
        f"For one photo of {cpu_seconds:.3g} CPU seconds ({name}), billed as {billed:.1f} s, 1,000 photos are:",
        "",
        "```text",
        f"vCPU      1,000 x {billed:.1f} s x {VCPUS} vCPU  x ${VCPU_SECOND:.6f}  = ${1000 * vcpu:.4f}",
        f"memory    1,000 x {billed:.1f} s x {GIB} GiB x ${GIB_SECOND:.7f} = ${1000 * memory:.4f}",
        f"requests  1,000 x $0.40 / 1,000,000          = ${1000 * REQUEST:.4f}",
        f"together                                     = ${request_dollars(1000, cpu_seconds):.4f}",
        "",
        f"in a bucket: {(LISTS + READS + WRITES)} storage calls of {CALL_SECONDS * 1000:.0f} ms each are waited for",
        f"billed as {waited:.1f} s                             = ${request_dollars(1000, waited):.4f}",
        f"{uploads},000 uploads, {LISTS},000 lists, {READS},000 reads     = ${storage_dollars(1000):.4f}",
        f"together                                     = ${bucket_dollars(1000, cpu_seconds):.4f}",
        "```",
        "",
        "| one photo | CPU seconds | 1,000 over HTTP | 1,000 in a bucket | free each month |",
        "|---|---|---|---|---|",
    ]
    for name, cpu_seconds in rows.items():
        http, bucket = request_dollars(1000, cpu_seconds), bucket_dollars(1000, cpu_seconds)
        lines.append(f"| {name} | {cpu_seconds:.3g} | ${http:.4f} | ${bucket:.4f} | {free_photos(cpu_seconds):,} |")
    return "\n".join(lines)


def million() -> str:
    """The cost of a million photos with the backfill job and on Dataflow, and the job's photos per hour."""
    photos, vcpus = 1_000_000, WORKERS * WORKER_VCPUS
    lines = [
        "| one photo | CPU seconds | job, files | Dataflow, files and dataset | Dataflow, dataset "
        f"| hours on {vcpus} vCPUs | photos per hour, {JOB_TASKS} tasks |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, seconds in measured().items():
        job, files = job_dollars(photos, seconds), dataflow_dollars(photos, seconds)
        dataset = dataflow_dollars(photos, seconds, writes=0)
        hours = photos * seconds / vcpus / 3600
        lines.append(
            f"| {name} | {seconds:.3g} | ${job:.2f} | ${files:.2f} | ${dataset:.2f} | {hours:.1f} "
            f"| {int(JOB_TASKS * 3600 / seconds / 1000) * 1000:,} |"
        )
    return "\n".join(lines)


TABLES = {MARKERS: table, MILLION_MARKERS: million}


def write(path: Path) -> None:
    """Replace the text between the markers of a Markdown file by the tables."""
    text = path.read_text()
    for (begin, end), made in TABLES.items():
        before, found, rest = text.partition(begin)
        if found:
            text = f"{before}{begin}\n{made()}\n{end}{rest.partition(end)[2]}"
    path.write_text(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What photos cost on Google Cloud.")
    parser.add_argument("table", nargs="?", choices=("thousand", "million"), default="thousand")
    parser.add_argument("--write", type=Path, metavar="FILE", help="a Markdown file with the markers")
    given = parser.parse_args()
    if given.write:
        write(given.write)
    else:
        print(million() if given.table == "million" else table())
