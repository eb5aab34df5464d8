"""The progress of the preparation of a model.

The command line prints it, a child process passes it on as JSON (web/startup.py), and the page shows it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

Stage = Literal["start", "wait", "download", "convert", "quantise", "measure", "load", "ready", "failed"]
"""The stages of a preparation in their order; any can be followed by `failed`."""


@dataclass(frozen=True)
class Progress:
    """The current step of a preparation.

    `text`: a sentence for the user; for `failed`, the reason. `done`, `total`: bytes of a download; `total` is None if
    it is unknown.
    """

    stage: Stage
    text: str
    done: int = 0
    total: int | None = None

    def to_json(self) -> str:
        """As one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str | bytes) -> Progress:
        """Parse a line written by `to_json`. Raises ValueError or TypeError for anything else."""
        return cls(**json.loads(line))


Report = Callable[[Progress], None]
"""A function that is called with each step."""


def ignore(_progress: Progress) -> None:
    """A Report that does nothing."""


class TerminalReport:
    """A Report that prints each step once to standard error; the download draws its own progress bar."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, progress: Progress) -> None:
        if progress.text != self._last and progress.stage != "failed":
            print(progress.text, file=sys.stderr, flush=True)
        self._last = progress.text


class PipeReport(TerminalReport):
    """Also writes each step to standard output, for the process that has started this one (web/startup.py)."""

    def __init__(self) -> None:
        super().__init__()
        self._output = sys.stdout

    def __call__(self, progress: Progress) -> None:
        super().__call__(progress)
        print(progress.to_json(), file=self._output, flush=True)
