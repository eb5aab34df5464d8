"""The README's picture of a result: `python -m benchmarks.pictures`.

A photograph of Greek coins from Pompeii (Brooklyn Museum, no known copyright restrictions; as distributed with
scikit-image), which the demo model was not trained on.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from segment.options import Options
from segment.service import Service
from segment.settings import Settings

DOCS = Path(__file__).parent.parent / "docs"
CLASSES = "circle"
"""Without this option, the demo model also takes some coins for rings, and finds stars in the background."""


def main() -> None:
    """Write docs/coins.jpg."""
    service = Service(Settings())
    coins = Image.open(DOCS / "coins-photo.png").convert("RGB")
    data = io.BytesIO()
    coins.resize((coins.width * 2, coins.height * 2), Image.Resampling.LANCZOS).save(data, "PNG")
    options = Options.parse({"format": "jpeg", "classes": CLASSES}, service.settings)
    (DOCS / "coins.jpg").write_bytes(service.segment(data.getvalue(), options).files[0].body)


if __name__ == "__main__":
    main()
