"""Which URLs and addresses are fetched.

A URL is http or https, without a password and with an allowed port. An address is public if it is in none of IANA's
special-purpose registries (`ipaddress`), also when it is an IPv4 address embedded in IPv6.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from segment.errors import RefusedURL

MAX_URL = 8192
"""Maximum length of a URL in characters."""
LOWEST_PORT = 1024
"""Ports below are not allowed, except 80 and 443."""
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


@dataclass(frozen=True)
class Target:
    """A parsed URL. `host`: in ASCII (IDNA). `path`: percent-encoded, with the query."""

    secure: bool
    host: str
    port: int
    path: str


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
