"""CPU use and memory of a backfill of a bucket whose calls have latency.

    python -m benchmarks.backfill [PHOTOS]

Runs `segment backfill` in a process of its own against the storage server of the tests, without latency and with 60 ms
a call, with the image's memory limit and the demo model. From the first photo that is read to the end, it prints:

- photos a second, and its ratio to the run without latency: the figure that counts while other processes use the CPUs;
- the share of all CPUs' time that the backfill used, and the share that was left idle by all processes together, which
  is what a backfill that waits for storage would leave on a busy machine too;
- the largest resident memory, which includes pages of libraries that the kernel could take back.
"""

from __future__ import annotations

import io
import os
import sys
import time
from dataclasses import dataclass
from subprocess import DEVNULL, Popen

from PIL import Image

from devtools.gcs import Cloud
from devtools.server import ROOT
from training.shapes import scene

PHOTOS = 64
LATENCIES = (0.0, 0.06)
MEMORY = "512Mi"
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Measured:
    """One run: photos a second, shares of the CPUs' time from 0 to 1, the largest resident memory in MiB."""

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


def main(arguments: list[str]) -> None:
    """Measure, and print a table."""
    photos = [photo(seed) for seed in range(int(arguments[0]) if arguments else PHOTOS)]
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
    main(sys.argv[1:])
