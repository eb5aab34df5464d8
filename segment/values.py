"""Typed values parsed from text. Settings and request options use the same rules.

A `Value` converts text, describes the accepted values for error messages, and provides their JSON Schema.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

MIB = 1 << 20
_FLAGS = {"1": True, "true": True, "on": True, "yes": True, "0": False, "false": False, "off": False, "no": False}
_UNITS = {None: 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "k": 10**3, "M": 10**6, "G": 10**9}


class BadValue(ValueError):
    """The text is not a valid value; the message says what is valid."""


@dataclass(frozen=True)
class Value:
    """`read` converts stripped text; `expected` completes the sentence "it must be ..."; `schema` is a JSON Schema."""

    read: Callable[[str], Any]
    expected: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})

    def parse(self, text: str) -> Any:
        """Convert `text`. Raises BadValue, whose message contains the text and what is valid."""
        try:
            return self.read(text.strip())
        except (ValueError, KeyError, OverflowError):
            raise BadValue(f"is {text!r}; it must be {self.expected}.") from None


def text() -> Value:
    """Any text."""
    return Value(str, "text")


def flag() -> Value:
    """A boolean: true, on, yes or 1, and false, off, no or 0."""
    return Value(lambda word: _FLAGS[word.lower()], "true or false", {"type": "boolean"})


def number(kind: type[int] | type[float], low: float, high: float) -> Value:
    """A number from `low` to `high`, in ASCII digits."""

    def read(word: str) -> Any:
        if not word.isascii() or "_" in word:  # int() and float() accept both
            raise ValueError
        value = kind(word)
        if not low <= value <= high:
            raise ValueError
        return value

    name, noun = ("integer", "whole number") if kind is int else ("number", "number")
    return Value(read, f"a {noun} from {low:g} to {high:g}", {"type": name, "minimum": low, "maximum": high})


def choice(literal: Any) -> Value:
    """One of the strings of a Literal type, case-insensitive."""
    names = {name: name for name in choices(literal)}
    return Value(lambda word: names[word.lower()], "one of " + ", ".join(names), {"enum": list(names)})


def several(literal: Any) -> Value:
    """One or more of the strings of a Literal type, separated by commas; parsed as a tuple without duplicates."""
    known = choices(literal)

    def read(words: str) -> tuple[str, ...]:
        names = split(words.lower())
        if not names or not set(names) <= set(known):
            raise ValueError
        return tuple(dict.fromkeys(names))

    return Value(read, f"one or more of {', '.join(known)}, separated by commas")


def names(expected: str) -> Value:
    """At least one name, separated by commas."""

    def read(words: str) -> tuple[str, ...]:
        found = split(words)
        if not found:
            raise ValueError
        return found

    return Value(read, f"{expected}, separated by commas", {"type": "string", "pattern": "[^,\\s]"})


def auto_or(value: Value) -> Value:
    """`value`, or the word auto, which is parsed as None."""
    return Value(
        lambda word: None if word.lower() == "auto" else value.read(word),
        f"auto or {value.expected}",
        {"anyOf": [value.schema, {"const": "auto"}]},
    )


def byte_size() -> Value:
    """A number of bytes, with an optional unit."""

    def read(word: str) -> int:
        match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)(Ki|Mi|Gi|k|M|G)?B?", word, re.ASCII)
        if not match:
            raise ValueError
        return int(float(match[1]) * _UNITS[match[2]])

    return Value(read, "a size such as 512Mi, 2Gi or a number of bytes")


def url() -> Value:
    """An http or https URL."""

    def read(word: str) -> str:
        if not re.match(r"https?://[^/]", word):
            raise ValueError
        return word

    return Value(read, "an http or https URL", {"type": "string", "format": "uri"})


def choices(literal: Any) -> tuple[str, ...]:
    """The strings of a Literal type."""
    return typing.get_args(literal)


def split(words: str) -> tuple[str, ...]:
    """The parts of a text between its commas, without those that are empty."""
    return tuple(word.strip() for word in words.split(",") if word.strip())
