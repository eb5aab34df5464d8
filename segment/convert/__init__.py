"""detectron2 config + checkpoint -> one self-describing ONNX file. Offline only: serving never imports this."""

from __future__ import annotations

import json
from pathlib import Path

import onnx

from segment.convert import checkpoint, config, network
from segment.convert.config import Config
from segment.errors import ConversionError
from segment.modelfile import Facts

__all__ = ["Config", "checkpoint", "config", "convert", "read_labels", "save"]

RENDER_FACTOR = 25
"""What a file is tuned for unless it says otherwise."""


def convert(
    network_config: Config, tensors: checkpoint.Tensors, labels: tuple[str, ...] = (), source: str = ""
) -> onnx.ModelProto:
    """The network of a config with a checkpoint's tensors, as a model file in fp32. `tensors` is emptied.

    `labels`: class names by index; without them classes are numbered. `source`: a note of where the weights come from.
    Raises ConversionError.
    """
    labels = labels or tuple(str(i) for i in range(network_config.classes))
    if len(labels) != network_config.classes:
        raise ConversionError(
            f"There are {len(labels)} labels for {network_config.classes} classes (MODEL.ROI_HEADS.NUM_CLASSES)."
        )
    facts = Facts(
        labels=labels,
        precision="fp32",
        render_factor=RENDER_FACTOR,
        stride=network_config.stride,
        fixed_bytes=0,
        bytes_per_pixel=0.0,
        source=source,
    )
    return network.build(network_config, tensors, facts.to_metadata())


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names from a text file, one per line, or from detectron2's metadata.json (`thing_classes`)."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(f"The labels {path.name} cannot be read: {error}.") from None
    if path.suffix == ".json":
        return _json_labels(path, text)
    labels = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not labels:
        raise ConversionError(f"The labels {path.name} are empty.")
    return labels


def _json_labels(path: Path, text: str) -> tuple[str, ...]:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ConversionError(f"The labels {path.name} are not JSON: {error}.") from None
    names = document.get("thing_classes") if isinstance(document, dict) else document
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ConversionError(f"The labels {path.name} hold neither a list of names nor thing_classes.")
    return tuple(names)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model file whole or not at all."""
    part = path.with_suffix(path.suffix + ".part")
    part.write_bytes(model.SerializeToString())
    part.replace(path)
