"""A Mask R-CNN as one graph, from uint8 RGB pixels of any size to detections in pixels of this image.

The graph contains all pre- and post-processing of detectron2 (detectron2/modeling/meta_arch/rcnn.py, GeneralizedRCNN):
channel order, mean, standard deviation, padding to the stride, non-maximum suppression and thresholds.
"""

from __future__ import annotations

import numpy as np
import onnx

from segment.convert import backbone, boxes, chunks, heads, pointrend, res5
from segment.convert.architecture import Config, PointRend, SimplePyramid
from segment.convert.graph import FLOAT, INT64, UINT8, Graph, tensor
from segment.convert.proposals import proposals
from segment.convert.weights import Weights


def build(config: Config, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> onnx.ModelProto:
    """The network of `config` with the checkpoint's `tensors`, which is emptied. Raises ConversionError."""
    g = Graph()
    w = Weights(pointrend.renamed(tensors), shared=res5.NAME)
    tensors.clear()
    frame = _frame(g)
    image = _normalise(g, w, config)
    maps = backbone.feature_maps(g, w, config, image)
    rois = proposals(g, w, config, maps, frame)
    scores, found_boxes = heads.box_head(g, w, config, maps, rois, frame)
    found = heads.select(g, config.box, config.classes, scores, found_boxes, "min_score", "max_detections")
    if isinstance(config.mask, PointRend):
        masks = pointrend.masks(g, w, config.mask, config.channels, maps, found)
        kind = UINT8
    else:
        masks = heads.masks(g, w, config, config.mask, maps, found)
        kind = FLOAT
    w.finish()
    for name, value in (("boxes", found.boxes), ("scores", found.scores), ("classes", found.classes), ("masks", masks)):
        g.rename(value, name)
    model = g.model(
        [
            tensor("image", UINT8, "height", "width", 3),
            tensor("min_score", FLOAT),
            tensor("max_detections", INT64),
        ],
        [
            tensor("boxes", FLOAT, "instances", 4),
            tensor("scores", FLOAT, "instances"),
            tensor("classes", INT64, "instances"),
            tensor("masks", kind, "instances", config.mask.side, config.mask.side),
        ],
        metadata,
    )
    chunks.in_chunks(model)
    return model


def _frame(g: Graph) -> boxes.Frame:
    """The image's size before padding."""
    shape = g.cast(g.op("Shape", "image"), FLOAT)
    height, width = g.slice(shape, g.ints(0), g.ints(1)), g.slice(shape, g.ints(1), g.ints(2))
    return boxes.Frame(width, height, g.op("Concat", width, height, width, height, axis=0))


def _normalise(g: Graph, w: Weights, config: Config) -> str:
    """uint8 (H, W, 3) RGB -> float32 (1, 3, H', W'), minus the mean, padded with zeros.

    Instead of the image, the first convolution's weights are reordered to RGB and divided by the standard deviation.
    """
    mean, std = np.array(config.mean, np.float32), np.array(config.std, np.float32)
    if config.format == "BGR":
        mean, std = mean[::-1], std[::-1]
    stem = backbone.stem(config) + ".weight"
    w.replace(stem, lambda weight: (weight[:, ::-1] if config.format == "BGR" else weight) / std[:, None, None])
    x = g.op("Transpose", g.cast("image", FLOAT), perm=[2, 0, 1])
    x = g.op("Unsqueeze", g.op("Sub", x, g.constant(mean[:, None, None])), g.ints(0))
    return _padded(g, config, x) if config.pyramid else x


def _padded(g: Graph, config: Config, x: str) -> str:
    """Pad x (1, 3, H, W) -> (1, 3, H', W') with zeros at the bottom and right, in the same way as detectron2.

    With an FPN, the image is padded to a multiple of the stride. With ViTDet, it is padded to the square, and a larger
    image is cropped to it. ViTDet without a square does not pad; up to 15 pixels at the edges are in no token.
    """
    size = g.slice(g.op("Shape", x), g.ints(2), g.ints(4))
    if config.square:
        missing = g.op("Sub", g.ints(config.square, config.square), size)
    elif isinstance(config.pyramid, SimplePyramid):
        missing = g.op("Max", g.op("Sub", g.ints(config.stride, config.stride), size), g.ints(0, 0))
    else:
        past = g.op("Mod", size, g.ints(config.stride))
        missing = g.op("Mod", g.op("Sub", g.ints(config.stride), past), g.ints(config.stride))
    x = g.op("Pad", x, g.op("Concat", g.ints(0, 0, 0, 0, 0, 0), missing, axis=0), g.scalar(0.0), mode="constant")
    return g.reshape(x, 1, 3, config.square, config.square) if config.square else x
