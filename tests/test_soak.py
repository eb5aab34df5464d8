"""Anything at all, many at once, in a real memory control group: every answer right or a clear refusal, nothing killed.

The full run is of 500 requests to a full-size Mask R-CNN R50-FPN in int8 within 512 MiB (slow); a short one of the demo
model is in every test run. Photos from 64 x 64 to 100 megapixels, every format of the answer, and files that lie about
themselves, mixed from a seed. What one request answers alone, it must answer in the crowd too, byte by byte; or 503.
"""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image
from pycocotools import mask as coco

from benchmarks import cgroup, models, serving
from benchmarks.serving import Server
from devtools.server import ROOT
from segment.model import EMBEDDED
from tests import worst
from training.shapes import scene

MIB = 1 << 20
AT_ONCE = 16
FIRST = 20
FORMATS = ("png", "jpeg", "webp", "json", "ids", "cutouts")
REFUSALS = {400, 413, 415, 422, 503}

pytestmark = pytest.mark.skipif(bool(cgroup.missing()), reason=cgroup.missing())


@dataclass(frozen=True)
class Ask:
    """One request: a photo by name, and options."""

    photo: str
    options: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def photos(largest: tuple[int, int]) -> Iterator[tuple[str, bytes]]:
    """(name, file) of photos of all sizes and formats."""

    def encoded(size: tuple[int, int], kind: str, mode: str = "RGB", **save: object) -> bytes:
        picture = Image.fromarray(scene(2, (640, 480))[0]).resize(size, Image.Resampling.BICUBIC).convert(mode)
        body = io.BytesIO()
        picture.save(body, kind, **save)
        return body.getvalue()

    yield "tiny.jpg", encoded((64, 64), "JPEG")
    yield "thin.jpg", encoded((1500, 40), "JPEG")
    yield "small.png", encoded((320, 240), "PNG", "P")
    yield "usual.jpg", encoded((1280, 960), "JPEG")
    yield "usual.webp", encoded((1280, 960), "WEBP", quality=70, method=0)
    yield "usual.png", encoded((1280, 960), "PNG", "RGBA", compress_level=1)
    yield "progressive.jpg", encoded((1600, 1200), "JPEG", progressive=True)
    yield "grey.jpg", encoded((2000, 1500), "JPEG", "L")
    yield "print.jpg", encoded((1200, 1600), "JPEG", "CMYK")
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "turned.jpg", encoded((1600, 1200), "JPEG", exif=exif)
    yield "twelve megapixels.jpg", encoded((4000, 3000), "JPEG", quality=70)
    yield "twelve megapixels.png", encoded((4000, 3000), "PNG", "L", compress_level=1)
    yield "twelve megapixels, progressive.jpg", encoded((4000, 3000), "JPEG", progressive=True, quality=70)
    yield "largest.jpg", encoded(largest, "JPEG", quality=50)


def asks(count: int, names: list[str], broken: list[str]) -> list[Ask]:
    """Which photo with which options, mixed from a seed; every photo and every format is among them."""
    dice = random.Random(0)
    mixed = []
    for number in range(count):
        name = names[number % len(names)] if number % 5 else dice.choice(broken)
        options = [("format", FORMATS[number // 2 % len(FORMATS)])]
        if number % 3 == 0:
            options.append(("render_factor", dice.choice(["8", "16", "32", "40", "auto", "200"])))
        if number % 7 == 0:
            options.append(("min_score", "0.05"))
        if number % 17 == 0:
            options.append(("detail", dice.choice(["2", "4"])))
        if number % 11 == 0:
            options.append(("segmentation", "polygons"))
        mixed.append(Ask(name, tuple(options)))
    dice.shuffle(mixed)
    return mixed


def check(answer: Answer, ask: Ask) -> None:
    """An answer is right in itself, or a refusal that says why."""
    if answer.status != 200:
        assert answer.status in REFUSALS, (answer.status, ask, answer.body[:300])
        problem = json.loads(answer.body)
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert problem["status"] == answer.status
        assert problem["detail"].endswith("."), problem
        assert (answer.status == 503) == ("Retry-After" in answer.headers)
        return
    photo_size, picture_size = (
        tuple(int(n) for n in answer.headers[f"Segment-{name}-Size"].split("x")) for name in ("Photo", "Picture")
    )
    count = int(answer.headers["Segment-Instances"])
    kind = dict(ask.options)["format"]
    if kind == "json":
        document = json.loads(answer.body)
        assert (document["image"]["width"], document["image"]["height"]) == photo_size
        assert len(document["annotations"]) == count
        for found in document["annotations"]:
            if isinstance(found["segmentation"], dict):
                assert found["segmentation"]["size"] == [photo_size[1], photo_size[0]]
                assert int(coco.area(found["segmentation"])) == found["area"]
    elif kind == "cutouts":
        with zipfile.ZipFile(io.BytesIO(answer.body)) as archive:
            assert archive.testzip() is None
            assert sum(name.endswith(".png") for name in archive.namelist()) <= count
    else:
        with Image.open(io.BytesIO(answer.body)) as picture:
            assert picture.size == (photo_size if kind == "ids" else picture_size)
            if picture.size[0] * picture.size[1] < 13e6:
                picture.load()
            if kind == "ids" and photo_size[0] < 5000:
                assert int(np.asarray(picture).max()) <= count


def soak(server: Server, group: cgroup.Group, count: int, largest: tuple[int, int]) -> None:
    """Send `count` requests, the first ones alone, the others many at once."""
    files = dict(photos(largest))
    good = list(files)
    broken = {name: body for name, body in worst.files() if name.startswith(("lies/", "cut off/6", "damaged/1"))}
    files |= broken
    mixed = asks(count, good, list(broken))
    alone: dict[Ask, Answer] = {}
    statuses: Counter[int] = Counter()

    def send(ask: Ask) -> Answer:
        try:
            response = server.segment(files[ask.photo], **dict(ask.options))
        except requests.ConnectionError as error:
            return Answer(0, {}, f"{error}; {group.kills()} processes killed".encode())
        return Answer(response.status_code, response.headers, response.content)

    def expected(ask: Ask) -> Answer:
        if ask not in alone:
            alone[ask] = send(ask)
            check(alone[ask], ask)
        return alone[ask]

    for ask in mixed[:FIRST]:
        statuses[expected(ask).status] += 1
    resident = settled(server, files["usual.jpg"]).rss
    with ThreadPoolExecutor(AT_ONCE) as crowd:
        answers = list(crowd.map(send, mixed[FIRST:]))
    afterwards = settled(server, files["usual.jpg"])
    for ask, answer in zip(mixed[FIRST:], answers, strict=True):
        statuses[answer.status] += 1
        check(answer, ask)
    print(
        f"{dict(statuses)}; RSS {resident / MIB:.0f} MiB after {FIRST} requests, {afterwards.rss / MIB:.0f} MiB at the"
    )
    print(f"end, of which {afterwards.held / MIB:.0f} MiB held; {group.kills()} processes killed")
    assert group.kills() == 0
    assert requests.get(server.url + "/ready", timeout=30).ok
    assert statuses[200] > count / 3, "most photos can be segmented"
    assert afterwards.rss <= 1.1 * resident, "memory leaks"
    for ask, answer in zip(mixed[FIRST:], answers, strict=True):
        if answer.status != 503:
            alike = expected(ask)
            assert (answer.status, answer.body) == (alike.status, alike.body), f"{ask} answers otherwise alone"


def settled(server: Server, photo: bytes) -> serving.Usage:
    """Memory after a request that is always the same: what the network keeps for the next run depends on the last."""
    assert server.segment(photo, format="json").status_code == 200
    return server.usage()


def warmed(model: Path, folder: Path) -> dict[str, str]:
    """Settings of a service with this model whose compiled form is in the cache, as the image has it."""
    settings = {"SEGMENT_MODEL": str(model), "SEGMENT_CACHE": str(folder / "cache")}
    (folder / "cache").mkdir()
    command = [sys.executable, "-m", "segment", "warm"]
    subprocess.run(command, cwd=ROOT, env=os.environ | settings, check=True, stdout=subprocess.DEVNULL, timeout=300)
    return settings


def test_demo_model_in_a_small_container(tmp_path: Path) -> None:
    with cgroup.group(256 * MIB) as group, serving.serving(warmed(EMBEDDED, tmp_path), group) as server:
        soak(server, group, 48, (4000, 3000))


@pytest.mark.slow
def test_full_size_model_in_512_mib(tmp_path: Path) -> None:
    model = models.full_size("int8", Path(os.environ.get("BENCH_MODELS", tmp_path)))
    with cgroup.group(512 * MIB) as group, serving.serving(warmed(model, tmp_path), group) as server:
        soak(server, group, 500, (10_000, 10_000))
