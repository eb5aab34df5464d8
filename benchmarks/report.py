"""Write results as JSON, tables and charts."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import accuracy, cgroup, memory, models

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("openvino", "numpy", "pillow", "functions-framework")
COLOURS = {models.THOROUGH: "#18a058", "int8": "#1e88ff", "fp32": "#ff7a1a", "aspect": "#1e88ff", "square": "#ff7a1a"}

Rows = list[dict[str, Any]]


def save(suite: str, rows: Rows, load: float) -> None:
    """Write the rows of a suite and a description of the machine."""
    RESULTS.mkdir(exist_ok=True)
    machine = {
        "processor": processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "load_at_start": round(load, 2),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in LIBRARIES},
    }
    document = {"machine": machine, "rows": rows}
    (RESULTS / f"{suite}.json").write_text(json.dumps(document, indent=1) + "\n")


def write() -> None:
    """Write README.md and the charts from all JSON files."""
    parts = ["# Results", "", "Written by `make bench`. The numbers are also in the JSON files of this folder.", ""]
    for suite, section in SECTIONS.items():
        path = RESULTS / f"{suite}.json"
        if path.exists():
            document = json.loads(path.read_text())
            parts += section(document["rows"])
            machine = document["machine"]
            versions = ", ".join(f"{name} {machine[name]}" for name in ("python", *LIBRARIES))
            parts += [
                "",
                f"{machine['processor']}, {machine['cpus']} CPUs, load {machine['load_at_start']} before; {versions}.",
            ]
            parts.append("")
    (RESULTS / "README.md").write_text("\n".join(parts))


def _accuracy(rows: Rows) -> list[str]:
    native = [row for row in rows if row["fit"] == "native"]
    crowds = [row for row in rows if row["fit"] == "crowd"]
    swept = [row for row in rows if row["fit"] in ("aspect", "square")]
    lines = [
        "## Accuracy of the demo model",
        "",
        f"AP in percent on scenes 0 to {accuracy.SCENES - 1} (COCOeval, scores above {accuracy.MIN_SCORE}, at most "
        f"{accuracy.MAX_DETECTIONS} detections).",
        "",
    ]
    theirs = {"name": "detectron2 itself, native size", **accuracy.DETECTRON2}
    lines += _table(("", "box AP", "mask AP"), [(row["name"], row["box"], row["mask"]) for row in [theirs, *native]])
    if swept:
        by_fit = {
            fit: {row["render_factor"]: row for row in swept if row["fit"] == fit} for fit in ("aspect", "square")
        }
        means = {fit: sum(row["mask"] for row in of.values()) / len(of) for fit, of in by_fit.items()}
        best = max(means, key=lambda fit: means[fit])
        table = [(f, by_fit["aspect"][f]["mask"], by_fit["square"][f]["mask"]) for f in by_fit["aspect"]]
        lines += ["", *_table(("render factor", "mask AP, aspect", "mask AP, square"), table), ""]
        lines.append(f"`{best}` wins by {abs(means['aspect'] - means['square']):.1f} mask AP on average.")
        series = {fit: [(factor, row["mask"]) for factor, row in of.items()] for fit, of in by_fit.items()}
        lines += ["", _chart("accuracy", series, "mask AP, %")]
    if crowds:
        lines += [
            "",
            f"{accuracy.CROWDS} scenes of 80 shapes (`training.shapes.crowd`), which need more proposals:",
            "",
        ]
        lines += _table(("", "box AP", "mask AP"), [(row["name"], row["box"], row["mask"]) for row in crowds])
    return lines


def _families(rows: Rows) -> list[str]:
    head = ("", "box AP", "mask AP", "boundary AP", "CPU s per photo")
    table = [(row["name"], row["box"], row["mask"], row["boundary"], row["cpu_seconds_per_run"]) for row in rows]
    return [
        "## Families on the demo's task",
        "",
        f"AP in percent on scenes 0 to {accuracy.SCENES - 1} at their own size. Boundary AP (Cheng et al. 2021) uses "
        "the smaller of the masks' IoU and their boundaries' IoU; a boundary is "
        f"{accuracy.BOUNDARY:.0%} of the image's diagonal wide. training/variants.py describes the training.",
        "",
        *_table(head, table),
    ]


def _rendering(rows: Rows) -> list[str]:
    head = ("", "request, ms", "network, ms", "CPU s", "held, MiB", "relative to Mask R-CNN")
    table = [
        (
            *(row[key] for key in ("name", "request_ms", "network_ms", "cpu_seconds", "held_mib")),
            " / ".join(map(str, row["times"])),
        )
        for row in rows
    ]
    return [
        "## Time and memory of PointRend",
        "",
        "R50-FPN, 80 classes, render factor 25, 20 instances. Times are medians for a JPEG of 1280 x 960 pixels and a "
        "JPEG overlay, with requests to both models in turns; memory is that of each model alone with a JPEG of 12 "
        "megapixels. The last column has the ratios of request / network / CPU / memory.",
        "",
        *_table(head, table),
    ]


def _memory(rows: Rows) -> list[str]:
    limited = "in a memory control group with the limit" if not cgroup.missing() else "without a control group"
    head = ("", "limit", "idle", "peak held", "peak RSS", "killed", "overlay")
    table = [
        (
            *(row["name"], f"{row['limit_mib']} MiB", row["loaded_mib"], row["held_mib"]),
            *(row["rss_mib"], row["kills"], row["picture"] if set(row["statuses"]) == {200} else row["statuses"]),
        )
        for row in rows
    ]
    series = {
        precision: [
            (r["render_factor"], r["held_mib"])
            for r in rows
            if r["precision"] == precision and r["picture"] == "{}x{}".format(*memory.PHOTO)
        ]
        for precision in models.NETWORKS
    }
    return [
        "## Memory of the whole service",
        "",
        f"MiB, for Mask R-CNN R50-FPN with 80 classes, a JPEG of 12 megapixels and a JPEG overlay, {limited}. Except "
        f"in the last row, the limit is the smallest, in steps of {memory.STEP} MiB, with which the overlay has the "
        "photo's size. Held memory is anonymous and shared memory, which the kernel cannot reclaim. When the model is "
        "loaded, the weights are laid out for render factor 25. Small images need another layout of some weights; then "
        "both are kept.",
        "",
        *_table(head, table),
        "",
        _chart("memory", series, "peak held, MiB"),
    ]


def _latency(rows: Rows) -> list[str]:
    warm = [row for row in rows if "network_ms" in row]
    cold = [row for row in rows if "seconds" in row]
    lines = [
        "## Time of a request",
        "",
        "Medians in ms, for Mask R-CNN R50-FPN with 80 classes, a JPEG of 1280 x 960 pixels and a JPEG overlay of 20 "
        "instances. Requests to the models were made in turns.",
        "",
        *_table(
            ("", "request", "network", "request / network", "CPU seconds", "instances"),
            [(r["name"], r["request_ms"], r["network_ms"], r["ratio"], r["cpu_seconds"], r["instances"]) for r in warm],
        ),
        "",
    ]
    for factor in sorted({row["render_factor"] for row in warm}):
        of = {row["precision"]: row["network_ms"] for row in warm if row["render_factor"] == factor}
        times = ", ".join(f"{name} {of['fp32'] / of[name]:.1f}" for name in of if name != "fp32")
        lines.append(f"- Render factor {factor}, speed relative to the fp32 network: {times}.")
    if cold:
        keys = ("name", "seconds", "start_seconds", "load_seconds", "request_seconds", "peak_rss_mib")
        head = ("", "s to the first response", "start", "load", "request", "peak RSS, MiB")
        lines += ["", *_table(head, [[row[key] for key in keys] for row in cold]), ""]
        lines.append(
            "Start: the interpreter, imports and the web server. Load: the runtime, the compiled model from the cache "
            "and a first run, which lays out the weights. Request: all stages of the request."
        )
    series = {
        precision: [(row["render_factor"], row["request_ms"]) for row in warm if row["precision"] == precision]
        for precision in models.NETWORKS
    }
    return [*lines, "", _chart("latency", series, "request, ms")]


def _original(rows: Rows) -> list[str]:
    theirs = next(row for row in rows if "image_seconds" in row)
    ours = {row["precision"]: row["request_ms"] / 1000 for row in rows if "network_ms" in row}
    cold = next(row for row in rows if "seconds" in row)
    pairs = (
        ("peak RSS, MiB", theirs["peak_rss_mib"], cold["peak_rss_mib"]),
        *((f"s per image, warm, {name}", theirs["image_seconds"], round(ours[name], 3)) for name in ours),
        ("s from cold", theirs["cold_seconds"], cold["seconds"]),
    )
    return [
        "## Comparison with the original application",
        "",
        "The original application's steps as a script without a server: detectron2's `DefaultPredictor` on a square of "
        "400 x 400 pixels, `Visualizer`, resized to the photo's size. This service over HTTP, with all its processes; "
        "memory and cold start in int8. Both have the same weights and photo, and were measured one after the other.",
        "",
        *_table(
            ("", "detectron2", "this service", "ratio"),
            [(name, before, after, f"{before / after:.1f}") for name, before, after in pairs],
        ),
    ]


SECTIONS = {
    "accuracy": _accuracy,
    "families": _families,
    "memory": _memory,
    "latency": _latency,
    "rendering": _rendering,
    "original": _original,
}


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


def _chart(name: str, series: dict[str, list[tuple[float, float]]], unit: str) -> str:
    """Draw a line chart over the render factor into NAME.svg. Returns the Markdown that shows it."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update({"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 9})
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.add_subplot()
    for label, points in series.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=label, color=COLOURS[label])
    axes.set(xlabel="render factor", ylabel=unit, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(RESULTS / f"{name}.svg", metadata={"Date": None})
    return f"![{unit} against the render factor]({name}.svg)"


def processor() -> str:
    """The name of this machine's processor."""
    match = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match[1] if match else platform.processor()
