"""The keys of a YAML config: values of a nested mapping, read by their dotted name. Every error names the key."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from segment.convert import ranges
from segment.convert.document import ELSEWHERE, shown
from segment.convert.ranges import Number, Range, Rows
from segment.errors import ConversionError

MAX_LITERAL = 10_000
"""Maximum number of characters of a value that is written as Python source."""

Choices = Mapping[str, tuple[Any, tuple[Any, ...]]]
"""Key -> detectron2's default, and the supported values."""


class Keys:
    """A nested mapping whose values are read by dotted key, with detectron2's defaults."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document

    def get(self, key: str, default: Any) -> Any:
        value: Any = self.document
        for part in key.split("."):
            if not isinstance(value, Mapping):
                raise ConversionError(f"{key} cannot be read: its parent is {shown(value)}, not a mapping.")
            if part not in value:
                return default
            value = value[part]
        return _decoded(value)

    def check(self, choices: Choices) -> None:
        """Raise ConversionError if one of these keys has a value that is not supported."""
        for key, (default, allowed) in choices.items():
            self.one_of(key, default, allowed)

    def one_of(self, key: str, default: Any, allowed: tuple[Any, ...]) -> Any:
        """The value. Raises ConversionError if it is not one of `allowed`."""
        value = self.get(key, default)
        if value not in allowed:
            raise ConversionError(
                f"{key} is {shown(value)}, which cannot be converted. Supported: "
                f"{', '.join(repr(a) for a in allowed)}. {ELSEWHERE}"
            )
        return value

    def flag(self, key: str, *, default: bool = False) -> bool:
        return ranges.flag(key, self.get(key, default))

    def number(self, key: str, valid: Range[Number], default: Number) -> Number:
        return valid.one(key, self.get(key, default))

    def numbers(
        self, key: str, valid: Range[Number], default: list[Number], count: int | None = None
    ) -> tuple[Number, ...]:
        return valid.several(key, self.get(key, default), count)

    def per_level(self, key: str, valid: Range[Number], default: list[list[Number]], levels: int) -> Rows[Number]:
        return valid.per_level(key, self.get(key, default), levels)

    def levels(
        self, key: str, prefix: str, allowed: tuple[int, ...], default: Sequence[str] = (), *, neighbours: bool = True
    ) -> tuple[int, ...]:
        """The levels of the feature maps that `key` lists, of those called `prefix` and a level in `allowed`."""
        known = {f"{prefix}{level}": level for level in allowed}
        return ranges.levels(key, self.get(key, default), known, neighbours=neighbours)


def _decoded(value: Any) -> Any:
    """A value as detectron2 reads it: text that is a Python literal, such as a tuple, is that literal.

    fvcore/common/config.py and yacs (CfgNode._decode_cfg_value).
    """
    if not isinstance(value, str) or len(value) > MAX_LITERAL:
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value
