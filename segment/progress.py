"""What the preparation of a model is doing.

One value, which the command line prints, a child process writes as JSON and the page shows.
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
    """One step of a preparation.

    `text`: a sentence for the user, for `failed` what was wrong. `done`, `total`: bytes of a download; `total` is None
    where the length of a stage is not known.
    """

    stage: Stage
    text: str
    done: int = 0
    total: int | None = None

    def to_json(self) -> str:
        """The value as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str | bytes) -> Progress:
        """The value that `to_json` wrote. Raises ValueError or TypeError for anything else."""
        return cls(**json.loads(line))


Report = Callable[[Progress], None]
"""Is told of each step."""


def ignore(_progress: Progress) -> None:
    """A Report that does nothing."""
