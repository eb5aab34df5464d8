"""What a model file says of itself, read without its weights.

An ONNX file is one protocol buffer message, ModelProto (onnx/onnx.proto); its metadata is a list of key and value. This
reads only those fields and skips the graph, so that a file of 170 MB is described in a millisecond and no memory. The
wire format: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

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
            facts = cls(**{name: json.loads(value) for name, value in ours.items()})
        except (TypeError, ValueError):
            raise ModelError("The model file's own description is incomplete; convert it again.") from None
        return replace(facts, labels=tuple(facts.labels))


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
