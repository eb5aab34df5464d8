"""The memory that is planned for a converted model, compared with the memory that a new process takes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import checkpoints, models
from segment import convert
from segment.convert import config
from segment.memory import capacity
from segment.resize import fitted_size
from segment.values import MIB

GOLDEN = Path(__file__).parent / "golden"
WIDE = {"FC_DIM": 2048}
"""A coarse head of PointRend whose weights, which are prepared with the first instance, take 30 MB."""
FAMILIES: dict[str, dict[str, int]] = {"r50": {}, "cascade": {}, "c4": {}, "pointrend": WIDE, "implicit": WIDE}
"""Names of configs, and changed keys of their mask head."""
SIZES = [(480, 352), (352, 480), (256, 256), (640, 288), (576, 640)]
RUN = """
import json, sys
import numpy as np
from segment import container, process
from segment.engine.measurement import highest
from segment.model import load

process.configure_malloc()
model, noise, runs = load(sys.argv[1], threads=2), np.random.default_rng(1), []
process.trim_heap()
held = container.anonymous()
for width, height in json.loads(sys.argv[2]):
    for instances in (100, 1):
        few = noise.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        with highest() as peak:
            found = model.engine(few.repeat(8, axis=0).repeat(8, axis=1), 0.0, instances)
        model.release()
        kept = container.anonymous() - held
        planned = model.footprint.run_bytes(width * height, instances)
        runs.append([len(found), peak[0] - held, planned, kept, model.footprint.kept])
print(json.dumps(runs))
"""


def runs(path: Path, sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """What RUN prints for runs on these sizes in a new process."""
    command = [sys.executable, "-c", RUN, str(path), json.dumps(sizes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [list(map(int, run)) for run in json.loads(done.stdout)]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_no_run_takes_more_memory_than_planned(family: str, tmp_path: Path) -> None:
    """Like the service, the process starts with a run that finds nothing."""
    document: dict[str, Any] = yaml.safe_load((GOLDEN / f"{family}.yaml").read_text())
    document["MODEL"]["ROI_MASK_HEAD"].update(FAMILIES[family])
    document["MODEL"]["ROI_HEADS"]["SCORE_THRESH_TEST"] = 0.0
    document["TEST"]["DETECTIONS_PER_IMAGE"] = 100
    facts = config.parse(document)
    path = tmp_path / "model.onnx"
    convert.finish(convert.convert(facts, checkpoints.checkpoint(facts)), path)
    for ((width, height), instances), (found, peak, planned, kept, planned_kept) in zip(
        [(size, most) for size in SIZES for most in (100, 1)], runs(path, SIZES), strict=True
    ):
        described = f"{found} instances, {width} x {height}: {peak / MIB:.1f} of {planned / MIB:.1f} MiB"
        assert found == instances, described
        assert peak <= planned, described
        assert kept <= planned_kept + MIB, f"{described}; kept {kept / MIB:.1f} of {planned_kept / MIB:.1f} MiB"
        assert planned <= 1.5 * peak + 16 * MIB, described


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "limit"), [("fp32", 512 * MIB), ("int8", 256 * MIB)])
def test_many_sizes_take_at_most_half_of_the_margin(precision: str, limit: int, tmp_path: Path) -> None:
    """A network keeps weights in a few layouts, each for many sizes, and nothing for every size."""
    dice, sizes = random.Random(1), dict[tuple[int, int], None]()
    while len(sizes) < 40:
        sizes.setdefault(fitted_size((dice.randrange(200, 1000), 450), dice.randrange(6, 36), "aspect"))
    path = models.full_size(precision, Path(os.environ.get("BENCH_MODELS", tmp_path)))
    done = runs(path, list(sizes))
    first, last = ([kept for _, _, _, kept, _ in half] for half in (done[: len(done) // 2], done[len(done) // 2 :]))
    excess = max(peak - planned for _, peak, planned, _, _ in done)
    print(f"{max(first) / MIB:.1f} and {max(last) / MIB:.1f} MiB kept, {excess / MIB:.1f} MiB beyond the plan")
    assert max(last) <= max(first) + 2 * MIB
    assert excess <= (limit - capacity(limit, 0)) / 2
