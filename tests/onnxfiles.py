"""Small ONNX files with known weights and with the inputs and outputs of each model family's exports.

Rows of boxes and scores are constants. Masks are computed from the image, by an average over cells and a 1 x 1
convolution, so that any error in the preprocessing of the image changes the masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Shape = list[int | str | None]
CELL = 4
"""Pixels of the input per cell of the prototypes."""
FLOAT, FLOAT16, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64
INT8, UINT8 = TensorProto.INT8, TensorProto.UINT8


class Graph:
    """Builds an ONNX graph, one node after the other."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Any) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def input(self, name: str, kind: int, shape: Shape) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, source: str, kind: int, shape: Shape) -> None:
        last = next((node for node in self.nodes if node.output[0] == source), None)
        if last is None:
            self.node("Identity", source, output=name)
        else:
            last.output[0] = name
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def save(self, path: Path, metadata: Mapping[str, str] | None = None) -> Path:
        graph = helper.make_graph(self.nodes, "graph", self.inputs, self.outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        helper.set_model_props(model, dict(metadata or {}))
        onnx.save(model, path)
        return path

    def masks_of(self, image: str, weights: NDArray[np.float32], bias: NDArray[np.float32]) -> str:
        """(1, P, h, w) from `image` (1, 3, H, W): each cell's mean colour times weights (P, 3), plus bias (P,)."""
        pooled = self.node("AveragePool", image, kernel_shape=[CELL, CELL], strides=[CELL, CELL])
        return self.node("Conv", pooled, self.constant(weights[:, :, None, None]), self.constant(bias))

    def varying(self, value: NDArray[Any], axis: int, image: str) -> str:
        """`value` as a tensor whose length along `axis` is known only at run time."""
        none = self.node("Mul", self.node("Size", image), self.constant(np.int64(0)))
        end = self.node("Add", none, self.constant(np.array([value.shape[axis]])))
        axes = self.constant(np.array([axis]))
        return self.node("Slice", self.constant(value), self.constant(np.array([0])), end, axes)


def yolo(
    path: Path,
    rows: NDArray[np.float32],
    weights: NDArray[np.float32],
    bias: NDArray[np.float32],
    *,
    size: tuple[int, int] | None,
    batch: int | None = 1,
    kind: int = FLOAT,
    channels_last: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """YOLO-seg with these rows (channels, anchors) or (anchors, channels).

    `size`: (width, height), or None for a dynamic size. `kind`: element type of the image and the outputs; UINT8
    applies to the image only, with values of 0-255.
    """
    graph = Graph()
    width, height = size or (None, None)
    shape: Shape = [batch, height, width, 3] if channels_last else [batch, 3, height, width]
    image = graph.input("images", kind, shape)
    if kind == INT8:
        image = graph.node("DequantizeLinear", image, *_scale(graph, 1 / 255, -128))
    elif kind != FLOAT:
        image = graph.node("Cast", image, to=FLOAT)
    if channels_last:
        image = graph.node("Transpose", image, perm=[0, 3, 1, 2])
    table = rows[None]
    anchors = 1 if rows.shape[1] < rows.shape[0] else 2
    known = size is not None
    row_name = graph.constant(table) if known else graph.varying(table, anchors, image)
    mask_name = graph.masks_of(image, weights, bias)
    if kind == INT8:
        nothing = graph.node("Mul", graph.node("ReduceMean", image, keepdims=0), graph.constant(np.float32(0)))
        row_name = graph.node("Add", row_name, nothing)  # prevents constant folding
        row_name = graph.node("QuantizeLinear", row_name, *_scale(graph, ROW_STEP, 0))
        mask_name = graph.node("QuantizeLinear", mask_name, *_scale(graph, MASK_STEP, 10))
    elif kind == FLOAT16:
        row_name, mask_name = (graph.node("Cast", name, to=kind) for name in (row_name, mask_name))
    row_shape: Shape = [1, *rows.shape]
    if not known:
        row_shape[anchors] = "anchors"
    mask_shape: Shape = [batch, len(bias), height and height // CELL, width and width // CELL]
    real = FLOAT if kind == UINT8 else kind
    graph.output("output0", row_name, real, row_shape)
    graph.output("output1", mask_name, real, mask_shape)
    return graph.save(path, metadata)


ROW_STEP, MASK_STEP = 0.5, 0.25
"""Quantisation steps of the int8 outputs; boxes are at most 63.5 pixels large."""


def _scale(graph: Graph, step: float, zero: int) -> tuple[str, str]:
    return graph.constant(np.float32(step)), graph.constant(np.int8(zero))


def rfdetr(
    path: Path,
    boxes: NDArray[np.float32],
    logits: NDArray[np.float32],
    weights: NDArray[np.float32],
    bias: NDArray[np.float32],
    *,
    size: tuple[int, int],
    batch: int | None = 1,
    names: tuple[str, str, str] = ("dets", "labels", "masks"),
) -> Path:
    """RF-DETR-seg with these boxes (Q, 4) and logits (Q, C); masks from the image by weights (Q, 3) and bias (Q,)."""
    graph = Graph()
    image = graph.input("input", FLOAT, [batch, 3, size[1], size[0]])
    outputs = graph.constant(boxes[None]), graph.constant(logits[None]), graph.masks_of(image, weights, bias)
    shapes: tuple[Shape, ...] = (
        [1, *boxes.shape],
        [1, *logits.shape],
        [batch, len(boxes), size[1] // CELL, size[0] // CELL],
    )
    for name, source, shape in zip(names, outputs, shapes, strict=True):
        graph.output(name, source, FLOAT, shape)
    return graph.save(path)


def torchvision(
    path: Path,
    boxes: NDArray[np.float32],
    labels: NDArray[np.int64],
    scores: NDArray[np.float32],
    grids: NDArray[np.float32] | None,
    *,
    size: tuple[int, int] | None = None,
    batched: bool = False,
) -> Path:
    """torchvision's Mask R-CNN with these boxes; masks are `grids` (N, m, m) or, if None, the image's red channel."""
    graph = Graph()
    width, height = size or (None, None)
    image = graph.input("image", FLOAT, [1, 3, height, width] if batched else [3, height, width])
    names = [graph.varying(value, 0, image) for value in (boxes, labels, scores)]
    mask_shape: Shape
    if grids is not None:
        masks, mask_shape = graph.varying(grids[:, None], 0, image), ["n", 1, *grids.shape[1:]]
    else:
        flat = graph.node("Squeeze", image, graph.constant(np.array([0]))) if batched else image
        red = graph.node("Gather", flat, graph.constant(np.array([0])), axis=0)
        ones = graph.constant(np.ones((len(boxes), 1, 1, 1), np.float32))
        masks, mask_shape = graph.node("Mul", red, ones), ["n", 1, "height", "width"]
    outputs: tuple[tuple[str, str, int, Shape], ...] = (
        ("boxes", names[0], FLOAT, ["n", 4]),
        ("labels", names[1], INT64, ["n"]),
        ("scores", names[2], FLOAT, ["n"]),
        ("masks", masks, FLOAT, mask_shape),
    )
    for name, source, kind, shape in outputs:
        graph.output(name, source, kind, shape)
    return graph.save(path)
