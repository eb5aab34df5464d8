"""Tests of the model zoo: the table of models, downloads, conversion and serving by name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import segment.__main__
from benchmarks import checkpoints
from devtools import checksums
from devtools.server import ROOT, free_port
from segment import model, zoo
from segment.convert import config as configs
from segment.engine.file import load
from segment.engine.footprint import Footprint
from segment.errors import FetchError, ModelError, OptionError
from segment.preparation.files import at
from segment.progress import ignore
from segment.zoo import table
from segment.zoo.download import download
from tests import mirror as mirrors
from tests.mirror import NARROW, Mirror

BODY = bytes(range(256)) * 1200
FILE = BODY + (4250449).to_bytes(4, "little")
"""A file whose MD5 begins with f10217, like that of the zoo's R50-FPN 3x."""


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with mirrors.run() as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary cache folder instead of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "segment" / "zoo"


# The table


def test_each_entry_is_complete() -> None:
    for name, entry in zoo.entries().items():
        assert entry.name == name
        assert re.fullmatch(r"[0-9a-f]{6}", entry.digest)
        assert 20 < entry.mask_ap < (entry.box_ap or 100) + 1
        config = configs.parse(entry.config)
        labels = zoo.labels(entry)
        assert len(set(labels)) == config.classes
        assert all(label == label.strip() and label for label in labels)


def test_the_table_has_the_documented_models() -> None:
    names = set(zoo.entries())
    assert {f"mask_rcnn_R_{d}_FPN_{n}ep_LSJ" for d in (50, 101) for n in (100, 200, 400)} <= names
    assert {"mask_rcnn_R_50_FPN_1x", "mask_rcnn_R_50_FPN_3x", "mask_rcnn_R_101_FPN_3x"} <= names
    assert {"mask_rcnn_X_101_32x8d_FPN_3x", "cascade_mask_rcnn_R_50_FPN_1x", "cascade_mask_rcnn_R_50_FPN_3x"} <= names
    assert {"lvis_mask_rcnn_R_50_FPN_1x", "lvis_mask_rcnn_R_101_FPN_1x", "lvis_mask_rcnn_X_101_32x8d_FPN_1x"} <= names
    assert "cityscapes_mask_rcnn_R_50_FPN" in names
    assert {f"pointrend_rcnn_R_50_FPN_{n}x_coco" for n in (1, 3)} <= names
    assert {"pointrend_rcnn_R_101_FPN_3x_coco", "pointrend_rcnn_X_101_32x8d_FPN_3x_coco"} <= names
    assert "pointrend_rcnn_R_50_FPN_1x_cityscapes" in names
    assert {f"mask_rcnn_regnet{k}_4gf_dds_FPN_{n}ep_LSJ" for k in "xy" for n in (100, 200, 400)} <= names
    vitdets = {f"{cascade}mask_rcnn_vitdet_{size}_100ep" for cascade in ("", "cascade_") for size in "bl"}
    assert vitdets | {f"lvis_{name}" for name in vitdets} <= names


@pytest.mark.parametrize(
    ("name", "count", "some"),
    [
        ("mask_rcnn_R_50_FPN_3x", 80, {0: "person", 16: "dog", 79: "toothbrush"}),
        ("lvis_mask_rcnn_R_50_FPN_1x", 1230, {0: "acorn", 1229: "zucchini"}),
        ("cityscapes_mask_rcnn_R_50_FPN", 8, {0: "person", 2: "car", 7: "bicycle"}),
    ],
)
def test_labels(name: str, count: int, some: Mapping[int, str]) -> None:
    labels = zoo.labels(zoo.entry(name))
    assert len(labels) == count
    assert {index: labels[index] for index in some} == some


def test_a_part_of_a_config_does_not_change_another_model() -> None:
    assert configs.parse(zoo.entry("mask_rcnn_R_101_FPN_400ep_LSJ").config).proposals.conv_dims == (-1, -1)
    assert configs.parse(zoo.entry("mask_rcnn_R_101_FPN_3x").config).proposals.conv_dims == (-1,)


def test_detectron2s_config_paths_are_accepted_as_names() -> None:
    path = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x"
    for name in (path, path + ".yaml"):
        assert zoo.entry(name).name == "mask_rcnn_R_50_FPN_3x"


def shown(dataset: str = "", sort: str = "") -> list[str]:
    """The names in the printed table, in order."""
    words = [line.split(" ")[0] for line in table.text(dataset, sort).splitlines()]
    return [word for word in words if word in zoo.entries()]


def test_the_table_shows_every_model(cache: Path) -> None:
    assert shown() == list(zoo.entries())
    row = next(line for line in table.text().splitlines() if line.startswith("mask_rcnn_R_50_FPN_3x "))
    assert re.search(r"coco +80 +41\.0 +37\.2 +178 .*CC BY-SA 3\.0", row)


def test_the_table_shows_one_data_set(cache: Path) -> None:
    assert shown("cityscapes")
    assert all(zoo.entry(name).dataset == "cityscapes" for name in shown("cityscapes"))
    with pytest.raises(OptionError, match=r"--dataset is 'imagenet'; it must be one of .*coco"):
        table.text("imagenet")


def test_the_table_shows_the_best_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precise = [zoo.entry(name).mask_ap for name in shown(sort="mask-ap")]
    assert precise == sorted(precise, reverse=True)
    small = [zoo.entry(name).megabytes for name in shown("coco", "download")]
    assert small == sorted(small)
    slow, fast = "mask_rcnn_R_50_FPN_3x", "mask_rcnn_R_101_FPN_3x"
    times = {slow: 60.0, fast: 50.0, "mask_rcnn_R_101_C4_3x": None}
    monkeypatch.setattr(
        table,
        "measured",
        lambda entry: {"int8": table.Measured(45, 150, times[entry.name])} if entry.name in times else {},
    )
    assert shown(sort="ms-int8")[:2] == [fast, slow]
    assert len(shown(sort="ms-int8")) == len(zoo.entries())
    with pytest.raises(OptionError, match=r"--sort is 'speed'; it must be one of .*ms-int8"):
        table.text(sort="speed")


def test_measurements_belong_to_models_of_the_table() -> None:
    document = json.loads(table.MEASURED.read_text())
    assert set(document["models"]) <= set(zoo.entries())
    for row in map(table.measured, map(zoo.entry, document["models"])):
        assert set(row) == set(table.PRECISIONS)
        assert row["int8"].file_mb < row["fp32"].file_mb
        assert row["int8"].held_mib < row["fp32"].held_mib
    assert str(document["render_factor"]) in table.text()
    assert document["machine"] in table.text()


def test_a_model_that_was_not_fetched_is_explained(cache: Path) -> None:
    with pytest.raises(ModelError, match=r"segment fetch mask_rcnn_R_50_FPN_3x"):
        zoo.model_file("mask_rcnn_R_50_FPN_3x")
    with pytest.raises(ModelError, match="no model called 'mask_rcnn'"):
        zoo.model_file("mask_rcnn")


FULL_SIZE = (
    "mask_rcnn_R_50_FPN_3x",
    "mask_rcnn_R_101_FPN_3x",
    "mask_rcnn_X_101_32x8d_FPN_3x",
    "mask_rcnn_R_50_FPN_400ep_LSJ",
    "cascade_mask_rcnn_R_50_FPN_3x",
    "mask_rcnn_R_50_C4_3x",
    "mask_rcnn_R_101_DC5_3x",
    "pointrend_rcnn_R_50_FPN_3x_coco",
    "mask_rcnn_R_50_FPN_3x_dconv_c3-c5",
    "cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv",
)


@pytest.mark.parametrize("name", FULL_SIZE)
def test_the_config_and_the_checkpoint_are_detectron2s(name: str) -> None:
    """The network that detectron2 builds from our config has the tensors of benchmarks.checkpoints."""
    pytest.importorskip("detectron2", reason="detectron2 is not installed (requirements-detectron2.txt)")
    from detectron2.config import CfgNode, get_cfg
    from detectron2.modeling import build_model
    from detectron2.projects import point_rend

    config = get_cfg()
    point_rend.add_pointrend_config(config)
    config.merge_from_other_cfg(CfgNode(zoo.entry(name).config))
    config.MODEL.DEVICE = "cpu"
    theirs = {key: tuple(tensor.shape) for key, tensor in build_model(config).state_dict().items()}
    ours = checkpoints.checkpoint(configs.parse(zoo.entry(name).config))
    shapes = {key: tensor.shape for key, tensor in ours.items()}
    assert shapes == {key: shape for key, shape in theirs.items() if key not in ("pixel_mean", "pixel_std")}
    assert round(sum(tensor.nbytes for tensor in ours.values()) / 1e6) == zoo.entry(name).megabytes


CONVERT = """
import re, sys, time
from pathlib import Path
import onnx
from segment import convert, zoo
start, entry, folder = time.perf_counter(), zoo.entry(sys.argv[1]), Path(sys.argv[2])
tensors = convert.checkpoint.read(folder / "checkpoint.pkl")
model = convert.convert(convert.config.parse(entry.config), tensors, zoo.labels(entry))
onnx.save(model, folder / "model.onnx")
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
print(time.perf_counter() - start, int(peak) / 2**20)
"""
"""Prints seconds and peak memory in GiB. VmHWM, because ru_maxrss would start at that of the process it was forked
from."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FULL_SIZE, "mask_rcnn_vitdet_b_100ep"])
def test_a_full_size_model_converts_and_serves(name: str, tmp_path: Path) -> None:
    tensors = checkpoints.checkpoint(configs.parse(zoo.entry(name).config))
    (tmp_path / "checkpoint.pkl").write_bytes(pickle.dumps({"model": tensors, "__author__": "a test"}))
    del tensors
    command = [sys.executable, "-c", CONVERT, name, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    seconds, gibibytes = map(float, done.stdout.split())
    assert seconds < 60
    assert gibibytes < max(2, 4 * zoo.entry(name).megabytes / 1000)  # DC5 has 400 MB in one fully connected layer
    engine = load(tmp_path / "model.onnx", threads=2, memory=Footprint(0, 0))
    found = engine(np.random.default_rng(0).integers(0, 256, (320, 416, 3), np.uint8), 0.05, 100)
    assert len(found) > 0
    assert engine.labels == zoo.labels(zoo.entry(name))


# The download


def fetch_file(
    mirror: Mirror, path: Path, digest: str = hashlib.sha256(FILE).hexdigest(), limit: int = 1 << 20
) -> None:
    download(mirror.url + "file", path, digest=digest, limit=limit, pause=0)


def test_downloads_once(mirror: Mirror, cache: Path) -> None:
    entry = zoo.entry("mask_rcnn_R_50_FPN_3x")
    mirror.files["/" + entry.file] = FILE
    for _ in range(2):
        assert zoo.fetch(entry.name, mirror.url).read_bytes() == FILE
    assert mirror.ranges == [""]
    assert {path.name for path in cache.iterdir()} == {"mask_rcnn_R_50_FPN_3x.pkl", "mask_rcnn_R_50_FPN_3x.pkl.sha256"}


def test_the_sha256_of_the_first_download_is_recorded_for_sha256sum(mirror: Mirror, cache: Path) -> None:
    entry = zoo.entry("mask_rcnn_R_50_FPN_3x")
    mirror.files["/" + entry.file] = FILE
    path = zoo.fetch(entry.name, mirror.url)
    subprocess.run(["sha256sum", "--check", "--quiet", f"{path.name}.sha256"], cwd=cache, check=True)


@pytest.mark.parametrize("name", ["model_0004999.pth", "model_123456.pth", "run-20261127.pth", "best-123456.onnx"])
def test_a_number_at_the_end_of_a_name_is_no_checksum(name: str, mirror: Mirror, tmp_path: Path) -> None:
    """detectron2 writes model_0004999.pth while it trains."""
    mirror.files["/" + name] = FILE
    assert at(mirror.url + name).fetch(tmp_path, ignore).read_bytes() == FILE


@pytest.mark.parametrize(
    "name",
    [
        f"model_final_{hashlib.md5(BODY).hexdigest()[:6]}.pkl",
        f"model_0039999_{hashlib.md5(BODY).hexdigest()[:6]}.pkl",
        f"maskrcnn_resnet50_fpn_coco-{hashlib.sha256(BODY).hexdigest()[:8]}.pth",
    ],
)
def test_a_checksum_at_the_end_of_a_name_is_checked(name: str, mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["/" + name] = FILE
    with pytest.raises(ModelError, match="is damaged or a different file"):
        at(mirror.url + name).fetch(tmp_path, ignore)
    mirror.files["/" + name] = BODY
    assert at(mirror.url + name).fetch(tmp_path, ignore).read_bytes() == BODY


def test_another_file_with_the_same_md5_digits_is_refused(mirror: Mirror, cache: Path) -> None:
    """A file can be forged to match 24 bits of the MD5, but not the recorded SHA-256."""
    entry = zoo.entry("mask_rcnn_R_50_FPN_3x")
    mirror.files["/" + entry.file] = FILE
    path = zoo.fetch(entry.name, mirror.url)
    path.unlink()
    record = path.with_suffix(".pkl.sha256")
    record.write_text(f"{hashlib.sha256(BODY).hexdigest()}  {path.name}\n")
    with pytest.raises(ModelError, match=rf"SHA-256 is {hashlib.sha256(FILE).hexdigest()}.* delete .*sha256 first"):
        zoo.fetch(entry.name, mirror.url)
    assert not path.exists()
    record.unlink()
    assert zoo.fetch(entry.name, mirror.url) == path


def test_a_recorded_sha256_is_published(mirror: Mirror, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = zoo.entry("mask_rcnn_R_50_FPN_3x")
    mirror.files["/" + entry.file] = FILE
    zoo.fetch(entry.name, mirror.url)
    table = (zoo.FOLDER / "models.toml").read_text(encoding="utf-8")
    published = tomllib.loads(checksums.publish(table, cache))["models"]
    digest = hashlib.sha256(FILE).hexdigest()
    assert published[entry.name].pop("sha256") == digest
    assert published == tomllib.loads(table)["models"]
    known = {entry.name: dataclasses.replace(entry, sha256="0" * 64)}
    monkeypatch.setattr(zoo, "entries", lambda: known)
    for file in cache.iterdir():
        file.unlink()
    with pytest.raises(ModelError, match=f"SHA-256 is {digest}"):
        zoo.fetch(entry.name, mirror.url)


def test_a_damaged_record_is_explained(mirror: Mirror, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "mask_rcnn_R_50_FPN_3x.pkl.sha256").write_text("<html>")
    with pytest.raises(ModelError, match="does not hold a SHA-256"):
        zoo.fetch("mask_rcnn_R_50_FPN_3x", mirror.url)


def test_a_file_damaged_since_is_downloaded_again(mirror: Mirror, cache: Path) -> None:
    entry = zoo.entry("mask_rcnn_R_50_FPN_3x")
    mirror.files["/" + entry.file] = FILE
    path = zoo.fetch(entry.name, mirror.url)
    path.write_bytes(FILE[:1000])
    assert zoo.fetch(entry.name, mirror.url).read_bytes() == FILE


def test_continues_after_broken_connections(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["/file"], mirror.cuts = FILE, [100_000, 1, 50_000]
    fetch_file(mirror, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == FILE
    assert mirror.ranges == ["", "bytes=100000-", "bytes=100001-", "bytes=150001-"]


def test_continues_after_an_interrupted_command(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["/file"] = FILE
    (tmp_path / "file.part").write_bytes(FILE[:1234])
    fetch_file(mirror, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == FILE
    assert mirror.ranges == ["bytes=1234-"]


def test_a_complete_partial_download_is_only_verified(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["/file"] = FILE
    (tmp_path / "file.part").write_bytes(FILE)
    fetch_file(mirror, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == FILE


def test_a_server_without_ranges_restarts_the_download(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["/file"], mirror.cuts, mirror.takes_ranges = FILE, [1000], False
    fetch_file(mirror, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == FILE


def test_a_temporary_server_error_is_retried(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["/file"], mirror.statuses = FILE, [503, 500]
    fetch_file(mirror, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == FILE


def test_a_wrong_file_is_deleted(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["/file"] = FILE[:-1]
    with pytest.raises(ModelError, match="does not begin with f10217"):
        fetch_file(mirror, tmp_path / "file", "f10217")
    assert not list(tmp_path.iterdir())


def test_a_file_larger_than_the_limit_is_refused(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["/file"] = FILE
    with pytest.raises(ModelError, match="larger than"):
        fetch_file(mirror, tmp_path / "file", limit=100_000)
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_explained(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"127\.0\.0\.1:\d+: it answered 404 Not Found"):
        fetch_file(mirror, tmp_path / "file")
    assert mirror.ranges == [""]


def test_a_read_only_folder_is_explained(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(ModelError, match="Cannot write to the cache folder"):
        fetch_file(mirror, tmp_path / "cache" / "file")
    assert mirror.ranges == []


def test_connections_without_data_are_given_up(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["/file"], mirror.cuts = FILE, [5000, 0, 0, 0, 0]
    with pytest.raises(FetchError, match="which continues the download"):
        fetch_file(mirror, tmp_path / "file")
    assert (tmp_path / "file.part").read_bytes() == FILE[:5000]


def segment_command(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("SEGMENT_")}
    command = [sys.executable, "-m", "segment", *arguments]
    return subprocess.run(
        command, env=inherited | settings, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )


def test_no_network_is_explained(cache: Path) -> None:
    nobody = f"http://127.0.0.1:{free_port()}/"
    done = segment_command("fetch", "mask_rcnn_R_50_FPN_3x", SEGMENT_ZOO_URL=nobody)
    assert done.returncode == 1
    assert "Connection refused" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "A mirror of the zoo can be set with SEGMENT_ZOO_URL." in done.stderr
    done = segment_command("fetch", f"{nobody}mine.onnx")
    assert "Check the network connection" in done.stderr
    assert "mirror" not in done.stderr, "it is not of the zoo"
    assert "Traceback" not in done.stderr


def test_an_invalid_mirror_is_refused() -> None:
    done = segment_command("fetch", "mask_rcnn_R_50_FPN_3x", SEGMENT_ZOO_URL="mirror")
    assert "SEGMENT_ZOO_URL is 'mirror'; it must be an http or https URL." in done.stderr


# From a name to detections


@pytest.fixture
def narrow(mirror: Mirror, cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a small model that is added to the zoo, with its checkpoint on the mirror."""
    cityscapes = zoo.entry("cityscapes_mask_rcnn_R_50_FPN")
    config = zoo.merged(cityscapes.config, NARROW)
    body = pickle.dumps({"model": checkpoints.checkpoint(configs.parse(config)), "__author__": "a test"})
    file = f"Cityscapes/narrow/1/model_final_{hashlib.md5(body).hexdigest()[:6]}.pkl"
    entry = dataclasses.replace(cityscapes, name="narrow", file=file, config=config)
    monkeypatch.setattr(zoo, "entries", lambda: {"narrow": entry})
    mirror.files["/" + file] = body
    monkeypatch.setenv("SEGMENT_ZOO_URL", mirror.url)
    return "narrow"


def test_fetch_converts_and_the_name_serves(narrow: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert segment.__main__.main(["fetch", narrow]) == 0
    assert "8 classes" in capsys.readouterr().out
    loaded = model.load(narrow)
    assert 0 < loaded.footprint.kept < 20e6
    assert loaded.footprint.bytes_per_pixel > 0
    assert loaded.labels == zoo.labels(zoo.entry(narrow))
    photo: Any = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    found = loaded(photo, min_score=0.0)
    assert 0 < len(found) <= 100
    assert found.size == (160, 120)
