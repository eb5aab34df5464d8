"""Encode masks as COCO's compressed run lengths (RLE).

COCO's encoding lists the lengths of alternating runs of 0 and 1, starting with 0, over the whole image in column-major
order (cocoapi, common/maskApi.c). Only the pixels of a mask's own rectangle are pasted, in strips of columns;
the runs outside it are computed. pycocotools packs the lengths into COCO's string.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from segment.mask import THRESHOLD, Mask

Runs = NDArray[np.int64]
"""(R, 2): start and end (exclusive) of each run of the mask's pixels, in column-major order of the image's pixels."""


def runs(mask: Mask, size: tuple[int, int]) -> Runs:
    """The mask's runs in an image of `size` (width, height)."""
    height = size[1]
    found = [np.zeros((0, 2), np.int64)]
    for (left, top, _, _), probabilities in mask.columns(size):
        inside = np.pad(probabilities.T >= THRESHOLD, ((0, 0), (1, 1)))  # (columns, rows), with zeros at both ends
        column, row = np.nonzero(inside[:, 1:] != inside[:, :-1])
        found.append(((left + column) * height + top + row).reshape(-1, 2))
    ends = np.concatenate(found)
    # A run continues from the end of a column to the start of the next.
    joined = np.flatnonzero(ends[1:, 0] == ends[:-1, 1])
    starts, stops = np.delete(ends[:, 0], joined + 1), np.delete(ends[:, 1], joined)
    return np.stack([starts, stops], axis=1)


def area(runs: Runs) -> int:
    """The number of pixels in the runs."""
    return int((runs[:, 1] - runs[:, 0]).sum())


def compress(runs: Runs, size: tuple[int, int]) -> dict[str, object]:
    """COCO's compressed RLE, {"size": [height, width], "counts": string}, as from pycocotools.mask.encode."""
    width, height = size
    edges = np.concatenate([[0], runs.ravel(), [width * height]])
    counts = np.diff(edges)
    if len(counts) > 1 and counts[-1] == 0:  # the last pixel is the mask's
        counts = counts[:-1]
    packed = coco.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": packed["counts"].decode("ascii")}
