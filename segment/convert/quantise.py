"""Quantise an fp32 model to int8: a quarter of the size, and several times faster on CPUs with int8 instructions.

Post-training static quantisation by NNCF (github.com/openvinotoolkit/nncf): weights per channel, activations per
tensor with the ranges seen on some pictures (calibration.py), then a correction of each layer's bias. NNCF places its
nodes where OpenVINO can fuse them; the quantiser of ONNX Runtime left a conversion between many layers.

Only convolutions and fully connected layers, and what OpenVINO fuses with them, are quantised. Everything that computes
with coordinates and scores stays in float32.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_model

from segment import extras
from segment.convert import chunks, deformable, pointrend, sampling, storage
from segment.engine.openvino import disable_telemetry
from segment.errors import ConversionError

LAYERS = ("Conv", "Gemm")
"""Operators that are quantised."""
BETWEEN = ("Relu", "Add", "MaxPool", "Resize")
"""Operators that can run in int8 between two convolutions."""
LARGE_LAYER = 512 << 20
"""Bytes of float32 weights above which a layer is quantised here instead of by NNCF, which needs several times its
memory. Only the layer of Implicit PointRend that predicts weights is as large (1.1 GB)."""
WEIGHTS_PER_PASS = 512 << 20
"""Bytes of float32 weights per pass over the pictures. Models with more weights have more activations, too."""
ROWS = 4096
"""Outputs of a large layer that are quantised at a time."""
_STAND_IN = ".stand_in"
"""Suffix of the names of what takes the place of a large layer's outputs."""
_PROBE = ".probe"
"""Suffix of the names of convolutions that only exist so that NNCF quantises their input."""
MIN_SCORE, MAX_DETECTIONS = 0.05, 20
"""Options during calibration, so that the ranges of the mask head come from plausible instances."""


ONLY_ERRORS = 3
"""The severity from which on ONNX Runtime logs (onnxruntime_c_api.h, OrtLoggingLevel)."""


def quantise(model: onnx.ModelProto, pictures: Iterable[NDArray[np.uint8]]) -> onnx.ModelProto:
    """Quantise a converted model to int8.

    `pictures`: some tens of pictures for calibration, (H, W, 3) uint8 RGB, at the size of the network's input in
    serving. Raises ConversionError, MissingPackage.
    """
    disable_telemetry()
    try:
        import nncf
        import onnxruntime
    except ImportError:
        raise extras.missing("nncf") from None
    inputs = [network_input(pixels) for pixels in pictures]
    if not inputs:
        raise ConversionError("The calibration folder contains no photos. Put some tens of typical photos into it.")
    # Not nncf.set_log_level, which also changes the level of every handler that the application attached.
    logging.getLogger(nncf.__name__).setLevel(logging.ERROR)
    onnxruntime.set_default_logger_severity(ONLY_ERRORS)  # NNCF's runs; the runtime warns of what it optimises
    with tempfile.TemporaryDirectory(prefix="segment-") as folder:
        wide = storage.without_weights(model, Path(folder))
        chunks.whole(wide)
        _add_probes(wide.graph)
        large = _without_large_layers(wide.graph, Path(folder))
        narrow = _quantised(wide, inputs, Path(folder))
        _restore_large_layers(narrow.graph, large)
    _tables_in_int8(narrow.graph)
    _quantise_crops_early(narrow.graph)
    _remove_probes(narrow.graph)
    chunks.resize(narrow, pointrend.PART, pointrend.CHUNK_INT8)
    chunks.in_chunks(narrow)
    _sample_in_int8(narrow.graph)
    del narrow.graph.value_info[:]  # NNCF's record of the types of all tensors, some of which have changed since
    onnx.checker.check_model(narrow)
    return narrow


def _quantised(model: onnx.ModelProto, inputs: list[dict[str, NDArray[Any]]], folder: Path) -> onnx.ModelProto:
    """What nncf.quantize returns for a model whose weights are in a file in `folder`, with less memory.

    The steps are those of NNCF's quantize_impl (nncf/onnx/quantization/quantize_model.py), which keeps the inputs and
    outputs of all layers at once for each picture: 4 GB for ViT-B. For large models, this is done for some of the
    layers at a time, which means running the layers before them again.
    """
    import nncf
    from nncf.onnx.graph.model_metadata import MetadataKey, remove_metadata, set_metadata
    from nncf.onnx.graph.nncf_graph_builder import GraphConverter
    from nncf.onnx.graph.passes import apply_preprocess_passes, compress_quantize_weights_transformation
    from nncf.quantization.algorithms.pipeline import collect_statistics
    from nncf.quantization.algorithms.post_training.algorithm import PostTrainingQuantization

    model = apply_preprocess_passes(model)
    set_metadata(model, MetadataKey.EXTERNAL_DATA_DIR, str(folder))
    graph, dataset = GraphConverter.create_nncf_graph(model), nncf.Dataset(inputs)
    algorithm = PostTrainingQuantization(
        preset=nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(inputs),
        ignored_scope=nncf.IgnoredScope(names=kept_in_float(model.graph), validate=False),
    )
    with _fast_matching():
        points = algorithm.get_statistic_points(model, graph)
    passes = 1 + (folder / storage.WEIGHTS).stat().st_size // WEIGHTS_PER_PASS
    names = sorted(points, key=[node.name for node in model.graph.node].index)
    try:
        for group in np.array_split(np.array(names), passes):
            some = type(points)({name: points[name] for name in group.tolist()})
            collect_statistics(some, _up_to(model, str(group[-1])), graph, dataset)
        narrow: onnx.ModelProto = algorithm.apply(model, graph, points, dataset)
    except nncf.InternalError as error:  # a layer that never had an input
        raise ConversionError(
            f"The model cannot be quantised, because parts of it were not used with any of the {len(inputs)} photo(s) "
            f"for calibration ({error}). Usually it found no instance with a score of at least {MIN_SCORE:g}, or the "
            "config's higher threshold. Calibrate on photos of objects that the model knows (--calibrate FOLDER)."
        ) from None
    remove_metadata(narrow, MetadataKey.EXTERNAL_DATA_DIR)
    load_external_data_for_model(narrow, str(folder))
    compress_quantize_weights_transformation(narrow)
    return narrow


@contextmanager
def _fast_matching() -> Iterator[None]:
    """Make networkx look for NNCF's patterns faster, with the same result.

    NNCF searches the graph for some hundred patterns (nncf/common/graph/graph_matching.py), most of which contain an
    operator that the graph does not have. networkx compares the edges of two nodes before their types, which takes
    longer, while the types nearly always differ. The patterns are views of one large graph, in which each look-up is
    slow.
    """
    from networkx.algorithms import isomorphism

    class Matcher(isomorphism.MultiDiGraphMatcher):  # type: ignore[misc]
        def __init__(self, graph: Any, pattern: Any, node_match: Callable[[Any, Any], bool]) -> None:
            super().__init__(graph, pattern.copy(), node_match)

        def subgraph_isomorphisms_iter(self) -> Iterator[Any]:
            nodes, others = (list(dict(graph.nodes(data=True)).values()) for graph in (self.G1, self.G2))
            if all(any(self.node_match(node, other) for node in nodes) for other in others):
                yield from super().subgraph_isomorphisms_iter()

        def syntactic_feasibility(self, node: Any, other: Any) -> bool:
            alike = self.node_match(self.G1.nodes[node], self.G2.nodes[other])
            return bool(alike and super().syntactic_feasibility(node, other))

        def semantic_feasibility(self, node: Any, other: Any) -> bool:
            return True  # compared before the edges

    usual = isomorphism.MultiDiGraphMatcher
    isomorphism.MultiDiGraphMatcher = Matcher
    try:
        yield
    finally:
        isomorphism.MultiDiGraphMatcher = usual


def _up_to(model: onnx.ModelProto, last: str) -> onnx.ModelProto:
    """The model up to the node called `last`, without outputs; its weights must be in a file."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    part.graph.value_info.extend(part.graph.output)
    del part.graph.output[:]
    del part.graph.node[[node.name for node in part.graph.node].index(last) + 1 :]
    return part


def _without_large_layers(
    graph: onnx.GraphProto, folder: Path
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Reduce large layers to their first output, repeated; NNCF still determines the scale of their inputs.

    What reads these outputs must not be quantised. Returns weight (out, in) and bias (out,) by the layer's name.
    """
    constants = {constant.name: constant for constant in graph.initializer}
    large = {}
    for i, node in reversed(list(enumerate(graph.node))):
        if node.op_type == "Gemm" and 4 * math.prod(constants[node.input[1]].dims) > LARGE_LAYER:
            weight, bias = (numpy_helper.to_array(constants[name], str(folder)) for name in node.input[1:])
            large[node.name] = weight, bias
            for name, values in zip(node.input[1:], (weight, bias), strict=True):
                constants[name].CopyFrom(numpy_helper.from_array(values[:1], name))
            wide, narrow = node.output[0], node.output[0] + _STAND_IN
            node.output[0] = narrow
            shape = numpy_helper.from_array(np.array([1, len(weight)], np.int64), narrow + ".shape")
            graph.initializer.append(shape)
            graph.node.insert(i + 1, helper.make_node("Expand", [narrow, shape.name], [wide], narrow))
    return large


def _restore_large_layers(
    graph: onnx.GraphProto, large: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
) -> None:
    """Undo `_without_large_layers` in the quantised graph: the weights become int8 with a scale per output."""
    made_by = {name: node for node in graph.node for name in node.output}
    constants = {constant.name: constant for constant in graph.initializer}
    layers = [node for node in graph.node if node.name in large]
    for node in layers:
        weight, bias = large[node.name]
        node.output[0] = node.output[0].removesuffix(_STAND_IN)
        graph.node.remove(made_by[node.output[0]])
        graph.initializer.remove(constants[node.output[0] + _STAND_IN + ".shape"])
        constants[node.input[2]].CopyFrom(numpy_helper.from_array(bias, node.input[2]))
        quantised: tuple[NDArray[Any], ...] = _symmetric(weight)
        for name, array in zip(made_by[node.input[1]].input, quantised, strict=True):
            constants[name].CopyFrom(numpy_helper.from_array(array, name))


def _symmetric(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int8]]:
    """Weight (out, in) as int8, with a scale and a zero point (out,) for each output."""
    scale = np.maximum(np.abs(weight).max(axis=1), np.finfo(np.float32).tiny) / np.float32(127)
    steps = np.empty(weight.shape, np.int8)
    for start in range(0, len(weight), ROWS):
        rows = slice(start, start + ROWS)
        steps[rows] = np.rint(weight[rows] / scale[rows, None])
    return steps, scale, np.zeros(len(weight), np.int8)


def kept_in_float(graph: onnx.GraphProto) -> list[str]:
    """The names of the nodes that are not quantised."""
    made_by = {name: node for node in graph.node for name in node.output}
    carries: set[str] = set()
    for node in graph.node:  # in topological order
        makers = [made_by[name] for name in node.input if name in made_by]
        if node.op_type in BETWEEN and any(m.op_type == "Conv" or m.name in carries for m in makers):
            carries.add(node.name)
    return [node.name for node in graph.node if node.op_type not in LAYERS and node.name not in carries]


def network_input(pixels: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """The inputs of a converted network by name, for one picture."""
    return {
        "image": pixels,
        "min_score": np.array(MIN_SCORE, np.float32),
        "max_detections": np.array(MAX_DETECTIONS, np.int64),
    }


def _quantise_crops_early(graph: onnx.GraphProto) -> None:
    """Quantise the crops of each level before they are concatenated.

    The values are the same, but use a quarter of the memory: the crops of 100 masks are 20 MB in float32, and so is
    their concatenation. NNCF cannot do this, because calibration may have no crops from some level.
    """
    made_by = {name: node for node in graph.node for name in node.output}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    moved: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        makers = [made_by[name].op_type for name in node.input if name in made_by]
        if node.op_type == "Concat" and "RoiAlign" in makers and (quantiser := _quantiser(node, users)):
            for i, name in enumerate(node.input):
                early = helper.make_node("QuantizeLinear", [name, *quantiser.input[1:]], [name + ".quantised"])
                early.name, node.input[i] = early.output[0], early.output[0]
                nodes.append(early)
            for user in users[quantiser.output[0]]:
                user.input[0] = quantiser.input[0]
            moved.add(quantiser.name)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(node for node in nodes if node.name not in moved)


def _sample_in_int8(graph: onnx.GraphProto) -> None:
    """Let deformable convolutions sample the int8 map from which their offsets are predicted.

    Each sample reads four rows of the map; in int8, this is a quarter of the bytes. NNCF quantises the map only for the
    convolution that predicts the offsets.
    """
    quantised = {node.input[0]: node.output[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    back = {node.input[0]: node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    for node in graph.node:
        if node.name.endswith(deformable.MAP) and (narrow := quantised.get(node.input[0])):
            node.input[0] = back[narrow]


def _add_probes(graph: onnx.GraphProto) -> None:
    """Make NNCF determine the scales of the maps of which PointRend samples points.

    It quantises only what a layer reads, so each map gets a convolution whose result nobody uses.
    """
    maker = {name: i for i, node in enumerate(graph.node) for name in node.output}
    constants = {constant.name: constant for constant in graph.initializer}
    probes = {}
    for table in _tables(graph):
        source = _first(graph, table).input[0]
        channels = int(numpy_helper.to_array(constants[table.input[1]])[1])
        name = table.name + _PROBE
        weight = numpy_helper.from_array(np.ones((1, channels, 1, 1), np.float32), name + ".weight")
        graph.initializer.append(weight)
        probes[maker[source]] = helper.make_node("Conv", [source, weight.name], [name], name, kernel_shape=[1, 1])
    for i in sorted(probes, reverse=True):
        graph.node.insert(i + 1, probes[i])


def _remove_probes(graph: onnx.GraphProto) -> None:
    """Remove the convolutions of `_add_probes`, and the quantisers and constants that only they read."""
    removed = [node for node in graph.node if node.name.endswith(_PROBE)]
    read: set[str] = set()
    while removed:
        for node in removed:
            graph.node.remove(node)
            read.update(node.input)
        used = {name for node in graph.node for name in node.input}
        removed = [node for node in graph.node if read.intersection(node.output) and not used.intersection(node.output)]
    if read:
        for constant in [each for each in graph.initializer if each.name in read - used]:
            graph.initializer.remove(constant)


def _tables_in_int8(graph: onnx.GraphProto) -> None:
    """Let PointRend sample its points from int8 tables: a quarter of the memory, and of the bytes read for a point."""
    quantisers = {node.input[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}
    scales: dict[str, list[str]] = {}
    for table in _tables(graph):
        first = _first(graph, table)
        if quantiser := quantisers.get(first.input[0]):
            first.input[0] = quantiser.output[0]
            scales[table.output[0]] = list(quantiser.input[1:])
    split = {node.input[0] for node in graph.node if node.op_type == "Split"}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        scale = scales.get(node.input[0]) if node.op_type in ("Gather", "Split") else None
        if scale and node.output[0] in split:
            # The rows of all corners, still to be split. Files of earlier versions gather those of each corner.
            scales[node.output[0]] = scale
        elif scale:
            for i, wide in enumerate(node.output):
                node.output[i] = narrow = wide + ".quantised"
                nodes.append(helper.make_node("DequantizeLinear", [narrow, *scale], [wide], wide + ".dequantised"))
    del graph.node[:]
    graph.node.extend(nodes)


def _tables(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that make PointRend's tables."""
    return [node for node in graph.node if node.name.endswith(sampling.TABLE)]


def _first(graph: onnx.GraphProto, table: onnx.NodeProto) -> onnx.NodeProto:
    """The first of the three nodes that make a table of a map: Reshape, Transpose, Reshape."""
    made_by: dict[str, onnx.NodeProto] = {name: node for node in graph.node for name in node.output}
    return made_by[made_by[table.input[0]].input[0]]


def _quantiser(node: onnx.NodeProto, users: dict[str, list[onnx.NodeProto]]) -> onnx.NodeProto | None:
    """The node that quantises this node's output, if it is the only one that uses it."""
    following = users.get(node.output[0], [])
    while len(following) == 1 and following[0].op_type in ("Identity", "Reshape"):
        following = users.get(following[0].output[0], [])
    return following[0] if len(following) == 1 and following[0].op_type == "QuantizeLinear" else None
