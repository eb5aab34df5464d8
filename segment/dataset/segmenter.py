"""Segment photos and frames in the threads of a pool, and write their files."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from segment.dataset import files as result_files
from segment.dataset.job import Job
from segment.errors import Busy
from segment.formats import Format
from segment.service import Service

Files = Mapping[Format, Path]
"""The files to write for a photo or frame."""


@dataclass(frozen=True)
class Done:
    """The result of a photo. `document`: its JSON, if there is a dataset. `overlay`: that of a frame, as JPEG."""

    instances: int
    milliseconds: float
    document: bytes | None
    overlay: bytes | None


@dataclass(frozen=True)
class Segmenter:
    """Segments in `pool`, with about `jobs` photos or frames at a time. Waits for memory without a time limit."""

    job: Job
    service: Service
    pool: ThreadPoolExecutor
    jobs: int

    def start_photo(self, path: Path, files: Files) -> Future[Done]:
        """Start to read and segment a photo. The result raises SegmentError, OSError."""

        def segment() -> Done:
            with ExitStack() as held:
                held.enter_context(self.service.receive()).grow(path.stat().st_size)
                return self._segment(path.read_bytes(), held, files, tuple(files))

        return self.pool.submit(_patiently, segment)

    def start_frame(self, data: bytes, held: ExitStack, files: Files, overlay: bool) -> Future[Done]:
        """Start to segment a frame, whose memory is reserved in `held`. `overlay`: whether Done has its overlay."""
        formats = (*files, "jpeg") if overlay else tuple(files)
        return self.pool.submit(_patiently, lambda: self._segment(data, held, files, formats))

    def _segment(self, data: bytes, held: ExitStack, files: Files, formats: tuple[Format, ...]) -> Done:
        """Segment a photo in `formats`, and write those that are in `files`. Raises Busy."""
        if self.job.datasets and "json" not in formats:
            formats = (*formats, "json")
        result = self.service.segment(data, self.job.options, formats, held)
        bodies = {kind: file.body for kind, file in zip(formats, result.files, strict=True)}
        for kind, path in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            result_files.write(path, [bodies[kind]])
        document = bodies["json"] if self.job.datasets else None
        overlay = bodies["jpeg"] if "jpeg" in bodies and "jpeg" not in files else None
        return Done(result.instances, sum(result.timings.values()), document, overlay)


def _patiently(segment: Callable[[], Done]) -> Done:
    while True:
        try:
            return segment()
        except Busy as busy:
            time.sleep(busy.retry_after)
