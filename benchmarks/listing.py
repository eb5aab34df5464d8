"""The calls and the time of a backfill of a bucket in which all photos have results already.

    python -m benchmarks.listing [--latency 0.06] [PHOTOS:TASKS:RUN ...]
    python -m benchmarks.listing --shares

For each bucket of PHOTOS photos with two results each, the names are divided among TASKS tasks, and the first RUN tasks
are run, one after the other, against the storage server of the tests over HTTP. The server generates names and results
when they are listed, so its memory does not depend on the number of photos. The requests to the server are counted. The
sizes of all tasks' shares are exact, because the position of any name in the listing is known.

If not all tasks are run, the calls of all tasks are the calls of the division plus those of the tasks run, scaled to
all photos. The time of the largest share is the time of the tasks run, scaled to its size.

`--shares` only divides, for folders of about equal size and for folders whose sizes follow Zipf's law (the nth largest
has 1/n of the photos of the largest) in random order of names. It writes benchmarks/results/shares.md.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from devtools.gcs import Cloud, Object
from segment.bucket import backfill, shares
from segment.bucket.listing import Range
from segment.bucket.results import Run
from segment.bucket.store import Location, google
from segment.bucket.store import Object as StoredObject
from segment.container import peak
from segment.service import Service
from segment.settings import Settings

RESULTS = Path(__file__).parent / "results"
SIZES = ("1000000:1:1", "50000000:100:1")
LATENCY = 0.06
"""Minimum time of a call in seconds, as over a network."""
FILES = ("detections.json", "overlay.png")
TASKS = (4, 20, 100)
SHARES_ABOUT = (
    "The largest share by the mean share, and in brackets the calls that dividing takes. "
    "Made by `python -m benchmarks.listing --shares`."
)
FIRST_GENERATION = 1_700_000_000_000_000


@dataclass(frozen=True)
class Layout:
    """A bucket of `count` photos with their results. `name` returns the nth name in sorted order."""

    name: Callable[[int], str]
    count: int

    def photos(self, start: str) -> Iterator[Object]:
        """The listing of the photos from the name `start` on."""
        for number in range(self.before(start), self.count):
            yield _object("photos", self.name(number), FIRST_GENERATION + number)

    def results(self, start: str) -> Iterator[Object]:
        """The listing of the results from the name `start` on."""
        for number in range(max(self.before(start.partition(".jpg/")[0]), 0), self.count):
            folder = f"{self.name(number)}/{FIRST_GENERATION + number}/"
            for file in FILES:
                if folder + file >= start:
                    yield _object("results", folder + file, FIRST_GENERATION + number, MADE)

    def before(self, name: str) -> int:
        """The number of photos whose names sort before `name`."""
        low, high = 0, self.count
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self.name(middle) < name else (low, middle)
        return low

    def size(self, part: Range) -> int:
        """The number of photos in a range."""
        return (self.before(part.end) if part.end else self.count) - self.before(part.start)


MADE = {"segment-source": "gs://photos", **Run("shapes", "0" * 16, "{}").metadata()}


def _object(bucket: str, name: str, generation: int, metadata: dict[str, str] | None = None) -> Object:
    return Object(bucket, name, generation, b"", "image/jpeg", "", metadata or {}, "", "")


def dated(number: int) -> str:
    """Photos of many cameras, in folders by day."""
    camera, number = divmod(number, 500_000)
    day, number = divmod(number, 1_500)
    return f"camera-{camera:03}/{2020 + day // 336}/{day % 336 // 28 + 1:02}/{day % 28 + 1:02}/IMG_{number:06}.jpg"


def zipf(folders: int, photos: int) -> Layout:
    """Photos in folders of many users, whose sizes follow Zipf's law."""
    ranks = list(range(1, folders + 1))
    random.Random(0).shuffle(ranks)
    total = sum(1 / rank for rank in ranks)
    starts = [0, *itertools.accumulate(max(1, int(photos / rank / total)) for rank in ranks)]

    def name(number: int) -> str:
        folder = bisect.bisect_right(starts, number) - 1
        return f"user-{folder:06}/IMG_{number - starts[folder]:07}.jpg"

    return Layout(name, starts[-1])


@dataclass
class Names:
    """The listing of the photos of a layout. `pages`: number of pages listed."""

    layout: Layout
    pages: int = 0

    def objects(self, prefix: str = "", start: str = "", end: str = "", most: int = 0) -> Iterator[StoredObject]:
        """The objects whose names start with `prefix`, from `start` on, at most `most`."""
        first = self.layout.before(max(prefix, start))
        last = min(first + most, self.layout.count) if most else self.layout.count
        for taken, number in enumerate(range(first, last)):
            self.pages += taken % shares.PAGE == 0
            name = self.layout.name(number)
            if not name.startswith(prefix):
                return
            yield StoredObject(name, FIRST_GENERATION + number)


def balance() -> list[str]:
    """The table of the largest share for layouts and numbers of tasks."""
    layouts = {
        "5,000,000 in folders by day": Layout(dated, 5_000_000),
        "5,000,000 in 1,000 folders by Zipf": zipf(1_000, 5_000_000),
        "5,000,000 in 20 folders by Zipf": zipf(20, 5_000_000),
    }
    lines = [
        f"| photos | {' | '.join(f'{tasks} tasks' for tasks in TASKS)} | largest folder, of all |",
        "|---" * (len(TASKS) + 2) + "|",
    ]
    for about, layout in layouts.items():
        cells = []
        for tasks in TASKS:
            names = Names(layout)
            parts = shares.divided(names, "", tasks).ranges
            largest = max(sum(map(layout.size, own)) for own in parts)
            cells.append(f"{largest * tasks / layout.count:.2f} ({names.pages})")
        folders = Counter(layout.name(number).rpartition("/")[0] for number in range(0, layout.count, 100))
        lines.append(f"| {about} | {' | '.join(cells)} | {max(folders.values()) / folders.total():.1%} |")
        print(lines[-1], flush=True)
    return lines


@dataclass(frozen=True)
class Measured:
    """One bucket. `seconds` and `calls` of the tasks that were run; `mib`: peak memory of this process."""

    photos: int
    tasks: int
    run: int
    divide_calls: int
    largest_share: int
    own: int
    calls: int
    seconds: float
    mib: float

    def all_calls(self) -> float:
        """The total calls of all tasks."""
        return self.divide_calls + self.calls * self.photos / self.own

    def row(self) -> str:
        """A row of the table."""
        cells = (
            *(
                f"{self.photos:,}",
                self.tasks,
                self.divide_calls,
                f"{self.largest_share * self.tasks / self.photos:.2f}",
            ),
            *(f"{self.run} of {self.tasks}", f"{self.calls:,}", f"{self.calls / self.own * 1000:.3f}"),
            *(f"{self.all_calls():,.0f}", f"{self.all_calls() / self.photos * 1000:.3f}"),
            *(f"{self.seconds * self.largest_share / self.own:.0f} s", f"{self.mib:.0f}"),
        )
        return f"| {' | '.join(map(str, cells))} |"


HEAD = (
    "| photos | tasks | calls to divide | largest share / mean | run | their calls | per 1,000 | all calls | per 1,000 "
    "| time of the largest share | MiB |\n" + "|---" * 11 + "|"
)


def measure(photos: int, tasks: int, run: int, latency: float) -> Measured:
    """Divide a bucket among tasks and run the first of them."""
    layout = Layout(dated, photos)
    with Cloud() as cloud:
        cloud.create_virtual_bucket("photos", layout.photos)
        cloud.create_virtual_bucket("results", layout.results)
        cloud.latency = latency
        os.environ["STORAGE_EMULATOR_HOST"] = cloud.url
        google.client.cache_clear()
        service = Service(backfill.patient(Settings.from_environment({})))
        service.load()
        stored, results = (Location(google.Bucket(name, 60)) for name in ("photos", "results"))
        parts = [shares.agreed(stored, results, "", task, tasks) for task in range(tasks)]
        divide_calls = len(cloud.requests)
        sizes = [sum(map(layout.size, own)) for own in parts]
        cloud.requests.clear()
        start = time.perf_counter()
        for task in range(run):
            environment = {"CLOUD_RUN_TASK_INDEX": str(task), "CLOUD_RUN_TASK_COUNT": str(tasks)}
            if backfill.run("gs://photos", "gs://results", service, environment):
                raise RuntimeError(f"Task {task} failed.")
        seconds = time.perf_counter() - start
        calls = len(cloud.requests) - 2 * run * (tasks > 1)  # without the calls that read the shares
        if cloud.writes[1:]:
            raise RuntimeError(f"Finished photos were segmented again: {cloud.writes[1]}")
    memory = peak() / (1 << 20)
    own = sum(sizes[:run])
    return Measured(photos, tasks, run, divide_calls, max(sizes), own, calls, seconds, memory)


def main() -> None:
    """Measure, print a table and write it to benchmarks/results/listing.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.listing", description="Calls of a finished backfill.")
    parser.add_argument("sizes", nargs="*", default=SIZES, metavar="PHOTOS:TASKS:RUN")
    parser.add_argument("--latency", type=float, default=LATENCY, help="seconds that a call takes at least")
    parser.add_argument("--shares", action="store_true", help="only divide, and write the largest shares")
    given = parser.parse_args()
    if given.shares:
        head = ["# Shares of the tasks of a backfill", "", SHARES_ABOUT, ""]
        (RESULTS / "shares.md").write_text("\n".join([*head, *balance(), ""]))
        return
    lines = [
        "# A backfill of a bucket that is finished",
        "",
        "Photos in folders by camera and day, two results each, none of which is missing. The storage server of the "
        f"tests makes the names when they are listed; every call takes {given.latency * 1000:.0f} ms at least. The "
        "server runs in the same process, whose memory is shown. A page has 5,000 objects, so 0.6 calls for 1,000 "
        "photos are what the listings themselves take. A server with pages of 1,000 objects is called five times as "
        "often for the listings. Made by `python -m benchmarks.listing`.",
        "",
        HEAD,
    ]
    for size in given.sizes:
        photos, tasks, run = map(int, size.split(":"))
        lines.append(measure(photos, tasks, run, given.latency).row())
        print(lines[-1], flush=True)
    (RESULTS / "listing.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
