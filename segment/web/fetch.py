"""Fetch a URL, protected against server-side request forgery (SSRF).

A service that fetches arbitrary URLs can be abused to reach addresses that only it can reach: the metadata server, its
neighbours, itself. Therefore:

- Only http and https are allowed, and every address that the host name resolves to must be public.
- The connection goes to an address that was checked, so that DNS rebinding has no effect.
- Each redirect is checked like the first URL.
- Size and total time are limited, independent of the announced length and of how slowly the server sends.
- Proxies from the environment are not used.

An address is public if it is in none of IANA's special-purpose registries (`ipaddress`), also when it is an IPv4
address embedded in IPv6.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import ipaddress
import json
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from segment.errors import FetchError, RefusedURL, TooLarge

MAX_REDIRECTS = 5
MAX_URL = 8192
"""Maximum length of a URL in characters."""
LOWEST_PORT = 1024
"""Ports below are not allowed, except 80 and 443."""
CHUNK = 1 << 16
HEADERS = {"Accept": "image/*, */*;q=0.5", "User-Agent": "segment"}

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""The prefix of RFC 6052: the last 32 bits are an IPv4 address."""
_SPECIAL: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = tuple(
    ipaddress.ip_network(network)
    for network in ("192.88.99.0/24", "64:ff9b:1::/48", "100:0:0:1::/64", "3fff::/20", "5f00::/16")
)
"""Networks that are not globally reachable, but that `ipaddress` does not know yet
(https://www.iana.org/assignments/iana-ipv6-special-registry, RFC 7526 for 192.88.99.0/24)."""

_PATH = "/%:@!$&'()*+,;=~"
"""Characters of a path that are not percent-encoded."""

SocketAddress = tuple[socket.AddressFamily, Any]


@dataclass(frozen=True)
class Target:
    """A parsed URL. `host`: in ASCII (IDNA). `path`: percent-encoded, with the query."""

    secure: bool
    host: str
    port: int
    path: str


@dataclass(frozen=True)
class Site:
    """A server that the operator trusts: its address may be private, and `headers` are sent to it.

    This does not apply to other servers to which it redirects.
    """

    address: str
    headers: Mapping[str, str]

    def has(self, target: Target) -> bool:
        """Whether `target` is on this server: the same scheme, host and port."""
        own = parse(self.address)
        return (own.secure, own.host, own.port) == (target.secure, target.host, target.port)


def fetch(
    url: str,
    *,
    limit: int,
    seconds: float,
    private: bool = False,
    received: Callable[[int], None] = lambda count: None,
    site: Site | None = None,
) -> bytes:
    """Fetch `url`: a body of at most `limit` bytes, within `seconds` in total.

    `received` is called with the number of bytes that have arrived, before they are stored; it may raise. `private`
    also allows addresses that are not public; `site` is allowed in any case. Raises RefusedURL if the URL is not
    allowed, FetchError if it could not be fetched, TooLarge if the body exceeds `limit` bytes.
    """
    deadline = _Deadline(seconds)
    for _ in range(MAX_REDIRECTS + 1):
        target = parse(url)
        trusted = site is not None and site.has(target)
        addresses = resolve(target, deadline, private or trusted)
        headers = {**HEADERS, **site.headers} if site and trusted else HEADERS
        with _answer(target, addresses, deadline, headers) as response:
            location = response.getheader("Location")
            if response.status in {301, 302, 303, 307, 308} and location:
                url = urljoin(url, location)
                continue
            if response.status != http.client.OK:
                raise FetchError(f"{target.host} answered {response.status} {response.reason} for this URL.")
            return _read(response, target, limit, received)
    raise FetchError(f"The URL redirects more than {MAX_REDIRECTS} times.")


def post(site: Site, path: str, body: Mapping[str, str], *, limit: int, seconds: float) -> bytes:
    """POST `body` as JSON to `path` of `site`. Returns the response's body; redirects are not followed.

    Raises FetchError, or TooLarge if the response exceeds `limit` bytes.
    """
    deadline = _Deadline(seconds)
    target = parse(site.address.rstrip("/") + path)
    headers = {**HEADERS, **site.headers, "Content-Type": "application/json"}
    addresses = resolve(target, deadline, private=True)
    with _answer(target, addresses, deadline, headers, json.dumps(body).encode()) as response:
        if response.status != http.client.OK:
            raise FetchError(f"{target.host} answered {response.status} {response.reason} to {path}.")
        return _read(response, target, limit, lambda count: None)


def parse(url: str) -> Target:
    """Parse a URL. Raises RefusedURL if it is not allowed, independent of what its host name resolves to."""
    if len(url) > MAX_URL:
        raise RefusedURL(f"The URL has {len(url)} characters; the maximum is {MAX_URL}.")
    if any(c.isspace() or not c.isprintable() or c == "\\" for c in url):
        raise RefusedURL("The URL contains a space, a backslash or a control character. Percent-encode it.")
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").encode("idna").decode()
    except ValueError:
        raise RefusedURL(f"{url[:200]!r} is not a valid URL.") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise RefusedURL(f"{url[:200]!r} is not an http or https URL, such as https://example.com/photo.jpg.")
    if parts.username is not None or parts.password is not None:
        raise RefusedURL("The URL contains a user name or password. Only public photos are fetched.")
    if port is not None and port not in {80, 443} and port < LOWEST_PORT:
        raise RefusedURL(f"Port {port} is not allowed. Allowed ports: 80, 443, and {LOWEST_PORT} and above.")
    secure = parts.scheme == "https"
    path = quote(parts.path or "/", safe=_PATH) + ("?" + quote(parts.query, safe=_PATH + "?") if parts.query else "")
    return Target(secure, host, port or (443 if secure else 80), path)


def resolve(target: Target, deadline: _Deadline, private: bool) -> list[SocketAddress]:
    """Resolve the host name of `target` to addresses, in order of preference.

    Raises RefusedURL if any of them is not public, unless `private`; FetchError if the name cannot be resolved.
    """
    answer: queue.SimpleQueue[list[Any] | Exception] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            answer.put(socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answer.put(error)

    # getaddrinfo has no timeout of its own.
    threading.Thread(target=look_up, daemon=True).start()
    try:
        found = answer.get(timeout=deadline.left())
    except queue.Empty:
        raise deadline.passed() from None
    if isinstance(found, Exception) or not found:
        raise FetchError(f"The host name {target.host} cannot be resolved.")
    if not private and not all(is_public(address[0]) for *_, address in found):
        raise RefusedURL(
            f"{target.host} does not have a public address. Only photos on the public internet are fetched."
        )
    return [(family, address) for family, _, _, _, address in found]


def is_public(address: str) -> bool:
    """Whether an IP address is public. For an IPv6 address that embeds an IPv4 address, the latter is checked."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner:
            return is_public(str(inner))
        if ip.teredo or ip.is_site_local:
            return False
    special = any(ip in network for network in _SPECIAL if network.version == ip.version)
    return ip.is_global and not (special or ip.is_multicast or ip.is_reserved or ip.is_unspecified)


class _Response(http.client.HTTPResponse):
    """A response that rejects negative chunk sizes. http.client would read without a limit for a size of -1."""

    def _read_next_chunk_size(self) -> int:
        size: int = super()._read_next_chunk_size()  # type: ignore[misc]
        if size < 0:
            raise http.client.HTTPException(f"The size of a chunk is {size}.")
        return size


class _Deadline:
    """The time limit of a fetch."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left. Raises FetchError if the deadline has passed."""
        left = self.end - time.monotonic()
        if left <= 0:
            raise self.passed()
        return left

    def passed(self) -> FetchError:
        """The error for a passed deadline."""
        return FetchError(f"Fetching the URL took longer than {self.seconds:g} seconds.")


class _Connection(http.client.HTTPConnection):
    """A connection to one of the checked addresses, limited by the deadline."""

    response_class = _Response

    def __init__(self, target: Target, addresses: list[SocketAddress], deadline: _Deadline) -> None:
        self.default_port = 443 if target.secure else 80
        super().__init__(target.host, target.port)
        self.secure = target.secure
        self.addresses = addresses
        self.deadline = deadline
        self.socket: socket.socket | None = None

    def connect(self) -> None:
        """Connect to a checked address. With https, the certificate is verified for the URL's host name."""
        self.socket = self._reach()
        if self.secure:
            self.socket.settimeout(self.deadline.left())
            self.socket = ssl.create_default_context().wrap_socket(self.socket, server_hostname=self.host)
        self.sock: Any = _TimedSocket(self.socket, self.deadline)

    def _reach(self) -> socket.socket:
        """Connect to the first address that accepts; each gets an equal share of the remaining time."""
        for turns, (family, address) in zip(range(len(self.addresses), 0, -1), self.addresses, strict=True):
            reached = socket.socket(family, socket.SOCK_STREAM)
            try:
                reached.settimeout(self.deadline.left() / turns)
                reached.connect(address)
                return reached
            except OSError:
                reached.close()
                if turns == 1:
                    raise
        raise AssertionError("no address")  # resolve() returns at least one

    def release(self) -> None:
        """Close the socket."""
        if self.socket:
            self.socket.close()


class _TimedSocket:
    """The methods of a socket that http.client uses, each limited by the deadline.

    A socket's own timeout restarts with each byte received, so it is set to the remaining time before each read.
    """

    def __init__(self, source: socket.socket, deadline: _Deadline) -> None:
        self.source = source
        self.deadline = deadline

    def sendall(self, data: bytes) -> None:
        """Send all of `data`."""
        self.source.settimeout(self.deadline.left())
        self.source.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        """A reader of the received bytes."""
        return io.BufferedReader(_TimedReader(self.source, self.deadline))

    def close(self) -> None:
        """Does nothing: http.client calls it before the body is read. `_Connection.release` closes the socket."""


class _TimedReader(io.RawIOBase):
    """Reads from a socket until the deadline."""

    def __init__(self, source: socket.socket, deadline: _Deadline) -> None:
        self.source = source
        self.deadline = deadline

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read available bytes into `buffer`; wait at most until the deadline."""
        self.source.settimeout(self.deadline.left())
        return self.source.recv_into(buffer)


@contextlib.contextmanager
def _answer(
    target: Target,
    addresses: list[SocketAddress],
    deadline: _Deadline,
    headers: Mapping[str, str],
    body: bytes | None = None,
) -> Iterator[http.client.HTTPResponse]:
    """Send a GET request, or POST `body`; yields the response before its body is read. Raises FetchError."""
    connection = _Connection(target, addresses, deadline)
    try:
        connection.request("GET" if body is None else "POST", target.path, body, headers)
        with connection.getresponse() as response:
            yield response
    except TimeoutError:
        raise deadline.passed() from None
    except ssl.SSLCertVerificationError as error:
        raise FetchError(f"The certificate of {target.host} is not valid: {error.verify_message}.") from None
    except (OSError, ValueError, http.client.HTTPException):
        raise FetchError(f"The connection to {target.host} failed or was interrupted.") from None
    finally:
        connection.release()


def _read(response: http.client.HTTPResponse, target: Target, limit: int, received: Callable[[int], None]) -> bytes:
    """Read the whole body. Raises TooLarge as soon as it exceeds `limit` bytes."""
    encoding = response.getheader("Content-Encoding", "identity")
    if encoding != "identity":
        raise FetchError(
            f"{target.host} answered with the content encoding {encoding[:40]!r}, which was not requested."
        )
    too_large = TooLarge(f"The photo at this URL is larger than {limit:,} bytes, the maximum.")
    if response.length is not None and response.length > limit:
        raise too_large
    body = io.BytesIO()
    while chunk := response.read(CHUNK):
        if body.tell() + len(chunk) > limit:
            raise too_large
        received(len(chunk))
        body.write(chunk)
    if response.length:  # read(n) does not raise for a truncated body
        raise FetchError(f"The response of {target.host} ended {response.length:,} bytes too early.")
    return body.getvalue()
