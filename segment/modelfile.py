"""What a model file says of itself, read without its weights.

An ONNX file is one protocol buffer message, ModelProto (onnx/onnx.proto); its metadata is a list of key and value. This
reads only those fields and skips the graph, so that a file of 170 MB is described in a millisecond and no memory. The
wire format: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from segment.errors import ModelError

PREFIX = "segment."
"""Our metadata keys begin so."""
_METADATA_PROPS, _KEY, _VALUE = 14, 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class ModelMetadata:
    """What a converted file says of itself.

    `labels`: class names by index. `precision`: fp32 or int8. `render_factor`: what it was tuned for. `stride`: sizes
    that are multiples of it need no padding. `fixed_bytes`, `bytes_per_pixel`, `bytes_per_instance`: memory of a run
    beside the loaded model, see engine/footprint.py; 0 where it was not measured. `source`: where it came from.
    """

    labels: tuple[str, ...]
    precision: str
    render_factor: int
    stride: int
    fixed_bytes: int
    bytes_per_pixel: float
    bytes_per_instance: float
    source: str

    def to_metadata(self) -> dict[str, str]:
        return {PREFIX + name: json.dumps(value) for name, value in vars(self).items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> ModelMetadata | None:
        """The facts, or None if the file is not one of ours. Raises ModelError."""
        ours = {key.removeprefix(PREFIX): value for key, value in metadata.items() if key.startswith(PREFIX)}
        if not ours:
            return None
        try:
            values = {name: json.loads(value) for name, value in ours.items()}
        except (ValueError, RecursionError):
            raise ModelError("The model file's own description is not JSON; convert it again.") from None
        for name, (fits, expected) in _CHECKS.items():
            if name not in values:
                raise ModelError(f"The model file's own description lacks {name}; convert it again.")
            if not fits(values[name]):
                raise ModelError(
                    f"The model file says {name} {json.dumps(values[name])[:100]}; it must be {expected}. "
                    "Convert it again."
                )
        return cls(**{name: values[name] for name in _CHECKS} | {"labels": tuple(values["labels"])})


def _number(kind: type, low: float, high: float) -> Callable[[object], bool]:
    def fits(value: object) -> bool:
        return isinstance(value, kind) and not isinstance(value, bool) and low <= cast(float, value) <= high

    return fits


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_labels(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) and name for name in value)


_BYTES_CHECK = _number(int | float, 0, 1 << 40), f"a number from 0 to {1 << 40}"  # type: ignore[arg-type]
_CHECKS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "labels": (_is_labels, "a list of class names"),
    "precision": (_is_text, "a text"),
    "render_factor": (_number(int, 1, 1024), "a whole number from 1 to 1024"),
    "stride": (_number(int, 1, 1024), "a whole number from 1 to 1024"),
    "fixed_bytes": _BYTES_CHECK,
    "bytes_per_pixel": _BYTES_CHECK,
    "bytes_per_instance": _BYTES_CHECK,
    "source": (_is_text, "a text"),
}
"""What each of the fields must be. A NaN is in no range."""


def metadata(path: Path) -> dict[str, str]:
    """The metadata of an ONNX file. Raises ModelError if it is none."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            return dict(_properties(file, size))
    except OSError as error:
        raise ModelError(f"The model {path.name} cannot be read: {error.strerror}.") from None
    except (EOFError, UnicodeDecodeError, _Malformed):
        raise ModelError(f"{path.name} is not an ONNX file, or it is cut off.") from None


class _Malformed(Exception):
    pass


def _properties(file: BinaryIO, size: int) -> Iterator[tuple[str, str]]:
    for field, length in _fields(file, size):
        if field == _METADATA_PROPS:
            end = file.tell() + length
            entry = {name: file.read(n).decode() for name, n in _fields(file, end) if name in (_KEY, _VALUE)}
            yield entry.get(_KEY, ""), entry.get(_VALUE, "")


def _fields(file: BinaryIO, end: int) -> Iterator[tuple[int, int]]:
    """(number, length) of each length-delimited field up to `end`; the file stands at its first byte."""
    while file.tell() < end:
        tag = _varint(file)
        kind = tag & 7
        if kind == _VARINT:
            _varint(file)
        elif kind in (_FIXED64, _FIXED32):
            file.seek(8 if kind == _FIXED64 else 4, 1)
        elif kind == _BYTES:
            length = _varint(file)
            start = file.tell()
            if start + length > end:
                raise EOFError
            yield tag >> 3, length
            file.seek(start + length)
        else:
            raise _Malformed


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise EOFError
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise _Malformed
