"""Draw the figure of docs/architecture.md: `python -m devtools.architecture` writes docs/architecture.svg.

The layers are those of tests/test_layers.py. tests/test_repository.py checks that every module is described here and
that the figure shows these layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

Layers = Sequence[Sequence[str]]

PICTURE = Path(__file__).parent.parent / "docs" / "architecture.svg"
SERVING, OFFLINE, DOOR = "#e8eefc", "#fdf0dc", "#e3f4e6"
"""Fill colours: modules that handle requests, modules that only run before serving, and entry points."""

ABOUT = {
    "__main__": (DOOR, "command line: arguments"),
    "main": (DOOR, "function targets: segment_http, segment_object"),
    "commands": (DOOR, "command line: each command"),
    "preparation": (OFFLINE, "name or checkpoint → model file"),
    "web": (DOOR, "HTTP server, page, OpenAPI"),
    "bucket": (DOOR, "bucket events, backfill"),
    "beam": (DOOR, "Apache Beam and Dataflow"),
    "labelling": (SERVING, "answers for labelling tools"),
    "dataset": (DOOR, "folders, COCO and Parquet datasets"),
    "service": (SERVING, "one photo: plan, reserve, decode, run, write"),
    "loading": (SERVING, "model of a service, and its memory budgets"),
    "__init__": (DOOR, "public names of the library"),
    "model": (SERVING, "photo → detections, tiles"),
    "results": (SERVING, "detections for users of the library"),
    "output": (SERVING, "overlay, JSON, ids, cut-outs"),
    "plan": (SERVING, "memory of a request"),
    "convert": (OFFLINE, "detectron2 checkpoint → ONNX, int8"),
    "options": (SERVING, "options of a request"),
    "tiles": (SERVING, "cut and merge tiles"),
    "engine": (SERVING, "OpenVINO or detectron2"),
    "zoo": (OFFLINE, "models by name, downloads"),
    "settings": (SERVING, "SEGMENT_ variables"),
    "memory": (SERVING, "budget, admission control"),
    "image": (SERVING, "header, decode, resize"),
    "detections": (SERVING, "boxes, scores, masks"),
    "labels": (SERVING, "class names"),
    "modelfile": (SERVING, "metadata of a model file"),
    "extras": (OFFLINE, "missing packages"),
    "errors": (SERVING, "exceptions"),
    "packed": (SERVING, "compressed masks"),
    "arrival": (SERVING, "order of bodies that are received"),
    "mask": (SERVING, "paste one mask"),
    "resize": (SERVING, "render factor → size"),
    "container": (SERVING, "memory and CPUs"),
    "process": (SERVING, "malloc, BLAS threads"),
    "log": (SERVING, "JSON log entries"),
    "formats": (SERVING, "output formats"),
    "values": (SERVING, "parse one value"),
    "progress": (OFFLINE, "preparation steps"),
    "wording": (SERVING, "counts in messages"),
}
"""Fill and purpose of every module or folder of `segment/`."""

WIDTH, MARGIN, BOX_HEIGHT, GAP, ROW = 1180, 20, 44, 8, 62
TOP = 58
LEGEND = ((DOOR, "where requests and commands enter"), (SERVING, "serving"), (OFFLINE, "before serving"))


def draw(layers: Layers) -> str:
    """The figure as SVG. `layers`: from the bottom up."""
    rows = list(reversed(layers))
    height = TOP + ROW * len(rows) + MARGIN - (ROW - BOX_HEIGHT)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-labelledby="title" font-family="system-ui, sans-serif">',
        '<title id="title">The modules of segment/ in layers; each imports only from lower layers</title>',
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="#ffffff"/>',
        *_legend(),
    ]
    for number, names in enumerate(rows):
        parts += _row(names, TOP + ROW * number)
    return "\n".join([*parts, "</svg>", ""])


def _legend() -> Iterator[str]:
    yield _text(MARGIN, 33, "A module imports only from lower rows", 15, "#1b1f27", "600")
    left = WIDTH - MARGIN - 620
    for (fill, words), width in zip(LEGEND, (290, 120, 150), strict=True):
        yield f'<rect x="{left}" y="20" width="18" height="18" rx="4" fill="{fill}" stroke="#8b95a7"/>'
        yield _text(left + 26, 34, words, 13, "#4a5363")
        left += width + 30


def _row(names: Sequence[str], top: int) -> Iterator[str]:
    width = (WIDTH - 2 * MARGIN - GAP * (len(names) - 1)) / len(names)
    for number, name in enumerate(names):
        fill, about = ABOUT[name]
        left = MARGIN + number * (width + GAP)
        centre = left + width / 2
        yield (
            f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{BOX_HEIGHT}" rx="7" fill="{fill}" '
            'stroke="#8b95a7"/>'
        )
        yield _text(centre, top + 19, name, 14, "#1b1f27", "600", "middle")
        yield _text(centre, top + 35, about, 10.5, "#4a5363", anchor="middle")


def _text(x: float, y: float, words: str, size: float, fill: str, weight: str = "400", anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" font-size="{size}" font-weight="{weight}" fill="{fill}" '
        f'text-anchor="{anchor}">{escape(words)}</text>'
    )


def main() -> None:
    """Write the figure."""
    from tests.test_layers import LEVELS

    PICTURE.write_text(draw(LEVELS), encoding="utf-8")


if __name__ == "__main__":
    main()
