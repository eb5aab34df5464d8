"""Call a WSGI application (PEP 3333) with an ASGI request, whose body has been received."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

Scope = Mapping[str, Any]
Answer = tuple[int, list[tuple[bytes, bytes]], Iterable[bytes]]
"""Status, headers and body of a response."""


def call(application: WSGIApplication, environ: WSGIEnvironment) -> Answer:
    """Call the application."""
    started: list[tuple[str, list[tuple[str, str]]]] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> Callable[..., object]:
        started[:] = [(status, headers)]
        return lambda data: None

    pieces = application(environ, start_response)
    ((status, headers),) = started
    return int(status[:3]), [(name.lower().encode(), value.encode("latin-1")) for name, value in headers], pieces


def environment(scope: Scope, body: io.RawIOBase) -> WSGIEnvironment:
    """The WSGI environment of an ASGI scope."""
    host, port = scope["server"] or ("localhost", 0)
    environ: WSGIEnvironment = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(scope["raw_path"]).decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "REMOTE_ADDR": (scope["client"] or ("",))[0],
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope["scheme"],
        "wsgi.input": body,
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if "_" in name or name == "upgrade":  # CGI names do not distinguish _ from a hyphen; no upgrade is supported
            continue
        key = name.upper().replace("-", "_")
        if key not in {"CONTENT_TYPE", "CONTENT_LENGTH"}:
            key = f"HTTP_{key}"
        environ[key] = f"{environ[key]},{value}" if key in environ else value
    return environ


def origin_form(scope: Scope) -> Scope:
    """The scope with the path alone where the request's target is a whole URL (RFC 9112, 3.2.2), as sent to a proxy.

    `path` begins with a single slash, as Werkzeug's do: some clients append "/segment" to an address that ends in one.
    """
    target = scope["raw_path"]
    scheme, *rest = target.split(b"/", 3)
    if scheme.lower() in (b"http:", b"https:"):
        target = b"/" + b"".join(rest[2:])
    path = unquote_to_bytes(target).decode("utf-8", "replace").lstrip("/")
    return {**scope, "raw_path": target, "path": f"/{path}"}
