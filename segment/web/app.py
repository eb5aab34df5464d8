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

import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask import Flask, Request, Response
from flask import request as current_request
from werkzeug.datastructures import MIMEAccept
from werkzeug.exceptions import (
    HTTPException,
    MethodNotAllowed,
    NotAcceptable,
    NotFound,
)
from werkzeug.http import parse_accept_header

from segment.errors import SegmentError
from segment.formats import FORMATS, Format
from segment.options import Options
from segment.output.colours import PALETTE
from segment.progress import Progress
from segment.service import Result, Service
from segment.settings import Settings
from segment.web import docs, labelling, openapi, problems
from segment.web.assets import EXAMPLES, assets
from segment.web.exchange import PROGRESS, Exchange, Handler, handler
from segment.web.pace import PIECE_BYTES
from segment.web.responses import cacheable, finished, json_response

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)

ACCEPTABLE: tuple[Format, ...] = ("png", "jpeg", "webp", "json", "cutouts")
MEDIA_TYPES: Mapping[str, Format] = {FORMATS[name].media_type: name for name in ACCEPTABLE}
"""Media types that an Accept header may request, and the format of each; the first wins a tie. The map of instance ids
is image/png like the overlay, so it can only be requested with `format`."""

PROBES = ("/health", "/ready", "/progress")
"""Paths that clients poll; they are available on every target."""
STREAM_BYTES = 24 << 20
"""Larger responses are streamed, because Cloud Run limits other responses to 32 MiB."""


def handle(service: Service, request: Request) -> Response:
    """Handle a request. Never raises."""
    return _respond(service, request, lambda: _route(service, request))


def refuse(service: Service, error: SegmentError | HTTPException) -> WSGIApplication:
    """A WSGI application that responds to any request with `error`, for requests whose body could not be received."""

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        return _respond(service, request, lambda: _problem(error))(environ, start_response)

    return application


def _respond(service: Service, request: Request, answer: Callable[[], Response]) -> Response:
    start = time.perf_counter()
    try:
        response = answer()
    except (SegmentError, HTTPException) as error:
        response = _problem(error)
    except Exception:
        log.exception("Unexpected error")
        response = problems.problem(500, "Failed", "An unexpected error occurred. It has been logged.")
    return finished(request, response, service.settings, time.perf_counter() - start, quiet=request.path in PROBES)


def _problem(error: SegmentError | HTTPException) -> Response:
    return problems.problem_of(error) if isinstance(error, SegmentError) else problems.http_problem(error)


def add_probes(app: Flask, service: Service) -> None:
    """Add the routes of PROBES. Without them, the target for bucket events rejects every GET request."""
    for path in PROBES:
        app.add_url_rule(path, path, lambda: handle(service, current_request), provide_automatic_options=False)


def _route(service: Service, request: Request) -> Response:
    if request.method == "OPTIONS" and request.path == "/*":  # the target * means the whole server (RFC 9110, 9.3.7)
        return Response(status=204)
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


def _accepted(header: str) -> MIMEAccept:
    """The media ranges in an Accept header (RFC 9110, 12.5.1), without those that are invalid.

    Java's HttpURLConnection sends `*; q=.2`: `*` is read as `*/*`, and the 0 before the point may be missing.
    """
    ranges = parse_accept_header(re.sub(r"(;\s*q=)\.", r"\g<1>0.", header), MIMEAccept)
    named = [("*/*" if name == "*" else name, quality) for name, quality in ranges]
    return MIMEAccept([(name, quality) for name, quality in named if "/" in name])


@handler
def _segment(exchange: Exchange) -> Response:
    service, request = exchange.service, exchange.request
    upload = exchange.upload()
    raw_options = upload.raw_options
    if "format" not in raw_options and (accepted := _accepted(request.headers.get("Accept", ""))):
        best = accepted.best_match(MEDIA_TYPES)
        if best is None:
            raise NotAcceptable(f"No available format matches the Accept header. Available: {', '.join(MEDIA_TYPES)}.")
        raw_options = raw_options | {"format": MEDIA_TYPES[best]}
    options = Options.parse(raw_options, service.settings)
    start = time.perf_counter()
    data = exchange.photo(upload)
    fetched = {} if upload.url is None else {"fetch": (time.perf_counter() - start) * 1000}
    return _result(service.segment(data, options, until=exchange.until, cancelled=exchange.cancelled), fetched)


def _result(result: Result, fetched: Mapping[str, float]) -> Response:
    (file,) = result.files
    body: Any = file.body
    if len(file.body) > STREAM_BYTES:
        view = memoryview(file.body)
        body = (bytes(view[at : at + PIECE_BYTES]) for at in range(0, len(view), PIECE_BYTES))
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
    return json_response({"status": "alive"})


def _ready(service: Service, _request: Request) -> Response:
    """Loads the model in this request, because Cloud Run may not give a background thread any CPU."""
    service.load()
    return json_response({"status": "ready", "model": service.model_name})


def _progress(service: Service, request: Request) -> Response:
    """Does not load the model; one that needs no preparation is loaded by the first request that needs it."""
    loaded = Progress("ready", "The model is loaded.") if service.ready else Progress("load", "Loading the model.")
    return json_response(asdict(request.environ.get(PROGRESS, loaded)))


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
    return cacheable(json.dumps(about).encode(), "application/json", request)


def _document(service: Service) -> dict[str, Any]:
    return openapi.document(service.settings, tuple(MEDIA_TYPES), problems.problems())


def _openapi(service: Service, request: Request) -> Response:
    return cacheable(json.dumps(_document(service)).encode(), "application/json", request)


def _docs(service: Service, request: Request) -> Response:
    page = docs.page(_document(service), problems.problems())
    return cacheable(page.encode(), "text/html; charset=utf-8", request)


def _asset(file: Path, content_type: str) -> Handler:
    def answer(_service: Service, request: Request) -> Response:
        return cacheable(file.read_bytes(), content_type, request)

    return answer


ROUTES: dict[str, dict[str, Handler]] = {
    **{path: {"GET": _asset(file, content_type)} for path, (file, content_type) in assets().items()},
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
