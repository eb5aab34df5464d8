"""Record the photos and frames of a run in its journal, and report the progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path

from segment.dataset import files
from segment.dataset.journal import Journal
from segment.dataset.segmenter import Done
from segment.errors import OptionError, SegmentError
from segment.wording import counted


class Recorder:
    """Records results in `journal`.

    `progress` is called for each photo or frame, with a line about its result, or with "" if it failed or was done
    before. `skipped`: number of those that were done before.
    """

    def __init__(self, journal: Journal, progress: Callable[[str], None]) -> None:
        self.journal, self.skipped, self._progress = journal, 0, progress

    def done_before(self, name: str, key: str, files: Iterable[Path]) -> bool:
        """Whether an earlier run finished the photo, and its files exist."""
        done = all(file.exists() for file in files) and self.journal.resume(name, key)
        if done:
            self.skipped += 1
            self._progress("")
        return done

    def done(self, name: str, key: str, generation: int, future: Future[Done]) -> Done | None:
        """Wait for the result of a photo and record it; None if it failed. Raises OptionError."""
        try:
            done = future.result()
        except (SegmentError, OSError) as error:
            self.failed(name, error)
            return None
        self.journal.done(name, key, generation, done.document)
        self._progress(f"{name}: {counted(done.instances, 'instance')} in {done.milliseconds:.0f} ms")
        return done

    def failed(self, name: str, error: SegmentError | OSError, key: str = "") -> None:
        """Record a failure. The next run tries again, unless `key` is given. Raises OptionError if that is `error`."""
        if isinstance(error, OptionError):
            raise error  # it would fail for every photo
        self.journal.failed(name, files.reason(error) if isinstance(error, OSError) else str(error), key)
        self._progress("")
