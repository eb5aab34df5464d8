"""`segment beam` writes the same results as `segment image` and the bucket handler, each exactly once.

Beam and the serving packages need different versions of Pillow and protobuf, so these tests run in an environment of
their own: `make beam-test`.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import json
import logging
import pickle
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("apache_beam", reason="needs apache-beam, see requirements-beam.txt")

from apache_beam.options.pipeline_options import PipelineOptions

from devtools.gcs import Cloud
from devtools.server import ROOT, free_port
from segment import container, extras
from segment.__main__ import main
from segment.beam import pipeline
from segment.beam.source import Source
from segment.beam.worker import Worker
from segment.bucket.listing import Range
from segment.bucket.objects import segment_object
from segment.errors import SettingsError
from tests.scenes import RENDER_FACTOR, expected, photo

NAMES = ("2026/a.jpg", "2026/May/ünï code.jpg", "b.jpg")


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGMENT_RENDER_FACTOR", str(RENDER_FACTOR))
    monkeypatch.setenv("SEGMENT_STORAGE_SECONDS", "2")


@pytest.fixture
def cloud(cloud: Cloud) -> Cloud:
    """With three photos, a folder object and a text file."""
    for number, name in enumerate(NAMES):
        cloud.put("photos", name, photo(number))
    cloud.put("photos", "2026/", b"")
    cloud.put("photos", "notes.txt", b"no photo")
    return cloud


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with the same three photos and a truncated one."""
    folder = tmp_path / "photos"
    for number, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(photo(number))
    (folder / "cut.jpg").write_bytes(photo(0)[:1000])
    return folder


def run(source: object, output: object, *arguments: str) -> int:
    return main(["beam", "--input", str(source), "--output", str(output), *arguments])


def command(source: object, output: object, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own."""
    words = [sys.executable, "-m", "segment", "beam", "--input", str(source), "--output", str(output), *arguments]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def results(cloud: Cloud, prefix: str = "") -> dict[str, bytes]:
    """Contents of the objects in the bucket of results, by name without the prefix."""
    found = cloud.objects("results").items()
    return {name.removeprefix(prefix): item.content for name, item in found if name.startswith(prefix)}


def of_photos(cloud: Cloud) -> dict[str, bytes]:
    """The expected results of the bucket's three photos."""
    items = cloud.objects("photos")
    return {
        f"{name}/{items[name].generation}/{file}": body
        for name in NAMES
        for file, body in expected(items[name].content).items()
    }


def failures(text: bytes) -> dict[str, str]:
    return {row["photo"]: row["error"] for row in csv.DictReader(io.StringIO(text.decode()))}


def dataset_of(photos: Path, folder: Path) -> bytes:
    """The COCO dataset that `segment image` writes for a folder."""
    main(["image", str(photos), "-o", str(folder), "-d", "coco"])
    return (folder / "instances.json").read_bytes()


# The same results


def test_files_are_those_of_the_bucket(cloud: Cloud) -> None:
    assert run("gs://photos/**", "gs://results/out") == 0
    found = results(cloud, "out/")
    error = json.loads(found.pop(next(name for name in found if name.endswith("error.json"))))
    assert error["source"] == "gs://photos/notes.txt"
    assert failures(found.pop("errors.csv")) == {"notes.txt": error["detail"]}
    assert found == of_photos(cloud)


def test_dataset_is_that_of_the_folder(photos: Path, tmp_path: Path) -> None:
    assert run(photos, tmp_path / "out", "-d", "coco,parquet") == 0
    out = tmp_path / "out"
    assert (out / "instances.json").read_bytes() == dataset_of(photos, tmp_path / "image")
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()) == [
        "errors.csv",
        "instances.json",
        "instances.parquet/model=shapes/part-00000-00000.parquet",
    ]
    assert list(failures((out / "errors.csv").read_bytes())) == ["cut.jpg"]
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(out / "instances.parquet").to_pylist()
    times = {name: (photos / name).stat().st_mtime_ns // 1000 for name in NAMES}
    assert {row["photo"]: row["generation"] for row in rows} == times
    assert len(rows) == len(json.loads((out / "instances.json").read_text())["annotations"])


def test_several_processes_share_the_work(cloud: Cloud, photos: Path, tmp_path: Path) -> None:
    for number in range(20):
        (photos / f"{number}.jpg").write_bytes(photo(number % 3))
        cloud.put("photos", f"{number}.jpg", photo(number % 3))
    flags = ("--direct_running_mode", "multi_processing", "--direct_num_workers=2")
    done = command("gs://photos/**.jpg", "gs://results/out/", "-d", "coco", "-f", "png", "--", *flags)
    assert done.returncode == 0, done.stderr
    assert "23 segmented" in done.stdout
    assert done.stderr.count("Loaded the model shapes") == 2, "one model in each process"
    found = results(cloud, "out/")
    (photos / "cut.jpg").unlink()
    assert found["instances.json"] == dataset_of(photos, tmp_path / "image")
    assert len(found) == 2 * 23 + 2
    assert found.items() >= of_photos(cloud).items()


@pytest.fixture(scope="module")
def job_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Beam's job server in Python, which uses the same protocol as those of Flink and Prism."""
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    words = [sys.executable, "-m", "apache_beam.runners.portability.local_job_service_main", "--port", str(port)]
    with log.open("w") as file, subprocess.Popen(words, stdout=file, stderr=file) as process:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
                break
            time.sleep(0.1)
        yield f"localhost:{port}"
        process.terminate()


@pytest.mark.parametrize("runner", ["FlinkRunner", "PrismRunner"])
def test_runners_behind_a_job_server(runner: str, job_server: str, photos: Path, tmp_path: Path) -> None:
    flags = ("--runner", runner, "--job_endpoint", job_server, "--environment_type", "LOOPBACK")
    done = command(photos, tmp_path / "out", "-d", "coco", *flags)
    assert done.returncode == 0, done.stderr
    assert "3 segmented, 1 refused" in done.stdout
    assert (tmp_path / "out" / "instances.json").read_bytes() == dataset_of(photos, tmp_path / "image")


def test_dataflow_needs_its_package(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("apitools"):
        pytest.skip("apache-beam[gcp] is installed, see requirements-beam.txt")
    assert run(photos, "out", "--runner", "DataflowRunner") == 1
    assert extras.command("dataflow") in capsys.readouterr().err


def test_dataflow_is_given_the_job(cloud: Cloud, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a template location, the job is written to a bucket instead of submitted."""
    pytest.importorskip("apitools", reason="needs apache-beam[gcp], see requirements-beam.txt")
    flags = ["-d", "coco", "--runner", "DataflowRunner", "--project", "a-project", "--region", "us-central1"]
    flags += ["--sdk_container_image", "example.com/segment:beam", "--template_location", "gs://results/template.json"]
    flags += ["--temp_location", "gs://results/temporary"]
    assert run("gs://photos/**", "gs://results/out", *flags, "--project", "A") == 1
    assert "Invalid Project ID (A)" in capsys.readouterr().err
    assert run(photos, "gs://results/out", *flags) == 1
    assert "Dataflow's workers can only access buckets" in capsys.readouterr().err
    done = command("gs://photos/**", "gs://results/out", *flags)
    assert done.returncode == 0, done.stderr
    environment = json.loads(results(cloud)["template.json"])["environment"]
    assert environment["workerPools"][0]["workerHarnessContainerImage"] == "example.com/segment:beam"
    assert pipeline.ONE_PROCESS in environment["experiments"]


def test_documented_options_are_beams(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def note(*arguments: Any) -> int:
        given.append(arguments)
        return 0

    monkeypatch.setattr(pipeline, "run", note)
    monkeypatch.chdir(photos.parent)
    commands = re.findall(r"python -m segment beam (.*?[^\\\n])\n", (ROOT / "docs" / "beam.md").read_text(), re.DOTALL)
    for words in commands:
        assert main(["beam", *shlex.split(words.replace("\\\n", " "))]) == 0
    assert [runner for _, _, runner, _, _ in given] == ["DirectRunner", "DirectRunner", "DataflowRunner"]
    for *_, flags, _ in given:
        pipeline.pipeline_options("DirectRunner", flags)  # Beam knows Dataflow's options without its package


# No duplicates


def test_repeated_bundles_leave_no_duplicates(cloud: Cloud, photos: Path, tmp_path: Path) -> None:
    arguments = ("gs://photos/**.jpg", "gs://results", "-f", "png,json", "-d", "coco,parquet")
    assert run(*arguments, "--direct_runner_bundle_repeat=2") == 0
    first = results(cloud)
    (photos / "cut.jpg").unlink()
    assert first["instances.json"] == dataset_of(photos, tmp_path / "image")
    written = Counter(write.name for write in cloud.writes if write.bucket == "results")
    assert {name: written[name] for name in of_photos(cloud)} == dict.fromkeys(of_photos(cloud), 1)

    cloud.put("photos", "notes.jpg", b"no photo")
    assert run(*arguments) == 0
    errors = results(cloud)["errors.csv"]
    assert list(failures(errors)) == ["notes.jpg"]
    first = results(cloud)

    before = len(cloud.requests)
    assert run(*arguments) == 0, "a photo that an earlier run refused is not a failure"
    reads = [path for _, path in cloud.requests[before:] if "/photos/o/" in path]
    assert not reads, "photos that are done are not read again"
    assert results(cloud) == first
    again = Counter(write.name for write in cloud.writes if write.bucket == "results")
    assert {name for name in again if again[name] > written[name]} <= {name for name in first if "/20" not in name}


def test_rerun_replaces_the_datasets(photos: Path, tmp_path: Path) -> None:
    arguments = (photos / "**.jpg", tmp_path / "out", "-d", "coco,parquet")
    stale = tmp_path / "out" / "instances.parquet" / "model=shapes" / "part-00007.parquet"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of a longer run")
    assert run(*arguments) == 0
    (photos / "b.jpg").unlink()
    (photos / "cut.jpg").unlink()
    assert run(*arguments) == 0
    images = json.loads((tmp_path / "out" / "instances.json").read_text())["images"]
    assert [image["file_name"] for image in images] == sorted(NAMES[:2])
    assert failures((tmp_path / "out" / "errors.csv").read_bytes()) == {}
    assert [path.name for path in stale.parent.iterdir()] == ["part-00000-00000.parquet"]


def test_results_of_another_model_are_not_mixed_in(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("gs://photos/b.jpg", "gs://results", "-f", "json") == 0
    (tmp_path / "labels.txt").write_text("\n".join("abcde"))
    monkeypatch.setenv("SEGMENT_LABELS", str(tmp_path / "labels.txt"))
    assert run("gs://photos/**.jpg", "gs://results", "-f", "json", "-d", "coco") == 0
    found = results(cloud)
    assert "which has other classes" in failures(found["errors.csv"])["b.jpg"]
    assert len(json.loads(found["instances.json"])["images"]) == 2


def test_run_without_photos_succeeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    assert run(tmp_path / "photos", tmp_path / "out", "-d", "coco") == 0
    assert "nothing to do" in capsys.readouterr().out
    document = json.loads((tmp_path / "out" / "instances.json").read_text())
    assert document["images"] == document["annotations"] == []
    assert document["categories"]


# Failures


def test_temporary_failure_sets_the_exit_code(cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    from devtools.gcs import Fault

    cloud.faults.add(Fault(503, path="photos/o/b.jpg"))
    assert run("gs://photos/**.jpg", "gs://results") == 1
    assert "1 failed for now" in capsys.readouterr().out
    assert list(failures(results(cloud)["errors.csv"])) == ["b.jpg"]
    cloud.faults.clear()
    assert run("gs://photos/**.jpg", "gs://results") == 0
    assert failures(results(cloud)["errors.csv"]) == {}


@pytest.mark.parametrize("mode", ["in_memory", "multi_processing"])
def test_error_of_all_workers_ends_the_run_with_one_sentence(
    photos: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGMENT_MEMORY", "64Mi")
    done = command(photos, photos.parent / "out", "--direct_running_mode", mode)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("segment: The pipeline failed on DirectRunner: With the model shapes loaded, 0 MiB of")
    assert last.endswith("or use a smaller or int8 model.")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-f", "gif"], "format is 'gif'; it must be"),
        (["-d", "voc"], "dataset is 'voc'; it must be"),
        (["-s", "render_factor=1000"], "render_factor is '1000'; it must be"),
        (["-s", "classes=unicorn"], "has no class 'unicorn'"),
        (["-d", "parquet", "-s", "segmentation=polygons"], "omit segmentation=polygons"),
        (["--direct_nun_workers=2"], "Beam has no option --direct_nun_workers"),
        (["--direct_num_workers=two"], "argument --direct_num_workers: invalid int value: 'two'"),
        (["--input", "nowhere/**"], "'nowhere/**' is not a folder"),
        (["--input", "gs://*/a"], "'gs://*/a' does not name a bucket"),
        (["--input", "gs://none/a", "--output", "out"], "Could not list in gs://none"),
        (["--output", "gs://none"], "Could not list in gs://none"),
        (["--output", "gs://photos/a"], "one is inside the other"),
    ],
)
def test_a_bad_value_is_refused_before_the_runner_starts(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    def build(*_: Any) -> None:
        raise AssertionError("the pipeline was built")

    monkeypatch.setattr(pipeline, "build", build)
    assert run("gs://photos", "gs://results", *arguments) == 1
    assert words in capsys.readouterr().err


# Addresses


def test_wildcards(photos: Path, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)

    def names(text: str) -> list[str]:
        return sorted(item.name for item in Source.parse(text).objects(2, Range()))

    everything = sorted([*NAMES, "cut.jpg"])
    assert names("photos") == names("photos/**") == names("photos/**.jpg") == names(str(photos)) == everything
    assert names("photos/*") == ["b.jpg", "cut.jpg"]
    assert names("photos/b.jpg") == names("photos/[ab].jpg") == ["b.jpg"]
    assert names("photos/2026/*") == ["a.jpg"], "names are relative to the folder before the first wildcard"
    assert names("gs://photos/**") == names("gs://photos") == sorted([*NAMES, "notes.txt"])
    assert names("gs://photos/2026/*.jpg") == ["2026/a.jpg"]
    assert names("gs://photos/2026") == sorted(NAMES[:2])


# Workers


def test_a_process_loads_one_model() -> None:
    worker = Worker({"SEGMENT_RENDER_FACTOR": "6"})
    assert pickle.loads(pickle.dumps(worker)).process() is worker.process()


def test_photos_of_a_bundle_are_segmented_side_by_side(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = threading.Barrier(len(NAMES), timeout=60)

    def meet(*arguments: Any, **keywords: Any) -> Any:
        meeting.wait()  # fails unless all photos are in progress
        return segment_object(*arguments, **keywords)

    monkeypatch.setattr("segment.beam.steps.segment_object", meet)
    assert run("gs://photos/**.jpg", "gs://results") == 0
    assert {name: body for name, body in results(cloud).items() if name != "errors.csv"} == of_photos(cloud)


@pytest.mark.parametrize(("options", "streams"), [({}, 2), ({"detail": "2"}, 1)])
def test_network_runs_on_several_photos_of_a_process(
    options: dict[str, str], streams: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SEGMENT_THREADS", "2")
    caplog.set_level(logging.INFO)
    Worker({}, options=options).process()
    (loaded,) = (vars(record) for record in caplog.records if record.msg.startswith("Loaded the model"))
    assert loaded["streams"] == streams


def test_processes_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGMENT_MODEL", "of-the-image.onnx")
    settings = Worker({"SEGMENT_MEMORY": "3Gi"}, processes=3).settings()
    assert settings.memory == 1 << 30
    assert settings.model == "of-the-image.onnx", "the worker's environment provides settings that the command lacks"
    assert Worker({"SEGMENT_MODEL": ""}).settings().threads is None


@pytest.mark.parametrize(
    ("runner", "flags", "count"),
    [
        ("DirectRunner", [], 1),
        ("DirectRunner", ["--direct_running_mode=multi_threading", "--direct_num_workers=4"], 1),
        ("DirectRunner", ["--direct_running_mode=multi_processing", "--direct_num_workers=4"], 5),
        ("DirectRunner", ["--direct_running_mode=multi_processing", "--direct_num_workers=0"], container.cpus() + 1),
        ("FlinkRunner", ["--sdk_worker_parallelism=2"], 2),
        ("FlinkRunner", ["--sdk_worker_parallelism=2", "--environment_type=LOOPBACK"], 1),
        ("DataflowRunner", [], 1),
    ],
)
def test_processes_on_a_machine(runner: str, flags: list[str], count: int) -> None:
    assert pipeline.processes(runner, PipelineOptions(flags)) == count


def test_options_of_a_runner_pass_through() -> None:
    options = pipeline.pipeline_options("FlinkRunner", ["--flink_master=here:8081", "--known_to_its_server=1"])
    assert options.get_all_options()["flink_master"] == "here:8081"
    with pytest.raises(SettingsError, match="Beam has no option --known_to_its_server"):
        pipeline.pipeline_options("DirectRunner", ["--known_to_its_server=1"])
