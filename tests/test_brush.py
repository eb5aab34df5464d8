"""Run lengths of Label Studio's brush regions, compared with a reference decoder and Label Studio's own codec."""

from __future__ import annotations

import json
import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from devtools.server import ROOT
from segment import mask as module
from segment.mask import THRESHOLD, Mask
from segment.output import brush, rle
from tests.environments import LABEL_STUDIO, environment
from tests.strategies import empty, frames, masks, ring, solid


def encode(mask: Mask, size: tuple[int, int]) -> bytes:
    return brush.encode(rle.runs(mask, size, by_rows=True), size)


def dense(mask: Mask, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The mask as Label Studio draws it, (height, width, 4)."""
    inside = (mask.paste((0, 0, *size)) >= THRESHOLD).astype(np.uint8) * 255
    return np.repeat(inside[:, :, None], 4, axis=2)


def decode(packed: bytes) -> NDArray[np.uint8]:
    """rle-pack's decoder, written from its description."""
    text = "".join(f"{byte:08b}" for byte in packed)
    at = 0

    def read(bits: int) -> int:
        nonlocal at
        at += bits
        return int(text[at - bits : at], 2)

    count, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < count:
        repeated = read(1)
        length = read(sizes[read(2)]) + 1
        values += [read(word)] * length if repeated else [read(word) for _ in range(length)]
    assert len(text) - at < 8, "only padding may follow the last block"
    return np.array(values, np.uint8)


@given(masks(), frames, st.sampled_from([1, 50, 1 << 18]))
@settings(max_examples=60, deadline=None)
def test_every_pixel_comes_back(mask: Mask, size: tuple[int, int], pixels: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STRIP_PIXELS", pixels)
        assert np.array_equal(decode(encode(mask, size)), dense(mask, size).ravel())


EDGES = [solid(0, 0, 300, 200), solid(-5, -5, 500, 500), solid(299, 199, 300, 200), ring(10, 20, 250, 180)]
EDGES += [empty(0, 0, 20, 10), solid(50, 50, 50, 50), solid(400, 400, 410, 410), solid(0, 0, 1, 1)]


@pytest.mark.parametrize("mask", EDGES)
def test_runs_longer_than_a_block(mask: Mask) -> None:
    assert np.array_equal(decode(encode(mask, (300, 200))), dense(mask, (300, 200)).ravel())


@pytest.mark.slow
def test_label_studio_reads_and_writes_the_same(tmp_path: Path) -> None:
    """Label Studio's own codec decodes and encodes 300 random masks."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(300):
        size = int(rng.integers(1, 90)), int(rng.integers(1, 90))
        grid = rng.uniform(0, 1, (int(rng.integers(1, 9)), int(rng.integers(1, 9)))).astype(np.float32)
        x0, y0 = rng.uniform(-40, 80, 2)
        place = float(x0), float(y0), float(x0 + rng.uniform(0, 120)), float(y0 + rng.uniform(0, 120))
        drawn.append((Mask(grid, place, place), size))
    packed = [encode(mask, size) for mask, size in drawn]
    (tmp_path / "packed.json").write_text(json.dumps([list(one) for one in packed]))
    program = ROOT / "tests" / "importers" / "read_brush.py"
    command = [environment(LABEL_STUDIO) / "python", program, tmp_path / "packed.json", tmp_path / "read.npz"]
    subprocess.run([*map(str, command)], check=True)
    with np.load(tmp_path / "read.npz") as read:
        for index, (mask, size) in enumerate(drawn):
            assert np.array_equal(read[f"values{index}"], dense(mask, size).ravel())
            again = read[f"packed{index}"].tobytes()
            assert again.startswith(packed[index])
            assert again[len(packed[index]) :] in (b"", b"\0")  # its codec adds a byte if the bits fill the last one


def test_a_large_mask_takes_little_memory() -> None:
    mask = solid(-200, -200, 4200, 3200)
    tracemalloc.start()
    packed = encode(mask, (4000, 3000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(packed) < 4000
    assert peak < 16 << 20
