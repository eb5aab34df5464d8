"""The dataset of a backfill has the rows of `segment image`'s, each once, also after restarts and earlier runs."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow.parquet
import pytest

from devtools.gcs import Cloud, Fault
from devtools.server import CACHE
from segment.__main__ import main
from segment.bucket import backfill, dataset, shares
from segment.bucket.dataset import Place, TaskDataset
from segment.bucket.parts import Earlier
from segment.bucket.store import Location, Object
from segment.bucket.store.folder import Folder
from segment.dataset.entry import Entry, Failure
from segment.dataset.job import Dataset
from segment.errors import SettingsError, StorageError
from segment.output.coco import dump
from segment.service import Service
from segment.settings import Settings
from tests.compiled import compiled_once  # noqa: F401
from tests.scenes import RENDER_FACTOR, photo

NAMES = tuple(f"{folder}/{n}.jpg" for folder in ("2025", "2026/ünï code") for n in range(2))
BOTH: tuple[Dataset, ...] = ("coco", "parquet")


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGMENT_RENDER_FACTOR", str(RENDER_FACTOR))
    monkeypatch.setenv("SEGMENT_STORAGE_SECONDS", "2")


@pytest.fixture
def cloud(cloud: Cloud) -> Cloud:
    """With photos and one text file."""
    for number, name in enumerate(NAMES):
        cloud.put("photos", name, photo(number % 3))
    cloud.put("photos", "notes.txt", b"no photo")
    return cloud


@pytest.fixture(scope="module")
def service() -> Service:
    """A service with the settings of a backfill that writes datasets."""
    given = {
        "SEGMENT_RENDER_FACTOR": str(RENDER_FACTOR),
        "SEGMENT_STORAGE_SECONDS": "2",
        "SEGMENT_OUTPUT_FORMATS": "ids",
        "SEGMENT_CACHE": str(CACHE),
        "SEGMENT_THREADS": "1",
    }
    return Service(backfill.patient(Settings.from_environment(given), BOTH))


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[dict[str, Any]]]:
    """The COCO document and the Parquet rows that `segment image` writes for these photos."""
    folder, out = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("image")
    for number, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(photo(number % 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGMENT_RENDER_FACTOR", str(RENDER_FACTOR))
        assert main(["image", str(folder), "-o", str(out), "-d", "coco,parquet"]) == 0
    rows = pyarrow.parquet.read_table(out / "instances.parquet").to_pylist()
    return (out / "instances.json").read_bytes(), without_generation(rows)


def without_generation(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, sorted. Generations differ because `segment image` uses the file's time."""
    kept = [{key: value for key, value in row.items() if key != "generation"} for row in rows]
    return sorted(kept, key=lambda row: (row["photo"], row["instance"]))


def rows(cloud: Cloud) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name, item in cloud.objects("results", "instances.parquet/").items():
        model = name.split("/")[1].removeprefix("model=")
        found += [{**row, "model": model} for row in pyarrow.parquet.read_table(io.BytesIO(item.content)).to_pylist()]
    generations = {name: item.generation for name, item in cloud.objects("photos").items()}
    assert all(row["generation"] == generations[row["photo"]] for row in found)
    return without_generation(found)


def run(service: Service, task: int = 0, tasks: int = 1, execution: str = "", files: bool = True) -> int:
    environment = {"CLOUD_RUN_TASK_INDEX": str(task), "CLOUD_RUN_TASK_COUNT": str(tasks)}
    environment["CLOUD_RUN_EXECUTION"] = execution
    return backfill.run("gs://photos", "gs://results", service, environment, datasets=BOTH, files=files)


def check(cloud: Cloud, truth: tuple[bytes, list[dict[str, Any]]]) -> None:
    """The dataset has all photos, and no temporary objects remain."""
    assert cloud.objects("results")["instances.json"].content == truth[0]
    assert rows(cloud) == truth[1]
    assert cloud.objects("results")["errors.csv"].content.startswith(b"photo,error\r\nnotes.txt,")
    assert not cloud.objects("results", "_segment/dataset/")


def test_command_writes_what_segment_image_writes(
    cloud: Cloud, truth: tuple[bytes, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGMENT_OUTPUT_FORMATS", "ids")
    assert main(["backfill", "gs://photos", "gs://results", "--dataset", "coco,parquet"]) == 0
    check(cloud, truth)
    files = {name.rpartition("/")[2] for name in cloud.objects("results", NAMES[0])}
    assert files == {"ids.png", "detections.json"}, "JSON is written in addition to the formats of the settings"


def test_folder_to_folder(service: Service, truth: tuple[bytes, list[dict[str, Any]]], tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    for number, name in enumerate(NAMES):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(photo(number % 3))
    for _ in range(2):
        assert backfill.run(str(photos), str(out), service, {}, datasets=BOTH) == 0
        assert (out / "instances.json").read_bytes() == truth[0]
        assert without_generation(pyarrow.parquet.read_table(out / "instances.parquet").to_pylist()) == truth[1]


@pytest.fixture
def no_logs() -> Iterator[None]:
    """pytest-xdist cannot send captured logs with names that are not UTF-8."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("no_logs")
@pytest.mark.parametrize("files", [True, False])
def test_name_that_is_not_utf_8(service: Service, tmp_path: Path, files: bool) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for name, content in ((b"\xff.jpg", photo(0)), (b"\xfe.jpg", b"no photo"), (b"a.jpg", photo(0))):
        (photos / os.fsdecode(name)).write_bytes(content)
    assert backfill.run(str(photos), str(out), service, {}, datasets=BOTH, files=files) == 0
    images = json.loads((out / "instances.json").read_bytes())["images"]
    assert [image["file_name"] for image in images] == ["a.jpg", r"\udcff.jpg"]
    assert rb"\udcfe.jpg," in (out / "errors.csv").read_bytes()


def test_part_is_written_after_some_time_only_if_there_are_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "PART_SECONDS", 0)
    for files, count in ((True, 0), (False, 2)):
        folder = tmp_path / str(files)
        task = TaskDataset(Place(Location(Folder(folder)), "gs://photos", "", 0, 1, files), BOTH, "model", ["thing"])
        for number in range(2):
            task.add(0, entry(number))
        assert len([*folder.rglob("*.jsonl.gz")]) == count


def test_tasks_write_one_dataset(
    cloud: Cloud, service: Service, truth: tuple[bytes, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "PART_BYTES", 1)
    for task in (0, 2, 1):
        assert "instances.json" not in cloud.objects("results")
        assert run(service, task, 3, "run-1") == 0
    check(cloud, truth)
    assert len(cloud.objects("results", "instances.parquet/")) == len(NAMES), "a part is written when it is full"


def test_rerun_reads_the_results_and_no_photo(
    cloud: Cloud, service: Service, truth: tuple[bytes, list[dict[str, Any]]]
) -> None:
    for task in range(2):
        assert run(service, task, 2, "run-1") == 0
    before = len(cloud.requests)
    for task in range(2):
        assert run(service, task, 2, "run-2") == 0
    check(cloud, truth)
    reads = [target for _, target in cloud.requests[before:] if "alt=media" in target]
    assert not [target for target in reads if "/b/photos/" in target]


def test_results_of_earlier_runs_and_events_are_included(
    cloud: Cloud, service: Service, truth: tuple[bytes, list[dict[str, Any]]]
) -> None:
    extra = cloud.put("photos", "deleted later.jpg", photo(1))
    cloud.put("results", "instances.parquet/model=old/part-00000-00000.parquet", b"of an earlier run")
    assert backfill.run("gs://photos", "gs://results", service, {}) == 0
    cloud.delete("photos", extra.name)
    assert run(service) == 0
    check(cloud, truth)


def test_results_that_others_write_meanwhile_are_included(cloud: Cloud, service: Service) -> None:
    """They are made with other settings, and written after this run has listed the results."""
    cloud.create_bucket("elsewhere")
    other = Service(replace(service.settings, min_score=0.9))
    assert backfill.run("gs://photos", "gs://elsewhere", other, {}) == 0
    hold = cloud.faults.add(Fault("hold", path=f"/b/photos/o/{NAMES[0]}.*alt=media", times=1))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, service)
        assert hold.reached.wait(60)
        for name, found in cloud.objects("elsewhere", NAMES[0]).items():
            cloud.put("results", name, found.content, found.content_type, metadata=found.metadata)
        hold.release()
        assert running.result() == 0
    results = cloud.objects("results")
    assert [image["file_name"] for image in json.loads(results["instances.json"].content)["images"]] == list(NAMES)
    assert results["errors.csv"].content.count(b"\n") == 2, "only notes.txt has none"


def test_restarted_task_leaves_no_duplicates(
    cloud: Cloud,
    service: Service,
    truth: tuple[bytes, list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dataset, "PART_BYTES", 1)
    monkeypatch.setattr(shares, "PAUSES", ())
    assert run(service, 1, 2, "run-1") == 0
    fault = cloud.faults.add(Fault(503, path="/upload/.*", method="PUT|POST", skip=3 * len(NAMES) // 2))
    with pytest.raises(StorageError):
        run(service, 0, 2, "run-1")
    assert fault.hits
    cloud.faults.clear()
    assert "instances.json" not in cloud.objects("results")
    assert run(service, 0, 2, "run-1") == 0
    check(cloud, truth)


def test_restarted_last_task_combines_the_parts(
    cloud: Cloud, service: Service, truth: tuple[bytes, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(service, 0, 2) == 0

    def fail(*_: object) -> None:
        raise StorageError("Cloud Storage is down.")

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "_combine", fail)
        with pytest.raises(StorageError):
            run(service, 1, 2)
    assert run(service, 0, 2) == 0, "task 0 does not combine the parts: task 1 may still be doing so"
    assert "instances.json" not in cloud.objects("results")
    assert run(service, 1, 2) == 0
    check(cloud, truth)


class TestDatasetOnly:
    """Without files per photo, a run continues from the parts of the dataset."""

    @pytest.fixture(autouse=True)
    def one_photo_per_part(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dataset, "PART_BYTES", 1)
        monkeypatch.setattr(backfill, "AHEAD", 1)

    def check(self, cloud: Cloud, truth: tuple[bytes, list[dict[str, Any]]]) -> None:
        """The dataset has all photos; besides it there are only the parts from which a run continues."""
        assert cloud.objects("results")["instances.json"].content == truth[0]
        assert rows(cloud) == truth[1]
        assert cloud.objects("results")["errors.csv"].content.startswith(b"photo,error\r\nnotes.txt,")
        others = [name for name in cloud.objects("results") if not name.startswith(("_segment/", "instances.parquet/"))]
        assert others == ["errors.csv", "instances.json"]
        assert len(cloud.objects("results", "_segment/dataset/")) == len(NAMES) + 2, "a part per photo, and about.json"

    def photo_reads(self, cloud: Cloud, start: int = 0) -> list[str]:
        reads = [target for _, target in cloud.requests[start:] if "alt=media" in target and "/b/photos/" in target]
        return sorted(unquote(target.partition("/o/")[2].partition("?")[0]) for target in reads)

    def test_command(self, cloud: Cloud, truth: tuple[bytes, list[dict[str, Any]]]) -> None:
        assert main(["backfill", "gs://photos", "gs://results", "-d", "coco,parquet", "--dataset-only"]) == 0
        self.check(cloud, truth)

    def test_killed_tasks_continue_without_segmenting_photos_again(
        self, cloud: Cloud, service: Service, truth: tuple[bytes, list[dict[str, Any]]]
    ) -> None:
        for writes in (4, 10):  # the first attempts write one and two parts, each as lines and Parquet
            fault = cloud.faults.add(Fault(403, path="/upload/.*", method="PUT|POST", skip=writes))
            with pytest.raises(StorageError):
                run(service, 0, 2, "run-1", files=False)
            assert fault.hits
            cloud.faults.clear()
            assert "instances.json" not in cloud.objects("results")
        for task in (1, 0):
            assert run(service, task, 2, "run-2", files=False) == 0, "another execution has the same ranges"
        self.check(cloud, truth)
        reads = self.photo_reads(cloud)
        assert len(reads) <= len(NAMES) + 1 + 2, "only photos whose part was not written are read again"

    def test_rerun_reads_changed_and_new_photos_only(
        self, cloud: Cloud, service: Service, truth: tuple[bytes, list[dict[str, Any]]]
    ) -> None:
        cloud.put("photos", NAMES[0], photo(2))
        cloud.put("photos", "2026/deleted later.jpg", photo(1))
        missing = cloud.objects("photos")[NAMES[1]].content
        cloud.delete("photos", NAMES[1])
        assert run(service, files=False) == 0
        cloud.put("photos", NAMES[0], photo(0))
        cloud.put("photos", NAMES[1], missing)
        cloud.delete("photos", "2026/deleted later.jpg")
        before = len(cloud.requests)
        assert run(service, files=False) == 0
        self.check(cloud, truth)
        assert self.photo_reads(cloud, before) == sorted(NAMES[:2])
        before = len(cloud.requests)
        assert run(service, files=False) == 0
        self.check(cloud, truth)
        assert not self.photo_reads(cloud, before)

    def test_photo_that_fails_for_now_is_tried_again(
        self, cloud: Cloud, service: Service, truth: tuple[bytes, list[dict[str, Any]]]
    ) -> None:
        cloud.faults.add(Fault(403, path=f"photos/o/{NAMES[0]}"))
        assert run(service, files=False) == 1
        assert f"{NAMES[0]},".encode() in cloud.objects("results")["errors.csv"].content
        cloud.faults.clear()
        before = len(cloud.requests)
        assert run(service, files=False) == 0
        self.check(cloud, truth)
        assert self.photo_reads(cloud, before) == [NAMES[0]]

    def test_folder_to_folder(
        self, service: Service, truth: tuple[bytes, list[dict[str, Any]]], tmp_path: Path
    ) -> None:
        photos, out = tmp_path / "photos", tmp_path / "out"
        for number, name in enumerate(NAMES):
            (photos / name).parent.mkdir(parents=True, exist_ok=True)
            (photos / name).write_bytes(photo(number % 3))
        for _ in range(2):
            assert backfill.run(str(photos), str(out), service, {}, datasets=BOTH, files=False) == 0
            assert (out / "instances.json").read_bytes() == truth[0]
            assert without_generation(pyarrow.parquet.read_table(out / "instances.parquet").to_pylist()) == truth[1]

    def test_another_number_of_tasks_is_refused(self, tmp_path: Path) -> None:
        for count, labels in ((2, ["thing"]), (3, ["thing"]), (2, ["dog"])):
            task = TaskDataset(
                Place(Location(Folder(tmp_path)), "gs://photos", "", 0, count, False), BOTH, "model", labels
            )
            if (count, labels) == (2, ["thing"]):
                task.start()
            else:
                with pytest.raises(
                    SettingsError, match=r"was started with another .*: (2, not 3|\['thing'\], not \['dog'\])"
                ):
                    task.start()

    def test_killed_attempt_is_completed_from_earlier_ones(self, tmp_path: Path) -> None:
        store = Folder(tmp_path)
        for attempt, numbers in ((0, (0, 1, 2, 3, 5)), (1, (0, 2))):  # photo 1 was deleted in between
            for part, number in enumerate(numbers):
                line = gzip.compress(dump(vars(entry(number))))
                store.write(f"00000-{attempt:05}-{part:05}.jsonl.gz", line, "", {})
        earlier = Earlier(store, "00000-")
        found = [earlier.find(Object(f"{number}.jpg", number)) is not None for number in range(7)]
        assert found == [True, False, True, True, False, True, False]
        assert earlier.attempt == 2
        assert Earlier(store, "00000-").find(Object("0.jpg", 1)) is None, "another generation"


def test_photo_that_fails_for_now_is_a_failure(cloud: Cloud, service: Service) -> None:
    cloud.faults.add(Fault(503, path=f"photos/o/{NAMES[0]}"))
    assert run(service) == 1
    errors = cloud.objects("results")["errors.csv"].content.decode().splitlines()
    assert [line.partition(",")[0] for line in errors] == ["photo", NAMES[0], "notes.txt"]
    assert len(json.loads(cloud.objects("results")["instances.json"].content)["images"]) == len(NAMES) - 1


def test_results_of_other_models_keep_their_partition(tmp_path: Path) -> None:
    store = Folder(tmp_path)
    task = TaskDataset(Place(Location(store), "gs://photos", "", 0, 1), BOTH, "new", ["thing"])
    for number, model in enumerate(("new", "old", "new")):
        task.add(0, entry(number, model))
    task.finish()
    table = pyarrow.parquet.read_table(tmp_path / "instances.parquet")
    assert sorted((row["photo"], row["model"]) for row in table.to_pylist()) == [
        ("0.jpg", "new"),
        ("1.jpg", "old"),
        ("2.jpg", "new"),
    ]


def entry(number: int, model: str = "model") -> Entry:
    found = {"id": 1, "category_id": 1, "category_name": "thing", "score": 0.9, "bbox": [1, 2, 3, 4], "area": 9}
    found |= {"iscrowd": 0, "segmentation": {"size": [10, 10], "counts": f"{number:x}" * 50}}
    image = {"width": 10, "height": 10, "model": model}
    return Entry(f"{number}.jpg", number, {"image": image, "annotations": [found]})


def test_memory_does_not_grow_with_the_number_of_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "PART_BYTES", 2_000)
    monkeypatch.setattr(dataset, "ROWS_PER_GROUP", 20)
    peaks = []
    for count in (200, 600):
        tracemalloc.start()
        task = TaskDataset(Place(Location(Folder(tmp_path)), "gs://photos", "", 0, 1), BOTH, "model", ["thing"])
        for number in range(count):
            task.add(0, entry(number) if number % 10 else Failure(f"{number}.jpg", "damaged"))
        task.finish()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 100_000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gs://photos", "gs://results", "-d", "voc"], "--dataset is 'voc'; it must be one or more of coco, parquet"),
        (["--redrive", "projects/a/subscriptions/b", "-d", "coco"], "omit --dataset"),
        (["gs://photos", "gs://results", "--dataset-only"], "needs the formats of the dataset"),
    ],
)
def test_invalid_option_is_refused(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backfill", *arguments]) == 1
    assert words in capsys.readouterr().err
