"""The photos of a run that are being processed, and its videos, one after the other.

Photos are started in order and recorded when they are done. Only as many are started as keep all jobs busy, so memory
does not grow with their number.
"""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack

from segment import extras
from segment.dataset.clip import Clip
from segment.dataset.photos import VIDEO_SUFFIXES, Photo
from segment.dataset.recorder import Recorder
from segment.dataset.segmenter import Done, Segmenter
from segment.errors import SegmentError


class Work:
    """Processes photos and videos with `segmenter` and records them with `recorder`."""

    def __init__(self, segmenter: Segmenter, recorder: Recorder) -> None:
        self._segmenter, self._recorder = segmenter, recorder
        self._photos: dict[Future[Done], tuple[str, str, int]] = {}

    def add(self, photo: Photo) -> None:
        """Start a photo, or segment a video, unless it is done. Raises OptionError if every photo would fail."""
        try:
            key, generation = self._segmenter.job.key(photo, self._segmenter.service)
            if photo.path.suffix.lower() in VIDEO_SUFFIXES:
                self._add_video(photo, key, generation)
            else:
                self._add_photo(photo, key, generation)
        except (SegmentError, OSError) as error:
            self._recorder.failed(photo.name, error)

    def finish(self) -> None:
        """Wait for the photos that were started."""
        while self._photos:
            self._record_photos()

    def _add_photo(self, photo: Photo, key: str, generation: int) -> None:
        files = self._segmenter.job.files(photo)
        if self._recorder.done_before(photo.name, key, files.values()):
            return
        self._photos[self._segmenter.start_photo(photo.path, files)] = photo.name, key, generation
        while len(self._photos) > self._segmenter.jobs:
            self._record_photos()

    def _record_photos(self) -> None:
        for future in wait(self._photos, return_when=FIRST_COMPLETED).done:
            self._recorder.done(*self._photos.pop(future), future)

    def _add_video(self, video: Photo, key: str, generation: int) -> None:
        extras.require("av")
        from segment.dataset.video import Writer, frames

        recorder, path = self._recorder, self._segmenter.job.overlay_video(video)
        if recorder.done_before(video.name, key, [path] if path else []):
            recorder.journal.resume_inside(video.name, key)
            return
        with ExitStack() as stack:
            writer = stack.enter_context(Writer(path)) if path else None
            clip = stack.enter_context(Clip(video, key, generation, writer, self._segmenter, recorder))
            for number, frame in enumerate(frames(video.path), 1):
                clip.add(number, frame)
            clip.finish()
        if clip.complete:
            recorder.journal.done(video.name, key, generation, None)
