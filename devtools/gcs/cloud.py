"""The emulator: buckets, their API and its server."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self

from devtools.gcs.api import Api
from devtools.gcs.faults import Faults
from devtools.gcs.messages import Answer, Request
from devtools.gcs.objects import Object
from devtools.gcs.server import Server
from devtools.gcs.storage import Storage


class Cloud(Storage):
    """Buckets and their server; a context manager that serves while it is entered.

    `latency`: minimum time of a request in seconds, as over a network. `requests`: method and unquoted target of each
    request. `on_finalize`: see Storage.
    """

    def __init__(self, port: int = 0, seed: int = 0, on_finalize: Callable[[Object], None] | None = None) -> None:
        super().__init__(on_finalize)
        self.faults = Faults(seed)
        self.latency = 0.0
        self.requests: list[tuple[str, str]] = []
        self._server = Server(self, port)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._api = Api(self, self.url)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.faults.clear()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: Request) -> Answer:
        """Handle a request. Raises Refused."""
        return self._api.answer(request)
