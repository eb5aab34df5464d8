"""The files of the page, and the example photos for the demo model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

PAGE = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
}
EXAMPLES = {
    "scene-1.jpg": "stars, circles and a ring",
    "scene-2.jpg": "a busy scene of overlapping shapes",
    "scene-3.jpg": "striped circles and rings",
    "coins.jpg": "a photograph of ancient coins",
}
"""File name and description of each example."""


def assets() -> Mapping[str, tuple[Path, str]]:
    """Path of the URL -> file and media type, for each file in the folder except the template of /docs."""
    files = (file for file in sorted(PAGE.iterdir()) if file.suffix in TYPES and file.name != "docs.html")
    return {f"/{file.name}".replace("/index.html", "/"): (file, TYPES[file.suffix]) for file in files}
