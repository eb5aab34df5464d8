"""The valid ranges of the numbers in a config.

Both kinds of config (cfgnode.py, lazyconfig.py) read every number with one of these ranges. An error names the key, the
value and the valid values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from segment.convert.document import shown
from segment.errors import ConversionError

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Range(Generic[Number]):
    """The numbers from `low` to `high`. `below`: `high` itself is not valid.

    `kind`: int for whole numbers; float for others, which may also be written as text, such as 1e-3 in YAML.
    """

    kind: type[Number]
    low: Number
    high: Number
    below: bool = False

    def one(self, key: str, value: object) -> Number:
        """The number `value`. Raises ConversionError."""
        number = self._parse(value)
        if number is None:
            raise ConversionError(f"{key} is {shown(value)}; it must be a {self._expected()}.")
        return number

    def several(self, key: str, value: object, count: int | None = None) -> tuple[Number, ...]:
        """The numbers in the list `value`: `count` of them, or at least one. Raises ConversionError."""
        numbers = self._parse_list(value)
        if numbers is None or (count is not None and len(numbers) != count):
            raise ConversionError(f"{key} is {shown(value)}; it must be {self._list(count)}.")
        return numbers

    def rows(self, key: str, value: object, rows: int | None = None, columns: int | None = None) -> Rows[Number]:
        """The numbers in a list of lists: `rows` lists of `columns` numbers, or any number of them."""
        given = value if isinstance(value, list | tuple) else []
        parsed = [self._parse_list(row) for row in given]
        found = tuple(row for row in parsed if row is not None and columns in (None, len(row)))
        if not found or len(found) != len(parsed) or rows not in (None, len(found)):
            lists = f"a list of {'lists' if rows is None else f'{rows} lists'}, each {self._list(columns)}"
            raise ConversionError(f"{key} is {shown(value)}; it must be {lists}.")
        return found

    def per_level(self, key: str, value: object, levels: int) -> Rows[Number]:
        """The numbers for each of `levels` levels: one list for all, which may be in a list, or a list for each.

        As _broadcast_params of detectron2/modeling/anchor_generator.py. Raises ConversionError.
        """
        flat = self._parse_list(value)
        if flat is not None:
            return (flat,) * levels
        one = isinstance(value, list | tuple) and len(value) == 1
        return self.rows(key, value, 1 if one else levels) * (levels if one else 1)

    def _parse(self, value: Any) -> Number | None:
        """The value as a number in the range, None if it is none."""
        if isinstance(value, bool) or not isinstance(value, int if self.kind is int else int | float | str):
            return None
        try:
            number = self.kind(value)
        except (ValueError, OverflowError):
            return None
        return number if self.low <= number <= self.high and not (self.below and number == self.high) else None

    def _parse_list(self, value: object) -> tuple[Number, ...] | None:
        if not isinstance(value, list | tuple) or not value:
            return None
        numbers = tuple(number for number in map(self._parse, value) if number is not None)
        return numbers if len(numbers) == len(value) else None

    def _list(self, count: int | None) -> str:
        return f"a list of {'' if count is None else f'{count} '}{self._expected('s')}"

    def _expected(self, plural: str = "") -> str:
        high = f"{'less than ' if self.below else ''}{self.high:,.10g}"
        return f"{'whole ' if self.kind is int else ''}number{plural} from {self.low:,.10g} to {high}"


Rows = tuple[tuple[Number, ...], ...]

COUNT = Range(int, 1, 1_000_000)
"""Numbers of proposals and detections."""
CLASSES = Range(int, 1, 100_000)
CHANNELS = Range(int, 1, 100_000)
"""Widths of layers."""
LAYERS = Range(int, 1, 1000)
LAYERS_OR_NONE = Range(int, 0, 1000)
INDEX = Range(int, 0, 999)
"""Indices of layers, counted from 0."""
SIDE = Range(int, 1, 256)
"""Resolutions of poolers, and sizes in tokens."""
COARSE_SIDE = Range(int, 1, 32)
"""Resolutions of PointRend's coarse masks."""
POINTS = Range(int, 1, 128**2)
"""Numbers of points of an instance that PointRend predicts at a time."""
STEPS = Range(int, 0, 10)
"""Numbers of times that PointRend doubles the resolution."""
SAMPLES = Range(int, 0, 64)
"""Samples per bin and axis of RoIAlign; 0: as many as the bin has cells."""
IMAGE_SIDE = Range(int, 1, 4096)
"""Sides of images. The largest render factor gives as many pixels."""
SQUARE = Range(int, 0, 4096)
"""Sides of the squares to which images are padded; 0 for none."""
WINDOW = Range(int, 0, 256)
"""Sides of windows in tokens; 0 for none."""
OVERLAP = Range(float, 0.0, 1.0)
"""Thresholds of non-maximum suppression, as intersection over union."""
SCORE = Range(float, -1.0, 1.0, below=True)
"""Thresholds of scores. With a negative one, all instances are above it."""
PIXEL = Range(float, -1e6, 1e6)
"""Pixel values."""
DIVISOR = Range(float, 1e-6, 1e6)
"""Numbers by which others are divided: standard deviations, and weights of box deltas."""
LENGTH = Range(float, 1e-3, 1e6)
"""Lengths and strides in pixels."""
LENGTH_OR_NONE = Range(float, 0.0, 1e6)
RATIO = Range(float, 1e-3, 1e3)
"""Aspect ratios, and the scales of maps."""
SHARE = Range(float, 0.0, 1.0, below=True)
"""Offsets of anchors, in strides."""
EPSILON = Range(float, 1e-12, 0.1)
"""What a layer norm adds to the variance."""
GROWTH = Range(float, 1.0, 1e3)
"""Factors between the widths of layers."""
SLOPE = Range(float, 0.0, 1e5)
"""Differences between the widths of layers."""
SQUEEZE = Range(float, 0.0, 1e3)
"""Widths of squeeze-and-excitation layers, divided by those of their blocks; 0 for none."""


def conv_dims(key: str, value: object) -> tuple[int, ...]:
    """The widths of the RPN's convolutions; -1 is the width of a convolution's input. Raises ConversionError."""
    dims = Range(int, -1, CHANNELS.high).several(key, value)
    if 0 in dims:
        raise ConversionError(f"{key} is {list(dims)}; a width must be at least 1, or -1 for that of the input.")
    return dims


def levels(key: str, value: object, known: Mapping[str, int], *, neighbours: bool = True) -> tuple[int, ...]:
    """The levels of the feature maps that the list `value` names: (2, 3) for ["res2", "res3"].

    `known`: level by name. `neighbours`: whether the levels must be consecutive. Raises ConversionError.
    """
    if not isinstance(value, list | tuple) or not value or not all(isinstance(n, str) and n in known for n in value):
        raise ConversionError(f"{key} is {shown(value)}; it must be a list of some of {', '.join(known)}.")
    found = tuple(known[name] for name in value)
    if found != tuple(range(found[0], found[0] + len(found)) if neighbours else sorted(set(found))):
        kind = "consecutive" if neighbours else "distinct"
        raise ConversionError(f"{key} is {shown(list(value))}; it must be a list of {kind} maps, the finest first.")
    return found


def flag(key: str, value: Any) -> bool:
    """A boolean. Raises ConversionError."""
    if not isinstance(value, bool):
        raise ConversionError(f"{key} is {shown(value)}; it must be true or false.")
    return value
