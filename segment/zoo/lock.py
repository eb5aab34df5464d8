"""Let one process at a time prepare a model.

Two processes that download and convert the same model would write to the same files, so each first takes an exclusive
flock(2) on a file in the user's cache folder. The kernel releases the lock when the process ends, even if it is killed.
The lock file is never deleted and does not block anything by itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
from collections.abc import Iterator
from pathlib import Path

from segment.errors import ModelError
from segment.progress import Progress, Report


@contextlib.contextmanager
def exclusive(folder: Path, model: str, report: Report) -> Iterator[bool]:
    """Hold the lock for `model` while the context runs; yields whether another process had to be waited for.

    `folder`: where the lock files are. `model`: any text that identifies the model. Raises ModelError if the folder
    cannot be written to.
    """
    path = folder / f"{hashlib.sha256(model.encode()).hexdigest()[:16]}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise ModelError(
            f"Cannot write to the cache folder {folder}: {error.strerror}. Set XDG_CACHE_HOME to another folder."
        ) from None
    with file:
        yield _acquire(file.fileno(), model, report)


def _acquire(file: int, model: str, report: Report) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        report(Progress("wait", f"Waiting for another process that is preparing the same model ({model})."))
        fcntl.flock(file, fcntl.LOCK_EX)
        return True
    except OSError:
        pass  # some network file systems have no locks
    return False
