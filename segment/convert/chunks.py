"""Run parts of a graph on a few rows at a time, as an ONNX Scan or Loop.

This limits memory. For example, detectron2's C4 models run res5 on every region: the crops of 1,000 regions take 800
MB, and those of 20 take 16 MB. While the graph is built, `begin` and `end` mark a part of it. `in_chunks` turns the
marked parts of a finished model into loops, and `whole` turns them back, which quantising needs because NNCF does not
enter loops.

All chunks have the same number of rows. With fixed shapes, the runtime plans the memory once, and all tensors of a
chunk share it. `padded` appends rows of zeros to the small tensors from which a part's rows are computed, such as
boxes. Appending them to the crops of the boxes would copy all crops.

OpenVINO copies each tensor that a Loop reads, and keeps the copies between runs. A Scan reads one chunk at a time
instead, which for Mask R-CNN saves a copy of the crops of all instances (20 MB in float32). But OpenVINO's Scan cannot
read other tensors, such as feature maps, so parts that do become a Loop.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segment.convert.graph import FLOAT, INT64, Graph
from segment.errors import ConversionError

_PADDED, _ROWS, _RESULT, _FIRST, _LOOP = ".padded", ".rows", ".result", ".first", ".loop"


class Rows(NamedTuple):
    """A tensor (N, *shape) with one row per result of a part. `kind`: its ONNX data type."""

    tensor: str
    shape: tuple[int, ...]
    kind: int = FLOAT


def padded(g: Graph, part: str, chunk: int, *rows: Rows) -> list[str]:
    """Append zeros to `rows` so that their number is a multiple of `chunk`, and not 0.

    Without chunks (`whole`), nothing is appended, so that quantising only sees what the network found.
    """
    return _marked(g, part + _PADDED, chunk, rows)


def unpadded(g: Graph, part: str, x: str) -> str:
    """The first N rows of x, which was computed from what `padded` returned for this part."""
    return g.op("Identity", x, name=part + _FIRST)


def begin(g: Graph, part: str, chunk: int, *rows: Rows) -> list[str]:
    """Mark the beginning of the part called `part`, which runs on `chunk` rows at a time. Returns the rows of a chunk.

    `rows`: the only inputs of the part with one row per result, computed from what `padded` returned. The names of the
    marks contain the sizes and the type, because quantisers keep the names of nodes, but not their other metadata.
    """
    return _marked(g, part + _ROWS, chunk, rows)


def _marked(g: Graph, name: str, chunk: int, rows: Sequence[Rows]) -> list[str]:
    return [
        g.op("Identity", tensor, name=f"{name}{i}@{'x'.join(map(str, (chunk, *shape)))}:{kind}")
        for i, (tensor, shape, kind) in enumerate(rows)
    ]


def end(g: Graph, part: str, result: str) -> str:
    """Mark the end of a part: its `result` (N, ...), which is float32, or uint8 if a Cast computes it."""
    return g.op("Identity", result, name=part + _RESULT)


def _shape(mark: str) -> tuple[int, ...]:
    """The shape of a chunk of the rows that the mark of this name passes on."""
    return tuple(int(size) for size in mark.rpartition("@")[2].partition(":")[0].split("x"))


def _kind(mark: str, graph: onnx.GraphProto, part: list[onnx.NodeProto]) -> int:
    """The data type of the rows that the mark of this name passes on; that of quantised rows is their zero point's."""
    for node in part:
        if node.op_type == "DequantizeLinear" and node.input[0] == mark:
            return next(int(each.data_type) for each in graph.initializer if each.name == node.input[2])
    return int(mark.rpartition(":")[2])


def in_chunks(model: onnx.ModelProto) -> None:
    """Convert every marked part into a loop over chunks of its rows."""
    graph = model.graph
    if any(_is_mark(node, _ROWS) for node in graph.node):
        _drop_unused(graph)  # what the result of a part does not need would stay outside of the loop without its input
    for part in dict.fromkeys(node.name.partition(_ROWS)[0] for node in graph.node if _is_mark(node, _ROWS)):
        marks, padded = ([node for node in graph.node if _is_mark(node, part + kind)] for kind in (_ROWS, _PADDED))
        inner = _inner(graph, part, marks)
        body = [node for node in graph.node if node.name in inner]
        outer = [node for node in graph.node if node.name not in inner]
        needed = {tensor for node in outer if node.name != part + _RESULT for tensor in node.input}
        new = _Nodes(graph, part)
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            if node in padded:
                nodes.extend(([] if node != padded[0] else new.count(node)) + new.padded(node))
            elif node.name == part + _RESULT:
                nodes.extend(new.loop(marks, node.input[0], body))
            elif node.name == part + _FIRST:
                nodes.append(new.first(node))
            elif node not in marks and (node.name not in inner or node.output[0] in needed):
                nodes.append(node)
        _replace(graph.node, nodes)


def resize(model: onnx.ModelProto, part: str, chunk: int) -> None:
    """Let a marked part, if the model has it, run on `chunk` rows at a time."""
    for node in model.graph.node:
        if _is_mark(node, part + _ROWS) or _is_mark(node, part + _PADDED):
            mark, shape = node.name.split("@")
            node.name = f"{mark}@{chunk}{shape.removeprefix(str(_shape(node.name)[0]))}"


def whole(model: onnx.ModelProto) -> None:
    """Undo `in_chunks`, so that every part runs once on all its rows.

    Raises ConversionError for a file of an earlier version, whose loops are different.
    """
    around = {output: node for node in model.graph.node if _LOOP in node.name for output in node.output}
    nodes: dict[str, onnx.NodeProto] = {}  # by name, because two parts can have a node for the same weights
    for node in model.graph.node:
        part, of_loop, _ = node.name.partition(_LOOP)
        if not of_loop:
            nodes[node.name] = node
        elif node.output[0].startswith((part + _PADDED, part + _FIRST)):
            nodes[node.output[0]] = helper.make_node("Identity", node.input[:1], node.output, node.output[0])
        elif node.op_type in ("Loop", "Scan"):
            body = next(attribute.g for attribute in node.attribute if attribute.name == "body")
            if node.op_type == "Scan":
                chunks = {mark.name: tensor for mark, tensor in zip(body.input, node.input, strict=True)}
            else:
                chunks = {
                    inner.output[0]: inner.input[0]
                    for inner in body.node
                    if inner.op_type == "Gather" and _LOOP in inner.name
                }
            if not chunks or any(":" not in mark for mark in chunks):
                raise ConversionError("An earlier version converted this model file. Convert the checkpoint again.")
            parts = [
                *(
                    helper.make_node("Identity", around[tensor].input[:1], [mark], mark)
                    for mark, tensor in chunks.items()
                ),
                *(inner for inner in body.node if _LOOP not in inner.name),
                helper.make_node("Identity", [body.output[-1].name], [part + _RESULT], part + _RESULT),
            ]
            nodes.update({inner.name: inner for inner in parts})
    _replace(model.graph.node, list(nodes.values()))
    for constant in [each for each in model.graph.initializer if _LOOP in each.name]:
        model.graph.initializer.remove(constant)


def _is_mark(node: onnx.NodeProto, kind: str) -> bool:
    return kind in node.name and _LOOP not in node.name and node.op_type == "Identity"


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove the nodes whose outputs nobody reads."""
    read = {output.name for output in graph.output}
    nodes: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if read.intersection(node.output):
            nodes.append(node)
            read.update(_reads(node))
    _replace(graph.node, nodes[::-1])


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """The names of the tensors that a node reads, also inside of its body if it is a loop."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _reads(inner)


def _inner(graph: onnx.GraphProto, part: str, marks: list[onnx.NodeProto]) -> set[str]:
    """The names of the nodes between the marks of a part, including those that only compute constants for them."""
    after, fixed = {mark.output[0] for mark in marks}, {constant.name for constant in graph.initializer}
    between: dict[str, onnx.NodeProto] = {}
    constant: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        if after.intersection(node.input):
            after.update(node.output)
            between.update(dict.fromkeys(node.output, node))
        elif node.input and all(tensor in fixed for tensor in node.input if tensor):
            fixed.update(node.output)
            constant.update(dict.fromkeys(node.output, node))
    result = next(node for node in graph.node if node.name == part + _RESULT)
    names, open_ends = set(), list(result.input)
    while open_ends:
        tensor = open_ends.pop()
        node = between.get(tensor) or constant.get(tensor)
        if node and node.name not in names:
            names.add(node.name)
            open_ends.extend(node.input)
    return names


class _Nodes:
    """The nodes with which a part runs chunk by chunk. All their names start with `part` + _LOOP."""

    def __init__(self, graph: onnx.GraphProto, part: str) -> None:
        self._graph, self._name = graph, part + _LOOP
        self._at = self._name + "/"
        self._result = part + _RESULT

    def _ints(self, *values: int) -> str:
        return self._constant(f"{self._at}{values}", np.array(values, np.int64))

    def _constant(self, name: str, values: NDArray[np.generic]) -> str:
        if all(known.name != name for known in self._graph.initializer):
            self._graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(kind, inputs, [output], self._at + output.removeprefix(self._at), **attributes)

    def count(self, mark: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The nodes that compute the number of rows, of chunks, and of rows that are missing in the last chunk."""
        at, node, ints = self._at, self._node, self._ints
        size = _shape(mark.name)[0]
        return [
            node("Shape", [mark.input[0]], at + "count", start=0, end=1),
            node("Add", [at + "count", ints(size - 1)], at + "more"),
            node("Div", [at + "more", ints(size)], at + "full"),
            node("Max", [at + "full", ints(1)], at + "chunks"),  # at least one, which sets the shape of the result
            node("Mul", [at + "chunks", ints(size)], at + "padded_count"),
            node("Sub", [at + "padded_count", at + "count"], at + "missing"),
        ]

    def padded(self, mark: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The nodes that append the missing rows to what the mark passes on."""
        tensor, shape = mark.output[0], _shape(mark.name)
        missing, zero = f"{self._at}{tensor}/missing", self._ints(0)
        kind = helper.tensor_dtype_to_np_dtype(int(mark.name.rpartition(":")[2]))
        zeros = self._constant(f"{self._at}{tensor}/zeros", np.zeros(shape, kind))
        # Not Pad: in an int8 file, OpenVINO does not know that its output has four columns, and RoIAlign refuses it.
        return [
            self._node("Slice", [zeros, zero, self._at + "missing", zero], missing),
            self._node("Concat", [mark.input[0], missing], tensor, axis=0),
        ]

    def first(self, mark: onnx.NodeProto) -> onnx.NodeProto:
        """The node that removes the rows of padding from what the mark passes on."""
        zero = self._ints(0)
        return self._node("Slice", [mark.input[0], zero, self._at + "count", zero], mark.output[0])

    def loop(self, marks: list[onnx.NodeProto], result: str, inner: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """The nodes that compute the part's result (N, ...) chunk by chunk from the inputs of its marks."""
        at, node = self._at, self._node
        shapes, rows = [_shape(mark.name) for mark in marks], [mark.output[0] for mark in marks]
        chunks = [f"{at}chunks{i}" for i in range(len(marks))]
        reshapes = [
            node("Reshape", [mark.input[0], self._ints(-1, *shape)], chunk)
            for mark, shape, chunk in zip(marks, shapes, chunks, strict=True)
        ]
        made_by_cast = any(each.op_type == "Cast" and result in each.output for each in inner)
        computed = helper.make_tensor_value_info(result, TensorProto.UINT8 if made_by_cast else FLOAT, None)
        if _needs_only(inner, rows, self._graph):
            inputs = [
                helper.make_tensor_value_info(row, _kind(row, self._graph, inner), shape)
                for row, shape in zip(rows, shapes, strict=True)
            ]
            body = helper.make_graph(inner, at + "body", inputs, [computed])
            loop = [
                helper.make_node("Scan", chunks, [at + "results"], self._name, body=body, num_scan_inputs=len(rows))
            ]
        else:
            number, go, go_on = (
                helper.make_tensor_value_info(at + key, kind, [])
                for key, kind in (("number", INT64), ("go", TensorProto.BOOL), ("go_on", TensorProto.BOOL))
            )
            gathers = [
                node("Gather", [chunk, at + "number"], row, axis=0) for chunk, row in zip(chunks, rows, strict=True)
            ]
            body = helper.make_graph(
                [*gathers, *inner, node("Identity", [at + "go"], at + "go_on")],
                at + "body",
                [number, go],
                [go_on, computed],
            )
            loop = [
                node("Squeeze", [at + "chunks"], at + "trips"),
                helper.make_node("Loop", [at + "trips", ""], [at + "results"], self._name, body=body),
            ]
        return [
            *reshapes,
            *loop,
            node("Shape", [at + "results"], at + "each", start=2),
            node("Concat", [self._ints(-1), at + "each"], at + "joined_shape", axis=0),
            helper.make_node("Reshape", [at + "results", at + "joined_shape"], [self._result], at + "joined"),
        ]


def _needs_only(nodes: list[onnx.NodeProto], rows: list[str], graph: onnx.GraphProto) -> bool:
    """Whether the nodes of a part read nothing but its rows, constants, and each other's outputs."""
    known = {
        *rows,
        *(constant.name for constant in graph.initializer),
        *(name for node in nodes for name in node.output),
    }
    return all(name in known for node in nodes for name in _reads(node) if name)


def _replace(repeated: MutableSequence[onnx.NodeProto], nodes: list[onnx.NodeProto]) -> None:
    """Replace the nodes of a graph."""
    del repeated[:]
    repeated.extend(nodes)
