"""The photos and frames of a run that are being processed.

Photos are started in order and recorded when they are done. The frames of a video are recorded in order, because they
are written to a video of overlays. Only as many are started as keep all jobs busy, so memory does not grow with their
number.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Self

from segment import extras
from segment.dataset.job import Job
from segment.dataset.journal import Journal
from segment.dataset.photos import VIDEO_SUFFIXES, Photo
from segment.errors import Busy, ImageError, OptionError, SegmentError, TooLarge
from segment.formats import Format
from segment.service import Service

if TYPE_CHECKING:
    from segment.dataset.video import Frame, Writer

POLL_SECONDS = 0.02
"""Interval at which a frame that waits for memory tries to reserve it."""


@dataclass(frozen=True)
class Done:
    """The result of a photo. `document`: its JSON, if there is a dataset. `overlay`: that of a frame, as JPEG."""

    instances: int
    milliseconds: float
    document: bytes | None
    overlay: bytes | None


def _write(path: Path, body: bytes) -> None:
    """Write a file; leave none if the disk is full. Raises OSError."""
    try:
        path.write_bytes(body)
    except OSError:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise


class Work:
    """Processes photos and frames in `pool`, about `jobs` at a time.

    `progress` is called for each one that is done, with a line about its result, or with "" if it was done before.
    """

    def __init__(
        self,
        job: Job,
        service: Service,
        journal: Journal,
        pool: ThreadPoolExecutor,
        jobs: int,
        progress: Callable[[str], None],
    ) -> None:
        self.skipped = 0
        self._job, self._service, self._journal = job, service, journal
        self._pool, self._jobs, self._progress = pool, jobs, progress
        self._photos: dict[Future[Done], tuple[str, str, int]] = {}

    def add(self, photo: Photo) -> None:
        """Start a photo, or segment a video, unless it is done. Raises OptionError if every photo would fail."""
        try:
            key, generation = self._job.key(photo, self._service)
            if photo.path.suffix.lower() in VIDEO_SUFFIXES:
                self._add_video(photo, key, generation)
            else:
                self._add_photo(photo, key, generation)
        except (SegmentError, OSError) as error:
            self._failed(photo.name, error)

    def finish(self) -> None:
        """Wait for the photos that were started."""
        while self._photos:
            self._record_photos()

    def _add_photo(self, photo: Photo, key: str, generation: int) -> None:
        files = self._job.files(photo)
        if self._done_before(photo.name, key, files.values()):
            return
        self._photos[self._pool.submit(self._read_and_segment, photo.path, files)] = photo.name, key, generation
        while len(self._photos) > self._jobs:
            self._record_photos()

    def _record_photos(self) -> None:
        for future in wait(self._photos, return_when=FIRST_COMPLETED).done:
            self._record(*self._photos.pop(future), future)

    def _read_and_segment(self, path: Path, files: Mapping[Format, Path]) -> Done:
        """Segment a photo; wait for memory without a time limit."""
        while True:
            try:
                with ExitStack() as held:
                    held.enter_context(self._service.receive()).grow(path.stat().st_size)
                    return self._segment(path.read_bytes(), held, files, tuple(files))
            except Busy as busy:
                time.sleep(busy.retry_after)

    def _segment_waiting(
        self, data: bytes, held: ExitStack, files: Mapping[Format, Path], formats: tuple[Format, ...]
    ) -> Done:
        """Segment a frame; wait for memory without a time limit."""
        while True:
            try:
                return self._segment(data, held, files, formats)
            except Busy as busy:
                time.sleep(busy.retry_after)

    def _segment(self, data: bytes, held: ExitStack, files: Mapping[Format, Path], formats: tuple[Format, ...]) -> Done:
        """Segment a photo in `formats`, and write those that are in `files`. Raises Busy."""
        if self._job.datasets and "json" not in formats:
            formats = (*formats, "json")
        result = self._service.segment(data, self._job.options, formats, held)
        bodies = {kind: file.body for kind, file in zip(formats, result.files, strict=True)}
        for kind, path in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, bodies[kind])
        document = bodies["json"] if self._job.datasets else None
        overlay = bodies["jpeg"] if "jpeg" in bodies and "jpeg" not in files else None
        return Done(result.instances, sum(result.timings.values()), document, overlay)

    def _add_video(self, video: Photo, key: str, generation: int) -> None:
        extras.require("av")
        from segment.dataset.video import Writer, frames

        path = self._job.overlay_video(video)
        if self._done_before(video.name, key, [path] if path else []):
            self._journal.resume_inside(video.name, key)
            return
        with ExitStack() as stack:
            writer = stack.enter_context(Writer(path)) if path else None
            clip = stack.enter_context(_Clip(self, video, key, generation, writer))
            for number, frame in enumerate(frames(video.path), 1):
                clip.add(number, frame)
            clip.finish()
        if clip.complete:
            self._journal.done(video.name, key, generation, None)

    def _done_before(self, name: str, key: str, files: Iterable[Path]) -> bool:
        done = all(file.exists() for file in files) and self._journal.resume(name, key)
        if done:
            self.skipped += 1
            self._progress("")
        return done

    def _record(self, name: str, key: str, generation: int, future: Future[Done]) -> Done | None:
        """Record the result of a photo; None if it failed."""
        try:
            done = future.result()
        except (SegmentError, OSError) as error:
            self._failed(name, error)
            return None
        self._journal.done(name, key, generation, done.document)
        self._progress(f"{name}: {done.instances} instances in {done.milliseconds:.0f} ms")
        return done

    def _failed(self, name: str, error: SegmentError | OSError, key: str = "") -> None:
        if isinstance(error, OptionError):
            raise error  # it would fail for every photo
        self._journal.failed(name, (isinstance(error, OSError) and error.strerror) or str(error), key)
        self._progress("")


@dataclass(frozen=True)
class _FrameUnderWay:
    """A frame that is being processed. `data`: its BMP file, whose memory is reserved in `held`."""

    name: str
    time: Fraction
    data: bytes
    held: ExitStack
    done: Future[Done]


class _Clip:
    """The frames of a video, recorded in order. `complete`: whether another run would change nothing.

    A context manager that waits for the frames that were started.
    """

    def __init__(self, work: Work, video: Photo, key: str, generation: int, writer: Writer | None) -> None:
        self.complete = True
        self._work, self._video, self._key, self._generation, self._writer = work, video, key, generation, writer
        self._frames: deque[_FrameUnderWay] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        wait([frame.done for frame in self._frames])
        for frame in self._frames:
            frame.held.close()

    def add(self, number: int, frame: Frame | ImageError) -> None:
        """Start a frame, unless it cannot be decoded or is done."""
        work, name = self._work, f"{self._video.name}/{number:06}.png"
        if isinstance(frame, ImageError):
            work._failed(name, frame, self._key)
            return
        files = work._job.frame_files(self._video, number)
        if not self._writer and work._done_before(name, self._key, files.values()):
            return
        try:
            held = self._hold(frame.file_bytes)
        except TooLarge as error:
            self.complete = False
            work._failed(name, error)
            return
        data = frame.bmp()
        formats = (*files, "jpeg") if self._writer else tuple(files)
        done = work._pool.submit(work._segment_waiting, data, held, files, formats)
        self._frames.append(_FrameUnderWay(name, frame.time, data, held, done))
        while len(self._frames) > work._jobs:
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
                    if held.enter_context(self._work._service.receive()).try_grow(count):
                        return held.pop_all()
                except Busy:
                    pass
            if self._frames:
                self._record_oldest()
            else:
                time.sleep(POLL_SECONDS)

    def _record_oldest(self) -> None:
        frame = self._frames[0]
        done = self._work._record(frame.name, self._key, self._generation, frame.done)
        self.complete &= done is not None
        if self._writer:
            self._writer.add(frame.time, done.overlay if done and done.overlay else frame.data)
        self._frames.popleft().held.close()
