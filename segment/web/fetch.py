"""URL -> bytes, without lending the server's place in the network to whoever names the URL.

A service that fetches any URL can be made to fetch what only it can reach: its metadata server, its neighbours, itself
(server-side request forgery). So: http and https only; every address a name resolves to must be public; the connection
goes to the very address that was checked, so that a name that resolves differently the next moment (DNS rebinding)
gains nothing; each redirect is checked like the first URL; size and total time are bounded, whatever the other side
announces or however slowly it drips; no proxy from the environment is used.

What "public" means is IANA's special-purpose registries, which `ipaddress` knows, and the ways IPv6 embeds IPv4.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import ipaddress
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
"""Characters of the longest URL."""
LOWEST_PORT = 1024
"""Ports below are refused, but for 80 and 443: nothing there serves photos."""
CHUNK = 1 << 16
HEADERS = {"Accept": "image/*, */*;q=0.5", "User-Agent": "segment"}

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""RFC 6052's prefix: the last 32 bits are an IPv4 address."""
_SPECIAL: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = tuple(
    ipaddress.ip_network(network)
    for network in ("192.88.99.0/24", "64:ff9b:1::/48", "100:0:0:1::/64", "3fff::/20", "5f00::/16")
)
"""Networks that are not globally reachable and that Python's `is_global` does not know yet
(https://www.iana.org/assignments/iana-ipv6-special-registry, RFC 7526 for 192.88.99.0/24)."""

_PATH = "/%:@!$&'()*+,;=~"
"""What a path keeps as it is; anything else is percent-encoded."""

SocketAddress = tuple[socket.AddressFamily, Any]


@dataclass(frozen=True)
class Target:
    """A URL taken apart: whom to ask, and for what. `host` is in ASCII, `path` percent-encoded, with its query."""

    secure: bool
    host: str
    port: int
    path: str


@dataclass(frozen=True)
class Site:
    """A server that the operator trusts: its address need not be public, and it is sent `headers`. No other server is,
    not even one that it redirects to."""

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
    """The body that `url` answers, at most `limit` bytes, within `seconds` in all.

    `received` is told how many bytes have arrived, before they are kept; it may raise. `private` also admits addresses
    that are not public; so does `site`, for itself. Raises RefusedURL for a URL that may not be fetched, FetchError for
    one that could not be, TooLarge for more than `limit` bytes.
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


def parse(url: str) -> Target:
    """Take a URL apart. Raises RefusedURL for one that may not be fetched, whatever it resolves to."""
    if len(url) > MAX_URL:
        raise RefusedURL(f"The URL has {len(url)} characters; at most {MAX_URL} are taken.")
    if any(c.isspace() or not c.isprintable() or c == "\\" for c in url):
        raise RefusedURL("The URL has a space, a backslash or a control character in it; percent-encode it.")
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").encode("idna").decode()
    except ValueError:
        raise RefusedURL(f"{url[:200]!r} is no valid URL.") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise RefusedURL(f"{url[:200]!r} is no http or https URL, such as https://example.com/photo.jpg.")
    if parts.username is not None or parts.password is not None:
        raise RefusedURL("The URL holds a user name or password; only public photos are fetched.")
    if port is not None and port not in {80, 443} and port < LOWEST_PORT:
        raise RefusedURL(f"Port {port} is not allowed. Allowed ports: 80, 443, and {LOWEST_PORT} and above.")
    secure = parts.scheme == "https"
    path = quote(parts.path or "/", safe=_PATH) + ("?" + quote(parts.query, safe=_PATH + "?") if parts.query else "")
    return Target(secure, host, port or (443 if secure else 80), path)


def resolve(target: Target, deadline: _Deadline, private: bool) -> list[SocketAddress]:
    """Where to connect for `target`, best first; every address its name has must be public, unless `private`."""
    answer: queue.SimpleQueue[list[Any] | Exception] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            answer.put(socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answer.put(error)

    # A name server may take longer than the deadline, and getaddrinfo has no timeout of its own.
    threading.Thread(target=look_up, daemon=True).start()
    try:
        found = answer.get(timeout=deadline.left())
    except queue.Empty:
        raise deadline.passed() from None
    if isinstance(found, Exception) or not found:
        raise FetchError(f"The host name {target.host} cannot be resolved.")
    if not private and not all(is_public(address[0]) for *_, address in found):
        raise RefusedURL(f"{target.host} is not a public address; only photos on the public internet are fetched.")
    return [(family, address) for family, _, _, _, address in found]


def is_public(address: str) -> bool:
    """Whether an IP address is reachable by anyone, seen through the IPv6 forms that carry an IPv4 address."""
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
    """A response whose chunks have sizes of 0 or more: http.client takes -1 for "all that comes", without a limit."""

    def _read_next_chunk_size(self) -> int:
        size: int = super()._read_next_chunk_size()  # type: ignore[misc]
        if size < 0:
            raise http.client.HTTPException(f"The size of a chunk is {size}.")
        return size


class _Deadline:
    """A moment after which nothing is waited for any more."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left; raises FetchError when there are none."""
        left = self.end - time.monotonic()
        if left <= 0:
            raise self.passed()
        return left

    def passed(self) -> FetchError:
        """The error that says so."""
        return FetchError(f"Fetching the URL took longer than {self.seconds:g} seconds.")


class _Connection(http.client.HTTPConnection):
    """A connection to an address already checked, under the URL's own name, that ends at the deadline."""

    response_class = _Response

    def __init__(self, target: Target, addresses: list[SocketAddress], deadline: _Deadline) -> None:
        self.default_port = 443 if target.secure else 80
        super().__init__(target.host, target.port)
        self.secure = target.secure
        self.addresses = addresses
        self.deadline = deadline
        self.socket: socket.socket | None = None

    def connect(self) -> None:
        """Connect to a checked address; with https, the certificate must be for the URL's name."""
        self.socket = self._reach()
        if self.secure:
            self.socket.settimeout(self.deadline.left())
            self.socket = ssl.create_default_context().wrap_socket(self.socket, server_hostname=self.host)
        self.sock: Any = _TimedSocket(self.socket, self.deadline)

    def _reach(self) -> socket.socket:
        """The first address that answers, each having an equal share of the time that is left."""
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
    """The three things that http.client asks of a socket, each bounded by the deadline.

    A socket's own timeout starts anew with each byte that drips in, so the deadline is asked before every read.
    """

    def __init__(self, source: socket.socket, deadline: _Deadline) -> None:
        self.source = source
        self.deadline = deadline

    def sendall(self, data: bytes) -> None:
        """Send all of `data`."""
        self.source.settimeout(self.deadline.left())
        self.source.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        """What the other side sends, to read."""
        return io.BufferedReader(_TimedReader(self.source, self.deadline))

    def close(self) -> None:
        """Nothing: http.client closes before the body is read; `_Connection.release` closes the socket."""


class _TimedReader(io.RawIOBase):
    """The bytes of a socket, until the deadline."""

    def __init__(self, source: socket.socket, deadline: _Deadline) -> None:
        self.source = source
        self.deadline = deadline

    def readable(self) -> bool:
        """It can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what has come, waiting no longer than the deadline."""
        self.source.settimeout(self.deadline.left())
        return self.source.recv_into(buffer)


@contextlib.contextmanager
def _answer(
    target: Target, addresses: list[SocketAddress], deadline: _Deadline, headers: Mapping[str, str]
) -> Iterator[http.client.HTTPResponse]:
    """The response to a GET of `target`, its body not yet read; what goes wrong on the way becomes a FetchError."""
    connection = _Connection(target, addresses, deadline)
    try:
        connection.request("GET", target.path, headers=headers)
        with connection.getresponse() as response:
            yield response
    except TimeoutError:
        raise deadline.passed() from None
    except ssl.SSLCertVerificationError as error:
        raise FetchError(f"The certificate of {target.host} is not valid: {error.verify_message}.") from None
    except (OSError, ValueError, http.client.HTTPException):
        raise FetchError(f"The connection to {target.host} failed or broke off.") from None
    finally:
        connection.release()


def _read(response: http.client.HTTPResponse, target: Target, limit: int, received: Callable[[int], None]) -> bytes:
    """The whole body; raises TooLarge as soon as it is more than `limit` bytes."""
    encoding = response.getheader("Content-Encoding", "identity")
    if encoding != "identity":
        raise FetchError(f"{target.host} answered with content encoding {encoding[:40]!r}, which was not asked for.")
    too_large = TooLarge(f"The photo at this URL is larger than {limit:,} bytes, the most that is taken.")
    if response.length is not None and response.length > limit:
        raise too_large
    body = io.BytesIO()
    while chunk := response.read(CHUNK):
        if body.tell() + len(chunk) > limit:
            raise too_large
        received(len(chunk))
        body.write(chunk)
    if response.length:  # read(n) does not say so itself
        raise FetchError(f"{target.host} broke off {response.length:,} bytes before the end.")
    return body.getvalue()
