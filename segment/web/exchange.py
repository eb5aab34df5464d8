"""A request with photos, and the memory that is reserved for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from flask import Request, Response

from segment.memory import Reservation
from segment.service import Service
from segment.web.fetch import Site, fetch

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
    sent.
    """

    service: Service
    request: Request
    held: Reservation
    until: ExitStack

    def received(self, count: int) -> None:
        """Reserve `count` bytes of the body, unless the gateway has done so. Raises TooLarge, Busy."""
        if RECEIVED not in self.request.environ:
            self.held.grow(count)

    def cancelled(self) -> bool:
        """Whether the client has disconnected."""
        return bool(self.request.environ.get(CANCELLED, lambda: False)())

    def fetch_seconds(self) -> float:
        """How long a fetch may take, as it keeps a thread from others."""
        return float(self.request.environ.get(FETCH_SECONDS, lambda: math.inf)())

    def crowded(self) -> bool:
        """Whether others wait for what a fetch takes: memory for received bytes, or a thread."""
        return self.service.uploads_wait or self.fetch_seconds() < math.inf

    def fetch(self, url: str, site: Site | None = None) -> bytes:
        """The photo at `url`. Raises RefusedURL, FetchError, TooLarge, Busy, Cancelled."""
        settings = self.service.settings
        return fetch(
            url,
            limit=self.service.upload_limit,
            seconds=settings.fetch_seconds,
            private=settings.fetch_private,
            received=self.held.grow,
            announced=self._announced,
            site=site,
            crowded=self.crowded,
            crowded_seconds=self.fetch_seconds,
            cancelled=self.cancelled,
        )

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
