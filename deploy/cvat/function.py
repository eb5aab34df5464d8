"""CVAT's automatic annotation as a function of nuclio; see function.yaml and docs/labelling.md.

nuclio looks for `init_context` in the module in which the handler is defined, so both are defined here.
"""

from __future__ import annotations

import os
from typing import Any

from segment.web import nuclio


def init_context(context: Any) -> None:
    """Load the model that the image's environment names."""
    nuclio.init_context(context, os.environ)


def handler(context: Any, event: Any) -> Any:
    """Answer one request."""
    return nuclio.handler(context, event)
