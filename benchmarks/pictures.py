"""The README's pictures of results: `python -m benchmarks.pictures`.

A generated scene, and a photograph of Greek coins from Pompeii (Brooklyn Museum, no known copyright restrictions; as
distributed with scikit-image), which the demo model was not trained on.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from segment.options import Options
from segment.service import Service
from segment.settings import Settings
from training import shapes

DOCS = Path(__file__).parent.parent / "docs"
SCENE, SCENE_SIZE = 35, (1200, 600)
COINS_MIN_SCORE = "0.8"


def main() -> None:
    """Write docs/scene.jpg and docs/coins.jpg."""
    service = Service(Settings())
    scene = Image.fromarray(shapes.scene(SCENE, SCENE_SIZE)[0])
    coins = Image.open(DOCS / "coins-photo.png").convert("RGB")
    coins = coins.resize((coins.width * 2, coins.height * 2), Image.Resampling.LANCZOS)
    for name, photo, words in (("scene", scene, {}), ("coins", coins, {"min_score": COINS_MIN_SCORE})):
        data = io.BytesIO()
        photo.save(data, "PNG")
        options = Options.parse({"format": "jpeg", **words}, service.settings)
        (DOCS / f"{name}.jpg").write_bytes(service.segment(data.getvalue(), options).files[0].body)


if __name__ == "__main__":
    main()
