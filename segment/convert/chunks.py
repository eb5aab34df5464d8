"""Run parts of a graph on a few rows at a time, as an ONNX Loop.

This limits memory. For example, detectron2's C4 models run res5 on every region: the crops of 1,000 regions take 800
MB, those of 20 take 16 MB. While the graph is built, `begin` and `end` mark a part of it. `in_chunks` turns the marked
parts of a finished model into loops, and `whole` turns them back, which quantising needs because NNCF does not enter
loops.

All chunks have the same number of rows (by default CHUNK); the last one is padded with zeros. With fixed shapes, the
runtime plans the memory once, and all tensors of a chunk share it.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from segment.convert.graph import Graph

CHUNK = 20
"""Rows in a chunk. The crop of one region takes 0.8 MB (1,024 x 14 x 14 float32)."""
_BEGIN, _END, _LOOP = ".rows", ".result", ".loop"


def part(name: str, width: int, chunk: int = CHUNK) -> str:
    """The name of a part that runs on `chunk` rows at a time, each of `width` numbers.

    The name contains the sizes because quantisers keep the names of nodes, but not their other metadata.
    """
    return f"{name}@{chunk}x{width}"


def _sizes(name: str) -> tuple[int, int]:
    """The number of rows that the part runs on at a time, and the width of a row."""
    chunk, _, width = name.partition("@")[2].partition("x")
    return int(chunk or CHUNK), int(width or 4)


def begin(g: Graph, name: str, rows: str) -> str:
    """Mark the beginning of the part `name`: its only input with one row per result.

    `rows`: (N, width) float32; the width is in the name (see `part`), or 4, the width of boxes.
    """
    return g.op("Identity", rows, name=name + _BEGIN)


def end(g: Graph, name: str, result: str) -> str:
    """Mark the end of the part `name`: its `result` (N, ...), which is float32, or uint8 if a Cast computes it."""
    return g.op("Identity", result, name=name + _END)


def in_chunks(model: onnx.ModelProto) -> None:
    """Convert every marked part into a loop over chunks of its rows."""
    graph = model.graph
    names = [node.name.removesuffix(_BEGIN) for node in graph.node if node.name.endswith(_BEGIN)]
    if names:
        _drop_unused(graph)  # what the result of a part does not need would stay outside of the loop without its input
    for name in names:
        inner = _inner(graph, name)
        body = [node for node in graph.node if node.name in inner]
        outer = [node for node in graph.node if node.name not in inner]
        boxes = next(node.input[0] for node in outer if node.name == name + _BEGIN)
        needed = {tensor for node in outer if node.name != name + _END for tensor in node.input}
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            if node.name == name + _END:
                nodes.extend(_loop(graph, name, boxes, node.input[0], body))
            elif node.name != name + _BEGIN and (node.name not in inner or node.output[0] in needed):
                nodes.append(node)
        _replace(graph.node, nodes)


def whole(model: onnx.ModelProto) -> None:
    """Undo `in_chunks`, so that every part runs once on all its rows."""
    nodes: dict[str, onnx.NodeProto] = {}  # by name, because two parts can have a node for the same weights
    boxes: dict[str, str] = {}
    for node in model.graph.node:
        part, of_loop, what = node.name.partition(_LOOP)
        if not of_loop:
            nodes[node.name] = node
        elif what == "/padded":
            boxes[part] = node.input[0]
        elif node.op_type == "Loop":
            body = next(attribute.g for attribute in node.attribute if attribute.name == "body")
            parts = [
                helper.make_node("Identity", [boxes[part]], [part + _BEGIN], part + _BEGIN),
                *(inner for inner in body.node if _LOOP not in inner.name),
                helper.make_node("Identity", [body.output[1].name], [part + _END], part + _END),
            ]
            nodes.update({inner.name: inner for inner in parts})
    _replace(model.graph.node, list(nodes.values()))


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


def _inner(graph: onnx.GraphProto, name: str) -> set[str]:
    """The names of the nodes between the marks of a part, including those that only compute constants for them."""
    after, fixed = {name + _BEGIN}, {constant.name for constant in graph.initializer}
    between: dict[str, onnx.NodeProto] = {}
    constant: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        if after.intersection(node.input):
            after.update(node.output)
            between.update(dict.fromkeys(node.output, node))
        elif node.input and all(tensor in fixed for tensor in node.input if tensor):
            fixed.update(node.output)
            constant.update(dict.fromkeys(node.output, node))
    result = next(node for node in graph.node if node.name == name + _END)
    names, open_ends = set(), list(result.input)
    while open_ends:
        tensor = open_ends.pop()
        node = between.get(tensor) or constant.get(tensor)
        if node and node.name not in names:
            names.add(node.name)
            open_ends.extend(node.input)
    return names


def _loop(
    graph: onnx.GraphProto, name: str, boxes: str, result: str, inner: list[onnx.NodeProto]
) -> list[onnx.NodeProto]:
    """The nodes that compute the part's result (N, ...) from `boxes` (N, width), chunk by chunk."""
    at = name + _LOOP + "/"

    def ints(*values: int) -> str:
        key = f"{at}{values}"
        if all(known.name != key for known in graph.initializer):
            graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), key))
        return key

    def node(kind: str, inputs: list[str], output: str) -> onnx.NodeProto:
        return helper.make_node(kind, inputs, [output], at + output.removeprefix(at))

    (chunk, width), zero, one = _sizes(name), ints(0), ints(1)
    size = ints(chunk)
    body = [
        node("Mul", [at + "number", size], at + "start"),
        node("Add", [at + "start", size], at + "stop"),
        node("Slice", [at + "padded", at + "start", at + "stop", zero], at + "chunk"),
        node("Reshape", [at + "chunk", ints(chunk, width)], name + _BEGIN),
        *inner,
        node("Identity", [at + "go"], at + "go_on"),
    ]
    number, go, go_on = (
        helper.make_tensor_value_info(at + key, kind, [])
        for key, kind in (("number", TensorProto.INT64), ("go", TensorProto.BOOL), ("go_on", TensorProto.BOOL))
    )
    made_by_cast = any(each.op_type == "Cast" and result in each.output for each in inner)
    computed = helper.make_tensor_value_info(result, TensorProto.UINT8 if made_by_cast else TensorProto.FLOAT, None)
    loop = helper.make_graph(body, at + "body", [number, go], [go_on, computed])
    return [
        node("Shape", [boxes], at + "shape"),
        node("Slice", [at + "shape", zero, one], at + "count"),
        node("Add", [at + "count", ints(chunk - 1)], at + "more"),
        node("Div", [at + "more", size], at + "full"),
        node("Max", [at + "full", one], at + "chunks"),  # at least one, which sets the result's shape if N is 0
        node("Mul", [at + "chunks", size], at + "total"),
        node("Sub", [at + "total", at + "count"], at + "missing"),
        helper.make_node("Concat", [ints(0, 0), at + "missing", zero], [at + "pads"], at + "pads", axis=0),
        node("Pad", [boxes, at + "pads"], at + "padded"),
        node("Squeeze", [at + "chunks"], at + "trips"),
        helper.make_node("Loop", [at + "trips", ""], [at + "results"], name + _LOOP, body=loop),
        helper.make_node("Shape", [at + "results"], [at + "each"], at + "each", start=2),
        helper.make_node("Concat", [ints(-1), at + "each"], [at + "joined_shape"], at + "joined_shape", axis=0),
        node("Reshape", [at + "results", at + "joined_shape"], at + "joined"),
        node("Slice", [at + "joined", zero, at + "count", zero], name + _END),
    ]


def _replace(repeated: MutableSequence[onnx.NodeProto], nodes: list[onnx.NodeProto]) -> None:
    """Replace the nodes of a graph."""
    del repeated[:]
    repeated.extend(nodes)
