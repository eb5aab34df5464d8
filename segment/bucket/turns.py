"""One thread of this process at a time per photo: four deliveries at once do the work once."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from segment.errors import Busy

_guard = threading.Lock()
_turns: weakref.WeakValueDictionary[str, threading.Lock] = weakref.WeakValueDictionary()


@contextmanager
def turn(key: str, wait_seconds: float) -> Iterator[None]:
    """A lock per key, within this process. Raises Busy after `wait_seconds`."""
    with _guard:
        lock = _turns.setdefault(key, threading.Lock())
    if not lock.acquire(timeout=min(wait_seconds, threading.TIMEOUT_MAX)):
        raise Busy(f"Timed out after {wait_seconds:g} s waiting for another delivery of the same photo.", 5)
    try:
        yield
    finally:
        lock.release()
