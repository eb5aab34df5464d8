"""A request with photos, and the memory that is reserved for it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from flask import Request, Response

from segment.memory import Reservation
from segment.service import Service
from segment.web.client import Limits
from segment.web.fetch import Site, fetch
from segment.web.upload import Upload, read, read_object

RECEIVED = "segment.received"
"""Key of the WSGI environment, set by gateway.py as the others below: the Reservation of the received body. Other WSGI
servers set none of them."""
CANCELLED = "segment.cancelled"
"""A function that returns whether the client has disconnected."""
FETCH_SECONDS = "segment.fetch_seconds"
"""A function that returns how long a fetch may take because other requests wait for a thread, infinite if none does."""
PROGRESS = "segment.progress"
"""The Progress of a model that is prepared while the server runs."""

Handler = Callable[[Service, Request], Response]


@dataclass(frozen=True)
class Exchange:
    """A request.

    `held`: memory reserved for the photos it brings, until it is answered. `until`: closed when the response has been
    sent. `end`: time by time.monotonic() after which it is cancelled.
    """

    service: Service
    request: Request
    held: Reservation
    until: ExitStack
    end: float = math.inf

    def received(self, count: int) -> None:
        """Reserve `count` bytes of the body, unless the gateway has done so. Raises TooLarge, Busy."""
        if RECEIVED not in self.request.environ:
            self.held.grow(count)

    def cancelled(self) -> bool:
        """Whether the client has disconnected, or `end` has passed."""
        return self.late() or bool(self.request.environ.get(CANCELLED, lambda: False)())

    def late(self) -> bool:
        """Whether `end` has passed."""
        return time.monotonic() > self.end

    def fetch_seconds(self) -> float:
        """How long a fetch may take, as it keeps a thread from others."""
        return float(self.request.environ.get(FETCH_SECONDS, lambda: math.inf)())

    def crowded(self) -> bool:
        """Whether others wait for what a fetch takes: memory for received bytes, or a thread."""
        return self.service.uploads_wait or self.fetch_seconds() < math.inf

    def upload(self) -> Upload:
        """The content of the request. Raises what `upload.read` raises."""
        return read(self.request, self.service.upload_limit, self.received, self.held.grow)

    def upload_object(self) -> dict[str, Any]:
        """The content of a request that is a JSON object. Raises what `upload.read_object` raises."""
        return read_object(self.request, self.service.upload_limit, self.received, self.held.grow)

    def photo(self, upload: Upload) -> bytes:
        """The photo that was uploaded, or is at its URL. Raises what `fetch` raises."""
        return upload.photo if upload.url is None else self.fetch(upload.url)

    def fetch(self, url: str, site: Site | None = None) -> bytes:
        """The photo at `url`. Raises RefusedURL, FetchError, TooLarge, Busy, Cancelled."""
        settings, limit = self.service.settings, self.service.upload_limit
        limits = Limits(limit, settings.fetch_seconds, self.crowded, self.fetch_seconds, self.cancelled)
        return fetch(url, limits, settings.fetch_private, site, self.held.grow, self._announced)

    def _announced(self, count: int) -> None:
        self.held.announced = self.held.bytes + (count or self.service.upload_limit)


def handler(answer: Callable[[Exchange], Response]) -> Handler:
    """A handler that calls `answer`. It releases the results' memory when the response has been sent."""

    def handle(service: Service, request: Request) -> Response:
        with ExitStack() as until, ExitStack() as photos:
            held = request.environ.get(RECEIVED) or photos.enter_context(service.receive())
            response = answer(Exchange(service, request, held, until))
            response.call_on_close(until.pop_all().close)
            return response

    return handle
