"""Backfills of buckets and folders, through the command and backfill.run(), with the real storage client."""

from __future__ import annotations

import errno
import json
import logging
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections import Counter
from fcntl import ioctl
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from devtools.gcs import Cloud, Fault
from devtools.server import CACHE, ROOT
from segment.bucket import backfill, listing, tally
from segment.bucket.store import Location, google
from segment.errors import SettingsError, StorageError
from segment.service import Service
from segment.settings import Settings
from tests.compiled import compiled_once  # noqa: F401
from tests.scenes import RENDER_FACTOR, expected, photo

SETTINGS = {"SEGMENT_RENDER_FACTOR": str(RENDER_FACTOR), "SEGMENT_STORAGE_SECONDS": "4", "SEGMENT_CACHE": str(CACHE)}
FILES = {"overlay.png", "detections.json"}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with two photos, a text file and a hidden file."""
    folder = tmp_path / "photos"
    (folder / "2026" / "May").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(photo(1))
    (folder / "2026" / "May" / "ünï code.jpg").write_bytes(photo(2))
    (folder / "notes.txt").write_text("no photo")
    (folder / ".DS_Store").write_text("not seen")
    return folder


@cache
def service() -> Service:
    """A service in this process."""
    return Service(Settings.from_environment(SETTINGS | {"SEGMENT_THREADS": "1"}))


def run(source: object, destination: object = "gs://results", task: int = 0, tasks: int = 1) -> int:
    environment = {"CLOUD_RUN_TASK_INDEX": str(task), "CLOUD_RUN_TASK_COUNT": str(tasks)}
    return backfill.run(str(source), str(destination), service(), environment)


def command(*arguments: object, **environment: str) -> list[object]:
    """Arguments of Popen that run a backfill with SETTINGS and these environment variables."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SEGMENT_")}
    return [
        [sys.executable, "-m", "segment", "backfill", *map(str, arguments)],
        {"env": inherited | SETTINGS | environment, "cwd": ROOT},
    ]


def finish(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    words, rest = command(*arguments, **environment)
    return subprocess.run(words, capture_output=True, text=True, timeout=600, check=False, **rest)  # type: ignore


def written(folder: Path) -> dict[str, bytes]:
    """Content of each result in a folder, by PHOTO/FILE without the generation."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {f"{path.parent.parent.relative_to(folder).as_posix()}/{path.name}": path.read_bytes() for path in files}


# Buckets


def test_command_fills_the_output_bucket(cloud: Cloud) -> None:
    items = [cloud.put("photos", f"old/{n}.jpg", photo(n)) for n in range(3)]
    cloud.put("photos", "old/", b"")
    cloud.put("photos", "new/1.jpg", photo(1))
    done = finish("gs://photos/old/", SEGMENT_OUTPUT_BUCKET="results", SEGMENT_OUTPUT_PREFIX="out/")
    assert done.returncode == 0, done.stderr
    names = {f"out/{item.name}/{item.generation}/{name}": item for item in items for name in FILES}
    found = cloud.objects("results")
    assert set(found) == set(names)
    for name, item in names.items():
        assert found[name].content == expected(item.content)[name.rpartition("/")[2]]
        assert found[name].metadata["segment-source"] == f"gs://photos/{item.name}"
    entries = [json.loads(line) for line in done.stdout.splitlines()]
    assert {entry["object"] for entry in entries if "object" in entry} == {f"gs://photos/{item.name}" for item in items}
    assert entries[-1]["counts"] == {"segmented": 3}


def test_tasks_share_the_objects(cloud: Cloud) -> None:
    for n in range(20):
        cloud.put("photos", f"{n}.jpg", photo(n % 3))
    shares = []
    for task in range(3):
        before = len(cloud.writes)
        assert run("gs://photos", task=task, tasks=3) == 0
        shares.append({write.name for write in cloud.writes[before:] if not write.name.startswith("_segment/")})
    assert all(shares)
    assert len(set().union(*shares)) == sum(map(len, shares)) == 40


def test_share_of_a_task_never_changes(cloud: Cloud) -> None:
    """Otherwise a restarted task would not continue its own work, and photos between two shares would be missed."""
    for n in range(20):
        cloud.put("photos", f"{n:02}.jpg", photo(n % 3))
    assert run("gs://photos", task=0, tasks=2) == 0
    done = len(cloud.objects("results"))
    for n in range(30):
        cloud.put("photos", f"0{n}.png", photo(n % 3))
    assert run("gs://photos", task=1, tasks=2) == 0
    assert run("gs://photos", task=0, tasks=2) == 0
    assert len(cloud.objects("results", "_segment/")) == 1
    assert len(cloud.objects("results")) - 1 == 2 * len(cloud.objects("photos")) > 2 * done


def test_finished_photos_only_need_listing_calls(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call per page of photos and one per page of results."""
    monkeypatch.setattr(google, "PAGE", 500)
    assert service().model_digest
    for n in range(750):
        item = cloud.put("photos", f"{n:06}.jpg", b"")
        for name in FILES:
            cloud.put("results", f"{item.name}/{item.generation}/{name}", b"", metadata={"segment-source": "x"})
    cloud.requests.clear()
    assert run("gs://photos") == 0
    assert [method for method, _ in cloud.requests] == ["GET"] * 5
    assert len(cloud.objects("results")) == 1500


def test_new_photo_needs_three_calls(cloud: Cloud) -> None:
    for n in range(10):
        cloud.put("photos", f"{n}.jpg", photo(1))
    cloud.requests.clear()
    assert run("gs://photos") == 0
    assert len(cloud.requests) == 2 + 10 * 3, "two listings; one read and two writes per photo"


def held(hold: Fault, process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """Wait until a request of the process is held, however long a busy machine takes to start the process."""
    while not hold.reached.wait(0.1):
        assert process.poll() is None


def test_killed_run_is_continued(cloud: Cloud) -> None:
    items = [cloud.put("photos", f"{n}.jpg", photo(n)) for n in range(6)]
    hold = cloud.faults.add(Fault("hold", "after", path="^/upload/", skip=5))
    words, rest = command("gs://photos", "gs://results/x", STORAGE_EMULATOR_HOST=cloud.url)
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, **rest) as process:  # type: ignore
        held(hold, process)
        process.kill()
    cloud.faults.clear()
    there = len(cloud.objects("results"))
    assert 5 <= there < 12
    assert run("gs://photos", "gs://results/x") == 0
    found = cloud.objects("results")
    assert {name: result.content for name, result in found.items()} == {
        f"x/{item.name}/{item.generation}/{name}": body
        for item in items
        for name, body in expected(item.content).items()
    }
    assert set(Counter(write.name for write in cloud.writes if write.bucket == "results").values()) == {1}


def test_temporary_failure_sets_the_exit_code(cloud: Cloud) -> None:
    for n in range(4):
        cloud.put("photos", f"{n}.jpg", photo(n))
    cloud.put("photos", "notes.txt", b"no photo")
    fault = cloud.faults.add(Fault(503, path="photos/o/2.jpg"))
    assert run("gs://photos") == 1
    assert fault.hits > 1
    assert len(cloud.objects("results")) == 3 * 2 + 1
    cloud.faults.clear()
    assert run("gs://photos") == 0
    assert len(cloud.objects("results")) == 4 * 2 + 1


def test_failed_page_of_a_listing_is_retried(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The next page fails until the call is not retried any more; after a pause the listing resumes where it failed."""
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        cloud.faults.clear()

    monkeypatch.setattr(listing, "time", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(google, "PAGE", 1000)
    names = [f"{n:04}" for n in range(2100)]
    for name in names:
        cloud.put("photos", name, b"")
    fault = cloud.faults.add(Fault(503, path="b/photos/o\\?.*pageToken", skip=1))
    found = [item.name for item in listing.listed(Location(google.Bucket("photos", 1)), listing.Range())]
    assert fault.hits
    assert found == names
    assert pauses == [listing.PAUSES[0]]
    assert "startOffset=1999" in cloud.requests[-1][1]
    assert "Listing again" in caplog.text


def test_listing_that_keeps_failing_ends_the_run(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "PAUSES", (0.01,))
    cloud.faults.add(Fault(503, path="b/photos/o"))
    with pytest.raises(StorageError):
        list(listing.listed(Location(google.Bucket("photos", 1)), listing.Range()))


def test_sigterm_ends_process_1(cloud: Cloud) -> None:
    """In a container the command is process 1, to which the kernel delivers only signals that have a handler."""
    unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("needs unshare and the right to make a PID namespace")
    for n in range(4):
        cloud.put("photos", f"{n}.jpg", photo(n))
    hold = cloud.faults.add(Fault("hold", "after", path="^/upload/"))
    settings = {"STORAGE_EMULATOR_HOST": cloud.url, "SEGMENT_STORAGE_SECONDS": "300"}
    words, rest = command("gs://photos", "gs://results", **settings)
    with subprocess.Popen([*unshare, *words], stdout=subprocess.PIPE, text=True, **rest) as process:  # type: ignore
        held(hold, process)
        (inner,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(inner), signal.SIGTERM)
        start = time.monotonic()
        output, _ = process.communicate(timeout=120)
    assert time.monotonic() - start < 5
    assert "Stopped by SIGTERM" in output


def test_backfill_waits_without_a_limit(cloud: Cloud) -> None:
    """Each photo takes longer than SEGMENT_WAIT_SECONDS, and there is memory for one at a time."""
    for n in range(6):
        cloud.put("photos", f"{n}.jpg", photo(n))
    done = finish(
        "gs://photos",
        "gs://results",
        SEGMENT_WAIT_SECONDS="0",
        SEGMENT_QUEUE="0",
        SEGMENT_MEMORY="224Mi",
        SEGMENT_DETAIL="2",
        SEGMENT_RENDER_FACTOR="12",
    )
    assert done.returncode == 0, done.stdout
    assert len(cloud.objects("results")) == 12


def test_permanent_failure_is_not_retried(cloud: Cloud) -> None:
    cloud.put("photos", "notes.txt", b"no photo")
    assert run("gs://photos") == 0
    (name,) = cloud.objects("results")
    assert name.endswith("/error.json")
    before = len(cloud.requests)
    assert run("gs://photos") == 0
    assert not any("alt=media" in target for _, target in cloud.requests[before:])


def test_results_are_not_read_as_photos(cloud: Cloud) -> None:
    item = cloud.put("photos", "in/a.jpg", photo(1))
    assert run("gs://photos/in/", "gs://photos/out/") == 0
    result = cloud.objects("photos")[f"out/in/a.jpg/{item.generation}/overlay.png"]
    cloud.put("photos", "in/copied back.png", result.content, metadata=result.metadata)
    before = len(cloud.writes)
    assert run("gs://photos/in/", "gs://photos/out/") == 0
    assert len(cloud.writes) == before


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        ("gs://photos", "gs://photos"),
        ("gs://photos", "gs://photos/out"),
        ("gs://photos/in/", "gs://photos"),
        ("gs://photos/in/", "gs://photos/in/out/"),
        ("here", "here"),
        ("here", "here/out"),
        ("here/in", "here"),
    ],
)
def test_same_place_is_refused(tmp_path: Path, source: str, destination: str) -> None:
    (tmp_path / "here" / "in").mkdir(parents=True)
    source, destination = (
        place if place.startswith("gs://") else str(tmp_path / place) for place in (source, destination)
    )
    with pytest.raises(SettingsError, match="one is inside the other"):
        run(source, destination)


def test_bucket_that_cannot_be_listed_is_explained(cloud: Cloud) -> None:
    done = finish("gs://nowhere", "gs://results")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "gs://nowhere" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere", "out"), "'nowhere' is not a folder"),
        (("gs://", "out"), "does not name a bucket"),
        (("gs://Photos of May/a", "out"), "'gs://Photos of May/a' does not name a bucket"),
        (("gs://photos", ""), "SEGMENT_OUTPUT_BUCKET"),
        ((str(ROOT), str(ROOT / "README.md")), "README.md' is a file; it must be a folder or gs://"),
    ],
)
def test_invalid_address_is_refused(arguments: tuple[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        run(*arguments)


@pytest.mark.parametrize(("index", "count"), [("1", "1"), ("-1", "2"), ("x", "2"), ("0", "0"), ("0", "")])
def test_invalid_task_number_is_refused(index: str, count: str) -> None:
    with pytest.raises(SettingsError, match="CLOUD_RUN_TASK_INDEX"):
        backfill.task({"CLOUD_RUN_TASK_INDEX": index, "CLOUD_RUN_TASK_COUNT": count})


def test_without_cloud_run_there_is_one_task() -> None:
    assert backfill.task({}) == (0, 1)


# Folders


def test_folders_give_the_same_results_as_buckets(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(photos, out) == 0
    found = written(out)
    error = json.loads(found.pop("notes.txt/error.json"))
    assert error["title"] == "Unsupported image"
    assert found == {
        f"{name}/{file}": body
        for name, content in {"a.jpg": photo(1), "2026/May/ünï code.jpg": photo(2)}.items()
        for file, body in expected(content).items()
    }


def test_second_run_writes_nothing(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(photos, out) == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert run(photos, out) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_objects_with_unusual_names_are_saved_in_a_folder(cloud: Cloud, tmp_path: Path) -> None:
    cloud.put("photos", ".hidden/.a.jpg", photo(1))
    assert run("gs://photos", tmp_path / "out") == 0
    assert set(written(tmp_path / "out")) == {f".hidden/.a.jpg/{name}" for name in FILES}
    before = len(cloud.requests)
    assert run("gs://photos", tmp_path / "out") == 0
    assert len(cloud.requests) == before + 1, "finished photos are listed, not read"
    cloud.put("photos", "b//c.jpg", photo(2))
    for _ in range(2):
        assert run("gs://photos", tmp_path / "out") == 1, "a folder cannot contain this name"
    assert len(written(tmp_path / "out")) == 2


def test_subfolder_that_cannot_be_listed_fails_alone(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refuse_to_list(photos / "2026" / "May", monkeypatch)
    (photos / "2026" / "May-1.jpg").write_bytes(photo(2))  # "-" sorts before "/"
    assert run(photos, tmp_path / "results") == 1
    assert {name.rpartition("/")[0] for name in written(tmp_path / "results")} == {
        "a.jpg",
        "2026/May-1.jpg",
        "notes.txt",
    }
    assert f"2026/May/: failed for now: {photos}/2026/May cannot be read: Permission denied." in caplog.messages


def test_dataset_names_the_subfolder_that_cannot_be_listed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_list(photos / "2026" / "May", monkeypatch)
    results = tmp_path / "results"
    for _ in range(2):
        assert backfill.run(str(photos), str(results), service(), {}, datasets=["coco"], files=False) == 1
        errors = (results / "errors.csv").read_text(encoding="utf-8").splitlines()
        assert f"2026/May/,{photos}/2026/May cannot be read: Permission denied." in errors
        assert len(errors) == 3  # with the header and notes.txt
        assert [image["file_name"] for image in json.loads((results / "instances.json").read_bytes())["images"]] == [
            "a.jpg"
        ]


def test_unreadable_folder_of_photos_ends_the_run(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_list(photos, monkeypatch)
    with pytest.raises(StorageError, match=f"{photos}: Permission denied"):
        run(photos, tmp_path / "results")


def refuse_to_list(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the folder be one that this user may not list. (The tests may run as root, who may.)"""
    scandir = os.scandir

    def refusing(path: Path) -> object:
        if path == folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)


def test_changed_photo_is_another_generation(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(photos, out) == 0
    (photos / "a.jpg").write_bytes(photo(3))
    assert run(photos, out) == 0
    generations = sorted((out / "a.jpg").iterdir())
    assert [(generation / "overlay.png").read_bytes() for generation in generations] == [
        expected(photo(seed))["overlay.png"] for seed in (1, 3)
    ]


def test_incomplete_results_are_completed(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(photos, out) == 0
    before = written(out)
    (overlay,) = out.glob("a.jpg/*/overlay.png")
    overlay.unlink()
    (overlay.parent / ".overlay.png.part").write_bytes(b"a run that was killed left this")
    assert run(photos, out) == 0
    assert written(out) == before | {"a.jpg/.overlay.png.part": b"a run that was killed left this"}


def test_terminal_shows_a_bar(photos: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    words, rest = command(photos, tmp_path / "out")
    with subprocess.Popen(words, stdout=theirs, stderr=theirs, **rest) as process:  # type: ignore
        os.close(theirs)
        shown = b"".join(iter(lambda: read(ours), b"")).decode()
    assert process.returncode == 0
    assert "3 objects" in shown
    assert "1 refused" in shown
    assert "notes.txt" in shown
    assert "a.jpg" not in shown


def read(terminal: int) -> bytes:
    """The next output; empty at the end, which Linux reports as an error."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


def test_log_shows_progress_elsewhere(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tally, "LOG_SECONDS", 0)
    with caplog.at_level(logging.INFO):
        assert run(photos, tmp_path / "out") == 0
    lines = [record.getMessage() for record in caplog.records if record.name == "segment.bucket.tally"]
    assert len(lines) == 4
    assert lines[-1].startswith("Backfill done: ")
