"""The C library's allocator, each case in a process of its own."""

from __future__ import annotations

import subprocess
import sys

from devtools.server import ROOT
from segment import process

PHOTOS = """
import io, resource, sys
from concurrent.futures import ThreadPoolExecutor
from PIL import Image
from segment import container, image, process
from segment.output import png

width, height, jobs = map(int, sys.argv[1:4])
process.configure_malloc()
image.reuse_memory()
if sys.argv[4] == "keep":
    process.keep_blocks()
body = io.BytesIO()
Image.effect_noise((width, height), 60).convert("RGB").save(body, "jpeg")
data = body.getvalue()
header = image.read_header(data)
with ThreadPoolExecutor(jobs) as pool:
    segment = lambda _: png.encode(image.decode(data, header, header.size)) and None
    png.encode(Image.new("RGB", (8, 8)))
    before = container.anonymous()
    list(pool.map(segment, range(jobs)))
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    list(pool.map(segment, range(2 * jobs)))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults, container.anonymous() - before)
"""


def measured(width: int, height: int, jobs: int, blocks: str) -> tuple[int, int]:
    """The page faults of 2 * jobs photos, and the bytes that the process keeps after them."""
    command = [sys.executable, "-c", PHOTOS, str(width), str(height), str(jobs), blocks]
    faults, kept = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return int(faults), int(kept)


def test_kept_blocks_are_within_what_is_planned() -> None:
    """Also with large photos, of which Pillow allocates many blocks."""
    _, kept = measured(4000, 1000, 8, "keep")
    assert kept < process.KEPT_BYTES


def test_kept_blocks_are_used_again() -> None:
    with_blocks, _ = measured(640, 480, 1, "keep")
    without, _ = measured(640, 480, 1, "return")
    assert with_blocks < 0.5 * without
