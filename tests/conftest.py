"""Fixtures that several tests share."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from devtools.server import Server, serve
from training.shapes import scene


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The service with the demo model, and small limits so that they can be reached."""
    with serve(SEGMENT_MAX_UPLOAD="2Mi", SEGMENT_FETCH_PRIVATE="true", SEGMENT_FETCH_SECONDS="3") as running:
        yield running


@pytest.fixture(scope="session")
def photo() -> bytes:
    """A JPEG in which the demo model finds several shapes."""
    return jpeg(scene(50_004, (320, 240))[0])


def jpeg(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint8 RGB as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
