"""The loss by the option `detail` where it is not needed: AP and false detections on large and mixed shapes.

    python -m benchmarks.detail_costs                    measure both models (three quarters of an hour)
    python -m benchmarks.detail_costs --model scales     measure one of them again

Both commands write benchmarks/results/detail_costs.json and .md. The demo model was trained on shapes of up to 211
pixels, none of them cut by a tile. The shapes of "large" are up to 390 pixels long in the network at render factor 50,
and longer in tiles, so much of the loss there is due to the model. The second model, `scales` of training.families, is
the same network trained on shapes of 8 to 800 pixels, many of them cut by the frame.

The loss on large shapes is due to false detections that are complete in one tile and too small for the whole photo, for
example the tip of a striped star or a gap between two shapes. In "mixed", correct detections have the same properties.

The scenes have 1600 x 1200 pixels: "large" has 5 shapes of 200 to 700 pixels; "mixed" has 4 of that size, and 30 of 12
to 60 pixels which may cover them; "medium" has 25 of 30 to 400 pixels; "small" has the scenes of benchmarks.detail.

Average precision is computed by pycocotools (IoU 0.50 to 0.95, at most 100 per photo) for several values of
`min_score`. A threshold only discards instances, so AP must not rise with it. A detection is false if its mask has an
IoU below 0.5 with every instance of its class that no detection with a higher score has matched.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from pycocotools import mask as masks

from benchmarks import models
from benchmarks.accuracy import Record, Scene, Truth, records
from segment import model
from training.shapes import crowd

RESULTS = Path(__file__).parent / "results"
MODELS = {
    "shapes": "The demo model, trained on shapes of up to 211 pixels",
    "scales": "The same network, trained on shapes of 8 to 800 pixels",
}
"""Models and their names in the table."""
LARGE, SMALL = (200.0, 700.0), (12.0, 60.0)
SCENES: dict[str, tuple[range, Callable[[int], Scene], str]] = {
    "large": (range(940_000, 940_064), partial(crowd, count=5, diameters=LARGE), "5 shapes of 200 to 700 pixels"),
    "mixed": (
        range(970_000, 970_012),
        partial(crowd, count=4, diameters=LARGE, more=((30, SMALL),)),
        "4 shapes of 200 to 700 pixels, and 30 of 12 to 60 pixels beside or on them",
    ),
    "medium": (
        range(920_000, 920_010),
        partial(crowd, count=25, diameters=(30, 400)),
        "25 shapes of 30 to 400 pixels",
    ),
    "small": (range(900_000, 900_012), crowd, "80 shapes of 12 to 60 pixels"),
}
"""Kinds of scenes: seeds, the function that draws a scene, and a description."""
FACTORS, DETAILS, THRESHOLDS = (25, 50), (1, 2, 3), (0.001, 0.05, 0.3, 0.5)
MAX_DETECTIONS, DEFAULT, IOU = 100, 0.5, 0.5
GOAL = 0.5
"""Maximum loss in points of AP of a detail above 1 compared with detail 1 on large shapes, at any threshold."""


@dataclass(frozen=True)
class Row:
    """One detail on one kind of scene.

    `model`: a name in MODELS. `box`, `mask`: AP in percent, one per threshold. `found`, `false`: number of detections
    and of false ones per scene at `min_score` 0.5.
    """

    model: str
    scenes: str
    render_factor: int
    detail: int
    box: tuple[float, ...]
    mask: tuple[float, ...]
    found: float
    false: float

    @property
    def precision(self) -> float:
        """Share of correct detections."""
        return 1 - self.false / self.found if self.found else 1.0


def measure(network: model.Model, name: str) -> Iterator[Row]:
    """The rows of a model, by kind of scene."""
    for kind, (seeds, draw, _) in SCENES.items():
        truth, found = Truth(), dict[tuple[int, int], list[Record]]()
        for seed in seeds:
            pixels, visible, classes = draw(seed)
            truth.add(seed, visible, classes)
            photo = Image.fromarray(pixels)
            for factor in FACTORS:
                size = network.network_size(photo.size, factor, "aspect")
                for detail in DETAILS:
                    seen = network.find(photo, size, THRESHOLDS[0], MAX_DETECTIONS, detail)
                    found.setdefault((factor, detail), []).extend(records(seed, seen))
        for (factor, detail), results in found.items():
            row = _row(truth, results, name, kind, factor, detail)
            print(row, file=sys.stderr, flush=True)
            yield row


def _row(truth: Truth, results: Sequence[Record], name: str, kind: str, factor: int, detail: int) -> Row:
    chosen = [[one for one in results if float(str(one["score"])) >= lowest] for lowest in THRESHOLDS]
    box, mask = (tuple(_precision(truth, some, which) for some in chosen) for which in ("bbox", "segm"))
    shown = [one for one in results if float(str(one["score"])) >= DEFAULT]
    scenes = len(truth.images)
    return Row(name, kind, factor, detail, box, mask, len(shown) / scenes, false_finds(truth, shown) / scenes)


def _precision(truth: Truth, results: list[Record], kind: str) -> float:
    return truth.evaluate(results, kind)["all"] if results else 0.0


def false_finds(truth: Truth, results: Sequence[Record]) -> int:
    """The number of results that match no instance, or an instance that a result with a higher score matches."""
    false = 0
    for image in truth.images:
        there: list[Any] = [one for one in truth.annotations if one["image_id"] == image["id"]]
        seen: list[Any] = [one for one in results if one["image_id"] == image["id"]]
        for one in sorted(seen, key=lambda one: -one["score"]):
            alike = [other for other in there if other["category_id"] == one["category_id"]]
            agreement = [_iou(one["segmentation"], other["segmentation"]) for other in alike]
            best = max(range(len(alike)), key=agreement.__getitem__, default=-1)
            if best >= 0 and agreement[best] >= IOU:
                there = [other for other in there if other is not alike[best]]
            else:
                false += 1
    return false


def _iou(a: Any, b: Any) -> float:
    return float(masks.iou([a], [b], [0])[0, 0])


def losses(rows: Sequence[Row]) -> list[float]:
    """The differences of box and mask AP to detail 1 on large shapes, at each threshold."""
    large = {(row.render_factor, row.detail): row for row in rows if row.scenes == "large"}
    return [
        before - after
        for (factor, _), row in large.items()
        for kind in ("box", "mask")
        for before, after in zip(getattr(large[factor, 1], kind), getattr(row, kind), strict=True)
    ]


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, by model."""
    lines = [
        "# What detail costs",
        "",
        "Scenes of 1600 x 1200 pixels (`training.shapes.crowd`): "
        + "; ".join(f"{name}: {len(seeds)} scenes of {what}" for name, (seeds, _, what) in SCENES.items())
        + ". AP is COCO's (IoU 0.50 to 0.95), box / mask, of all instances with at least the given score. Found and "
        "false instances are counted per scene at `min_score` 0.5; an instance is false if its mask has an IoU below "
        "0.5 with every shape of its class, or if that shape was found already. Made by "
        "`python -m benchmarks.detail_costs`.",
    ]
    for name in dict.fromkeys(row.model for row in rows):
        lines += ["", *_section(name, [row for row in rows if row.model == name])]
    return "\n".join(lines) + "\n"


def _section(name: str, rows: Sequence[Row]) -> Iterator[str]:
    """The lines of one model."""
    yield f"## {MODELS[name]}"
    yield ""
    worst = {detail: max(losses([row for row in rows if row.detail in (1, detail)])) for detail in DETAILS[1:]}
    yield (
        "On large shapes, AP falls by at most "
        + " and ".join(f"{loss:.1f} points with detail {detail}" for detail, loss in worst.items())
        + f" (goal: {GOAL})."
    )
    yield ""
    thresholds = " | ".join(f"AP from {lowest}" for lowest in THRESHOLDS)
    yield f"| scenes | render factor | detail | {thresholds} | found | false | precision |"
    yield "|---" * (6 + len(THRESHOLDS)) + "|"
    for row in rows:
        average = " | ".join(f"{box:.1f} / {mask:.1f}" for box, mask in zip(row.box, row.mask, strict=True))
        counts = f"{row.found:.1f} | {row.false:.1f} | {row.precision:.2f}"
        yield f"| {row.scenes} | {row.render_factor} | {row.detail} | {average} | {counts} |"


def read() -> list[Row]:
    """The rows in the existing results file."""
    document = json.loads((RESULTS / "detail_costs.json").read_text())
    return [Row(**row | {key: tuple(row[key]) for key in ("box", "mask")}) for row in document["rows"]]


def write(rows: Sequence[Row]) -> None:
    """Write the rows as JSON and as Markdown."""
    names = dict.fromkeys(row.model for row in rows)
    reached = {name: max(losses([row for row in rows if row.model == name])) <= GOAL for name in names}
    document = {"goal_reached": reached, "rows": [asdict(row) for row in rows]}
    (RESULTS / "detail_costs.json").write_text(json.dumps(document, indent=1) + "\n")
    (RESULTS / "detail_costs.md").write_text(table(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description="What the option detail costs on scenes of shapes.")
    parser.add_argument("--model", choices=MODELS, help="measure this one only; the others' rows remain")
    given = parser.parse_args()
    names = [given.model] if given.model else list(MODELS)
    rows = [row for row in read() if row.model not in names]
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            file = models.demo("fp32", Path(folder)) if name == "shapes" else models.family(name, "fp32", Path(folder))
            rows += measure(model.load(file), name)
            write(sorted(rows, key=lambda row: list(MODELS).index(row.model)))
    print((RESULTS / "detail_costs.md").read_text())


if __name__ == "__main__":
    main()
