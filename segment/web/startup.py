"""Serve while the model is still being prepared.

The server listens first. A child process prepares the model (downloads, converts, quantises it) and writes one line of
JSON per step (segment/progress.py); when it ends, its memory is freed. Meanwhile, requests that need the model get a
503 with `Retry-After` and the current step, and GET /progress returns the step for the page. Then the model is loaded;
requests wait for this.
"""

from __future__ import annotations

import logging
import subprocess
import threading
from collections.abc import Callable, Iterable, Sequence

from segment.errors import ModelError, SegmentError, Starting
from segment.progress import Progress
from segment.service import Service

log = logging.getLogger(__name__)

RETRY_SECONDS = 5
NEEDS_MODEL = frozenset({"/segment", "/detect", "/model", "/ready"})
"""The paths that are answered with 503 before the model is ready."""


class Startup:
    """The preparation of a service's model.

    `command`: prepares the model file; it writes lines of JSON to standard output, and text for a terminal to standard
    error. `on_failure` is called in another thread if the command fails or the model cannot be loaded.
    """

    def __init__(self, service: Service, command: Sequence[str], on_failure: Callable[[], None]) -> None:
        self._service, self._command, self._on_failure = service, command, on_failure
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._lock = threading.Lock()
        self.progress = Progress("start", "Starting to prepare the model.")

    def start(self) -> None:
        """Start the preparation in a new thread."""
        threading.Thread(target=self._run, name="startup", daemon=True).start()

    def stop(self) -> None:
        """Terminate the child process if it is running."""
        with self._lock:
            self._stopped = True
            if self._process:
                self._process.terminate()

    def refusal(self) -> SegmentError | None:
        """The error for a request that needs the model, or None if the request can be handled."""
        progress = self.progress
        if progress.stage in ("load", "ready"):
            return None  # the request waits until the model is loaded, as without a preparation
        if progress.stage == "failed":
            return ModelError(progress.text)
        return Starting(f"The model is being prepared. {describe(progress)}", RETRY_SECONDS)

    def _run(self) -> None:
        try:
            self._prepare()
            self.progress = Progress("load", "Compiling and loading the model.")
            self._service.load()
        except SegmentError as error:
            self._fail(str(error))
        except Exception:
            log.exception("The model could not be prepared")
            self._fail("The model could not be prepared; see the log.")
        else:
            self.progress = Progress("ready", f"The model {self._service.model_name} is ready.")

    def _fail(self, reason: str) -> None:
        self.progress = Progress("failed", reason)
        self._on_failure()

    def _prepare(self) -> None:
        """Run the command. Raises ModelError with its message if it fails."""
        with self._lock:
            if self._stopped:
                return
            self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE)
        with self._process as process:  # finally, its output is closed, and its status is known
            last = self._follow(process.stdout or ())
        status = process.returncode
        if status < 0:
            raise ModelError(
                f"The model could not be prepared: the process was killed by signal {-status}. Converting needs up to "
                "five times the checkpoint's size in memory: convert on a machine with more memory, and serve the file."
            )
        if status:
            raise ModelError(last.text if last.stage == "failed" else "The model could not be prepared; see the log.")

    def _follow(self, lines: Iterable[bytes]) -> Progress:
        """Show each step that is written to `lines`, and return the last."""
        last = self.progress
        for line in lines:
            try:
                last = Progress.from_json(line)
            except (ValueError, TypeError):
                continue  # what a library has printed
            if last.stage != "failed":
                self.progress = last
        return last


def describe(progress: Progress) -> str:
    """The step as a sentence, with the progress of a download."""
    if progress.stage != "download" or not progress.total:
        return progress.text
    return f"{progress.text.rstrip('.')}: {progress.done / 1e6:.0f} of {progress.total / 1e6:.0f} MB."
