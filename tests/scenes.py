"""Photos of the demo model's shapes, and the service's results for them."""

from __future__ import annotations

import io
from functools import cache

from PIL import Image

from devtools.server import CACHE
from segment.options import Options
from segment.service import Service
from segment.settings import Settings
from training.shapes import scene

RENDER_FACTOR = 6


@cache
def photo(seed: int, size: tuple[int, int] = (96, 64)) -> bytes:
    """A scene of `size` (width, height) as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(scene(seed, size)[0]).save(buffer, "JPEG")
    return buffer.getvalue()


@cache
def service() -> Service:
    """A service in this process, with the embedded model at RENDER_FACTOR."""
    return Service(Settings(render_factor=RENDER_FACTOR, threads=1, cache=str(CACHE)))


@cache
def expected(content: bytes) -> dict[str, bytes]:
    """The service's results for a photo at RENDER_FACTOR, an overlay and JSON, by file name."""
    files = service().segment(content, Options.defaults(service().settings), ("png", "json")).files
    return {file.name: file.body for file in files}
