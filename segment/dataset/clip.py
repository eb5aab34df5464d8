"""The frames of a video that are being processed.

They are recorded in order, because they are written to a video of overlays. Only as many are started as keep all jobs
busy, so memory does not grow with the length of the video.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, wait
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Self

from segment.dataset.photos import Photo
from segment.dataset.recorder import Recorder
from segment.dataset.segmenter import Done, Segmenter
from segment.errors import Busy, ImageError, TooLarge

if TYPE_CHECKING:
    from segment.dataset.video import Frame, Writer

POLL_SECONDS = 0.02
"""Interval at which a frame that waits for memory tries to reserve it."""


@dataclass(frozen=True)
class _Started:
    """A frame that is being processed.

    `time`, `aspect`: see Frame. `data`: its BMP file, whose memory is reserved in `held`.
    """

    name: str
    time: Fraction
    aspect: Fraction
    data: bytes
    held: ExitStack
    done: Future[Done]


class Clip:
    """The frames of `video`. `writer`: writes the overlays. `complete`: whether another run would change nothing.

    A context manager that waits for the frames that were started.
    """

    def __init__(
        self, video: Photo, key: str, generation: int, writer: Writer | None, segmenter: Segmenter, recorder: Recorder
    ) -> None:
        self.complete = True
        self._video, self._key, self._generation, self._writer = video, key, generation, writer
        self._segmenter, self._recorder = segmenter, recorder
        self._frames: deque[_Started] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        wait([frame.done for frame in self._frames])
        for frame in self._frames:
            frame.held.close()

    def add(self, number: int, frame: Frame | ImageError) -> None:
        """Start a frame, unless it cannot be decoded or is done."""
        name = f"{self._video.name}/{number:06}.png"
        if isinstance(frame, ImageError):
            self._recorder.failed(name, frame, self._key)
            return
        files = self._segmenter.job.frame_files(self._video, number)
        if not self._writer and self._recorder.done_before(name, self._key, files.values()):
            return
        try:
            held = self._hold(frame.file_bytes)
        except TooLarge as error:
            self.complete = False
            self._recorder.failed(name, error)
            return
        data = frame.bmp()
        done = self._segmenter.start_frame(data, held, files, overlay=self._writer is not None)
        self._frames.append(_Started(name, frame.time, frame.aspect, data, held, done))
        while len(self._frames) > self._segmenter.jobs:
            self._record_oldest()

    def finish(self) -> None:
        """Wait for all frames."""
        while self._frames:
            self._record_oldest()

    def _hold(self, count: int) -> ExitStack:
        """Reserve memory for a frame; record others until there is enough. Raises TooLarge."""
        while True:
            with ExitStack() as held:
                try:
                    if held.enter_context(self._segmenter.service.receive()).try_grow(count):
                        return held.pop_all()
                except Busy:
                    pass
            if self._frames:
                self._record_oldest()
            else:
                time.sleep(POLL_SECONDS)

    def _record_oldest(self) -> None:
        frame = self._frames[0]
        done = self._recorder.done(frame.name, self._key, self._generation, frame.done)
        self.complete &= done is not None
        if self._writer:
            overlay = done.overlay if done else None
            self._writer.add(frame.time, overlay or frame.data, frame.aspect)
        self._frames.popleft().held.close()
