"""The fonts of tags: Pillow's own for ASCII, a part of DejaVu Sans for the other letters of Latin, Greek and Cyrillic.

Pillow's font has no letters beyond ASCII. A class name in another script is shown as the number of its category.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

FILE = Path(__file__).parent / "fonts" / "DejaVuSans-part.ttf"
"""Written by devtools/font.py."""
RANGES = ((" ", "~"), ("\u00a0", "\u052f"), ("\u1e00", "\u1eff"), ("\u2010", "\u2027"), ("\u20a0", "\u20bf"))
"""First and last characters of the ranges in FILE: ASCII, Latin to Cyrillic, more Latin, punctuation, currencies."""
_TEXT = re.compile("[{}]*".format("".join(f"{first}-{last}" for first, last in RANGES)))


def writable(name: str, category_id: int) -> str:
    """The name of a class if the fonts have its characters, or else #category_id."""
    name = unicodedata.normalize("NFC", name)
    return name if _TEXT.fullmatch(name) else f"#{category_id}"


def font_for(text: str, points: int) -> ImageFont.FreeTypeFont:
    """The font in which a tag with this text is written, `points` pixels high."""
    return _font(points, text.replace("…", "").isascii())


@lru_cache(maxsize=64)
def _font(points: int, ascii_only: bool) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(points) if ascii_only else ImageFont.truetype(FILE, points)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's wheels hold FreeType
    return font
