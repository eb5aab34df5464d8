"""Crops of the feature maps. The level of each crop depends on the size of its box.

RoIAlign: He et al., "Mask R-CNN", 2017, section 3. Levels: Lin et al., "Feature Pyramid Networks", 2017, equation 1.
detectron2/modeling/poolers.py (assign_boxes_to_levels, ROIPooler) and layers/roi_align.py.

The crops of 1,000 boxes are the largest tensors of a network: each copy takes 50 MB. Therefore they stay in the order
of the levels instead of the order of the boxes, and a caller can ask for a few rows of bins at a time (`rows`). The
runtime reuses the memory of tensors of unknown size only between operators whose output size does not depend on values.
Therefore the boxes are sorted by level and split once, before the first crop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import numpy_helper

from segment.convert import boxes as box
from segment.convert.architecture import Pooler
from segment.convert.graph import INT64, Graph

CANONICAL_LEVEL, CANONICAL_SIZE = 4, 224
"""A box of 224 x 224 pixels is pooled from level 4 (FPN paper, equation 1)."""
INSET = 5e-4
"""Pixels by which the height of a part of a box is reduced. RoIAlign takes as many samples per bin as the bin has
cells, rounded up. Without the reduction, rounding errors could add a sample."""
_ZERO = numpy_helper.from_array(np.zeros(1, np.int64))


@dataclass(frozen=True)
class Rois:
    """Boxes to crop by level. Tensor names: `boxes` (n, 4) and `images` (n,) int64, all zero, for each level.

    `order` (N,) int64: the i-th crop belongs to box order[i]; empty if the crops are in the order of the boxes.
    """

    boxes: list[str]
    images: list[str]
    order: str

    def arranged(self, g: Graph, x: str) -> str:
        """Rearrange x (N, ...) from the order of the boxes to that of the crops."""
        return g.gather(x, self.order) if self.order else x

    def restored(self, g: Graph, x: str) -> str:
        """Rearrange x (N, ...) from the order of the crops to that of the boxes."""
        if not self.order:
            return x
        # Sorting the order gives the position of each box's crop.
        _, place = g.ops("TopK", self.order, g.op("Shape", self.order), outputs=2, axis=0, largest=0)
        return g.gather(x, place)


def assign(g: Graph, pooler: Pooler, boxes: str) -> Rois:
    """Group boxes (N, 4) by the level from which each is cropped."""
    if len(pooler.levels) == 1:
        return Rois([_aligned(g, pooler, boxes, pooler.levels[0])], [images(g, boxes)], "")
    size = g.op("Sqrt", box.area(g, boxes))
    ratio = g.op("Add", g.op("Div", size, g.scalar(CANONICAL_SIZE)), g.scalar(1e-8))
    log2 = g.op("Div", g.op("Log", ratio), g.scalar(0.6931471805599453))
    level = g.op("Floor", g.op("Add", log2, g.scalar(CANONICAL_LEVEL)))
    level = g.op("Clip", level, g.scalar(pooler.levels[0]), g.scalar(pooler.levels[-1]))
    level, order = g.ops("TopK", level, g.op("Shape", level), outputs=2, axis=0, largest=0)
    levels = g.constant([pooler.levels], np.float32)
    on_level = g.op("Equal", g.op("Unsqueeze", level, g.ints(1)), levels)  # (N, levels)
    counts = g.op("ReduceSum", g.cast(on_level, INT64), g.ints(0), keepdims=0)
    by_level = g.ops("Split", g.gather(boxes, order), counts, outputs=len(pooler.levels), axis=0)
    cropped = [_aligned(g, pooler, part, level) for part, level in zip(by_level, pooler.levels, strict=True)]
    return Rois(cropped, [images(g, part) for part in by_level], order)


def _aligned(g: Graph, pooler: Pooler, boxes: str, level: int) -> str:
    """The boxes (n, 4) from which ROIAlignV2 crops what the pooler crops from `boxes`.

    The older ROIAlign samples half a cell further to the right and below, and enlarges boxes to at least one cell.
    """
    if pooler.aligned:
        return boxes
    cell = float(2**level)
    low, high = g.ops("Split", boxes, g.ints(2, 2), outputs=2, axis=1)
    high = g.op("Max", high, g.op("Add", low, g.scalar(cell)))
    return g.op("Add", g.op("Concat", low, high, axis=1), g.scalar(cell / 2))


def images(g: Graph, boxes: str) -> str:
    """The image index of each of boxes (n, 4), which is 0."""
    return g.op("ConstantOfShape", g.dim(boxes, 0), value=_ZERO)


def crop(g: Graph, pooler: Pooler, maps: dict[int, str], rois: Rois, rows: range | None = None) -> str:
    """The crops (N, C, len(rows), r) of rois, level by level. `rows`: the rows of bins, by default all r."""
    rows = rows or range(pooler.resolution)
    crops = [
        g.op(
            "RoiAlign",
            maps[level],
            _part(g, boxes, rows, pooler.resolution),
            images,
            coordinate_transformation_mode="half_pixel",
            output_height=len(rows),
            output_width=pooler.resolution,
            sampling_ratio=pooler.sampling_ratio,
            spatial_scale=1 / 2**level,
            mode="avg",
        )
        for level, boxes, images in zip(pooler.levels, rois.boxes, rois.images, strict=True)
    ]
    return g.op("Concat", *crops, axis=0) if len(crops) > 1 else crops[0]


def _part(g: Graph, boxes: str, rows: range, resolution: int) -> str:
    """boxes (n, 4) -> the parts of the boxes that the `rows` of bins cover."""
    if len(rows) == resolution:
        return boxes
    top, bottom = rows.start / resolution, rows.stop / resolution
    # (x0, y0, x1, y1) -> (x0, y0 + top * (y1 - y0), x1, y0 + bottom * (y1 - y0))
    matrix = np.array([[1, 0, 0, 0], [0, 1 - top, 0, 1 - bottom], [0, 0, 1, 0], [0, top, 0, bottom]], np.float32)
    return g.op("Sub", g.op("MatMul", boxes, g.constant(matrix)), g.constant([[0, 0, 0, INSET]], np.float32))
