"""Faults to inject into requests."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from devtools.gcs.messages import Refused


class Cut(Exception):
    """Close the connection without a response."""


@dataclass(eq=False)
class Fault:
    """A fault to inject.

    `effect`: respond with this status, cut the connection, stall for `seconds` and then cut it, or hold it until
    `release()`. `reason`: Google's word for the cause of an error status. `when`: before anything is read; in the
    middle of the request's body or, without one, of the response's body; or after the request was carried out, instead
    of the response. `method`: a regular expression for the whole method. `path`: one that is searched in the unquoted
    path and query. The first `skip` matching requests are not affected; the fault is injected into each later one with
    `probability`, at most `times` times.
    """

    effect: int | Literal["cut", "stall", "hold"]
    when: Literal["before", "half", "after"] = "before"
    method: str = ".*"
    path: str = ""
    probability: float = 1.0
    skip: int = 0
    times: int | None = None
    seconds: float = 60.0
    reason: str = ""
    hits: int = 0
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        """Release the delayed or held requests."""
        self.released.set()

    def strike(self, when: str) -> None:
        """Inject the fault if it is due. Raises Refused or Cut."""
        if when != self.when:
            return
        self.reached.set()
        if isinstance(self.effect, int):
            raise Refused(self.effect, f"A fault on demand{self.reason and ': '}{self.reason}.", self.reason)
        if self.effect != "cut":
            self.released.wait(None if self.effect == "hold" else self.seconds)
        if self.effect != "hold":
            raise Cut


class Faults:
    """The active faults. At most one, the first that matches, is injected per request."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> Fault:
        """Activate a fault."""
        with self._lock:
            self._faults.append(fault)
        return fault

    def __iter__(self) -> Iterator[Fault]:
        return iter(self._faults)

    def clear(self) -> None:
        """Remove all faults and release held requests."""
        with self._lock:
            faults, self._faults = self._faults, []
        for fault in faults:
            fault.release()

    def draw(self, method: str, target: str) -> Fault | None:
        """The fault to inject into this request, if any."""
        with self._lock:
            for fault in self._faults:
                if not (re.fullmatch(fault.method, method) and re.search(fault.path, target)):
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                elif fault.hits != fault.times and self._random.random() < fault.probability:
                    fault.hits += 1
                    return fault
        return None
