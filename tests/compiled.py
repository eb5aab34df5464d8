"""A fixture that compiles the embedded model once for all tests of a process.

Loading the compiled model from the cache takes most of the start of a service, and hundreds of tests start one. What is
shared is only what OpenVINO compiled, which never changes; each service has its own requests, budgets and settings.
To use it, import it into a test file.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from segment.engine import openvino
from segment.model import EMBEDDED

_compile = openvino.compile_network
_compile_once = lru_cache(maxsize=4)(_compile)


def _shared(path: Path, threads: int, cache: Path | None, streams: int = 1) -> Any:
    return (_compile_once if path == EMBEDDED else _compile)(path, threads, cache, streams)


@pytest.fixture(autouse=True, scope="module")
def compiled_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino, "compile_network", _shared)
        yield
