"""Publish the SHA-256 of checkpoints that were downloaded: `python -m devtools.checksums`.

`segment fetch NAME` records the SHA-256 of the first download beside it (segment/zoo/download.py). This tool
copies the recorded values into segment/zoo/models.toml, so that all later downloads are checked against them.
"""

from __future__ import annotations

import re
from pathlib import Path

from segment import zoo
from segment.zoo.download import recorded

TABLE = zoo.FOLDER / "models.toml"


def main() -> None:
    """Add the checksums and print what was added."""
    text = TABLE.read_text(encoding="utf-8")
    new = publish(text, zoo.cache() / "zoo")
    TABLE.write_text(new, encoding="utf-8")
    print(f"{new.count(KEY) - text.count(KEY)} checksums were added to {TABLE}.")


KEY = "sha256 = "


def publish(text: str, folder: Path) -> str:
    """The table `text` with the checksums recorded in `folder`. Raises ModelError for a damaged record."""
    for name, entry in zoo.entries().items():
        digest = recorded(folder / f"{name}.pkl.sha256")
        if digest and not entry.sha256:
            text = re.sub(rf'(?m)^(\[models\."?{re.escape(name)}"?\]\n)', rf'\g<1>{KEY}"{digest}"\n', text)
    return text


if __name__ == "__main__":
    main()
