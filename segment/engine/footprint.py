"""The memory of a run in addition to the loaded model: fixed, per pixel, per instance; and what is kept between runs.

A file that does not state it is measured in a child process (measurement.py). Measuring takes some seconds. The result
is stored in the folder of compiled models, if there is one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from segment.errors import ModelError

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
"""The folder that contains the package."""
MAX_DETECTIONS = 100
TIMEOUT_SECONDS = 3600
"""Time limit for measuring. About 50 runs are made, each of which takes 10 s on two CPUs for a C4 model in fp32."""
LARGEST = float(1 << 40)
"""Upper bound of valid values in bytes. The comparison also excludes NaN."""


@dataclass(frozen=True)
class Footprint:
    """Memory in bytes of a run in addition to the loaded model: fixed, per pixel of the image, per instance.

    `kept_bytes`: memory that remains when the buffers are released after runs on many sizes. None: as `fixed_bytes`.
    """

    fixed_bytes: int
    bytes_per_pixel: float
    bytes_per_instance: float = 0.0
    kept_bytes: int | None = None

    @property
    def kept(self) -> int:
        """Memory in bytes that the network keeps between runs; at most `fixed_bytes`, which a setting can lower."""
        fixed = int(self.fixed_bytes)
        return fixed if self.kept_bytes is None else min(fixed, int(self.kept_bytes))

    def run_bytes(self, pixels: int, instances: int) -> int:
        """Memory in bytes of a run on an image of `pixels` pixels that returns at most `instances` instances."""
        return int(self.fixed_bytes + self.bytes_per_pixel * pixels + self.bytes_per_instance * instances)

    def __post_init__(self) -> None:
        """Raise ValueError for an invalid value."""
        for name, value in vars(self).items():
            if name == "kept_bytes" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < LARGEST:
                raise ValueError(f"{name} is {value!r}; it must be a number from 0 to {LARGEST:g}")


def overridden(memory: Footprint | None, overrides: Mapping[str, float], measure: Callable[[], Footprint]) -> Footprint:
    """`memory` with the fields in `overrides` replaced; None is measured, unless `overrides` contains what it gives."""
    if memory is None:
        complete = {"fixed_bytes", "bytes_per_pixel"} <= overrides.keys()
        memory = Footprint(0, 0.0) if complete else measure()
    return replace(memory, **dict[str, Any](overrides))


def known(path: Path, threads: int = 1, cache: Path | None = None) -> Footprint:
    """The footprint of a model file: from the folder `cache`, or measured and stored there. Raises ModelError."""
    if not cache:
        return measure(path, threads)
    note = cache / f"{_digest(path)}-{threads}.footprint.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Footprint(**json.loads(note.read_text(encoding="ascii")))
    found = measure(path, threads, cache)
    with contextlib.suppress(OSError):  # the folder is read-only, so it is measured again next time
        cache.mkdir(parents=True, exist_ok=True)
        part = note.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(asdict(found)), encoding="ascii")
        part.replace(note)
    return found


def measure(path: Path, threads: int = 1, cache: Path | None = None, max_detections: int = MAX_DETECTIONS) -> Footprint:
    """Measure a model file in a child process. Raises ModelError, with the child's message if there is one."""
    command = [sys.executable, "-m", "segment.engine.measurement", str(path.resolve())]
    command += [f"--threads={threads}", f"--instances={max_detections}"]
    if cache:
        command.append(f"--cache={cache.resolve()}")
    settings = "set SEGMENT_FIXED_BYTES and SEGMENT_BYTES_PER_PIXEL"
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"Measuring the memory of {path.name} took more than {TIMEOUT_SECONDS} s. Try again when this machine is "
            f"less busy, or {settings}."
        ) from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        log.warning("Measuring %s ended with %d: %s", path.name, done.returncode, done.stderr[-1000:])
        raise ModelError(
            f"The memory of {path.name} could not be measured; this instance may have too little. Give the instance "
            f"more memory, or {settings}."
        ) from None
    if "error" in answer:
        raise ModelError(answer["error"])
    return Footprint(**answer)


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise ModelError(f"The model {path.name} cannot be read: {error.strerror}.") from None
