"""Write a model's weights to a file without a second copy of them in memory.

An ONNX file is one protocol buffer message (onnx/onnx.proto), and serialising it in one piece takes as much memory as
the model itself. Its weights are most of it: GraphProto.initializer, one message each, which are written one after the
other. Wire format: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import StringStringEntryProto, TensorProto

_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_LENGTH_DELIMITED = 2
"""Wire type of messages."""
ALIGNMENT = 4096
"""Bytes to which weights are aligned in a file, so that they can be mapped into memory."""
SMALL = 4096
"""Bytes up to which a tensor stays in the model: biases, shapes and other constants."""
WEIGHTS = "weights"
"""Name of the file that `without_weights` writes."""


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model file."""
    head, graph = onnx.ModelProto(), onnx.GraphProto()
    _copy(model, head, "graph")
    _copy(model.graph, graph, "initializer")
    sizes = [constant.ByteSize() for constant in model.graph.initializer]
    size = graph.ByteSize() + sum(len(_header(_INITIALIZER, size)) + size for size in sizes)
    with path.open("wb") as file:
        file.write(head.SerializeToString())
        file.write(_header(_GRAPH, size))
        file.write(graph.SerializeToString())
        for constant, size in zip(model.graph.initializer, sizes, strict=True):
            file.write(_header(_INITIALIZER, size))
            file.write(constant.SerializeToString())


def without_weights(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """A copy of a model whose large tensors are in the file WEIGHTS in `folder`, as ONNX's external data."""
    copy = onnx.ModelProto()
    _copy(model, copy, "graph")
    _copy(model.graph, copy.graph, "initializer")
    with (folder / WEIGHTS).open("wb") as file:
        for constant in model.graph.initializer:
            if len(constant.raw_data) <= SMALL:
                copy.graph.initializer.add().CopyFrom(constant)
                continue
            file.seek(-file.tell() % ALIGNMENT, 1)
            place = {"location": WEIGHTS, "offset": file.tell(), "length": len(constant.raw_data)}
            copy.graph.initializer.add(
                name=constant.name,
                dims=constant.dims,
                data_type=constant.data_type,
                data_location=TensorProto.EXTERNAL,
                external_data=[StringStringEntryProto(key=key, value=str(value)) for key, value in place.items()],
            )
            file.write(constant.raw_data)
    return copy


def _copy(message: onnx.ModelProto | onnx.GraphProto, copy: onnx.ModelProto | onnx.GraphProto, left_out: str) -> None:
    """Copy all fields of a message but one."""
    for field, value in message.ListFields():
        if field.name == left_out:
            continue
        if field.is_repeated:
            getattr(copy, field.name).extend(value)
        elif field.message_type:
            getattr(copy, field.name).CopyFrom(value)
        else:
            setattr(copy, field.name, value)


def _header(field: int, size: int) -> bytes:
    """What precedes a message of `size` bytes in the field with this number: its tag and its size."""
    return bytes((*_varint(field << 3 | _LENGTH_DELIMITED), *_varint(size)))


def _varint(value: int) -> Iterator[int]:
    """A number in groups of seven bits, the lowest first. All but the last have the eighth bit set."""
    while value > 0x7F:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value
