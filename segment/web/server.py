"""The web server: uvicorn with connections of our own (connection.py), and the ASGI application (gateway.py).

There is one process with one event loop, because each further process would load the model again.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Container, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn

from segment.errors import ModelError
from segment.service import Service
from segment.web import labelling
from segment.web.app import upload_paths
from segment.web.eviction import LimitedConnection
from segment.web.gateway import INSTANT, Gateway
from segment.web.listener import BACKLOG, listen
from segment.web.startup import NEEDS_MODEL, Startup

log = logging.getLogger(__name__)

MAIN = Path(__file__).parent.parent / "main.py"
"""The package's own function targets."""
FAILURE_SECONDS = 3.0
"""Time between a failed preparation of the model and the server's exit, in which the page can show the reason."""
KEEP_ALIVE_SECONDS = 5
FETCHING_SHARE = 0.75
"""Share of the threads for requests that may fetch a URL, so that slow URLs leave some for photos that are uploaded."""
STOP_SECONDS = 8
"""Time limit for running requests after SIGTERM; Cloud Run kills the process after 10 s."""


class _AllPathsBut:
    def __init__(self, excepted: Container[str] = ()) -> None:
        self.excepted = excepted

    def __contains__(self, path: object) -> bool:
        return path not in self.excepted


def _load(service: Service) -> None:
    """Load the model before the first request: Label Studio waits 3 s for its answer (ML_TIMEOUT_SETUP)."""
    with suppress(ModelError):  # each request that needs the model gets the error
        service.load()


def run(
    host: str,
    port: int,
    threads: int,
    source: str | None = None,
    target: str | None = None,
    prepare: Sequence[str] = (),
) -> int:
    """Serve functions-framework's application for `target` until SIGTERM or SIGINT, then exit with status 0.

    `source`: file that defines the function target, segment/main.py by default. `target`: by default FUNCTION_TARGET.
    `prepare`: command that prepares the model while the server is already listening, see startup.py. If it fails, the
    server stops and 1 is returned. Raises SettingsError if it cannot listen on `host` and `port`.
    """
    listening = listen(host, port)
    import functions_framework

    application: Any = functions_framework.create_app(target, source or str(MAIN))  # type: ignore[no-untyped-call]
    service, http = application.extensions["segment"], application.name == "segment_http"
    uploads: Container[str] = upload_paths(service.settings) if http else _AllPathsBut()
    needs_model: Container[str] = (
        NEEDS_MODEL.union(labelling.routes(service.settings)) if http else _AllPathsBut(INSTANT)
    )
    failed = threading.Event()
    startup = Startup(service, prepare, failed.set) if prepare else None
    fetching = max(1, int(threads * FETCHING_SHARE)) if http else threads
    gateway = Gateway(application, service, threads, uploads, startup, needs_model, fetching)
    server = uvicorn.Server(_config(gateway))
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises the signal again after it has shut down
        signal.signal(number, lambda *_: sys.exit(0))
    if startup is None and service.settings.labelling:
        threading.Thread(target=_load, args=(service,), daemon=True).start()
    log.info("Serving on http://%s:%d (Ctrl-C stops it)", _name(host), port)
    if startup is None:
        server.run([listening])
        return 0
    threading.Thread(target=_end_after, args=(failed, server), daemon=True).start()
    startup.start()
    try:
        server.run([listening])
    finally:
        startup.stop()
    return int(failed.is_set())


def _name(host: str) -> str:
    """The host in the URL of a server that listens on the address `host`."""
    if host in ("0.0.0.0", "::"):
        return "localhost"
    return f"[{host}]" if ":" in host else host


def _config(gateway: Gateway) -> uvicorn.Config:
    return uvicorn.Config(
        gateway,
        http=LimitedConnection,
        ws="none",
        lifespan="off",
        interface="asgi3",
        loop="asyncio",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=True,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
    )


def _end_after(failed: threading.Event, server: uvicorn.Server) -> None:
    """End the server some seconds after the preparation of the model failed."""
    failed.wait()
    time.sleep(FAILURE_SECONDS)
    server.should_exit = True
