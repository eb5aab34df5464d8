"""Masks as COCO's compressed run lengths.

COCO's encoding runs down each column of the whole frame, column after column: the lengths of runs of 0 and 1 by turns,
0 first (cocoapi, common/maskApi.c, rleEncode). Only the pixels inside a mask's own rectangle are made, a strip of
columns at a time; the empty rest of the frame is arithmetic. pycocotools packs the lengths into COCO's string.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from segment.mask import THRESHOLD, Mask

Runs = NDArray[np.int64]
"""(R, 2): start and end (excluded) of each run of the mask's pixels, in column-major order of the frame's pixels."""


def runs(mask: Mask, size: tuple[int, int]) -> Runs:
    """The mask's runs in a frame of `size` (width, height)."""
    height = size[1]
    found = [np.zeros((0, 2), np.int64)]
    for (left, top, _, _), probabilities in mask.columns(size):
        inside = np.pad(probabilities.T >= THRESHOLD, ((0, 0), (1, 1)))  # (columns, rows), every run with both its ends
        column, row = np.nonzero(inside[:, 1:] != inside[:, :-1])
        found.append(((left + column) * height + top + row).reshape(-1, 2))
    ends = np.concatenate(found)
    joined = np.flatnonzero(ends[1:, 0] == ends[:-1, 1])  # a run over the foot of a column and the head of the next
    starts, stops = np.delete(ends[:, 0], joined + 1), np.delete(ends[:, 1], joined)
    return np.stack([starts, stops], axis=1)


def area(runs: Runs) -> int:
    """How many pixels the runs cover."""
    return int((runs[:, 1] - runs[:, 0]).sum())


def compress(runs: Runs, size: tuple[int, int]) -> dict[str, object]:
    """COCO's compressed RLE, {"size": [height, width], "counts": string}, as pycocotools.mask.encode makes it."""
    width, height = size
    edges = np.concatenate([[0], runs.ravel(), [width * height]])
    counts = np.diff(edges)
    if len(counts) > 1 and counts[-1] == 0:  # the last pixel is the mask's
        counts = counts[:-1]
    packed = coco.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": packed["counts"].decode("ascii")}
