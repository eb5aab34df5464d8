"""CPU use and memory of a backfill of a bucket whose calls have latency, and memory by number of photos.

    python -m benchmarks.backfill [PHOTOS]
    python -m benchmarks.backfill --memory [--most PHOTOS]

The first runs `segment backfill` in a new process against the storage server of the tests, without latency and with
60 ms per call, with the image's memory limit and the demo model. For the time from the first read on, it prints:

- photos per second, and the ratio to the run without latency, which is valid also while other processes use the CPUs;
- the share of all CPUs' time used by the backfill, and the share left idle by all processes, which shows waiting for
  storage;
- the peak resident memory, including pages of libraries that the kernel could reclaim.

The second measures a whole job that writes COCO and Parquet datasets, with and without files for each photo, in a new
process against that server without latency. Photos have 32 x 32 pixels, and a stub engine returns one instance for each
(benchmarks/folder.py). It writes benchmarks/results/backfill-memory.md, which takes a quarter of an hour.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, Popen

from PIL import Image

from benchmarks.folder import stub_service
from devtools.gcs import Cloud
from devtools.server import ROOT
from segment.bucket import backfill
from segment.container import peak
from segment.settings import Settings
from training.shapes import scene

RESULTS = Path(__file__).parent / "results"
PHOTOS = 64
NUMBERS = (100, 1_000, 10_000, 100_000)
LATENCIES = (0.0, 0.06)
MEMORY = "512Mi"
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Measured:
    """One run: photos per second, shares of the CPUs' time from 0 to 1, peak resident memory in MiB."""

    rate: float
    busy: float
    idle: float
    memory: float


def measure(latency: float, photos: list[bytes]) -> Measured:
    """Run the backfill over the photos with this latency in seconds."""
    with Cloud() as cloud:
        cloud.create_bucket("photos")
        cloud.create_bucket("results")
        for number, content in enumerate(photos):
            cloud.put("photos", f"{number:04}.jpg", content, "image/jpeg")
        cloud.latency = latency
        own = {name: value for name, value in os.environ.items() if not name.startswith("SEGMENT_")}
        environment = own | {"STORAGE_EMULATOR_HOST": cloud.url, "SEGMENT_MEMORY": MEMORY}
        command = [sys.executable, "-m", "segment", "backfill", "gs://photos", "gs://results"]
        with Popen(command, env=environment, cwd=ROOT, stdout=DEVNULL) as process:
            while not any("alt=media" in target for _, target in cloud.requests):
                time.sleep(0.01)
            start, before, idle = time.perf_counter(), _cpu_seconds(process.pid), _idle_seconds()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            wall, idle = time.perf_counter() - start, _idle_seconds() - idle
        written = len(cloud.objects("results"))
    if process.returncode or written != 2 * len(photos):
        raise RuntimeError(f"The backfill ended with {process.returncode} and wrote {written} results.")
    busy = (usage.ru_utime + usage.ru_stime - before) / wall / len(os.sched_getaffinity(0))
    return Measured(len(photos) / wall, busy, idle / wall / (os.cpu_count() or 1), usage.ru_maxrss / 1024)


def _idle_seconds() -> float:
    """Idle time of all CPUs until now (proc_stat(5))."""
    with open("/proc/stat", encoding="ascii") as file:
        return int(file.readline().split()[4]) / TICKS


def _cpu_seconds(pid: int) -> float:
    """CPU time of a process until now (proc_pid_stat(5))."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def photo(seed: int) -> bytes:
    """A scene of shapes of 2 megapixels, as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(scene(seed, (1632, 1224))[0]).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def memory(most: int) -> list[str]:
    """The table of memory by number of photos."""
    lines = [
        "| photos | files | largest resident memory, MiB | of it, before the run | s | objects written |",
        "|---|---|---|---|---|---|",
    ]
    for number in (number for number in NUMBERS if number <= most):
        lines += [_memory_row(number, files) for files in ("for each photo", "none")]
    return lines


def _memory_row(number: int, files: str) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "grey").save(buffer, "JPEG")
    with Cloud() as cloud:
        for bucket in ("photos", "results"):
            cloud.create_bucket(bucket)
        for name in range(number):
            cloud.put("photos", f"{name:07}.jpg", buffer.getvalue(), "image/jpeg")
        command = [sys.executable, "-m", "benchmarks.backfill", "--stub", files]
        environment = os.environ | {"STORAGE_EMULATOR_HOST": cloud.url}
        start = time.perf_counter()
        answer = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
        seconds, written = time.perf_counter() - start, len(cloud.objects("results"))
    largest, before = (int(word) / (1 << 20) for word in answer.split())
    row = f"| {number:,} | {files} | {largest:.0f} | {before:.0f} | {seconds:.0f} | {written:,} |"
    print(row, flush=True)
    return row


def run_stub(files: str) -> None:
    """Run a backfill with the stub, and print this process's peak memory in bytes, at the end and before the run."""
    settings = Settings.from_environment({"SEGMENT_RENDER_FACTOR": "4", "SEGMENT_OUTPUT_FORMATS": "json"})
    whole = stub_service(backfill.patient(settings, ("coco", "parquet")))
    before, own = peak(), files != "none"
    if backfill.run("gs://photos", "gs://results", whole, {}, datasets=("coco", "parquet"), files=own):
        raise RuntimeError("A photo failed.")
    print(peak(), before)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.backfill", description="A backfill of a bucket.")
    parser.add_argument("photos", nargs="?", type=int, default=PHOTOS)
    parser.add_argument("--memory", action="store_true", help="memory against the number of photos")
    parser.add_argument("--most", type=int, default=NUMBERS[-1])
    parser.add_argument("--stub", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stub:
        run_stub(given.stub)
    elif given.memory:
        head = "# Memory of `segment backfill -d coco,parquet` against the number of photos"
        made = f"Made by `python -m benchmarks.backfill --memory --most {given.most}` (see its docstring)."
        (RESULTS / "backfill-memory.md").write_text("\n".join([head, "", made, "", *memory(given.most), ""]))
    else:
        speed(given.photos)


def speed(count: int) -> None:
    """Print photos per second and CPU use by latency."""
    photos = [photo(seed) for seed in range(count)]
    print(f"{len(photos)} photos of 2 megapixels, {len(os.sched_getaffinity(0))} CPUs, memory limit {MEMORY}")
    rates = []
    for latency in LATENCIES:
        found = measure(latency, photos)
        rates.append(found.rate)
        print(
            f"{latency * 1000:3.0f} ms a call: {found.rate:5.2f} photos/s ({found.rate / rates[0]:4.0%}), "
            f"CPUs {found.busy:4.0%} busy with it, {found.idle:4.0%} idle, {found.memory:.0f} MiB resident",
            flush=True,
        )


if __name__ == "__main__":
    main()
