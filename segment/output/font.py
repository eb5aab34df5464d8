"""The fonts of tags: Pillow's own for ASCII, a part of DejaVu Sans for the other letters of Latin, Greek and Cyrillic.

Names in other scripts need a font file, as there is no small font that has them all. Without it, such a name is shown
as the number of its category.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont, features

from segment.errors import OptionError

FILE = Path(__file__).parent / "fonts" / "DejaVuSans-part.ttf"
"""Written by devtools/font.py."""
RANGES = ((" ", "~"), ("\u00a0", "\u052f"), ("\u1e00", "\u1eff"), ("\u2010", "\u2027"), ("\u20a0", "\u20bf"))
"""First and last characters of the ranges in FILE: ASCII, Latin to Cyrillic, more Latin, punctuation, currencies."""
_TEXT = re.compile("[{}]*".format("".join(f"{first}-{last}" for first, last in RANGES)))

BESIDE = "0123456789%… "
"""What tags show beside the name, so that each font must have it."""
SIZES = 6
"""Sizes of a font file that are kept open, as each takes memory; the tags of one photo have three or fewer."""
_ABSENT = "\uffff"
"""Not a character, so that each font draws its sign for missing ones."""


@dataclass(frozen=True)
class Font:
    """A font file that can be read; made by open_font."""

    path: str

    def has(self, text: str) -> bool:
        """Whether the font has all characters of `text`, and this process can place them."""
        return all(map(self._has, text)) and (features.check("raqm") or not any(map(_needs_layout, text)))

    def _has(self, character: str) -> bool:
        return character.isspace() or _picture(self.path, character) != _picture(self.path, _ABSENT)


@lru_cache(maxsize=SIZES)
def open_font(path: str | Path) -> Font:
    """The font in this TTF, OTF or TTC file; the first one of a TTC. Raises OptionError.

    It is opened in SIZES sizes, so that it takes no more memory later, and a service plans with what is left.
    """
    name = Path(path).name
    font = Font(os.fspath(path))
    if not Path(path).is_file():
        raise OptionError("font", f"There is no font file {name or path}.")
    try:
        for exponent in range(SIZES):
            _of_size(font.path, 16 + exponent).getlength(BESIDE)
    except OSError as error:
        raise OptionError(
            "font", f"{name} cannot be read as a font ({error}). It must be a TTF, OTF or TTC file with outlines."
        ) from None
    if missing := [character for character in BESIDE if not font.has(character)]:
        raise OptionError(
            "font", f"The font {name} does not have the character {missing[0]!r}. Tags show {BESIDE} beside the name."
        )
    return font


def writable(name: str, category_id: int, font: Font | None = None) -> str:
    """The name of a class if the built-in fonts or `font` have its characters, or else #category_id."""
    name = unicodedata.normalize("NFC", name)
    return name if _TEXT.fullmatch(name) or (font and font.has(name)) else f"#{category_id}"


def font_for(text: str, points: int, font: Font | None = None) -> ImageFont.FreeTypeFont:
    """The font in which a tag with this writable text is written, `points` pixels high, or a little less for `font`."""
    if font and not _TEXT.fullmatch(text):
        return _of_size(font.path, round(2 ** (math.floor(4 * math.log2(points)) / 4)))
    return _built_in(points, text.replace("…", "").isascii())


@lru_cache(maxsize=64)
def _built_in(points: int, ascii_only: bool) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(points) if ascii_only else ImageFont.truetype(FILE, points)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's wheels hold FreeType
    return font


@lru_cache(maxsize=SIZES)
def _of_size(path: str, points: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, points)


@lru_cache(maxsize=4096)
def _picture(path: str, character: str) -> tuple[tuple[int, int], bytes]:
    """The size and the pixels of a character, large enough that those of two differ."""
    mask = _large(path).getmask(character)
    return mask.size, bytes(mask)


@lru_cache(maxsize=1)
def _large(path: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, 64, layout_engine=ImageFont.Layout.BASIC)


def _needs_layout(character: str) -> bool:
    """Whether letters are joined or placed from right to left: Arabic, Hebrew, Indic scripts."""
    return unicodedata.bidirectional(character) in ("R", "AL") or unicodedata.category(character) in ("Mn", "Mc")
