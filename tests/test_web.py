"""Tests of the HTTP API with requests to a running server process."""

from __future__ import annotations

import base64
import gzip
import http.client
import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from PIL import Image

from devtools.server import Server, serve
from segment.web.problems import problems
from tests import mirror

JPEG = {"Content-Type": "image/jpeg"}
DOCUMENTED = {title for _, title, _ in problems()}
"""The titles of the problems that have a section in /docs."""


def post(server: Server, query: str = "", **arguments: Any) -> requests.Response:
    return requests.post(f"{server.url}/segment{query}", timeout=60, **arguments)


def check_problem(response: requests.Response, status: int, *words: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert document["status"] == status
    section = f"/docs#{document['title'].lower().replace(' ', '-')}"
    assert document["type"] == (section if document["title"] in DOCUMENTED else "about:blank")
    for word in words:
        assert word in document["detail"]
    return document


@pytest.fixture(scope="module")
def default() -> Iterator[Server]:
    """A server with default limits. Pages of two origins may use it."""
    with serve(SEGMENT_CORS_ORIGINS="https://a.example,https://b.example") as running:
        yield running


@pytest.fixture(scope="module")
def album(photo: bytes) -> Iterator[str]:
    """The URL of a photo on a local web server."""
    with mirror.run() as web:
        web.files["/photo.jpg"] = photo
        yield web.url + "photo.jpg"


class TestPhotos:
    def test_every_way_of_sending_gives_the_same(self, server: Server, photo: bytes, album: str) -> None:
        encoded = base64.b64encode(photo).decode()
        answers = [
            post(server, files={"file": ("photo.jpg", photo)}),
            post(server, files={"file": (None, photo, "application/octet-stream")}),
            post(server, data=photo, headers=JPEG),
            post(server, data=photo, headers={"Content-Type": "application/x-www-form-urlencoded"}),
            post(server, data=photo),
            post(server, data=(photo[at : at + 5000] for at in range(0, len(photo), 5000))),
            post(server, json={"image": encoded}),
            post(server, json={"image": base64.urlsafe_b64encode(photo).decode()}),
            post(server, json={"image": "data:image/jpeg;base64," + encoded}),
            post(server, json={"url": album}),
            post(server, data={"url": album}),
            post(server, "?url=" + album),
            requests.get(f"{server.url}/segment", {"url": album}, timeout=60),
            requests.get(f"{server.url}/detect", {"url": album}, timeout=60),
        ]
        assert [a.status_code for a in answers] == [200] * len(answers), [a.text[:200] for a in answers if not a.ok]
        assert len({a.content for a in answers}) == 1
        assert Image.open(io.BytesIO(answers[0].content)).size == (320, 240)
        assert "fetch;dur=" in answers[-1].headers["Server-Timing"]

    def test_headers_of_a_result(self, server: Server, photo: bytes) -> None:
        headers = post(server, "?render_factor=16", data=photo, headers=JPEG).headers
        assert int(headers["Segment-Instances"]) > 0
        assert (headers["Segment-Photo-Size"], headers["Segment-Picture-Size"]) == ("320x240", "320x240")
        width, height = map(int, headers["Segment-Network-Size"].split("x"))
        assert 0 < width * height <= (16 * 16) ** 2
        assert (headers["Segment-Render-Factor"], headers["Segment-Detail"]) == ("16", "1")
        assert "network;dur=" in headers["Server-Timing"]
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"

    def test_options_from_a_form_and_from_json(self, server: Server, photo: bytes) -> None:
        form = post(server, files={"file": photo}, data={"format": "json", "max_detections": "1"}).json()
        body = {"image": base64.b64encode(photo).decode(), "format": "json", "max_detections": 1, "masks": False}
        assert len(form["annotations"]) == len(post(server, json=body).json()["annotations"]) == 1
        some = post(server, json={**body, "classes": ["ring"], "max_detections": 9}).json()["annotations"]
        assert {a["category_name"] for a in some} == {"ring"}

    @pytest.mark.parametrize(
        ("accept", "kind"),
        [
            ("*/*", "image/png"),
            ("image/*", "image/png"),
            ("image/jpeg", "image/jpeg"),
            ("application/json, image/png;q=0.5", "application/json"),
            ("text/html,application/xhtml+xml,image/avif,image/webp,*/*;q=0.8", "image/webp"),
            ("application/zip", "application/zip"),
            ("*", "image/png"),
            ("text/html, image/gif, *; q=.2, */*; q=.2", "image/png"),
            ("text/html, image/jpeg;q=.1, image/webp;q=.5", "image/webp"),
            ("nonsense", "image/png"),
        ],
    )
    def test_accept_decides_the_format(self, server: Server, photo: bytes, accept: str, kind: str) -> None:
        response = post(server, data=photo, headers={**JPEG, "Accept": accept})
        assert response.headers["Content-Type"] == kind
        assert "Accept" in response.headers["Vary"]

    def test_format_overrules_accept(self, server: Server, photo: bytes) -> None:
        response = post(server, "?format=cutouts", data=photo, headers={**JPEG, "Accept": "image/png"})
        assert zipfile.ZipFile(io.BytesIO(response.content)).namelist()
        assert response.headers["Content-Disposition"] == 'attachment; filename="cutouts.zip"'

    def test_a_large_answer_is_streamed(self, default: Server) -> None:
        """Cloud Run limits responses that are not streamed to 32 MiB."""
        noise = Image.effect_noise((3000, 3200), 200)
        buffer = io.BytesIO()
        Image.merge("RGB", [noise, noise.rotate(180), noise.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]).save(
            buffer, "JPEG", quality=95
        )
        response = post(default, "?min_score=1", data=buffer.getvalue(), headers=JPEG)
        assert response.headers["Transfer-Encoding"] == "chunked"
        assert len(response.content) > 24 << 20
        assert Image.open(io.BytesIO(response.content)).size == (3000, 3200)


class TestRefusals:
    def test_an_accept_header_without_a_supported_type(self, server: Server, photo: bytes) -> None:
        check_problem(post(server, data=photo, headers={**JPEG, "Accept": "text/html"}), 406, "image/png")

    @pytest.mark.parametrize(
        ("query", "option", "words"),
        [
            ("?fit=wide", "fit", "'wide'"),
            ("?render_factor=3", "render_factor", "from 4 to 256"),
            ("?min_score=nan", "min_score", "from 0 to 1"),
            ("?min_score=", "min_score", "''"),
            ("?colour=red", "colour", "Unknown option 'colour'"),
            ("?fit=square&fit=square", "fit", "twice"),
            ("?classes=unicorn", "classes", "unicorn"),
            ("?max_detections=0", "max_detections", "from 1"),
        ],
    )
    def test_options(self, server: Server, photo: bytes, query: str, option: str, words: str) -> None:
        problem = check_problem(post(server, query, data=photo, headers=JPEG), 400, words)
        assert (problem["title"], problem["option"]) == ("Bad option", option)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({}, "The request contains no photo"),
            ({"data": b"", "headers": JPEG}, "empty"),
            ({"data": "", "headers": {"Content-Type": "application/json"}}, "multipart/form-data"),
            ({"data": "{", "headers": {"Content-Type": "application/json"}}, "not valid JSON"),
            ({"data": "[" * 900, "headers": {"Content-Type": "application/json"}}, "not valid JSON"),
            ({"data": "[" * 100_000, "headers": {"Content-Type": "application/json"}}, "more than 1000 values"),
            ({"json": [1]}, "must be an object"),
            ({"json": {"image": "@@@"}}, "not valid base64"),
            ({"json": {"image": "data:image/png,abc"}}, "data URL that is not base64"),
            ({"json": {"image": 5}}, "must be a string"),
            ({"json": {"image": "AAAA", "url": "http://a.example/"}}, "both a photo and a url"),
            ({"json": {"image": "AAAA", "fit": None}}, "fit must be"),
            ({"json": {"url": ""}}, "empty"),
            ({"data": '{"url": "a", "url": "b"}', "headers": {"Content-Type": "application/json"}}, "twice"),
            ({"files": {"picture": b"x"}}, "'picture'"),
            ({"files": [("file", b"x"), ("file", b"y")]}, "several"),
            ({"data": {"file": "x"}, "files": {"other": b""}}, "is a text field"),
            ({"data": b"--x", "headers": {"Content-Type": "multipart/form-data"}}, "malformed"),
            ({"json": {"url": "ftp://example.com/a.jpg"}}, "http or https"),
            ({"json": {"url": "http://user:secret@example.com/"}}, "user name"),
        ],
    )
    def test_requests(self, server: Server, arguments: dict[str, Any], words: str) -> None:
        check_problem(post(server, **arguments), 400, words)

    def test_bodies_that_are_not_photos(self, server: Server, photo: bytes) -> None:
        check_problem(post(server, data=b"%PDF-1.7\xff", headers=JPEG), 415)
        check_problem(post(server, data=b"text", headers={"Content-Type": "text/plain"}), 415, "text/plain")
        check_problem(post(server, data=photo[: len(photo) // 2], headers=JPEG), 422)

    def test_a_compressed_body(self, server: Server, photo: bytes) -> None:
        for kind in ("image/jpeg", "application/json"):
            headers = {"Content-Type": kind, "Content-Encoding": "gzip"}
            response = post(server, data=gzip.compress(photo), headers=headers)
            check_problem(response, 415, "gzip", "Send it without compression.")

    def test_a_url_that_fails(self, server: Server, album: str) -> None:
        check_problem(post(server, json={"url": album + ".gone"}), 502, "404")

    def test_too_large(self, server: Server, photo: bytes) -> None:
        huge = photo + bytes(3 << 20)
        check_problem(post(server, data=huge, headers=JPEG), 413, "2,097,152")
        chunks = (huge[at : at + 65536] for at in range(0, len(huge), 65536))
        check_problem(post(server, data=chunks, headers=JPEG), 413)
        check_problem(post(server, files={"file": huge}), 413)
        check_problem(requests.post(server.url + "/", data=huge, timeout=60), 405)

    def test_private_addresses_are_refused_by_default(self, default: Server, album: str) -> None:
        check_problem(post(default, json={"url": album}), 400, "not have a public address")
        check_problem(post(default, json={"url": "http://169.254.169.254/computeMetadata/v1/"}), 400)

    def test_interrupted_upload_is_refused(self, server: Server, photo: bytes) -> None:
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
        connection.putrequest("POST", "/segment")
        connection.putheader("Content-Type", "image/jpeg")
        connection.putheader("Content-Length", str(len(photo) + 100))
        connection.endheaders(photo)
        assert connection.sock is not None
        connection.sock.shutdown(1)
        assert connection.getresponse().status == 400

    def test_a_malformed_chunk(self, server: Server) -> None:
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
        connection.putrequest("POST", "/segment")
        connection.putheader("Content-Type", "image/jpeg")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders(b"5\r\nhello\r\nno length\r\n")
        assert connection.getresponse().status == 400


class TestTheWeb:
    def test_methods(self, server: Server) -> None:
        response = requests.delete(server.url + "/segment", timeout=60)
        check_problem(response, 405, "DELETE")
        assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD", "POST", "OPTIONS"}
        options = requests.options(server.url + "/segment", timeout=60)
        assert (options.status_code, options.headers["Allow"]) == (204, response.headers["Allow"])
        assert "Access-Control-Allow-Origin" not in options.headers
        check_problem(requests.post(server.url + "/health", timeout=60), 405)

    def test_unknown_path(self, server: Server) -> None:
        check_problem(requests.get(server.url + "/nothing", timeout=60), 404, "/docs")

    @pytest.mark.parametrize("path", ["/", "/page.js", "/page.css", "/icon.svg", "/openapi.json", "/docs", "/model"])
    def test_conditional_and_range_requests(self, server: Server, path: str) -> None:
        url = server.url + path
        whole = requests.get(url, timeout=60)
        tag = whole.headers["ETag"]
        assert whole.headers["Cache-Control"] == "no-cache"
        head = requests.head(url, timeout=60)
        assert (head.headers["Content-Length"], head.content) == (whole.headers["Content-Length"], b"")
        if path != "/model":  # its body contains the last measured speed, so its ETag changes
            again = requests.get(url, headers={"If-None-Match": tag}, timeout=60)
            assert (again.status_code, again.content) == (304, b"")
        part = requests.get(url, headers={"Range": "bytes=2-5"}, timeout=60)
        assert (part.status_code, part.content) == (206, whole.content[2:6])
        assert requests.get(url, headers={"Range": "bytes=9999999-"}, timeout=60).status_code == 416

    @pytest.mark.parametrize("path", ["/", "/page.js", "/page.css", "/openapi.json", "/docs"])
    def test_text_is_sent_with_gzip_to_clients_that_accept_it(self, server: Server, path: str) -> None:
        packed = requests.get(server.url + path, headers={"Accept-Encoding": "gzip"}, timeout=60)
        plain = requests.get(server.url + path, headers={"Accept-Encoding": "identity"}, timeout=60)
        assert "Content-Encoding" not in plain.headers
        assert packed.headers["Content-Encoding"] == "gzip"
        assert packed.content == plain.content
        assert int(packed.headers["Content-Length"]) < 0.6 * len(plain.content)
        assert packed.headers["ETag"] != plain.headers["ETag"]
        for response in (packed, plain):
            assert response.headers["Vary"] == "Accept-Encoding"

    def test_page_policy_allows_only_its_own_resources(self, server: Server) -> None:
        policy = requests.get(server.url, timeout=60).headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy

    def test_cors(self, default: Server, photo: bytes) -> None:
        url = default.url + "/segment"
        asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
        preflight = requests.options(url, headers=asked, timeout=60)
        assert preflight.headers["Access-Control-Allow-Origin"] == "https://a.example"
        assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
        answer = requests.post(url, data=photo, headers={**JPEG, "Origin": "https://b.example"}, timeout=60)
        assert answer.headers["Access-Control-Allow-Origin"] == "https://b.example"
        assert "Segment-Instances" in answer.headers["Access-Control-Expose-Headers"]
        foreign = requests.get(url, headers={"Origin": "https://evil.example"}, timeout=60)
        assert "Access-Control-Allow-Origin" not in foreign.headers
        assert "Origin" in foreign.headers["Vary"]

    def test_model(self, server: Server) -> None:
        model = requests.get(server.url + "/model", timeout=60).json()
        assert model["labels"] == ["circle", "square", "triangle", "star", "ring"]
        assert model["max_upload"] == 2 << 20
        assert model["options"]["render_factor"]["default"] == 25

    def test_errors_contain_no_internal_details(self, server: Server, photo: bytes) -> None:
        texts = [post(server, f"?{name}=%00%ff", data=photo, headers=JPEG).text for name in ("fit", "url", "classes")]
        assert not any("Traceback" in text or "site-packages" in text for text in texts)
        assert all(json.loads(text)["status"] == 400 for text in texts)
