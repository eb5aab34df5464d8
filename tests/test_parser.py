"""Tests of HTTP/1.1 (RFC 9110 and 9112) over TCP, against the server process."""

from __future__ import annotations

import json
import re
import socket
import time
from urllib.parse import urlsplit

import pytest

from devtools.server import Server

GET = b"GET /health HTTP/1.1\r\nHost: a\r\n"
POST = b"POST /segment?format=json HTTP/1.1\r\nHost: a\r\nContent-Type: image/jpeg\r\n"
CLOSE = b"Connection: close\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def exchange(server: Server, *pieces: bytes) -> bytes:
    """Send the pieces, one after the other; returns what is received until the server closes the connection."""
    received = b""
    with socket.create_connection(("127.0.0.1", urlsplit(server.url).port or 80), timeout=60) as connection:
        for number, piece in enumerate(pieces):
            time.sleep(0.1 * bool(number))
            connection.sendall(piece)
        while data := connection.recv(65536):
            received += data
    return received


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


def with_length(body: bytes, *headers: bytes) -> bytes:
    return POST + b"".join(headers) + b"Content-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize(
    ("request_", "status", "detail"),
    [
        (b"GET http HTTP/1.1\r\nHost: a\r\n\r\n", 400, "neither a path"),
        (b"GET * HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "The header Host"),
        (b"GET / HTTP/1.1\r\nHost: user@a\r\n\r\n", 400, "The header Host"),
        (b"GET / HTTP/1.1\r\nHost: a:port\r\n\r\n", 400, "The header Host"),
        (GET + GET + b"\r\n", 400, "illegal header line"),
        (GET + b"Host: a\r\n\r\n", 400, "multiple Host"),
        (GET + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "conflicting"),
        (GET + b"Content-Length: 5\r\n" + CHUNKED + b"\r\n0\r\n\r\n", 400, "both Content-Length and Transfer-Encoding"),
        (GET + b"X : y\r\n\r\n", 400, "illegal header line: ('X : y')"),
        (b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"a" * 17_000), 414, "16,384 bytes"),
        (b"GET /?%b HTTP/1.1\r\nHost: a\r\n" % (b"a" * 17_000), 414, "16,384 bytes"),
        (GET + b"X: %b\r\n\r\n" % (b"a" * 16_380), 431, "16,384 bytes"),
        (b"get /health HTTP/1.1\r\nHost: a\r\n\r\n", 501, "The method get is unknown."),
        (GET + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501, "chunked is supported"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "Use HTTP/1.1."),
    ],
)
def test_malformed_requests_are_refused_and_the_connection_is_closed(
    server: Server, request_: bytes, status: int, detail: str
) -> None:
    head, _, body = exchange(server, request_).partition(b"\r\n\r\n")
    assert statuses(head) == [status]
    assert detail in json.loads(body)["detail"]
    names = {line.partition(b":")[0].lower() for line in head.split(b"\r\n")}
    assert names >= {b"date", b"cache-control", b"x-content-type-options", b"connection"}


@pytest.mark.parametrize(
    "request_",
    [
        b"\r\n\r\n" + GET + CLOSE,
        GET.replace(b"Host: a", b"Host:") + CLOSE,
        GET.replace(b"Host: a", b"Host: [::1]:8080") + CLOSE,
        GET.replace(b"Host: a", b"Host: my_service.example.:80") + CLOSE,
        GET.replace(b"GET /", b"GET HTTP://a:80/") + CLOSE,
        GET.replace(b"\r\n", b"\n") + CLOSE.replace(b"\r\n", b"\n"),
        GET + b"X: folded\r\n  line\r\n" + CLOSE,
        GET + b"Connection: keep-alive, Close\r\n\r\n",
        GET + b"Connection: upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n",
        GET + b"Connection: upgrade, http2-settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
        GET + b"Content-Length: 3\r\n\r\nabc",
        b"GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    ],
)
def test_unusual_requests_are_answered(server: Server, request_: bytes) -> None:
    received = exchange(server, request_)
    assert statuses(received) == [200]
    assert received.endswith(b'\r\n\r\n{"status": "alive"}')


def test_options_of_the_whole_server(server: Server) -> None:
    assert statuses(exchange(server, b"OPTIONS * HTTP/1.1\r\nHost: a\r\n" + CLOSE)) == [204]


def test_unusual_bodies_are_received(server: Server, photo: bytes) -> None:
    """With a Content-Length that is repeated; and in chunks with extensions, zeros before their size, and trailers."""
    repeated = with_length(photo, b"Content-Length: %d\r\n" % len(photo))
    chunk = b'000%X;a="b";c\r\n%b\r\n00;d\r\nContent-Length: 3\r\nX: y\r\n\r\n' % (len(photo), photo)
    chunked = POST + CHUNKED + b"\r\n" + chunk
    assert statuses(exchange(server, repeated + chunked + GET + CLOSE)) == [200, 200, 200]


def test_empty_lines_between_requests(server: Server, photo: bytes) -> None:
    assert statuses(exchange(server, with_length(photo) + b"\r\n", b"\r\n", b"\n" + GET + CLOSE)) == [200, 200]


class TestHead:
    def test_a_response_has_no_body(self, server: Server) -> None:
        head = b"HEAD /model HTTP/1.1\r\nHost: a\r\n"
        received = exchange(server, head + b"\r\n" + head.replace(b"model", b"nothing") + CLOSE)
        assert statuses(received) == [200, 404]
        assert received.count(b"\r\n\r\n") == 2
        assert received.endswith(b"\r\n\r\n")

    @pytest.mark.parametrize("rest", [b"Content-Length: 1\r\n\r\n", b"\r\n" + b"1\r\nx\r\n" * 100_000])
    def test_nor_has_one_to_a_malformed_request(self, server: Server, rest: bytes) -> None:
        """Of a head, and of a body in tiny chunks."""
        received = exchange(server, b"HEAD /segment HTTP/1.1\r\nHost: a\r\n" + CHUNKED + rest)
        assert statuses(received) == [400]
        assert received.endswith(b"\r\n\r\n")


class TestExpect:
    """Expect: 100-continue (RFC 9110, 10.1.1)."""

    EXPECT = b"Expect: 100-continue\r\nConnection: close\r\n"

    def test_a_client_is_asked_for_the_body(self, server: Server, photo: bytes) -> None:
        request = with_length(photo, self.EXPECT)
        assert statuses(exchange(server, request[: -len(photo)], photo)) == [100, 200]

    def test_a_client_of_http_1_0_is_not(self, server: Server, photo: bytes) -> None:
        request = with_length(photo, self.EXPECT).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
        assert statuses(exchange(server, request)) == [200]

    def test_a_body_that_was_not_asked_for_is_discarded(self, server: Server, photo: bytes) -> None:
        """If the connection were closed at once, the client would see a broken connection."""
        request = with_length(photo, self.EXPECT).replace(b"/segment", b"/nothing")
        assert statuses(exchange(server, request[: -len(photo)], photo)) == [404]

    def test_a_body_that_becomes_too_large_is_discarded(self, server: Server) -> None:
        """The client was asked for it."""
        chunk = b"10000\r\n%b\r\n" % bytes(1 << 16)
        head = POST + self.EXPECT + CHUNKED + b"\r\n"
        assert statuses(exchange(server, head, *[chunk * 9] * 8, b"0\r\n\r\n")) == [100, 413]
