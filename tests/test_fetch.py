"""Fetching URLs from a local HTTP server, most of whose responses are faulty."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from segment.errors import Busy, Cancelled, FetchError, RefusedURL, TooLarge
from segment.web import client, pace
from segment.web.address import is_public, parse
from segment.web.client import Limits
from segment.web.fetch import Site, fetch

PHOTO = bytes(range(256)) * 400


class Faulty(http.server.BaseHTTPRequestHandler):
    """Sends a different response for each path."""

    def do_GET(self) -> None:
        name = self.path.split("?", maxsplit=1)[0].strip("/").replace("-", "_")
        getattr(self, "answer_" + name, self.answer_missing)()

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def answer_missing(self) -> None:
        self.answer(404)

    def answer_photo(self) -> None:
        self.answer(200, PHOTO, Content_Length=str(len(PHOTO)))

    def answer_unannounced(self) -> None:
        self.answer(200, PHOTO)

    def answer_echo(self) -> None:
        self.answer(200, f"{self.headers['Host']} {self.headers['Accept-Encoding']} {self.path}".encode())

    def answer_token(self) -> None:
        self.answer(200, str(self.headers["Authorization"]).encode())

    def answer_hop_to_token(self) -> None:
        self.answer(302, Location="/token")

    def answer_hop_away(self) -> None:
        port = self.headers["Host"].rpartition(":")[2]
        self.answer(302, Location=f"http://localhost:{port}/token")

    def answer_hop(self) -> None:
        self.answer(302, Location="/photo")

    def answer_loop(self) -> None:
        self.answer(301, Location="/loop")

    def answer_metadata(self) -> None:
        self.answer(307, Location="http://169.254.169.254/computeMetadata/v1/")

    def answer_file(self) -> None:
        self.answer(302, Location="file:///etc/passwd")

    def answer_endless(self) -> None:
        self.answer(200)
        try:
            while True:
                self.wfile.write(PHOTO)
        except OSError:
            pass

    def answer_liar(self) -> None:
        self.answer(200, PHOTO, Content_Length=str(10**12))

    def answer_short(self) -> None:
        self.answer(200, PHOTO[:100], Content_Length="200")

    def answer_gzip(self) -> None:
        self.answer(200, PHOTO, Content_Encoding="gzip")

    def answer_negative_chunk(self) -> None:
        self.answer(200, b"-5\r\nhello\r\n0\r\n\r\n", Transfer_Encoding="chunked")

    def answer_chunk_without_end(self) -> None:
        self.answer(200, b"-1\r\n", Transfer_Encoding="chunked")
        self.answer_endless()

    def answer_odd_chunk(self) -> None:
        self.answer(200, b"many\r\nhello\r\n0\r\n\r\n", Transfer_Encoding="chunked")

    def answer_long_headers(self) -> None:
        headers: Any = {f"X-{number}": "a" * 60_000 for number in range(90)}
        with contextlib.suppress(OSError):
            self.answer(200, **headers)

    def answer_many_continues(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)

    def answer_tiny_chunks(self) -> None:
        body = b"".join(b"1\r\n%c\r\n" % byte for byte in PHOTO)
        with contextlib.suppress(OSError):
            self.answer(200, body + b"0\r\n\r\n", Transfer_Encoding="chunked")

    def answer_chunks(self) -> None:
        body = b"".join(b"64\r\n%b\r\n" % PHOTO[start : start + 100] for start in range(0, len(PHOTO), 100))
        self.answer(200, body + b"0\r\n\r\n", Transfer_Encoding="chunked")

    def answer_drip(self) -> None:
        self.answer(200, Content_Length=str(len(PHOTO)))
        self.drip()

    def answer_drip_headers(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        self.drip()

    def drip(self) -> None:
        try:
            for _ in range(600):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.1)
        except OSError:
            pass

    def answer_hang_up(self) -> None:
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Faulty) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def get(url: str, limit: int = 1 << 20, seconds: float = 10, private: bool = True) -> bytes:
    return fetch(url, Limits(limit, seconds), private)


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Make every host name resolve to the given addresses, one list per look-up; return the names looked up."""
    real = socket.getaddrinfo

    def install(*answers: list[str]) -> list[str]:
        left, asked = list(answers), list[str]()

        def look_up(host: str, port: int, **arguments: Any) -> list[Any]:
            asked.append(host)
            addresses = left.pop(0) if len(left) > 1 else left[0]
            return [found for address in addresses for found in real(address, port, **arguments)]

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        return asked

    return install


@pytest.mark.parametrize("path", ["/photo", "/chunks", "/unannounced", "/hop"])
def test_fetches(base: str, path: str) -> None:
    assert get(base + path) == PHOTO


def test_the_request_that_is_sent(base: str, resolved: Callable[..., list[str]]) -> None:
    resolved(["127.0.0.1"])
    port = base.rpartition(":")[2]
    answer = get(f"http://müller.example:{port}/echo?a=ü b".replace(" ", "%20")).decode()
    assert answer == f"xn--mller-kva.example:{port} identity /echo?a=%C3%BC%20b"


def test_no_proxy_of_the_environment(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert get(base + "/photo") == PHOTO


class TestSite:
    """URLs of a server that the operator trusts, and of other servers."""

    def get(self, url: str, base: str, private: bool = False) -> bytes:
        site = Site(base, {"Authorization": "Token 123"})
        return fetch(url, Limits(1 << 20, 10), private, site)

    @pytest.mark.parametrize("path", ["/token", "/hop-to-token"])
    def test_label_studio_can_be_private_and_gets_the_token(self, base: str, path: str) -> None:
        assert self.get(base + path, base + "/studio") == b"Token 123"

    def test_other_servers_cannot_be_private_and_get_no_token(self, base: str) -> None:
        other = base.replace("127.0.0.1", "localhost")
        for url in (other + "/token", base + "/hop-away"):
            with pytest.raises(RefusedURL, match="localhost does not have a public address"):
                self.get(url, base)
            assert self.get(url, base, private=True) == b"None"

    def test_another_port_is_another_server(self, base: str) -> None:
        with pytest.raises(RefusedURL):
            self.get(base + "/token", "http://127.0.0.1:1025")


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("/missing", FetchError, "404"),
        ("/loop", FetchError, "more than 5"),
        ("/file", RefusedURL, "http"),
        ("/endless", TooLarge, "larger than"),
        ("/liar", TooLarge, "larger than"),
        ("/short", FetchError, "was interrupted|too early"),
        ("/gzip", FetchError, "gzip"),
        ("/hang-up", FetchError, "was interrupted"),
        ("/negative-chunk", FetchError, "was interrupted"),
        ("/chunk-without-end", FetchError, "was interrupted"),
        ("/odd-chunk", FetchError, "was interrupted"),
        ("/long-headers", FetchError, "was interrupted"),
        ("/many-continues", FetchError, "was interrupted"),
        ("/tiny-chunks", FetchError, "was interrupted"),
    ],
)
def test_faults(base: str, path: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as raised:
        get(base + path)
    assert raised.type is error


def test_a_file_of_exactly_the_limit_is_accepted(base: str) -> None:
    assert get(base + "/photo", limit=len(PHOTO)) == PHOTO
    with pytest.raises(TooLarge):
        get(base + "/unannounced", limit=len(PHOTO) - 1)


@pytest.mark.parametrize("path", ["/drip", "/drip-headers"])
def test_a_slow_response_times_out(base: str, path: str) -> None:
    start = time.monotonic()
    with pytest.raises(FetchError, match=r"longer than 0\.5 seconds"):
        get(base + path, seconds=0.5)
    assert time.monotonic() - start < 1.5


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that accepts connections and sends nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
def full() -> Iterator[int]:
    """The port of a server that does not accept further connections."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


class TestWhenOthersWait:
    """A server that is slower than an upload must be is given up when others wait for memory or a thread."""

    @pytest.fixture(autouse=True)
    def short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pace, "CROWDED_WINDOW_SECONDS", 0.1)

    def give_up(self, url: str) -> None:
        with pytest.raises(Busy, match="64 KiB/s, and others are waiting"):
            fetch(url, Limits(1 << 20, 60, crowded=lambda: True), private=True)
        with pytest.raises(FetchError, match="longer than"):
            fetch(url, Limits(1 << 20, 0.3, crowded=lambda: False), private=True)

    @pytest.mark.parametrize("path", ["/drip", "/drip-headers"])
    def test_a_response_that_drips(self, base: str, path: str) -> None:
        self.give_up(base + path)

    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_no_response(self, silent: int, scheme: str) -> None:
        self.give_up(f"{scheme}://127.0.0.1:{silent}/")

    def test_no_connection(self, full: int) -> None:
        self.give_up(f"http://127.0.0.1:{full}/")

    def test_no_answer_from_the_name_server(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(3))
        self.give_up("http://slow.example/")

    def test_a_large_response_takes_too_long(self, base: str) -> None:
        """It is as fast as an upload must be, but keeps a thread."""
        limit = iter([60.0] * 3)
        with pytest.raises(Busy, match="longer than 0 s, and others are waiting"):
            fetch(base + "/photo", Limits(1 << 20, 60, crowded_seconds=lambda: next(limit, 0.0)), private=True)

    def test_a_fast_response(self, base: str) -> None:
        assert fetch(base + "/photo", Limits(1 << 20, 60, crowded=lambda: True), private=True) == PHOTO


def test_a_fetch_is_cancelled(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "CROWDED_WINDOW_SECONDS", 0.1)
    end = time.monotonic() + 0.3
    with pytest.raises(Cancelled):
        fetch(base + "/drip", Limits(1 << 20, 60, cancelled=lambda: time.monotonic() > end), private=True)


def test_waiting_for_memory_does_not_count_as_slow(base: str) -> None:
    def wait(count: int) -> None:
        time.sleep(0.4)

    assert fetch(base + "/photo", Limits(1 << 20, 0.5), private=True, received=wait) == PHOTO


def test_a_slow_name_server_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(3))
    with pytest.raises(FetchError, match="longer than"):
        get("http://slow.example/", seconds=0.3)


def test_private_addresses_are_refused(base: str) -> None:
    for url in (
        base + "/photo",
        base.replace("127.0.0.1", "localhost"),
        "http://2130706433/",
        "http://0x7f.1/",
        "http://[::1]/",
    ):
        with pytest.raises(RefusedURL, match="not have a public address"):
            get(url, private=False)


def test_one_private_address_among_public_ones_is_refused(resolved: Callable[..., list[str]]) -> None:
    resolved(["93.184.215.14", "10.0.0.1"])
    with pytest.raises(RefusedURL):
        get("http://mixed.example/", private=False)


def test_a_redirect_to_a_private_address_is_refused(
    base: str, resolved: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segment.web.fetch.is_public", lambda address: address == "127.0.0.1")
    with pytest.raises(RefusedURL, match=r"169\.254\.169\.254 does not have a public address"):
        get(base + "/metadata", private=False)


def test_the_connection_goes_to_the_address_that_was_checked(
    base: str, resolved: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: a second look-up could return another address, so there must be none."""
    monkeypatch.setattr("segment.web.fetch.is_public", lambda address: address == "127.0.0.1")
    asked = resolved(["127.0.0.1"], ["169.254.169.254"])
    assert get(f"http://rebinding.example:{base.rpartition(':')[2]}/photo", private=False) == PHOTO
    assert asked == ["rebinding.example"]


def test_the_next_address_is_tried_if_one_does_not_respond(base: str, resolved: Callable[..., list[str]]) -> None:
    resolved(["::1", "127.0.0.1"])  # nothing listens on the first
    assert get(f"http://both.example:{base.rpartition(':')[2]}/photo") == PHOTO


@pytest.mark.parametrize(
    "url",
    [
        "",
        "photo.jpg",
        "//example.com/a",
        "ftp://example.com/a",
        "http://",
        "http:///a",
        "http://[::1/",
        "http://example.com:99999/",
        "http://example.com:22/",
        "http://user@example.com/",
        "http://user:password@example.com/",
        "http://example.com/a b",
        "http://example.com/\r\nX: y",
        "http://example.com\\@127.0.0.1/",
        "http://" + "a" * 64 + ".com/",
        "http://example.com/" + "a" * 9000,
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(RefusedURL):
        parse(url)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:220:1::1", True),
        ("64:ff9b::5db8:d70e", True),  # NAT64 of 93.184.215.14
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("172.16.0.1", False),
        ("192.168.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::7f00:1", False),  # IPv4-compatible
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:7f00:1::", False),  # 6to4
        ("2001:0:7f00:1::", False),  # Teredo
        ("fe80::1%eth0", False),
        ("fec0::1", False),
        ("fd00:ec2::254", False),
        ("ff02::1", False),
        ("192.88.99.1", False),  # 6to4 relays, withdrawn
        ("3fff::1", False),  # documentation
        ("5f00::1", False),  # SRv6
        ("64:ff9b:1::1", False),  # local-use NAT64
        ("100:0:0:1::1", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for photos.example and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "photos.example")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("photos.example"), x509.IPAddress(ipaddress.ip_address("::1"))])
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    secret = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(secret + built.public_bytes(encoding))
    return path


@pytest.fixture(scope="module")
def tls_port(certificate: Path) -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Faulty) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


class TestTLS:
    @pytest.fixture(autouse=True)
    def trust(self) -> Iterator[None]:
        """Read the trusted certificates again in each test."""
        client._tls.cache_clear()
        yield
        client._tls.cache_clear()

    def test_the_certificate_is_checked_against_the_name(
        self, tls_port: int, certificate: Path, resolved: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        resolved(["127.0.0.1"])
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert get(f"https://photos.example:{tls_port}/photo") == PHOTO
        with pytest.raises(FetchError, match="certificate"):
            get(f"https://other.example:{tls_port}/photo")

    def test_an_unknown_issuer_is_refused(self, tls_port: int, resolved: Callable[..., list[str]]) -> None:
        resolved(["127.0.0.1"])
        with pytest.raises(FetchError, match="certificate"):
            get(f"https://photos.example:{tls_port}/photo")

    def test_a_slow_response_times_out(
        self, tls_port: int, certificate: Path, resolved: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        resolved(["127.0.0.1"])
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with pytest.raises(FetchError, match="longer than"):
            get(f"https://photos.example:{tls_port}/drip", seconds=0.6)
