"""Tests of the web server with slow, faulty and hostile clients over TCP, and of the servers of functions-framework."""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
from PIL import Image

from devtools.server import Server, free_port, serve
from segment.__main__ import main
from segment.web.connection import GONE_SECONDS
from segment.web.server import KEEP_ALIVE_SECONDS

JPEG = {"Content-Type": "image/jpeg"}
MIB = 1 << 20
HEAD = b"POST /segment HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"


@contextlib.contextmanager
def with_little_memory() -> Iterator[Server]:
    """A server with little memory. Its time limit for a whole body is longer than those of the tests' clients."""
    settings = {
        "SEGMENT_MEMORY": "256Mi",
        "SEGMENT_WAIT_SECONDS": "20",
        "SEGMENT_RECEIVE_SECONDS": "600",
        "SEGMENT_FETCH_SECONDS": "120",
    }
    with serve(SEGMENT_FETCH_PRIVATE="true", **settings) as started:
        assert requests.get(started.url + "/ready", timeout=60).ok
        yield started


@pytest.fixture(scope="module")
def small() -> Iterator[Server]:
    with with_little_memory() as started:
        yield started


@pytest.fixture
def fresh() -> Iterator[Server]:
    """A server without bodies of earlier clients, and whose bodies are not in the way of later ones.

    TCP does not show that clients are gone while no memory is free. Until then, the server tries again and again to
    receive their bodies.
    """
    with with_little_memory() as started:
        yield started


def connect(server: Server, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", urlsplit(server.url).port or 80), timeout=120)
    connection.sendall(data)
    return connection


def answer(connection: socket.socket) -> bytes:
    """Everything received until the server closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(65536):
            received += data
    return received


def resident(server: Server) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1]) << 10


def answers_within(url: str, seconds: float, attempts: int = 1, session: requests.Session | None = None) -> bool:
    """Whether a GET request is answered in this time, in one of the attempts."""
    for _ in range(attempts):
        start = time.monotonic()
        assert (session or requests).get(url, timeout=60).ok
        if time.monotonic() - start < seconds:
            return True
    return False


def check_alive(server: Server, photo: bytes) -> None:
    """Assert that probes are answered within 1 s and a photo is segmented."""
    assert answers_within(server.url + "/health", 1)
    assert requests.post(server.url + "/segment", data=photo, headers=JPEG, timeout=60).status_code == 200


class TestSlowClients:
    def test_slow_clients_do_not_block_others(self, small: Server, photo: bytes) -> None:
        """40 clients send headers slowly, 40 a body, 40 a refused body. All connections are closed within 20 s."""
        heads = [connect(small, b"POST /segment HTTP/1.1\r\n") for _ in range(40)]
        bodies = [connect(small, HEAD + b"Content-Length: 1000000\r\n\r\n" + photo[:100]) for _ in range(40)]
        refused = [connect(small, HEAD + b"Content-Length: 99000000\r\n\r\n" + photo[:100]) for _ in range(40)]
        over = threading.Event()

        def drip() -> None:
            while not over.wait(0.5):
                for connection in (*heads, *bodies, *refused):
                    with contextlib.suppress(OSError):
                        connection.send(b"x")

        dripping = threading.Thread(target=drip)
        dripping.start()
        start = time.monotonic()
        try:
            for _ in range(3):
                check_alive(small, photo)
                time.sleep(0.5)
            assert all(re.match(rb"HTTP/1.1 408 ", answer(c)) for c in bodies)
            assert all(re.match(rb"HTTP/1.1 413 ", answer(c)) for c in refused)
            assert all(answer(c) == b"" for c in heads)
            assert time.monotonic() - start < 20
            check_alive(small, photo)
        finally:
            over.set()
            dripping.join()

    def test_an_announced_body_that_is_not_sent_reserves_no_memory(self, small: Server, photo: bytes) -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(50):
                stack.enter_context(connect(small, HEAD + b"Content-Length: 6000000\r\n\r\n"))
                stack.enter_context(connect(small, HEAD + b"Transfer-Encoding: chunked\r\n\r\n"))
            check_alive(small, photo)

    def test_bodies_on_all_connections_do_not_keep_others_out(self, small: Server, photo: bytes) -> None:
        """More clients send bodies than the server accepts connections. The oldest are closed."""
        with ThreadPoolExecutor(160) as crowd, contextlib.ExitStack() as stack:
            for _ in range(160):
                connection = stack.enter_context(connect(small, HEAD + b"Content-Length: 6000000\r\n\r\n"))
                connection.settimeout(5)
                crowd.submit(_send, connection, bytes(5_900_000))
            for _ in range(5):
                assert answers_within(small.url + "/health", 5)
                time.sleep(0.2)
            stack.close()
            check_alive(small, photo)

    def test_an_honest_upload_outlives_many_slow_ones(self, fresh: Server, photo: bytes) -> None:
        """More clients than the server accepts connections send a byte of their body, after a photo has begun."""
        body = larger(photo, 1_000_000)
        with contextlib.ExitStack() as stack:
            honest = stack.enter_context(connect(fresh, HEAD + b"Content-Length: %d\r\n\r\n" % len(body)))
            for start in range(0, len(body), 50_000):
                honest.sendall(body[start : start + 50_000])
                for _ in range(10):
                    stack.enter_context(connect(fresh, HEAD + b"Content-Length: 6000000\r\n\r\nx"))
                time.sleep(0.03)
            assert answer(honest)[:12] == b"HTTP/1.1 200"

    def test_slow_bodies_do_not_keep_the_memory_from_others(self, fresh: Server, photo: bytes) -> None:
        """80 clients fill the memory for uploads and go on at 4 KB/s, which is allowed while nobody else waits."""
        room = requests.get(fresh.url + "/model", timeout=60).json()["memory_free"] / 9  # a tenth of all
        slow = [connect(fresh, HEAD + b"Content-Length: 4000000\r\n\r\n") for _ in range(80)]
        over = threading.Event()

        def drip(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                connection.sendall(bytes(int(0.97 * room / 80)))
                while not over.wait(4):
                    connection.sendall(bytes(17 << 10))

        with ThreadPoolExecutor(80) as crowd:
            for connection in slow:
                crowd.submit(drip, connection)
            try:
                time.sleep(2)
                body = larger(photo, int(0.4 * room))
                assert requests.post(fresh.url + "/segment", data=body, headers=JPEG, timeout=60).status_code == 200
            finally:
                over.set()

    def test_slow_urls_do_not_keep_the_memory_from_others(self, small: Server, photo: bytes) -> None:
        """Five URLs fill the memory for uploads and go on at 200 bytes per second."""
        room = requests.get(small.url + "/model", timeout=60).json()["memory_free"] / 9  # a tenth of all
        with ThreadPoolExecutor(5) as crowd, _slow_site(bytes(int(0.19 * room))) as url:
            for _ in range(5):
                crowd.submit(requests.get, small.url + "/segment", {"url": url}, timeout=100)
            time.sleep(1)
            body = larger(photo, int(0.4 * room))
            assert requests.post(small.url + "/segment", data=body, headers=JPEG, timeout=60).status_code == 200

    def test_slow_urls_do_not_keep_the_threads_from_others(self, small: Server, photo: bytes) -> None:
        """As many URLs as the server has threads do not answer. An upload is answered at once, another URL soon."""
        address = small.url + "/segment"
        with ThreadPoolExecutor(8) as crowd, _slow_site(None) as url, _album(photo) as other:
            slow = [crowd.submit(requests.get, address, {"url": url}, timeout=100) for _ in range(8)]
            time.sleep(1)
            assert requests.post(address, data=photo, headers=JPEG, timeout=60).status_code == 200
            assert requests.get(address, {"url": other}, timeout=60).status_code == 200
        assert 503 in {answer.result().status_code for answer in slow}

    def test_a_body_that_stalls_is_closed(self, small: Server, photo: bytes) -> None:
        """Six stalled bodies fill the memory for uploads. Another photo is segmented after they are closed."""
        with contextlib.ExitStack() as stack:
            for _ in range(6):
                connection = stack.enter_context(connect(small, HEAD + b"Content-Length: 6000000\r\n\r\n"))
                threading.Thread(target=_send, args=(connection, bytes(5_900_000)), daemon=True).start()
            time.sleep(0.5)
            assert answers_within(small.url + "/health", 1)
            response = requests.post(small.url + "/segment", data=photo, headers=JPEG, timeout=60)
        assert response.status_code == 200

    def test_a_client_that_does_not_read_the_response_occupies_no_thread(self, small: Server, photo: bytes) -> None:
        noise = io.BytesIO()
        Image.effect_noise((1200, 1200), 90).convert("RGB").save(noise, "JPEG", quality=90)
        head = b"Content-Length: %d\r\n\r\n" % len(noise.getvalue())
        with contextlib.ExitStack() as stack:
            for _ in range(12):
                connection = socket.socket()
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.connect(("127.0.0.1", urlsplit(small.url).port))
                connection.sendall(HEAD + head + noise.getvalue())
                stack.enter_context(connection)
            time.sleep(2)
            check_alive(small, photo)


def larger(photo: bytes, size: int) -> bytes:
    """The JPEG `photo` with comments, so that it has at least `size` bytes."""
    comment = b"\xff\xfe\xff\xff" + bytes(0xFFFF - 2)
    return photo[:2] + comment * (size // len(comment) + 1) + photo[2:]


@pytest.mark.slow
def test_many_large_uploads_succeed(photo: bytes) -> None:
    """24 clients with photos of 3 to 9 MB and links of 5 to 50 Mbit/s, in memory for two of them.

    Each sends its photo again after the `Retry-After` of a refusal. tests/test_arrival.py simulates more clients.
    """
    dice, end = random.Random(0), time.monotonic() + 400

    def upload(server: Server, size: int, rate: float) -> int:
        """Returns the bytes that were sent in vain."""
        wasted = 0
        while time.monotonic() < end:
            status, retry, sent = _paced(server, larger(photo, size), rate)
            if status == 200:
                return wasted
            assert status == 503
            wasted += sent
            time.sleep(retry)
        raise AssertionError("The photo was not segmented.")

    with serve(SEGMENT_MEMORY="256Mi") as server, ThreadPoolExecutor(24) as crowd:
        assert requests.get(server.url + "/ready", timeout=60).ok
        sizes = [dice.randrange(3_000_000, 9_000_000) for _ in range(24)]
        done = [crowd.submit(upload, server, size, dice.choice([5, 10, 20, 50]) * 125_000) for size in sizes]
        wasted = sum(client.result() for client in done)
    print(f"{wasted / sum(sizes):.0%} sent in vain")
    assert wasted < 0.25 * sum(sizes)


def _paced(server: Server, body: bytes, rate: float) -> tuple[int, float, int]:
    """Send `body` at `rate` bytes per second until the server responds; returns status, Retry-After and bytes sent."""
    sent, piece, due = 0, 16 << 10, time.monotonic()
    with connect(server, HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)) as connection:
        with contextlib.suppress(ConnectionError):
            while sent < len(body) and not select.select([connection], [], [], 0)[0]:
                sent += connection.send(body[sent : sent + piece])
                due = max(due, time.monotonic() - 0.1) + piece / rate
                time.sleep(max(due - time.monotonic(), 0))
        received = answer(connection)
    retry = re.search(rb"(?i)\r\nretry-after: (\d+)", received)
    return int(received.split(b" ", 2)[1]), float(retry[1]) if retry else 0.0, sent


def _send(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(data)


class TestBounds:
    def test_a_long_request_line_takes_no_memory(self, small: Server, photo: bytes) -> None:
        before = resident(small)

        def send(_: int) -> bytes:
            connection = connect(small, b"GET /segment?url=http://a/")
            with contextlib.suppress(OSError):
                for _ in range(300):
                    connection.sendall(b"a" * (1 << 20))
            return answer(connection)

        with ThreadPoolExecutor(6) as crowd:
            answers = list(crowd.map(send, range(6)))
        assert all(a[:12] in {b"", b"HTTP/1.1 414"} for a in answers)
        assert resident(small) - before < 10 * MIB
        check_alive(small, photo)

    def test_many_headers(self, small: Server) -> None:
        connection = connect(
            small,
            HEAD + b"Connection: close\r\n" + b"".join(b"x-%d: y\r\n" % number for number in range(5000)) + b"\r\n",
        )
        assert answer(connection)[:12] in {b"HTTP/1.1 400", b"HTTP/1.1 431", b""}

    def test_headers_that_take_much_memory(self, small: Server, photo: bytes) -> None:
        """Heads of 15 KiB that consist of 2,000 headers, each of which would take 600 bytes until the body is there."""
        headers = b"".join(b"%x:\r\n" % number for number in range(0x100, 0x100 + 2000))
        head = HEAD + b"Content-Length: 1000\r\n" + headers + b"\r\n"
        before, answers = resident(small), []
        with contextlib.ExitStack() as stack:
            crowd = [stack.enter_context(connect(small, head)) for _ in range(100)]
            answers = [connection.recv(12) for connection in crowd]
            assert resident(small) - before < 10 * MIB
        assert set(answers) == {b"HTTP/1.1 431"}
        check_alive(small, photo)

    @pytest.mark.parametrize("path", [b"/segment", b"/nothing"])
    def test_malformed_chunks(self, small: Server, path: bytes) -> None:
        """Of a body that is received, and of one that was refused before."""
        before = small.log().count("Traceback")
        head = b"POST %b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" % path
        with connect(small, head) as connection:
            time.sleep(0.1)
            connection.sendall(b"zz\r\n")
            assert answer(connection)[:12] == (b"HTTP/1.1 400" if path == b"/segment" else b"HTTP/1.1 404")
        assert small.log().count("Traceback") == before

    def test_chunks_that_take_much_time(self, small: Server, photo: bytes) -> None:
        """Chunks of a byte are refused after some, also after a large chunk; chunks of 100 bytes are accepted."""
        head = HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        for before in (b"", b"400000\r\n%b\r\n" % bytes(4 << 20)):
            with connect(small, head) as connection:
                _send(connection, before + b"1\r\nx\r\n" * 100_000)
                assert answer(connection)[:12] == b"HTTP/1.1 400"
        parts = [photo[start : start + 100] for start in range(0, len(photo), 100)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
        with connect(small, head + body + b"0\r\n\r\n") as connection:
            assert answer(connection)[:12] == b"HTTP/1.1 200"

    @pytest.mark.parametrize(
        ("lines", "status", "detail"),
        [
            (b"POST /segment?classes=Stra\xc3\x9fe HTTP/1.1\r\nHost: a", 400, "not ASCII. Percent-encode them."),
            (HEAD + b"Transfer-Encoding: gzip", 501, "chunked is supported"),
            (HEAD + b"X: y\r\n" * 101, 431, "There are more than 100 headers."),
            (b"POST /segment HTTP/1.1\r\nX: y", 400, "Missing mandatory Host: header"),
        ],
    )
    def test_a_malformed_request_with_a_body_is_answered(
        self, small: Server, lines: bytes, status: int, detail: str
    ) -> None:
        """If a connection is closed while the client sends, the client sees a broken connection instead."""
        with connect(small, lines.rstrip() + b"\r\nContent-Length: 400000\r\n\r\n") as connection:
            for _ in range(10):
                connection.sendall(bytes(40_000))
                time.sleep(0.02)
            head, _, body = answer(connection).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert b"content-type: application/problem+json" in head.lower()
        assert detail in json.loads(body)["detail"]

    def test_many_connections(self, small: Server, photo: bytes) -> None:
        """At the limit, the oldest connection without a complete request is closed for a new one."""
        with contextlib.ExitStack() as stack:
            for _ in range(600):
                stack.enter_context(connect(small, b"GET "))
            check_alive(small, photo)

    def test_bodies_for_which_there_is_no_memory_are_not_read(self, fresh: Server, photo: bytes) -> None:
        """120 clients send as fast as they can. The server takes little more memory than is reserved for bodies.

        While they wait for memory, it takes little CPU time.
        """
        before, highest = resident(fresh), 0
        body = bytes(8_000_000)
        with ThreadPoolExecutor(120) as crowd, contextlib.ExitStack() as stack:
            for _ in range(120):
                connection = stack.enter_context(connect(fresh, HEAD + b"Content-Length: 8000001\r\n\r\n"))
                connection.settimeout(1)
                crowd.submit(_send, connection, body)
            end = time.monotonic() + 2
            while time.monotonic() < end:
                highest = max(highest, resident(fresh))
                time.sleep(0.01)
            spent = fresh.cpu_seconds()
            time.sleep(1)
            assert fresh.cpu_seconds() - spent < 0.3
        assert highest - before < 32 * MIB
        check_alive(fresh, photo)

    def test_memory_of_a_url_is_reserved_as_it_is_received(self, small: Server, photo: bytes) -> None:
        """20 requests for URLs of 4 MB each: those that do not fit wait or get a 503, so memory stays bounded."""
        body = bytes(4_000_000)
        before = resident(small)
        with _album(body) as url, ThreadPoolExecutor(20) as crowd:
            answers = list(
                crowd.map(lambda _: requests.post(f"{small.url}/segment", json={"url": url}, timeout=60), range(20))
            )
        assert {a.status_code for a in answers} <= {415, 503}
        assert resident(small) - before < 40 * MIB
        check_alive(small, photo)

    def test_a_refused_body_after_expect_is_not_sent(self, small: Server, tmp_path: Path) -> None:
        (tmp_path / "huge.jpg").write_bytes(bytes(90 * MIB))
        command = ["curl", "-sS", "--data-binary", f"@{tmp_path}/huge.jpg", "-w", "\n%{http_code} %{size_upload}"]
        done = subprocess.run(
            [*command, small.url + "/segment"], capture_output=True, text=True, check=True, timeout=600
        )
        assert done.stdout.splitlines()[-1] == "413 0"


def test_work_is_cancelled_when_the_client_disconnects(small: Server) -> None:
    photo = io.BytesIO()
    Image.fromarray(np.zeros((1500, 2000, 3), np.uint8)).save(photo, "PNG", compress_level=1)
    data = photo.getvalue()
    head = HEAD.replace(b"/segment", b"/segment?detail=4")
    connections = [connect(small, head + b"Content-Length: %d\r\n\r\n" % len(data) + data) for _ in range(4)]
    time.sleep(0.2)
    for connection in connections:
        connection.close()
    end = time.monotonic() + 60
    while small.log().count('"status": 499') < 3 and time.monotonic() < end:
        time.sleep(0.1)
    assert small.log().count('"status": 499') >= 3


class TestHalfClosed:
    """Clients that end their data after the request, and still read (`nc -N`)."""

    def test_requests_are_answered(self, small: Server, photo: bytes) -> None:
        get = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
        post = HEAD + b"Content-Length: %d\r\n\r\n" % len(photo) + photo
        chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(photo), photo)
        for request, count in ((get, 1), (post, 1), (chunked, 1), (get + post + chunked + get, 4)):
            received = b""
            with connect(small, request) as connection:
                connection.shutdown(socket.SHUT_WR)
                while data := connection.recv(65536):
                    received, last = received + data, time.monotonic()
                assert time.monotonic() - last < KEEP_ALIVE_SECONDS / 2  # the connection is closed at once
            assert received.count(b"HTTP/1.1 200 OK\r\n") == count

    def test_a_request_that_takes_long(self, small: Server, photo: bytes) -> None:
        """Meanwhile the server has found out that the client still reads."""
        with _album(photo, 2.5 * GONE_SECONDS) as url:
            connection = connect(small, b"GET /segment?url=%b HTTP/1.1\r\nHost: a\r\n\r\n" % url.encode())
            connection.shutdown(socket.SHUT_WR)
            received = answer(connection)
        assert received.startswith(b"HTTP/1.1 200 OK\r\n")
        assert received.count(b"HTTP/1.1") == 1

    def test_a_client_that_has_closed_the_connection_is_noticed(self, small: Server) -> None:
        before = small.log().count('"status": 499')
        with _slow_site(b"") as url:
            connect(small, b"GET /segment?url=%b HTTP/1.1\r\nHost: a\r\n\r\n" % url.encode()).close()
            end = time.monotonic() + 30
            while small.log().count('"status": 499') == before and time.monotonic() < end:
                time.sleep(0.05)
        assert small.log().count('"status": 499') == before + 1

    def test_a_body_that_waits_for_memory(self, fresh: Server, photo: bytes) -> None:
        """A stalled body takes most of the memory for uploads until it is refused. One client resets its connection."""
        room = requests.get(fresh.url + "/model", timeout=60).json()["memory_free"] / 9  # a tenth of all
        body = larger(photo, int(0.6 * room))
        request = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
        with connect(fresh, HEAD + b"Content-Length: %d\r\n\r\n" % (0.95 * room) + bytes(int(0.9 * room))):
            time.sleep(0.2)
            with connect(fresh, request) as connection:
                connection.shutdown(socket.SHUT_WR)
                with connect(fresh) as impatient, contextlib.suppress(TimeoutError):
                    impatient.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    impatient.settimeout(0.3)
                    impatient.sendall(request)
                assert answer(connection).startswith(b"HTTP/1.1 200 OK\r\n")
        assert '"severity": "ERROR"' not in fresh.log()


def test_one_connection_serves_many_requests(small: Server, photo: bytes) -> None:
    with requests.Session() as session:
        for _ in range(3):
            assert session.get(small.url + "/health", timeout=60).ok
            assert session.post(small.url + "/segment", data=photo, headers=JPEG, timeout=60).ok
            assert session.head(small.url + "/", timeout=60).headers["Content-Length"] != "0"


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://localhost:80/segment?format=json", 200),
        (b"HTTPS://localhost/no%20where", 404),
        (b"http://localhost", 405),
    ],
)
def test_a_target_that_is_a_whole_url(small: Server, photo: bytes, target: bytes, status: int) -> None:
    """As clients send it to a proxy; a server must accept it (RFC 9112, 3.2.2)."""
    head = b"POST %b HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    received = answer(connect(small, head % (target, len(photo)) + photo))
    assert received.startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize("path", ["//segment", "/%2fsegment"])
def test_slashes_at_the_beginning_count_as_one(small: Server, photo: bytes, path: str) -> None:
    """The gateway must receive the body for each path that the application answers."""
    assert requests.post(small.url + path, data=photo, timeout=60).ok


def test_responses_on_one_connection_are_sent_at_once(small: Server) -> None:
    """The body is sent without waiting for the TCP acknowledgement of the headers, which Linux delays by 40 ms."""
    with requests.Session() as session:
        for _ in range(5):  # the first responses of a connection are acknowledged without delay
            assert session.get(small.url + "/model", timeout=60).ok
        assert answers_within(small.url + "/model", 0.03, attempts=15, session=session)


@pytest.mark.parametrize("options", [[], ["--debug"]])
def test_the_frameworks_own_servers_answer(options: list[str], photo: bytes) -> None:
    """`functions-framework` as started by Cloud Run functions, and with --debug."""
    with serve(command=(sys.executable, "-m", "functions_framework", *options)) as server:
        for arguments in ({"data": photo, "headers": JPEG}, {"files": {"file": photo}}):
            assert requests.post(server.url + "/segment", timeout=60, **arguments).ok
        assert requests.get(server.url + "/", timeout=60).ok


@contextlib.contextmanager
def _slow_site(beginning: bytes | None) -> Iterator[str]:
    """The URL of a server that sends `beginning` and then little, or no response at all; closed with the context."""
    over = threading.Event()

    def respond(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            if beginning is not None:
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + beginning)
            while not over.wait(0.5):
                connection.sendall(b"" if beginning is None else bytes(100))

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=respond, args=listening.accept()[:1], daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/photo.jpg"
        finally:
            over.set()


@contextlib.contextmanager
def _album(body: bytes, seconds: float = 0.0) -> Iterator[str]:
    """The URL of a local web server that sends `body` without a Content-Length, after a pause of some seconds."""
    import http.server

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(seconds)
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}/photo.jpg"
        web.shutdown()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PORT": "70000"}, "PORT is '70000'; it must be a whole number from 1 to 65535."),
        ({"THREADS": "many"}, "THREADS is 'many'; it must be a whole number from 1 to 1000."),
        ({"HOST": "192.0.2.1"}, "Cannot listen on 192.0.2.1, port "),
        ({"HOST": "a" * 64}, f"Cannot listen on {'a' * 64}, port "),
        ({"FUNCTION_TARGET": "detect"}, "The function target is 'detect'; it must be one of segment_http, segment_obj"),
    ],
)
def test_wrong_variables_stop_the_start_with_one_sentence(
    variables: dict[str, str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORT", str(free_port()))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["serve"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"segment: {message}")


def test_a_port_in_use_stops_the_start_with_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setenv("HOST", "127.0.0.1")
        monkeypatch.setenv("PORT", str(port))
        assert main(["serve"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"segment: Port {port} is already in use. Stop the other program, or set PORT to a free port."


def test_says_where_it_serves(small: Server) -> None:
    assert f"Serving on {small.url} " in small.log()
