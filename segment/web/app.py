"""The HTTP interface: parses requests, calls the service, and returns results and errors as responses.

| path | methods | response |
|---|---|---|
| `/` | GET | the page |
| `/segment`, `/detect` | GET, POST | a segmented photo; `/detect` is the route of the original application |
| `/model` | GET | the model: labels, memory, options |
| `/openapi.json`, `/docs` | GET | the documentation of the interface |
| `/health` | GET | 200 while the process lives |
| `/ready` | GET | 200 once the model is loaded, which it does itself; 503 when it cannot be |
| `/progress` | GET | how far the preparation of the model is |

Labelling tools have paths of their own, see labelling.py.

Errors are problem documents (problems.py).
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask import Flask, Request, Response
from flask import request as current_request
from werkzeug.exceptions import (
    HTTPException,
    MethodNotAllowed,
    NotAcceptable,
    NotFound,
)

from segment.errors import SegmentError
from segment.formats import FORMATS, Format
from segment.options import Options
from segment.output.colours import PALETTE
from segment.progress import Progress
from segment.service import Result, Service
from segment.settings import Settings
from segment.web import docs, labelling, openapi, problems
from segment.web.exchange import Exchange, Handler, handler
from segment.web.upload import read

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)

ACCEPTABLE: tuple[Format, ...] = ("png", "jpeg", "webp", "json", "cutouts")
MEDIA_TYPES: Mapping[str, Format] = {FORMATS[name].media_type: name for name in ACCEPTABLE}
"""Media types that an Accept header may request, and the format of each; the first wins a tie. The map of instance ids
is image/png like the overlay, so it can only be requested with `format`."""

PROGRESS = "segment.progress"
"""Key of the WSGI environment, set by segment/web/gateway.py: the Progress of a model that is prepared while the server
runs. A plain WSGI server does not set it. See exchange.py for the others."""
PROBES = ("/health", "/ready", "/progress")
"""Paths that clients poll; they are available on every target."""
STREAM_BYTES = 24 << 20
"""Larger responses are streamed, because Cloud Run limits other responses to 32 MiB."""
CHUNK = 1 << 16
DRAIN_BYTES, DRAIN_SECONDS = 64 << 20, 5.0
"""Limits for reading and discarding a refused body, so that the client gets to read the response."""
PAGE = Path(__file__).parent / "page"
EXAMPLES = {
    "scene-1.jpg": "stars, circles and a ring",
    "scene-2.jpg": "a busy scene of overlapping shapes",
    "scene-3.jpg": "striped circles and rings",
    "coins.jpg": "a photograph of ancient coins",
}
"""Example photos for the demo model: file name and description."""
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def handle(service: Service, request: Request) -> Response:
    """Handle a request. Never raises."""
    return _respond(service, request, lambda: _route(service, request))


def refuse(service: Service, error: SegmentError | HTTPException) -> WSGIApplication:
    """A WSGI application that responds to any request with `error`, for requests whose body could not be received."""

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        return _respond(service, request, lambda: _raise(error))(environ, start_response)

    return application


def _raise(error: Exception) -> Response:
    raise error


def _respond(service: Service, request: Request, answer: Callable[[], Response]) -> Response:
    start = time.perf_counter()
    try:
        response = answer()
    except SegmentError as error:
        response = problems.problem_of(error)
    except HTTPException as error:
        response = problems.http_problem(error)
    except Exception:
        log.exception("Unexpected error")
        response = problems.problem(500, "Failed", "An unexpected error occurred. It has been logged.")
    response.headers.update({k: v for k, v in SECURITY_HEADERS.items() if k not in response.headers})
    _allow_origin(request, response, service.settings)
    _log(request, response, time.perf_counter() - start)
    return _after_the_body(request, response)


def add_probes(app: Flask, service: Service) -> None:
    """Add the routes of PROBES. Without them, the target for bucket events rejects every GET request."""
    for path in PROBES:
        app.add_url_rule(path, path, lambda: handle(service, current_request), provide_automatic_options=False)


def _route(service: Service, request: Request) -> Response:
    handlers = routes(service.settings).get(request.path)
    if handlers is None:
        raise NotFound(f"There is nothing at {request.path[:200]}. See /docs for the available paths.")
    allowed = [*handlers, *(["HEAD"] if "GET" in handlers else []), "OPTIONS"]
    if request.method == "OPTIONS":
        return Response(status=204, headers={"Allow": ", ".join(allowed)})
    handler = handlers.get("GET" if request.method == "HEAD" else request.method)
    if handler is None:
        raise MethodNotAllowed(
            allowed, f"{request.path} does not support {request.method[:20]}. Supported methods: {', '.join(allowed)}."
        )
    return handler(service, request)


# Segmenting


@handler
def _segment(exchange: Exchange) -> Response:
    service, request = exchange.service, exchange.request
    upload = read(request, service.upload_limit, exchange.received, exchange.held.grow)
    raw_options = upload.raw_options
    if "format" not in raw_options and request.accept_mimetypes:
        best = request.accept_mimetypes.best_match(MEDIA_TYPES)
        if best is None:
            raise NotAcceptable(f"No available format matches the Accept header. Available: {', '.join(MEDIA_TYPES)}.")
        raw_options = raw_options | {"format": MEDIA_TYPES[best]}
    options = Options.parse(raw_options, service.settings)
    start = time.perf_counter()
    data = upload.photo if upload.url is None else exchange.fetch(upload.url)
    fetched = {} if upload.url is None else {"fetch": (time.perf_counter() - start) * 1000}
    return _result(service.segment(data, options, until=exchange.until, cancelled=exchange.cancelled), fetched)


def _result(result: Result, fetched: Mapping[str, float]) -> Response:
    (file,) = result.files
    body: Any = file.body
    if len(file.body) > STREAM_BYTES:
        view = memoryview(file.body)
        body = (bytes(view[at : at + CHUNK]) for at in range(0, len(view), CHUNK))
    disposition = "attachment" if file.content_type == "application/zip" else "inline"
    response = Response(body, content_type=file.content_type)
    response.headers.update(
        {
            "Cache-Control": "no-store",
            "Vary": "Accept",
            "Content-Disposition": f'{disposition}; filename="{file.name}"',
            "Segment-Instances": str(result.instances),
            "Segment-Network-Size": _size(result.network_size),
            "Segment-Photo-Size": _size(result.photo_size),
            "Segment-Picture-Size": _size(result.picture_size),
            "Segment-Detail": str(result.detail),
            "Server-Timing": ", ".join(f"{k};dur={v:.1f}" for k, v in {**fetched, **result.timings}.items()),
        }
    )
    if result.render_factor is not None:
        response.headers["Segment-Render-Factor"] = str(result.render_factor)
    return response


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


# Other routes


def _health(_service: Service, _request: Request) -> Response:
    return _json({"status": "alive"})


def _ready(service: Service, _request: Request) -> Response:
    """Loads the model in this request, because Cloud Run may not give a background thread any CPU."""
    service.load()
    return _json({"status": "ready", "model": service.model_name})


def _progress(service: Service, request: Request) -> Response:
    """Does not load the model; one that needs no preparation is loaded by the first request that needs it."""
    loaded = Progress("ready", "The model is loaded.") if service.ready else Progress("load", "Loading the model.")
    return _json(asdict(request.environ.get(PROGRESS, loaded)))


def _model(service: Service, request: Request) -> Response:
    settings = service.settings
    demo = not settings.model
    about = {
        **service.describe(),
        "max_upload": settings.max_upload,
        "options": openapi.options(settings),
        "palette": [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in PALETTE],
        "demo": demo,
        "examples": [{"src": src, "about": text} for src, text in EXAMPLES.items()] if demo else [],
    }
    return _cacheable(json.dumps(about).encode(), "application/json", request)


def _document(service: Service) -> dict[str, Any]:
    return openapi.document(service.settings, tuple(MEDIA_TYPES), problems.problems())


def _openapi(service: Service, request: Request) -> Response:
    return _cacheable(json.dumps(_document(service)).encode(), "application/json", request)


def _docs(service: Service, request: Request) -> Response:
    page = docs.page(_document(service), problems.problems())
    return _cacheable(page.encode(), "text/html; charset=utf-8", request)


def _asset(name: str, content_type: str) -> Handler:
    def answer(_service: Service, request: Request) -> Response:
        return _cacheable((PAGE / name).read_bytes(), content_type, request)

    return answer


def _json(value: object) -> Response:
    return Response(json.dumps(value), content_type="application/json", headers={"Cache-Control": "no-store"})


def _cacheable(body: bytes, content_type: str, request: Request) -> Response:
    """A response that caches revalidate each time, with ETag (304 if unchanged) and support for ranges."""
    response = Response(body, content_type=content_type, headers={"Cache-Control": "no-cache"})
    if content_type.startswith("text/html"):
        response.headers["Content-Security-Policy"] = PAGE_POLICY
        response.headers["Permissions-Policy"] = "camera=(self), microphone=(), geolocation=()"
    response.set_etag(hashlib.sha256(body).hexdigest()[:16])
    response.make_conditional(request, accept_ranges=True, complete_length=len(body))
    return response


# Headers of all responses


def _allow_origin(request: Request, response: Response, settings: Settings) -> None:
    """Allow the origins in the settings to read the response (CORS, https://fetch.spec.whatwg.org)."""
    allowed = settings.cors_origins
    if not allowed:
        return
    origin = request.headers.get("Origin")
    if "*" not in allowed:
        response.vary.add("Origin")
        if origin not in allowed:
            return
    headers = response.headers
    headers["Access-Control-Allow-Origin"] = "*" if "*" in allowed else str(origin)
    headers["Access-Control-Expose-Headers"] = ", ".join(openapi.RESULT_HEADERS)
    if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
        headers["Access-Control-Allow-Methods"] = headers.get("Allow", "")
        headers["Access-Control-Allow-Headers"] = "Content-Type"
        headers["Access-Control-Max-Age"] = "86400"


def _log(request: Request, response: Response, seconds: float) -> None:
    fields: dict[str, object] = {"status": response.status_code, "ms": round(seconds * 1000, 1)}
    for header in ("Segment-Instances", "Segment-Network-Size", "Segment-Photo-Size"):
        if header in response.headers:
            fields[header.removeprefix("Segment-").replace("-", "_").lower()] = response.headers[header]
    if response.mimetype == "application/problem+json":
        fields["problem"] = json.loads(response.get_data())["title"]
    quiet = request.path in PROBES and response.status_code < 400
    level = logging.DEBUG if quiet else logging.INFO
    log.log(level, "%s %s %d", request.method, request.path, response.status_code, extra=fields)


def _after_the_body(request: Request, response: Response) -> Response:
    """Return the response as a stream, after discarding a limited part of the request's body.

    functions-framework reads the whole remaining body into memory before it responds, unless the response is a stream.
    If nothing was read, the client of a refused upload would see a broken connection instead of the response.
    `request.stream` ends at the Content-Length, also where the server's own stream does not (Werkzeug's).
    """
    left, until = DRAIN_BYTES, time.monotonic() + DRAIN_SECONDS
    with suppress(Exception):  # servers raise various types for a malformed or truncated body
        while left > 0 and time.monotonic() < until and (dropped := len(request.stream.read(CHUNK))):
            left -= dropped
    if not response.is_streamed:
        body = response.get_data()
        response.headers["Content-Length"] = str(len(body))
        response.response = iter([body])
    return response


SCRIPTS = (
    "about",
    "colours",
    "cutout",
    "detections",
    "docs",
    "dom",
    "downloads",
    "drawing",
    "masks",
    "network",
    "objects",
    "page",
    "photolist",
    "photos",
    "service",
    "snippets",
    "sources",
    "startup",
    "state",
    "tags",
    "viewer",
)
_ASSETS = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8") for name in SCRIPTS},
    **{f"/{name}": (name, "image/jpeg") for name in EXAMPLES},
}
ROUTES: dict[str, dict[str, Handler]] = {
    **{path: {"GET": _asset(name, content_type)} for path, (name, content_type) in _ASSETS.items()},
    "/segment": {"GET": _segment, "POST": _segment},
    "/detect": {"GET": _segment, "POST": _segment},
    "/model": {"GET": _model},
    "/openapi.json": {"GET": _openapi},
    "/docs": {"GET": _docs},
    "/health": {"GET": _health},
    "/ready": {"GET": _ready},
    "/progress": {"GET": _progress},
}


def routes(settings: Settings) -> Mapping[str, Mapping[str, Handler]]:
    """Path -> method -> handler: the service's own, and those of the labelling tools that the settings name."""
    return {**ROUTES, **labelling.routes(settings)} if settings.labelling else ROUTES


def upload_paths(settings: Settings) -> frozenset[str]:
    """The paths that take a body."""
    return frozenset(path for path, handlers in routes(settings).items() if "POST" in handlers)
