"""Sliced inference: run the network on overlapping tiles of a photo, and merge the detections (merge.py).

The network runs on each tile at the same input size as on the whole photo, one after the other, so the memory is that
of one run. Tiles show small objects magnified; the whole photo shows large objects complete and in their surroundings.
Slicing for small objects is from SAHI (Akyon et al., arXiv 2202.06934).
"""

from __future__ import annotations

import math

from segment.mask import Region

OVERLAP = 0.2
"""Share of a tile's side that it has in common with the next; smaller objects are complete in one of them."""


def magnification(detail: int, overlap: float = OVERLAP) -> float:
    """Ratio of the photo's side to a tile's side."""
    return detail - (detail - 1) * overlap


def views(detail: int) -> int:
    """Number of runs per photo: one for each tile and one for the whole photo."""
    return 1 if detail == 1 else detail**2 + 1


def tiles(size: tuple[int, int], detail: int, overlap: float = OVERLAP) -> list[Region]:
    """The `detail` x `detail` tiles of a photo of `size` (width, height), in whole pixels, row by row.

    All tiles have the same size and the photo's aspect ratio. Neighbours have the share `overlap` of their sides in
    common, or slightly more because of rounding. A photo with too few pixels has fewer tiles.
    """
    columns, rows = (_intervals(length, detail, overlap) for length in size)
    return [(left, top, right, bottom) for top, bottom in rows for left, right in columns]


def _intervals(length: int, count: int, overlap: float) -> list[tuple[int, int]]:
    side = min(length, math.ceil(length / magnification(count, overlap)))
    starts = [round(i * (length - side) / max(count - 1, 1)) for i in range(count)]
    return [(start, start + side) for start in dict.fromkeys(starts)]
