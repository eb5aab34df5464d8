"""Uploads of photos and noise of many sizes with curl, requests and httpx.

A newline near the end of a chunk once made the multipart parser count a file as a long text field. Noise has a newline
in 256 bytes on average.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import requests
from flask import Request
from PIL import Image
from werkzeug.test import EnvironBuilder

from devtools.server import Server, serve
from segment.errors import RequestError, TooLarge
from segment.web import upload

KIB, MIB = 1 << 10, 1 << 20
SIZES = [KIB, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 100_000, 200_000, 333_333, MIB, 3 * MIB, 12 * MIB]
Answer = tuple[int, str]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server with room for the largest body."""
    with serve(SEGMENT_MEMORY="2Gi") as started:
        yield started


def with_curl(url: str, path: Path) -> Answer:
    """The response to the first curl command of the README."""
    if not shutil.which("curl"):
        pytest.skip("needs curl")
    command = ["curl", "-sS", "-F", f"file=@{path}", "-w", "\n%{http_code}", f"{url}/segment?format=json"]
    body, _, status = subprocess.run(command, capture_output=True, text=True, check=True).stdout.rpartition("\n")
    return int(status), body


def with_requests(url: str, path: Path) -> Answer:
    """The response to requests."""
    with path.open("rb") as file:
        response = requests.post(f"{url}/segment?format=json", files={"file": file}, timeout=60)
    return response.status_code, response.text


def with_httpx(url: str, path: Path) -> Answer:
    """The response to httpx, which splits multipart bodies differently."""
    with path.open("rb") as file:
        response = httpx.post(f"{url}/segment", files={"file": file}, data={"format": "json"}, timeout=60)
    return response.status_code, response.text


CLIENTS = [with_curl, with_requests, with_httpx]


@pytest.mark.parametrize("send", CLIENTS)
def test_noise_of_any_size_reaches_the_decoder(
    send: Callable[[str, Path], Answer], server: Server, tmp_path: Path
) -> None:
    for seed, size in enumerate(SIZES):
        path = tmp_path / "noise.jpg"
        path.write_bytes(np.random.default_rng(seed).bytes(size))
        status, body = send(server.url, path)
        assert (status, json.loads(body)["title"]) == (415, "Unsupported image"), f"{size} bytes: {body[:200]}"


@pytest.mark.parametrize("send", CLIENTS)
@pytest.mark.parametrize("side", [100, 400, 900, 1600])
def test_photos_are_segmented(send: Callable[[str, Path], Answer], side: int, server: Server, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    noise = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(noise).save(path, quality=95)
    status, body = send(server.url, path)
    assert status == 200, body[:200]
    assert json.loads(body)["image"]["width"] == side


def test_a_long_text_field_is_refused_by_name(server: Server) -> None:
    photo = io.BytesIO()
    Image.new("RGB", (32, 32)).save(photo, "JPEG")
    for size in (70_000, 300_000):
        files = {"file": photo.getvalue()}
        answer = requests.post(server.url + "/segment", files=files, data={"classes": "x" * size}, timeout=60)
        assert answer.status_code == 413
        assert "65,536 bytes" in answer.json()["detail"]


def test_a_form_of_many_parts_is_refused(server: Server) -> None:
    fields = [("classes", "cat")] * 150
    answer = requests.post(server.url + "/segment", files={"file": b"x"}, data=fields, timeout=60)
    assert answer.status_code == 413
    assert "100 parts" in answer.json()["detail"]


def form(head: bytes, after: bytes = b"") -> bytes:
    """A multipart form with a file of 4 bytes, and `head` in the headers of its part."""
    part = b'--edge\r\nContent-Disposition: form-data; name="file"; ' + head + b"\r\n\r\ndata\r\n--edge--\r\n"
    return part + after


def read(body: bytes, boundary: str = "edge") -> upload.Upload:
    """Parse `body` as a multipart form."""
    request = Request(
        EnvironBuilder(method="POST", data=body, content_type=f"multipart/form-data; boundary={boundary}").get_environ()
    )
    return upload.read(request, 1 << 24, lambda count: None, lambda count: None)


@pytest.mark.parametrize("name", ["Müller.jpg".encode("latin-1"), "写真.jpg".encode("cp932")], ids=["latin-1", "cp932"])
def test_names_of_files_may_have_any_encoding(name: bytes) -> None:
    assert read(form(b'filename="' + name + b'"')).photo == b"data"


def test_what_follows_the_last_part_is_ignored() -> None:
    assert read(form(b"filename=a.jpg", after=b"\r\n--edge\r\n" * 300_000)).photo == b"data"


def test_a_form_without_its_boundary_is_refused() -> None:
    for body in (form(b"filename=a.jpg"), bytes(200_000)):
        with pytest.raises(RequestError, match="does not begin with its boundary, 'wrong'"):
            read(body, "wrong")
    with pytest.raises(TooLarge, match="headers of a part"):
        read(form(b"filename=" + b"a" * 200_000))


def test_json_of_many_keys_is_read_in_linear_time(server: Server) -> None:
    """In CPU time, which other processes do not change, and after the model is loaded."""
    assert requests.get(server.url + "/ready", timeout=60).ok
    body = {f"key{i}": 1 for i in range(8000)}
    before = server.cpu_seconds()
    answer = requests.post(server.url + "/segment", json=body, timeout=60)
    assert answer.status_code == 400
    assert server.cpu_seconds() - before < 0.5


@pytest.mark.parametrize(
    "value",
    [
        [[]] * 20_000,
        [{}] * 20_000,
        [{f"key{i}": 1} for i in range(20_000)],
        {f"key{i}": 1 for i in range(20_000)},
        [300 + i for i in range(20_000)],
        [str(i) for i in range(20_000)],
        ["é" * 100_000 + "\U0001f600"],
    ],
    ids=["lists", "objects", "keys", "one-object", "numbers", "strings", "wide"],
)
def test_a_json_object_takes_no_more_memory_than_is_reserved(value: object) -> None:
    """Memory is reserved before the body is parsed, based on its bytes only."""
    body = json.dumps({"tasks": value}, separators=(",", ":"), ensure_ascii=False).encode()
    request = Request(EnvironBuilder(method="POST", data=body, content_type="application/json").get_environ())
    reserved: list[int] = []
    tracemalloc.start()
    upload.read_object(request, 1 << 24, lambda count: None, reserved.append)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < sum(reserved) + 2 * len(body) + 100_000, "2 bodies: as received and as joined"


@pytest.mark.parametrize("start", ["", "data:image/jpeg;base64,"], ids=["base64", "data-url"])
@pytest.mark.parametrize("line", [10**9, 76, 2, 1])
def test_a_photo_in_base64_takes_no_more_memory_than_is_reserved(start: str, line: int) -> None:
    """Also if it is divided into many short lines, each of which would take 50 bytes as a string."""
    encoded = base64.b64encode(bytes(300_000)).decode()
    lines = "\n".join(encoded[at : at + line] for at in range(0, len(encoded), line))
    body = json.dumps({"image": start + lines}).encode()
    request = Request(EnvironBuilder(method="POST", data=body, content_type="application/json").get_environ())
    reserved: list[int] = []
    tracemalloc.start()
    assert upload.read(request, 1 << 24, lambda count: None, reserved.append).photo == bytes(300_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < sum(reserved) + 2 * len(body) + 100_000, "2 bodies: as received and as joined"
