"""Fetch a URL, protected against server-side request forgery (SSRF).

A service that fetches arbitrary URLs can be abused to reach addresses that only it can reach: the metadata server, its
neighbours, itself. Therefore:

- Only http and https are allowed, and every address that the host name resolves to must be public (address.py).
- The connection goes to an address that was checked, so that DNS rebinding has no effect.
- Each redirect is checked like the first URL.
- Size and total time are limited, independent of the announced length and of how slowly the server sends. So are the
  bytes of the response's head, and those with which the body is divided into chunks.
- When others wait for memory or for a thread, the server must be as fast as a client that uploads (pace.py). When many
  wait for a thread, there is little time for the whole fetch.
- Proxies from the environment are not used.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

from segment.errors import FetchError, RefusedURL, TooLarge
from segment.web.address import Target, is_public, parse
from segment.web.client import ClientConnection, Limits, SocketAddress
from segment.web.pace import PIECE_BYTES

MAX_REDIRECTS = 5
HEAD_BYTES = 64 << 10
"""Maximum size of a response's status line and headers. http.client alone allows 6 MiB, which take several times as
much memory once they are parsed."""
FRAMING_BYTES = 16 << 10
"""Maximum number of bytes beside PIECE_BYTES bytes of the body: sizes of chunks, and what is read ahead."""
HEADERS = {"Accept": "image/*, */*;q=0.5", "User-Agent": "segment"}


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
    limits: Limits,
    private: bool = False,
    site: Site | None = None,
    received: Callable[[int], None] = lambda count: None,
    announced: Callable[[int], None] = lambda count: None,
) -> bytes:
    """Fetch `url` within `limits`.

    `private` also allows addresses that are not public; `site` is allowed in any case. `received` is called with the
    number of bytes that have arrived, before they are stored; it may wait, and raise. `announced` is called with the
    length of the body before, 0 if it is unknown. Raises RefusedURL if the URL is not allowed, FetchError if it could
    not be fetched, Busy if it was given up because others wait, TooLarge, Cancelled.
    """
    for _ in range(MAX_REDIRECTS + 1):
        target = parse(url)
        trusted = site is not None and site.has(target)
        addresses = resolve(target, limits, private or trusted)
        headers = {**HEADERS, **site.headers} if site and trusted else HEADERS
        with _answer(target, addresses, limits, headers) as response:
            location = response.getheader("Location")
            if response.status in {301, 302, 303, 307, 308} and location:
                url = urljoin(url, location)
                continue
            if response.status != http.client.OK:
                raise FetchError(f"{target.host} answered {response.status} {response.reason[:100]} for this URL.")
            announced(response.length or 0)
            return _read(response, target, limits, received)
    raise FetchError(f"The URL redirects more than {MAX_REDIRECTS} times.")


def post(site: Site, path: str, body: Mapping[str, str], limits: Limits) -> bytes:
    """POST `body` as JSON to `path` of `site`. Returns the response's body; redirects are not followed.

    Raises FetchError, TooLarge, Cancelled.
    """
    target = parse(site.address.rstrip("/") + path)
    headers = {**HEADERS, **site.headers, "Content-Type": "application/json"}
    addresses = resolve(target, limits, private=True)
    with _answer(target, addresses, limits, headers, json.dumps(body).encode()) as response:
        if response.status != http.client.OK:
            raise FetchError(f"{target.host} answered {response.status} {response.reason[:100]} to {path}.")
        return _read(response, target, limits, lambda count: None)


def resolve(target: Target, limits: Limits, private: bool) -> list[SocketAddress]:
    """Resolve the host name of `target` to addresses, in order of preference.

    Raises RefusedURL if any of them is not public, unless `private`; FetchError if the name cannot be resolved.
    """
    answer: queue.SimpleQueue[list[Any] | Exception] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            answer.put(socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answer.put(error)

    def wait(seconds: float) -> list[Any] | Exception:
        try:
            return answer.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None

    # getaddrinfo has no timeout of its own.
    threading.Thread(target=look_up, daemon=True).start()
    found = limits.repeat(wait)
    if isinstance(found, Exception) or not found:
        raise FetchError(f"The host name {target.host} cannot be resolved.")
    if not private and not all(is_public(address[0]) for *_, address in found):
        raise RefusedURL(
            f"{target.host} does not have a public address. Only photos on the public internet are fetched."
        )
    return [(family, address) for family, _, _, _, address in found]


@contextlib.contextmanager
def _answer(
    target: Target,
    addresses: list[SocketAddress],
    limits: Limits,
    headers: Mapping[str, str],
    body: bytes | None = None,
) -> Iterator[http.client.HTTPResponse]:
    """Send a GET request, or POST `body`; yields the response before its body is read. Raises FetchError."""
    connection = ClientConnection(target, addresses, limits)
    limits.readable = HEAD_BYTES
    try:
        connection.request("GET" if body is None else "POST", target.path, body, headers)
        with connection.getresponse() as response:
            yield response
    except TimeoutError:
        raise limits.passed() from None
    except ssl.SSLCertVerificationError as error:
        raise FetchError(f"The certificate of {target.host} is not valid: {error.verify_message}.") from None
    except (OSError, ValueError, http.client.HTTPException):
        raise FetchError(f"The connection to {target.host} failed or was interrupted.") from None
    finally:
        connection.release()


def _read(response: http.client.HTTPResponse, target: Target, limits: Limits, received: Callable[[int], None]) -> bytes:
    """Read the whole body. Raises TooLarge as soon as it exceeds the limit."""
    encoding = response.getheader("Content-Encoding", "identity")
    if encoding != "identity":
        raise FetchError(
            f"{target.host} answered with the content encoding {encoding[:40]!r}, which was not requested."
        )
    too_large = TooLarge(f"The photo at this URL is larger than {limits.size:,} bytes, the maximum.")
    if response.length is not None and response.length > limits.size:
        raise too_large
    body = io.BytesIO()
    while True:
        limits.readable = PIECE_BYTES + FRAMING_BYTES
        chunk = response.read(PIECE_BYTES)
        if not chunk:
            break
        if body.tell() + len(chunk) > limits.size:
            raise too_large
        start = time.monotonic()
        received(len(chunk))
        limits.pace.pause(time.monotonic() - start)
        body.write(chunk)
    if response.length:  # read(n) does not raise for a truncated body
        raise FetchError(f"The response of {target.host} ended {response.length:,} bytes too early.")
    return body.getvalue()
