"""Polygons rasterised by pycocotools equal the mask, including holes and the edges of the photo."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from segment.mask import THRESHOLD, Mask
from segment.output.polygons import MAX_POINTS, polygons
from tests.strategies import empty, ring, solid

SIZE = (200, 160)


def filled(outlines: list[list[float]]) -> NDArray[np.bool_]:
    width, height = SIZE
    packed = coco.merge(coco.frPyObjects(outlines, height, width))
    return np.asarray(coco.decode(packed), bool)


def overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


def blobs() -> Mask:
    """Three parts, one of them with a hole."""
    grid = np.zeros((28, 28), np.float32)
    grid[2:14, 2:14] = 1
    grid[5:10, 5:10] = 0
    grid[18:26, 3:9] = 0.9
    grid[16:20, 16:27] = 0.8
    return Mask(grid, (20, 10, 180, 150), (20, 10, 180, 150))


@pytest.mark.parametrize(
    "mask",
    [
        solid(20, 30, 120, 110),
        solid(-60, -60, 300, 300),
        solid(150.3, 90.7, 260.1, 260.2),
        solid(10, 10, 16, 15),
        ring(20, 30, 120, 110),
        ring(20, 10, 180, 150, holes=3),
        ring(-50, 20, 100, 140),
        blobs(),
    ],
    ids=["solid", "whole", "cut", "small", "ring", "three-holes", "ring-cut", "parts"],
)
def test_filled_polygons_equal_the_mask(mask: Mask) -> None:
    outlines = polygons(mask, SIZE)
    dense = mask.paste((0, 0, *SIZE)) >= THRESHOLD
    assert overlap(filled(outlines), dense) > 0.95
    for outline in outlines:
        points = np.array(outline).reshape(-1, 2)
        assert len(points) >= 3
        assert (points >= 0).all()
        assert (points <= SIZE).all()


def test_other_readers_keep_holes() -> None:
    mask = ring(20, 30, 120, 110)
    (outline,) = polygons(mask, SIZE)
    canvas = Image.new("1", SIZE)
    ImageDraw.Draw(canvas).polygon(outline, fill=1)
    assert overlap(np.asarray(canvas), mask.paste((0, 0, *SIZE)) >= THRESHOLD) > 0.93
    assert not canvas.getpixel((70, 70))


def test_each_part_is_a_polygon() -> None:
    assert len(polygons(blobs(), SIZE)) == 3


@pytest.mark.parametrize("mask", [empty(0, 0, 50, 50), solid(9, 9, 9, 9), solid(9, 9, 3, 20), solid(300, 0, 400, 9)])
def test_an_empty_mask_has_no_polygon(mask: Mask) -> None:
    assert polygons(mask, SIZE) == []


def test_the_number_of_points_follows_the_grid_and_not_the_photo() -> None:
    small, large = (sum(map(len, polygons(ring(*box), size))) for box, size in RINGS)
    assert large < 1.2 * small


RINGS = (((20, 30, 1220, 910), (1280, 960)), ((80, 120, 4880, 3640), (5120, 3840)))


def test_noise_takes_little_memory() -> None:
    """A noisy mask of 160 x 160 cells once took 1.5 GiB, for its pairs of points and Python numbers."""
    grid = np.random.default_rng(0).random((160, 160), np.float32)
    tracemalloc.start()
    outlines = polygons(Mask(grid, (0, 0, 2000, 2000), (0, 0, 2000, 2000)), (2000, 2000))
    assert tracemalloc.get_traced_memory()[1] < 24 << 20
    tracemalloc.stop()
    assert 0 < sum(map(len, outlines)) < 4 * MAX_POINTS
