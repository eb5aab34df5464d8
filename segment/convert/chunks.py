"""Run parts of a graph on a few rows at a time, as an ONNX Scan or Loop.

This limits memory. For example, detectron2's C4 models run res5 on every region: the crops of 1,000 regions take 800
MB, and those of 20 take 16 MB. While the graph is built, `begin` and `end` mark a part of it. `in_chunks` turns the
marked parts of a finished model into loops, and `whole` turns them back, which quantising needs because NNCF does not
enter loops.

All chunks have the same number of rows; the last one is padded with zeros. With fixed shapes, the
runtime plans the memory once, and all tensors of a chunk share it.

OpenVINO copies each tensor that a Loop reads, and keeps the copies between runs. A Scan reads one chunk at a time
instead, which for Mask R-CNN saves a copy of the crops of all instances (20 MB in float32). But OpenVINO's Scan cannot
read other tensors, such as feature maps, so parts that do become a Loop.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from segment.convert.graph import FLOAT, INT64, Graph
from segment.errors import ConversionError

_ROWS, _RESULT, _LOOP = ".rows", ".result", ".loop"


class Rows(NamedTuple):
    """A tensor (N, *shape) with one row per result of a part. `kind`: its ONNX data type."""

    tensor: str
    shape: tuple[int, ...]
    kind: int = FLOAT


def begin(g: Graph, part: str, chunk: int, *rows: Rows) -> list[str]:
    """Mark the beginning of the part called `part`, which runs on `chunk` rows at a time. Returns the rows of a chunk.

    `rows`: the only inputs of the part with one row per result. The names of the marks contain the sizes and the type,
    because quantisers keep the names of nodes, but not their other metadata.
    """
    return [
        g.op("Identity", tensor, name=f"{part}{_ROWS}{i}@{'x'.join(map(str, (chunk, *shape)))}:{kind}")
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
    if any(_is_mark(node) for node in graph.node):
        _drop_unused(graph)  # what the result of a part does not need would stay outside of the loop without its input
    for part in dict.fromkeys(node.name.partition(_ROWS)[0] for node in graph.node if _is_mark(node)):
        marks = [node for node in graph.node if _is_mark(node) and node.name.startswith(part + _ROWS)]
        inner = _inner(graph, part, marks)
        body = [node for node in graph.node if node.name in inner]
        outer = [node for node in graph.node if node.name not in inner]
        needed = {tensor for node in outer if node.name != part + _RESULT for tensor in node.input}
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            if node.name == part + _RESULT:
                nodes.extend(_loop(graph, part, marks, node.input[0], body))
            elif node not in marks and (node.name not in inner or node.output[0] in needed):
                nodes.append(node)
        _replace(graph.node, nodes)


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
                *(helper.make_node("Identity", [_rows(around, chunks[mark])], [mark], mark) for mark in chunks),
                *(inner for inner in body.node if _LOOP not in inner.name),
                helper.make_node("Identity", [body.output[-1].name], [part + _RESULT], part + _RESULT),
            ]
            nodes.update({inner.name: inner for inner in parts})
    _replace(model.graph.node, list(nodes.values()))


def _rows(around: dict[str, onnx.NodeProto], chunks: str) -> str:
    """The tensor of all rows from which the nodes around a loop make its `chunks`."""
    rows: str = around[around[chunks].input[0]].input[0]
    return rows


def _is_mark(node: onnx.NodeProto) -> bool:
    return _ROWS in node.name and _LOOP not in node.name and node.op_type == "Identity"


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


def _loop(
    graph: onnx.GraphProto, part: str, marks: list[onnx.NodeProto], result: str, inner: list[onnx.NodeProto]
) -> list[onnx.NodeProto]:
    """The nodes that compute the part's result (N, ...) chunk by chunk from the inputs of its marks."""
    at = part + _LOOP + "/"

    def ints(*values: int) -> str:
        key = f"{at}{values}"
        if all(known.name != key for known in graph.initializer):
            graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), key))
        return key

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(kind, inputs, [output], at + output.removeprefix(at), **attributes)

    shapes = [_shape(mark.name) for mark in marks]
    size, zero, one = ints(shapes[0][0]), ints(0), ints(1)
    nodes = [
        node("Shape", [marks[0].input[0]], at + "shape"),
        node("Slice", [at + "shape", zero, one], at + "count"),
        node("Add", [at + "count", ints(shapes[0][0] - 1)], at + "more"),
        node("Div", [at + "more", size], at + "full"),
        node("Max", [at + "full", one], at + "chunks"),  # at least one, which sets the result's shape if N is 0
        node("Mul", [at + "chunks", size], at + "padded_count"),
        node("Sub", [at + "padded_count", at + "count"], at + "missing"),
    ]
    chunks = [f"{at}chunks{i}" for i in range(len(marks))]
    for i, (mark, shape) in enumerate(zip(marks, shapes, strict=True)):
        pads, padded = f"{at}pads{i}", f"{at}padded{i}"
        after = [ints(*[0] * (len(shape) - 1))] if len(shape) > 1 else []
        nodes += [
            node("Concat", [ints(*[0] * len(shape)), at + "missing", *after], pads, axis=0),
            node("Pad", [mark.input[0], pads], padded),
            node("Reshape", [padded, ints(-1, *shape)], chunks[i]),
        ]
    rows = [mark.output[0] for mark in marks]
    made_by_cast = any(each.op_type == "Cast" and result in each.output for each in inner)
    computed = helper.make_tensor_value_info(result, TensorProto.UINT8 if made_by_cast else FLOAT, None)
    if _needs_only(inner, rows, graph):
        inputs = [
            helper.make_tensor_value_info(row, _kind(row, graph, inner), shape)
            for row, shape in zip(rows, shapes, strict=True)
        ]
        body = helper.make_graph(inner, at + "body", inputs, [computed])
        nodes.append(
            helper.make_node("Scan", chunks, [at + "results"], part + _LOOP, body=body, num_scan_inputs=len(rows))
        )
    else:
        number, go, go_on = (
            helper.make_tensor_value_info(at + key, kind, [])
            for key, kind in (("number", INT64), ("go", TensorProto.BOOL), ("go_on", TensorProto.BOOL))
        )
        gathers = [
            helper.make_node("Gather", [chunk, at + "number"], [row], at + row, axis=0)
            for chunk, row in zip(chunks, rows, strict=True)
        ]
        body = helper.make_graph(
            [*gathers, *inner, node("Identity", [at + "go"], at + "go_on")],
            at + "body",
            [number, go],
            [go_on, computed],
        )
        nodes += [
            node("Squeeze", [at + "chunks"], at + "trips"),
            helper.make_node("Loop", [at + "trips", ""], [at + "results"], part + _LOOP, body=body),
        ]
    return [
        *nodes,
        node("Shape", [at + "results"], at + "each", start=2),
        node("Concat", [ints(-1), at + "each"], at + "joined_shape", axis=0),
        node("Reshape", [at + "results", at + "joined_shape"], at + "joined"),
        node("Slice", [at + "joined", zero, at + "count", zero], part + _RESULT),
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
