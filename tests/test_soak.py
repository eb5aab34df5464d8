"""Many concurrent random requests to a server in a memory cgroup: each gets a correct result or a documented error.

The full run sends 500 requests to a full-size Mask R-CNN R50-FPN in int8 within 512 MiB (slow). A run with another kind
of model file is slow too; a short run with the demo model is in every test run. Requests are chosen with a fixed seed:
photos from 64 x 64 pixels to 100 megapixels and files with false headers, every format of the response, sent as bodies,
forms and URLs. Meanwhile hostile clients send slowly, announce bodies that they do not send, and do not read responses.
Each response must be 503 or equal, byte for byte, to the response to the same request sent alone.
"""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

import numpy as np
import pytest
import requests
from PIL import Image
from pycocotools import mask as coco

from benchmarks import cgroup, models, serving
from benchmarks.serving import Server
from devtools.server import ROOT
from segment.model import EMBEDDED
from tests import onnxfiles, worst
from training.shapes import scene

MIB = 1 << 20
AT_ONCE = 16
ATTACKERS = 30
FIRST = 20
FORMATS = ("png", "jpeg", "webp", "json", "ids", "cutouts")
REFUSALS = {400, 413, 415, 422, 503}

pytestmark = pytest.mark.skipif(bool(cgroup.missing()), reason=cgroup.missing())


@dataclass(frozen=True)
class Ask:
    """One request: a photo by name, options, and how it is sent."""

    photo: str
    options: tuple[tuple[str, str], ...]
    sent: Literal["body", "form", "URL"] = "body"


@dataclass(frozen=True)
class Answer:
    """A response, or status 0 if the connection failed."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def photos(largest: tuple[int, int]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of photos of various sizes and formats."""

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
    """Requests in an order with a fixed seed, with every photo and every format among them."""
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
        mixed.append(Ask(name, tuple(options), ("body", "form", "URL")[number % 13 % 3]))
    dice.shuffle(mixed)
    return mixed


def check(answer: Answer, ask: Ask) -> None:
    """Assert that a response is consistent in itself, or an error with an explanation."""
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


@contextlib.contextmanager
def album(files: Mapping[str, bytes]) -> Iterator[str]:
    """The URL of a local web server with these files."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(files[unquote(self.path[1:])])

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}/"
        web.shutdown()


ATTACKS = (
    b"POST /segm",
    b"POST /segment HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n\xff\xd8",
    b"POST /segment HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000\r\n\xff\xd8",
    b"GET /segment?url=" + b"a" * (1 << 20),
    b"GET /docs HTTP/1.1\r\nHost: a\r\n\r\n" * 500,
    b"GET / HTTP/1.1\r\n" + b"X-Long: a\r\n" * 50_000,
)
"""Headers and bodies that never end, and requests whose responses are not read."""


@contextlib.contextmanager
def attackers(server: Server, count: int, attacks: Sequence[bytes] = ATTACKS) -> Iterator[None]:
    """Run hostile clients: each sends one of `attacks`, then a byte per second, and reconnects when it is closed."""
    over = threading.Event()

    def attack(number: int) -> None:
        while not over.is_set():
            with contextlib.suppress(OSError), socket.socket() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.settimeout(5)
                connection.connect(("127.0.0.1", urlsplit(server.url).port or 80))
                connection.sendall(attacks[number % len(attacks)])
                while not over.wait(1):
                    connection.sendall(b"\xff")
            over.wait(0.2)

    with ThreadPoolExecutor(count) as crowd:
        for number in range(count):
            crowd.submit(attack, number)
        try:
            yield
        finally:
            over.set()


def soak(server: Server, group: cgroup.Group, count: int, largest: tuple[int, int], first: int = FIRST) -> None:
    """Send `count` requests: the first `first` one at a time, the others concurrently."""
    files = dict(photos(largest))
    good = list(files)
    broken = {name: body for name, body in worst.files() if name.startswith(("lies/", "cut off/6", "damaged/1"))}
    files |= broken
    with album(files) as photo_url:
        crowded(server, group, asks(count, good, list(broken)), files, photo_url, first)


def crowded(
    server: Server, group: cgroup.Group, mixed: list[Ask], files: Mapping[str, bytes], photo_url: str, first: int
) -> None:
    """Send these requests and compare each response with that to the same request sent alone."""
    alone: dict[Ask, Answer] = {}
    statuses: Counter[int] = Counter()

    def post(ask: Ask) -> requests.Response:
        url, options = f"{server.url}/segment", dict(ask.options)
        if ask.sent == "URL":
            return requests.post(url, json={"url": photo_url + quote(ask.photo), **options}, timeout=300)
        if ask.sent == "form":
            return requests.post(url, files={"file": files[ask.photo]}, data=options, timeout=300)
        return server.segment(files[ask.photo], **options)

    def send(ask: Ask) -> Answer:
        try:
            response = post(ask)
        except requests.ConnectionError as error:
            return Answer(0, {}, f"{error}; {group.kills()} processes killed".encode())
        return Answer(response.status_code, response.headers, response.content)

    def expected(ask: Ask) -> Answer:
        if ask not in alone:
            alone[ask] = send(ask)
            check(alone[ask], ask)
        return alone[ask]

    for ask in mixed[:first]:
        statuses[expected(ask).status] += 1
    resident = settled(server, files["usual.jpg"]).rss
    with attackers(server, ATTACKERS), ThreadPoolExecutor(AT_ONCE) as crowd:
        answers = list(crowd.map(send, mixed[first:]))
    afterwards = settled(server, files["usual.jpg"])
    for ask, answer in zip(mixed[first:], answers, strict=True):
        statuses[answer.status] += 1
        check(answer, ask)
    print(
        f"{dict(statuses)}; RSS {resident / MIB:.0f} MiB after {first} requests, {afterwards.rss / MIB:.0f} MiB at the"
    )
    print(f"end, of which {afterwards.held / MIB:.0f} MiB held; {group.kills()} processes killed")
    assert group.kills() == 0
    assert requests.get(server.url + "/ready", timeout=60).ok
    assert statuses[200] > len(mixed) / 3, "more than a third of the photos must be segmented"
    assert afterwards.rss <= 1.1 * resident, "memory leaks"
    for ask, answer in zip(mixed[first:], answers, strict=True):
        if answer.status != 503:
            alike = expected(ask)
            assert (answer.status, answer.body) == (alike.status, alike.body), f"{ask} differs when sent alone"


def settled(server: Server, photo: bytes) -> serving.Usage:
    """Memory usage after a fixed request, since the network keeps buffers whose size depends on the last request."""
    assert server.segment(photo, format="json").status_code == 200
    return server.usage()


def warmed(model: Path, folder: Path) -> dict[str, str]:
    """Settings of a service with this model, compiled into the cache as in the container image."""
    settings = {
        "SEGMENT_MODEL": str(model),
        "SEGMENT_CACHE": str(folder / "cache"),
        "SEGMENT_FETCH_PRIVATE": "true",
    }
    (folder / "cache").mkdir()
    command = [sys.executable, "-m", "segment", "warm"]
    subprocess.run(command, cwd=ROOT, env=os.environ | settings, check=True, stdout=subprocess.DEVNULL, timeout=300)
    return settings


@pytest.mark.parametrize(
    ("count", "first"),
    [
        (25, 9),  # the fewest with every photo, and as many concurrent ones as there are clients
        pytest.param(36, 14, marks=pytest.mark.slow),
    ],
)
def test_demo_model_in_a_small_container(tmp_path: Path, count: int, first: int) -> None:
    with cgroup.group(256 * MIB) as group, serving.serving(warmed(EMBEDDED, tmp_path), group) as server:
        soak(server, group, count, (4000, 3000), first)


FLOODS = (
    b"POST /segment HTTP/1.1\r\nHost: a\r\nContent-Length: 8000000\r\n\r\n" + bytes(7_999_000),
    b"POST /segment HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    + (b"10000\r\n" + bytes(1 << 16) + b"\r\n") * 120,
    b"GET /docs HTTP/1.1\r\nHost: a\r\n\r\n" * 500,
)


@pytest.mark.slow
@pytest.mark.parametrize("data", FLOODS, ids=["body", "chunks", "pipeline"])
def test_memory_of_390_flooding_clients(data: bytes, tmp_path: Path) -> None:
    """What connections take beside the memory reserved for bodies is within the margin of a small instance."""
    with cgroup.group(512 * MIB) as group, serving.serving(warmed(EMBEDDED, tmp_path), group) as server:
        assert server.segment(dict(photos((64, 64)))["usual.jpg"]).ok  # the bodies leave no memory for others
        held, kernel = group.held(), group.kernel()
        received = 0.1 * requests.get(server.url + "/model", timeout=60).json()["memory_free"] / 0.9
        with serving.peak(group.held) as most, serving.peak(group.kernel) as kernels, attackers(server, 390, (data,)):
            time.sleep(8)
        taken = max(0.0, most[0] - held - received)
        print(f"{taken / MIB:.1f} MiB in the process, {(kernels[0] - kernel) / MIB:.1f} MiB in the kernel")
        assert group.kills() == 0
        assert taken + kernels[0] - kernel < 32 * MIB
        assert requests.get(server.url + "/health", timeout=60).ok


@pytest.mark.slow
def test_masks_of_the_whole_input_in_512_mib(tmp_path: Path) -> None:
    """torchvision's masks are as large as the input, so 100 of them do not fit into memory at once."""
    corner = np.stack(np.meshgrid(np.arange(10), np.arange(10)), -1).reshape(-1, 2).astype(np.float32) * 30
    boxes = np.concatenate([corner, corner + 90], axis=1)
    labels, scores = np.ones(len(boxes), np.int64), np.linspace(0.9, 0.6, len(boxes), dtype=np.float32)
    model = onnxfiles.torchvision(tmp_path / "torchvision.onnx", boxes, labels, scores, None)
    with cgroup.group(512 * MIB) as group, serving.serving(warmed(model, tmp_path), group) as server:
        soak(server, group, 96, (4000, 3000), first=48)


@pytest.mark.slow
def test_full_size_model_in_512_mib(tmp_path: Path) -> None:
    model = models.full_size("int8", Path(os.environ.get("BENCH_MODELS", tmp_path)))
    with cgroup.group(512 * MIB) as group, serving.serving(warmed(model, tmp_path), group) as server:
        soak(server, group, 500, (10_000, 10_000))
