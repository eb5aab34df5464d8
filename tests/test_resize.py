"""Tests of fitted_size(): the network's input size for a photo's size, render factor and fit."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segment.resize import MAX_RENDER_FACTOR, MIN_RENDER_FACTOR, fitted_size, pixels

sides = st.integers(1, 30_000)
factors = st.integers(MIN_RENDER_FACTOR, MAX_RENDER_FACTOR)


@given(sides, sides, factors)
def test_square_is_sixteen_times_the_factor(width: int, height: int, factor: int) -> None:
    assert fitted_size((width, height), factor, "square") == (16 * factor, 16 * factor)


@given(sides, sides, factors, st.sampled_from([1, 14, 32, 64]))
def test_aspect_keeps_to_the_budget_and_the_stride(width: int, height: int, factor: int, stride: int) -> None:
    w, h = fitted_size((width, height), factor, "aspect", stride)
    assert w > 0
    assert h > 0
    assert w % stride == 0
    assert h % stride == 0
    assert w * h <= pixels(factor)


def test_a_stride_above_the_budget_is_the_size() -> None:
    """detectron2 itself runs backbones with a coarser map, such as a BiFPN with p7."""
    assert fitted_size((640, 480), MIN_RENDER_FACTOR, "aspect", stride=128) == (128, 128)
    assert fitted_size((480, 640), MIN_RENDER_FACTOR, "aspect", stride=128) == (128, 128)


@given(sides, sides, factors)
def test_aspect_keeps_the_shape_and_uses_the_budget(width: int, height: int, factor: int) -> None:
    """The error is at most that of rounding the shorter side, which has at least `steps` strides, by one stride."""
    ratio = width / height
    steps = math.floor(math.sqrt(pixels(factor) * min(ratio, 1 / ratio)) / 32)
    if steps < 3:
        return
    w, h = fitted_size((width, height), factor, "aspect")
    assert abs(math.log(w / h / ratio)) <= 1 / steps
    assert w * h >= pixels(factor) * (1 - 1 / steps) ** 2


@given(sides, sides, factors)
def test_portrait_and_landscape_give_transposed_sizes(width: int, height: int, factor: int) -> None:
    upright = fitted_size((width, height), factor, "aspect")
    turned = fitted_size((height, width), factor, "aspect")

    def cost(size: tuple[int, int], ratio: float) -> float:
        return abs(math.log(size[0] / size[1] / ratio)) + math.log(pixels(factor) / math.prod(size)) / 2

    assert cost(upright, width / height) == pytest.approx(cost(turned, height / width), abs=1e-9)


@pytest.mark.parametrize(
    ("size", "factor", "expected"),
    [
        ((4000, 3000), 25, (448, 352)),
        ((1000, 1000), 25, (384, 384)),
        ((30_000, 1), 25, (4992, 32)),
        ((1, 30_000), 4, (32, 128)),
    ],
)
def test_known_sizes(size: tuple[int, int], factor: int, expected: tuple[int, int]) -> None:
    assert fitted_size(size, factor, "aspect") == expected
