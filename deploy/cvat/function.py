"""CVAT's automatic annotation as a function of nuclio; see function.yaml and docs/labelling.md."""

from __future__ import annotations

import os
from typing import Any

from segment.web import nuclio

handler = nuclio.handler


def init_context(context: Any) -> None:
    """Load the model that the image's environment names."""
    nuclio.init_context(context, os.environ)
