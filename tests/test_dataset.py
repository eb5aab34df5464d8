"""Datasets of a folder of photos, read with common tools: pycocotools, DuckDB and PyArrow."""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet
import pytest
from PIL import Image
from pycocotools import mask as pycoco
from pycocotools.coco import COCO

from devtools.server import ROOT
from segment.__main__ import main
from segment.dataset import coco, parquet
from segment.dataset.entry import Entry
from segment.dataset.journal import Journal
from segment.errors import StorageError
from tests.compiled import compiled_once  # noqa: F401
from tests.scenes import RENDER_FACTOR
from training.shapes import CLASSES, scene


@pytest.fixture(autouse=True)
def small_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are about files: what the network finds at a low render factor is enough."""
    monkeypatch.setenv("SEGMENT_RENDER_FACTOR", str(RENDER_FACTOR))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photos, two of them with the same name in different folders, and a truncated one."""
    folder = tmp_path / "photos"
    for number, name in enumerate(("IMG_0001.jpg", "deeper/IMG_0001.jpg", "deeper/b.png")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene(number)[0]).save(path)
    (folder / "broken.jpg").write_bytes((folder / "IMG_0001.jpg").read_bytes()[:1000])
    return folder


def run(*arguments: str | Path) -> int:
    return main(["image", *(str(argument) for argument in arguments)])


def load(out: Path) -> COCO:
    return COCO(out / "instances.json")


def names(dataset: COCO) -> list[str]:
    return [image["file_name"] for image in dataset.loadImgs(dataset.getImgIds())]


def test_an_output_that_is_a_file_is_refused(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("a file")
    assert run(photos, "-o", tmp_path / "out") == 1
    assert f"The output folder {tmp_path / 'out'} cannot be created: File exists." in capsys.readouterr().err


def test_a_dataset_that_cannot_be_written(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "broken.jpg").unlink()
    out = tmp_path / "out"
    (out / "instances.json").mkdir(parents=True)
    assert run(photos, "-o", out, "-d", "coco") == 1
    assert "cannot be written: Is a directory. The same command continues." in capsys.readouterr().err
    assert not list(out.glob(".*.partial"))
    (out / "instances.json").rmdir()
    assert run(photos, "-o", out, "-d", "coco") == 0
    assert "3 photos" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="setrlimit is POSIX")
def test_a_full_disk_is_explained(photos: Path, tmp_path: Path) -> None:
    """A limit on the size of files simulates a full disk."""
    out = tmp_path / "out"
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({16 << 10}, {16 << 10}))"
    command = f"{limited}; import sys; from segment.__main__ import main; sys.exit(main(sys.argv[1:]))"
    # -B, because Python leaves truncated .pyc files where the limit applies (github.com/python/cpython/issues/126606).
    words = [sys.executable, "-B", "-c", command, "image", str(photos), "-o", str(out), "-d", "coco", "-f", "png"]
    done = subprocess.run(words, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "IMG_0001.jpg: File too large" in done.stderr
    assert not list(out.rglob("*.png")), "a truncated picture is deleted"


def test_a_name_too_long_for_its_results_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """overlay.png fits with 243 bytes before it, detections.json does not."""
    folder, name = tmp_path / "photos", "n" * 243
    folder.mkdir()
    Image.fromarray(scene(1)[0]).save(folder / f"{name}.jpg")
    assert run(folder, "-o", tmp_path / "out", "-f", "png") == 0
    assert (tmp_path / "out" / f"{name}.overlay.png").exists()
    assert run(folder, "-o", tmp_path / "out", "-f", "png,json") == 1
    expected = f"The file name '{name}.detections.json' has 259 bytes; the maximum is 255. Shorten the photo's name.\n"
    assert expected in capsys.readouterr().err
    assert not list((tmp_path / "out").glob(".*.partial"))


def test_a_dataset_that_cannot_be_written_leaves_no_open_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When Python deletes the iterator of a closed journal, it prints no traceback below the message."""
    raised: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", raised.append)
    with Journal(tmp_path) as journal:
        for name in ("a.jpg", "b.jpg"):
            journal.done(name, "key", 1, b'{"image": {}, "annotations": []}')
            journal.failed(f"bad {name}", "damaged")
        entries, failures = journal.entries(), journal.failures()
        assert (next(entries).name, next(failures).name) == ("a.jpg", "bad a.jpg")
    del entries, failures
    assert not raised


def test_a_full_journal_is_explained(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal._database.execute("PRAGMA max_page_count = 4")
        with pytest.raises(
            StorageError, match=r"\.sqlite cannot be written: database or disk is full\. The same command"
        ):
            journal.done("a.jpg", "key", 1, b"1" * 100_000)


def test_one_coco_dataset_of_a_folder(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(photos, "-o", out, "-d", "coco", "-f", "json") == 1
    errors = capsys.readouterr().err
    assert "broken.jpg: This JPEG is truncated" in errors
    assert "1 photo could not be segmented; see " in errors
    assert (out / "errors.csv").read_text().splitlines()[0] == "photo,error"
    dataset = load(out)
    assert names(dataset) == ["IMG_0001.jpg", "deeper/IMG_0001.jpg", "deeper/b.png"]
    assert [one["name"] for one in dataset.loadCats(dataset.getCatIds())] == list(CLASSES)
    assert min(dataset.getCatIds()) == 1
    found = dataset.dataset["annotations"]
    assert [one["id"] for one in found] == list(range(1, len(found) + 1))
    for image in dataset.loadImgs(dataset.getImgIds()):
        file = out / Path(image["file_name"]).with_suffix(".detections.json")
        own = json.loads(file.read_text())["annotations"]
        mine = dataset.loadAnns(dataset.getAnnIds(imgIds=image["id"]))
        keys = ("category_id", "score", "bbox", "area", "segmentation")
        assert [[one[key] for key in keys] for one in mine] == [[one[key] for key in keys] for one in own]
        with Image.open(photos / image["file_name"]) as photo:
            assert dataset.annToMask(mine[0]).shape == photo.size[::-1]


def test_duckdb_reads_the_parquet_dataset(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(photos / "deeper", "-o", out, "-d", "parquet,coco") == 0
    assert not list(out.rglob("*.png")), "a dataset replaces the files per photo"

    def query(columns: str) -> list[tuple[Any, ...]]:
        source = f"read_parquet('{out}/instances.parquet/**/*.parquet', hive_partitioning = true)"
        return duckdb.connect().execute(f"SELECT {columns} FROM {source}").fetchall()

    truth = {
        (image["file_name"], one["category_name"], one["score"], one["area"], one["segmentation"]["counts"])
        for one in load(out).dataset["annotations"]
        for image in [load(out).loadImgs(one["image_id"])[0]]
    }
    assert set(query('photo, "class", score, area, rle')) == truth
    for rle, height, width, area in query("rle, photo_height, photo_width, area"):
        assert pycoco.decode({"counts": rle, "size": [height, width]}).sum() == area
    assert query("DISTINCT model") == [("shapes",)]
    shown = (ROOT / "docs" / "datasets.md").read_text().partition("-- DuckDB\n")[2].partition(";")[0]
    groups = duckdb.connect().execute(shown.replace("results/", f"{out}/")).fetchall()
    assert {(model, name) for model, name, *_ in groups} == {("shapes", name) for _, name, *_ in truth}
    times = {path.stat().st_mtime_ns for path in (photos / "deeper").iterdir()}
    assert {time for (time,) in query("generation")} <= times


def test_bigquery_takes_the_schema(tmp_path: Path) -> None:
    """Parquet files follow BigQuery's rules for columns, types, compression and Hive partitions
    (https://cloud.google.com/bigquery/docs/loading-data-cloud-storage-parquet, .../docs/hive-partitioned-loads-gcs)."""
    place = parquet.write(entries(3), "mask_rcnn_R_50_FPN_3x", tmp_path)
    (file,) = place.iterdir()
    assert file.name.endswith(".parquet")
    assert not file.name.startswith((".", "_")), "BigQuery's wildcard * must match the file"
    key, _, value = place.name.partition("=")
    metadata = pyarrow.parquet.ParquetFile(file).metadata
    columns = [metadata.schema.column(index) for index in range(metadata.num_columns)]
    reserved = ("_table_", "_file_", "_partition", "_row_timestamp", "__root__", "_colidentifier")
    names = [column.name.lower() for column in columns]
    assert len({*names, key}) == len(names) + 1, "names of columns and the partition key differ, ignoring case"
    for name in (*names, key):
        assert re.fullmatch(r"[a-z_][a-z0-9_]{0,299}", name)
        assert not name.startswith(reserved)
    assert {(column.physical_type, column.logical_type.type) for column in columns} <= {
        ("BYTE_ARRAY", "STRING"),
        ("INT32", "NONE"),
        ("INT64", "NONE"),
        ("DOUBLE", "NONE"),
    }
    assert {metadata.row_group(0).column(index).compression for index in range(len(columns))} == {"ZSTD"}
    assert re.fullmatch(r"[\w.%-]+", value)


def test_a_run_resumes(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (photos / "deeper", "-o", tmp_path / "out", "-d", "coco", "-f", "ids")
    assert run(*arguments) == 0
    first = (tmp_path / "out" / "instances.json").read_bytes()
    capsys.readouterr()
    assert run(*arguments) == 0
    assert "2 photos done before" in capsys.readouterr().out
    assert (tmp_path / "out" / "instances.json").read_bytes() == first

    (tmp_path / "out" / "b.ids.png").unlink()
    assert run(*arguments) == 0
    shown = capsys.readouterr().out
    assert "b.png: " in shown
    assert "1 photo done before" in shown
    assert run(*arguments, "-s", "min_score=0.9") == 0
    assert "done before" not in capsys.readouterr().out, "earlier results are not used with other options"

    (photos / "deeper" / "b.png").unlink()
    os.utime(photos / "deeper" / "IMG_0001.jpg", ns=(0, 0))
    assert run(*arguments) == 0
    assert "done before" not in capsys.readouterr().out, "earlier results are not used if the photo has changed"
    assert names(load(tmp_path / "out")) == ["IMG_0001.jpg"]


KILLED = """
import os, signal, sys
from segment.__main__ import run

class KillingOutput:
    def __init__(self):
        self.lines = 0

    def write(self, text):
        self.lines += text.count("\\n")
        if self.lines == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    def flush(self):
        pass

sys.stdout = KillingOutput()
run()
"""
"""The command `segment`, which kills itself when it has written three lines."""


def test_a_killed_run_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for number in range(14):
        Image.fromarray(scene(number)[0]).save(photos / f"{number}.png")
    command = [sys.executable, "-c", KILLED, "image", str(photos), "-o", str(out), "-d", "coco", "-j", "1"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert not (out / "instances.json").exists()
    assert run(photos, "-o", out, "-d", "coco") == 0
    shown = capsys.readouterr().out
    assert 3 <= 14 - shown.count(" ms\n") < 14
    assert run(photos, "-o", tmp_path / "fresh", "-d", "coco") == 0
    assert (out / "instances.json").read_bytes() == (tmp_path / "fresh" / "instances.json").read_bytes()


def test_results_in_the_folder_of_the_photos_are_not_segmented(photos: Path) -> None:
    for _ in range(2):
        assert run(photos / "deeper", "-o", photos / "deeper" / "out", "-f", "png", "-d", "coco") == 0
        assert names(load(photos / "deeper" / "out")) == ["IMG_0001.jpg", "b.png"]


def test_output_must_not_be_the_folder_of_the_photos(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(photos / "deeper", "-o", photos / "deeper") == 1
    assert "so the next run would segment the results" in capsys.readouterr().err
    assert {path.name for path in (photos / "deeper").iterdir()} == {"IMG_0001.jpg", "b.png"}


def test_hidden_files_are_not_segmented(photos: Path, tmp_path: Path) -> None:
    (photos / "broken.jpg").unlink()
    (photos / "._IMG_0001.jpg").write_bytes(b"written by macOS beside each file")
    (photos / ".thumbnails").mkdir()
    (photos / ".thumbnails" / "b.png").write_bytes((photos / "deeper" / "b.png").read_bytes())
    assert run(photos, "-o", tmp_path / "out", "-d", "coco") == 0
    assert names(load(tmp_path / "out")) == ["IMG_0001.jpg", "deeper/IMG_0001.jpg", "deeper/b.png"]


def test_each_photo_has_its_own_files(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, name in enumerate(("a.jpg", "a.png", "a.jpg.webp", "b.jpg")):
        Image.fromarray(scene(number)[0]).save(photos / name)
    assert run(photos, "-o", tmp_path / "out", "-f", "ids") == 0
    found = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert found == {"a.jpg.ids.png", "a.png.ids.png", "a.jpg.webp.ids.png", "b.ids.png"}


def test_folder_that_cannot_be_listed_is_reported(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, scandir = photos / os.fsdecode(b"closed-\xff"), os.scandir
    closed.mkdir()

    def refuse(path: Any) -> Any:
        if str(path) == str(closed):  # may be a file descriptor
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    (photos / "broken.jpg").unlink()
    assert run(photos, "-o", tmp_path / "out", "-f", "json") == 1
    (row,) = (tmp_path / "out" / "errors.csv").read_text().splitlines()[1:]
    assert row.endswith("closed-\\udcff,Permission denied")


def test_what_is_not_a_file_is_reported(tmp_path: Path) -> None:
    """Reading a named pipe would wait forever for someone who writes to it."""
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "broken-link.jpg").symlink_to("nowhere.jpg")
    (folder / "folder-link.jpg").symlink_to(folder)
    assert run(folder, "-o", out, "-f", "json") == 1
    failures = (out / "errors.csv").read_text().splitlines()[1:]
    assert [line.partition(",")[0] for line in failures] == ["broken-link.jpg", "folder-link.jpg", "pipe.jpg"]
    assert "not a regular file" in failures[-1]


def test_several_folders_keep_their_names(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(photos / "deeper", photos / "IMG_0001.jpg", tmp_path / "none", "-o", out, "-d", "coco") == 1
    (photos / "other").mkdir()
    (photos / "deeper" / "b.png").rename(photos / "other" / "IMG_0001.jpg")
    assert run(photos / "deeper", photos / "other", "-o", out, "-d", "coco") == 0
    assert names(load(out)) == ["deeper/IMG_0001.jpg", "other/IMG_0001.jpg"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-j", "0"], "--jobs is '0'; it must be auto or a whole number from 1 to 256."),
        (["-d", "voc"], "--dataset is 'voc'; it must be one or more of coco, parquet"),
        (["-d", "parquet", "-s", "segmentation=polygons"], "omit segmentation=polygons"),
        (["-s", "classes=unicorn"], "The model has no class 'unicorn'"),
    ],
)
def test_invalid_option_is_refused(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run(photos, "-o", tmp_path / "out", *arguments) == 1
    assert words in capsys.readouterr().err


def test_two_runs_do_not_share_an_output(tmp_path: Path) -> None:
    with Journal(tmp_path), pytest.raises(StorageError, match="Is another run writing to it"):
        Journal(tmp_path)


def test_a_damaged_journal_is_explained(tmp_path: Path) -> None:
    (tmp_path / ".segment.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(StorageError, match="Delete it to segment all photos again"):
        Journal(tmp_path)


@pytest.mark.parametrize("number", range(8))
def test_damage_in_any_page_of_the_journal_is_explained(tmp_path: Path, number: int) -> None:
    """A crash of the machine may leave it so, as the journal is not synchronised."""
    with Journal(tmp_path) as journal:
        for one in entries(40):
            journal.done(one.name, "key", 1, json.dumps(one.document).encode())
    path, page = tmp_path / ".segment.sqlite", 4096
    assert path.stat().st_size == 8 * page
    with path.open("r+b") as file:
        file.seek(number * page)
        file.write(b"\xff" * page)
    with pytest.raises(StorageError, match="Delete it to segment all photos again"):
        read_all(tmp_path)


def read_all(folder: Path) -> None:
    with Journal(folder) as journal:
        for one in entries(40):
            journal.resume(one.name, "key")
        assert len(list(journal.entries())) == 40


def entries(count: int) -> Iterator[Entry]:
    found = {"category_id": 1, "category_name": "circle", "score": 0.9, "bbox": [1, 2, 3, 4], "area": 9, "iscrowd": 0}
    found |= {"segmentation": {"size": [10, 10], "counts": "x" * 200}}
    for number in range(count):
        yield Entry(
            f"{number}.jpg", number, {"image": {"width": 10, "height": 10}, "annotations": [{"id": 1, **found}]}
        )


@pytest.mark.parametrize("kind", ["coco", "parquet"])
def test_memory_does_not_grow_with_the_number_of_photos(tmp_path: Path, kind: str) -> None:
    peaks = []
    for count in (2_000, 8_000) if kind == "coco" else (15_000, 30_000):
        tracemalloc.start()
        if kind == "coco":
            coco.write(functools.partial(entries, count), ["circle"], tmp_path)
        else:
            parquet.write(entries(count), "model", tmp_path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 100_000
