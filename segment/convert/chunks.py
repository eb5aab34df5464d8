"""Run parts of a graph on a few rows at a time, as an ONNX Loop.

This limits memory. For example, detectron2's C4 models run res5 on every region: the crops of 1,000 regions take 800
MB, and those of 20 take 16 MB. While the graph is built, `begin` and `end` mark a part of it. `in_chunks` turns the
marked parts of a finished model into loops, and `whole` turns them back, which quantising needs because NNCF does not
enter loops.

All chunks have the same number of rows; the last one is padded with zeros. With fixed shapes, the
runtime plans the memory once, and all tensors of a chunk share it.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from segment.convert.graph import Graph
from segment.errors import ConversionError

_ROWS, _RESULT, _LOOP = ".rows", ".result", ".loop"


def begin(g: Graph, part: str, chunk: int, *rows: tuple[str, tuple[int, ...]]) -> list[str]:
    """Mark the beginning of the part called `part`, which runs on `chunk` rows at a time.

    `rows`: the only inputs of the part with one row per result: each a tensor (N, *shape), and the shape of its rows.
    The names of the marks contain the sizes, because quantisers keep the names of nodes, but not their other metadata.
    """
    return [
        g.op("Identity", tensor, name=f"{part}{_ROWS}{i}@" + "x".join(map(str, (chunk, *shape))))
        for i, (tensor, shape) in enumerate(rows)
    ]


def end(g: Graph, part: str, result: str) -> str:
    """Mark the end of a part: its `result` (N, ...), which is float32, or uint8 if a Cast computes it."""
    return g.op("Identity", result, name=part + _RESULT)


def _shape(mark: str) -> tuple[int, ...]:
    """The shape of a chunk of the rows that the mark of this name passes on."""
    return tuple(int(size) for size in mark.rpartition("@")[2].split("x"))


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

    Raises ConversionError for a file of an earlier version, whose marks do not contain the sizes.
    """
    nodes: dict[str, onnx.NodeProto] = {}  # by name, because two parts can have a node for the same weights
    for node in model.graph.node:
        part, of_loop, _ = node.name.partition(_LOOP)
        if not of_loop:
            nodes[node.name] = node
        elif node.op_type == "Loop":
            body = next(attribute.g for attribute in node.attribute if attribute.name == "body")
            own = {inner.output[0]: inner for inner in body.node if _LOOP in inner.name}
            marks = [inner for inner in own.values() if inner.op_type == "Reshape"]
            if any("@" not in mark.output[0] for mark in marks):
                raise ConversionError("An earlier version converted this model file. Convert the checkpoint again.")
            parts = [
                *(helper.make_node("Identity", [_rows(own, mark)], mark.output, mark.output[0]) for mark in marks),
                *(inner for inner in body.node if _LOOP not in inner.name),
                helper.make_node("Identity", [body.output[1].name], [part + _RESULT], part + _RESULT),
            ]
            nodes.update({inner.name: inner for inner in parts})
    _replace(model.graph.node, list(nodes.values()))


def _rows(own: dict[str, onnx.NodeProto], mark: onnx.NodeProto) -> str:
    """The tensor of all rows from which a loop's `own` nodes make the chunk for the part."""
    rows: str = own[own[mark.input[0]].input[0]].input[0]
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
    body = [node("Mul", [at + "number", size], at + "start"), node("Add", [at + "start", size], at + "stop")]
    rows = [f"{at}rows{i}" for i in range(len(marks))]
    body += [
        node("Slice", [mark.input[0], at + "start", at + "stop", zero], each)
        for mark, each in zip(marks, rows, strict=True)
    ]
    body += [
        node("Shape", rows[:1], at + "present", start=0, end=1),
        node("Sub", [size, at + "present"], at + "missing"),
    ]
    for i, (mark, shape) in enumerate(zip(marks, shapes, strict=True)):
        pads, padded = f"{at}pads{i}", f"{at}padded{i}"
        after = [ints(*[0] * (len(shape) - 1))] if len(shape) > 1 else []
        body += [
            node("Concat", [ints(*[0] * len(shape)), at + "missing", *after], pads, axis=0),
            node("Pad", [rows[i], pads], padded),
            node("Reshape", [padded, ints(*shape)], mark.output[0]),
        ]
    body += [*inner, node("Identity", [at + "go"], at + "go_on")]
    number, go, go_on = (
        helper.make_tensor_value_info(at + key, kind, [])
        for key, kind in (("number", TensorProto.INT64), ("go", TensorProto.BOOL), ("go_on", TensorProto.BOOL))
    )
    made_by_cast = any(each.op_type == "Cast" and result in each.output for each in inner)
    computed = helper.make_tensor_value_info(result, TensorProto.UINT8 if made_by_cast else TensorProto.FLOAT, None)
    loop = helper.make_graph(body, at + "body", [number, go], [go_on, computed])
    return [
        node("Shape", [marks[0].input[0]], at + "shape"),
        node("Slice", [at + "shape", zero, one], at + "count"),
        node("Add", [at + "count", ints(shapes[0][0] - 1)], at + "more"),
        node("Div", [at + "more", size], at + "full"),
        node("Max", [at + "full", one], at + "chunks"),  # at least one, which sets the result's shape if N is 0
        node("Squeeze", [at + "chunks"], at + "trips"),
        helper.make_node("Loop", [at + "trips", ""], [at + "results"], part + _LOOP, body=loop),
        node("Shape", [at + "results"], at + "each", start=2),
        node("Concat", [ints(-1), at + "each"], at + "joined_shape", axis=0),
        node("Reshape", [at + "results", at + "joined_shape"], at + "joined"),
        node("Slice", [at + "joined", zero, at + "count", zero], part + _RESULT),
    ]


def _replace(repeated: MutableSequence[onnx.NodeProto], nodes: list[onnx.NodeProto]) -> None:
    """Replace the nodes of a graph."""
    del repeated[:]
    repeated.extend(nodes)
