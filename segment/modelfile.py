"""The metadata of an ONNX model file, read without its weights.

An ONNX file is one protocol buffer message, ModelProto (onnx/onnx.proto), whose metadata is a list of keys and values.
Only these fields are parsed and the graph is skipped, so that reading the metadata of a file of 170 MB takes about a
millisecond and hardly any memory. Wire format: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import BinaryIO, cast

from segment.errors import ModelError

MODEL_SUFFIX, CHECKPOINT_SUFFIXES = ".onnx", (".pkl", ".pth", ".pt", ".ckpt")
"""Extensions of the names of model files, and of checkpoints, which are converted to model files."""
PREFIX = "segment."
"""Prefix of this package's metadata keys."""
_METADATA_PROPS, _KEY, _VALUE = 14, 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class ModelMetadata:
    """The metadata of a converted model file.

    `labels`: class names by index. `precision`: fp32 or int8. `render_factor`: the render factor it was tuned for.
    `stride`: inputs whose sides are multiples of it need no padding. `fixed_bytes`, `bytes_per_pixel`,
    `bytes_per_instance`: memory of a run in addition to the loaded model, see engine/footprint.py; 0 if not measured.
    `kept_bytes`: the part of it that remains between runs. `source`: the config and checkpoint it was converted from.
    `square`: side in pixels of the square that every image is padded to, 0 if its size is free; photos are scaled to
    this length, and render factor and fit have no effect.
    """

    labels: tuple[str, ...]
    precision: str
    render_factor: int
    stride: int
    fixed_bytes: int
    bytes_per_pixel: float
    bytes_per_instance: float
    kept_bytes: float
    source: str
    square: int = 0

    @classmethod
    def read(cls, path: Path) -> ModelMetadata | None:
        """The metadata of a model file; None if the file was not converted by this package. Raises ModelError."""
        return cls.from_metadata(metadata(path))

    def to_metadata(self) -> dict[str, str]:
        """As ONNX metadata: keys with PREFIX, JSON values."""
        return {PREFIX + name: json.dumps(value) for name, value in vars(self).items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> ModelMetadata | None:
        """Parse ONNX metadata; None if it has none of this package's keys. Raises ModelError."""
        ours = {key.removeprefix(PREFIX): value for key, value in metadata.items() if key.startswith(PREFIX)}
        if not ours:
            return None
        try:
            values = {name: json.loads(value) for name, value in ours.items()}
        except (ValueError, RecursionError):
            raise ModelError("The metadata of the model file is not valid JSON. Convert the model again.") from None
        # Files of earlier versions do not have these.
        values.setdefault("square", 0)
        values.setdefault("kept_bytes", values.get("fixed_bytes"))
        for name, (fits, expected) in _CHECKS.items():
            if name not in values:
                raise ModelError(f"The metadata of the model file lacks {name}. Convert the model again.")
            if not fits(values[name]):
                raise ModelError(
                    f"{name} in the metadata of the model file is {json.dumps(values[name])[:100]}; it must be "
                    f"{expected}. Convert the model again."
                )
        return cls(**{name: values[name] for name in _CHECKS} | {"labels": tuple(values["labels"])})


def _number(kind: type | UnionType, low: float, high: float) -> Callable[[object], bool]:
    def fits(value: object) -> bool:
        return isinstance(value, kind) and not isinstance(value, bool) and low <= cast(float, value) <= high

    return fits


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_labels(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) and name for name in value)


_BYTES_CHECK = _number(int | float, 0, 1 << 40), f"a number from 0 to {1 << 40}"
_CHECKS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "labels": (_is_labels, "a list of class names"),
    "precision": (_is_text, "a text"),
    "render_factor": (_number(int, 1, 1024), "a whole number from 1 to 1024"),
    "stride": (_number(int, 1, 1024), "a whole number from 1 to 1024"),
    "fixed_bytes": _BYTES_CHECK,
    "bytes_per_pixel": _BYTES_CHECK,
    "bytes_per_instance": _BYTES_CHECK,
    "kept_bytes": _BYTES_CHECK,
    "source": (_is_text, "a text"),
    "square": (_number(int, 0, 1 << 16), f"a whole number from 0 to {1 << 16}"),
}
"""The check of each field, and a description of valid values. NaN is in no range."""


def metadata(path: Path) -> dict[str, str]:
    """The metadata of an ONNX file. Raises ModelError if the file cannot be read or is not ONNX."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            return dict(_properties(file, size))
    except OSError as error:
        raise ModelError(f"The model {path.name or path} cannot be read: {error.strerror}.") from None
    except (EOFError, UnicodeDecodeError, _Malformed):
        raise ModelError(f"{path.name} is not an ONNX file, or it is truncated.") from None


class _Malformed(Exception):
    pass


def _properties(file: BinaryIO, size: int) -> Iterator[tuple[str, str]]:
    for field, length in _fields(file, size):
        if field == _METADATA_PROPS:
            end = file.tell() + length
            entry = {name: file.read(n).decode() for name, n in _fields(file, end) if name in (_KEY, _VALUE)}
            yield entry.get(_KEY, ""), entry.get(_VALUE, "")


def _fields(file: BinaryIO, end: int) -> Iterator[tuple[int, int]]:
    """(number, length) of each length-delimited field up to `end`, with the file positioned at its first byte."""
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
