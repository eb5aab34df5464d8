"""The runs of a mask's pixels, and COCO's compressed run lengths (RLE).

COCO's encoding lists the lengths of alternating runs of 0 and 1, starting with 0, over the whole image in column-major
order (cocoapi, common/maskApi.c). Only the pixels of a mask's own rectangle are pasted, in strips; the runs outside it
are computed. pycocotools packs the lengths into COCO's string.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from segment.mask import THRESHOLD, Mask

Runs = NDArray[np.int64]
"""(R, 2): start and end (exclusive) of each run of the mask's pixels, in an order of the image's pixels."""


def runs(mask: Mask, size: tuple[int, int], *, by_rows: bool = False) -> Runs:
    """The mask's runs in an image of `size` (width, height), in column-major order, or row by row."""
    length = size[0] if by_rows else size[1]
    found = [np.zeros((0, 2), np.int64)]
    for (left, top, _, _), pixels in mask.strips(size) if by_rows else mask.columns(size):
        lines, first, offset = (pixels, top, left) if by_rows else (pixels.T, left, top)
        inside = np.pad(lines >= THRESHOLD, ((0, 0), (1, 1)))  # so that each run starts and ends in its line
        line, place = np.nonzero(inside[:, 1:] != inside[:, :-1])
        found.append(((first + line) * length + offset + place).reshape(-1, 2))
    ends = np.concatenate(found)
    # A run continues from the end of a line to the start of the next.
    joined = np.flatnonzero(ends[1:, 0] == ends[:-1, 1])
    starts, stops = np.delete(ends[:, 0], joined + 1), np.delete(ends[:, 1], joined)
    return np.stack([starts, stops], axis=1)


def area(runs: Runs) -> int:
    """The number of pixels in the runs."""
    return int((runs[:, 1] - runs[:, 0]).sum())


def compress(runs: Runs, size: tuple[int, int]) -> dict[str, object]:
    """COCO's compressed RLE of column-major runs, {"size": [height, width], "counts": string}.

    The same as from pycocotools.mask.encode.
    """
    width, height = size
    edges = np.concatenate([[0], runs.ravel(), [width * height]])
    counts = np.diff(edges)
    if len(counts) > 1 and counts[-1] == 0:  # the last pixel is the mask's
        counts = counts[:-1]
    packed = coco.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": packed["counts"].decode("ascii")}
