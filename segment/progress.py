"""The progress of the preparation of a model.

The command line prints it, a child process passes it on as JSON (web/startup.py), and the page shows it.
"""

from __future__ import annotations

import json
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
