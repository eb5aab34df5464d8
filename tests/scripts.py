"""The page's scripts, read as text, for comparing them with the service's code."""

from __future__ import annotations

import json
import re
from typing import Any

from segment.web.assets import PAGE


def constants(script: str) -> dict[str, Any]:
    """The numbers and lists of numbers that a script defines as constants at the start of a line, by name."""
    text = (PAGE / script).read_text(encoding="utf-8")
    found = re.findall(r"^const ([A-Z_]+) = ([-\d.\[\], ]+);", text, re.MULTILINE)
    return {name: json.loads(value) for name, value in found}


def numbers(script: str) -> set[float]:
    """All numbers in a script, without their signs."""
    return {float(number) for number in re.findall(r"\d+\.\d+", (PAGE / script).read_text(encoding="utf-8"))}
