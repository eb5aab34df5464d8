"""Convert a detectron2 config and checkpoint to one self-contained ONNX file. Serving does not import this package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import onnx
from onnx import helper

from segment import container
from segment.convert import checkpoint, config, network
from segment.convert.config import Config
from segment.convert.proposals import limit
from segment.engine import footprint
from segment.errors import ConversionError
from segment.modelfile import ModelMetadata

__all__ = ["Config", "checkpoint", "config", "convert", "finish", "limit", "load", "quantised"]

INT8_PROPOSALS = 300
"""Default number of proposals of an int8 model. The zoo's configs have 1,000, which takes half as much time again."""
LARGEST_FILE = (2 << 30) - (16 << 20)
"""Bytes of tensors that fit into one message of protocol buffers, with 16 MiB for the graph."""
RENDER_FACTOR = 25
"""Default render factor of a model file."""


def convert(
    network_config: Config,
    tensors: checkpoint.Tensors,
    labels: tuple[str, ...] = (),
    source: str = "",
    render_factor: int = RENDER_FACTOR,
) -> onnx.ModelProto:
    """The network of a config with a checkpoint's tensors, as a model in fp32. `tensors` is emptied.

    `labels`: class names by index; without them classes are numbered. `source`: a note of where the weights come from.
    Raises ConversionError.
    """
    labels = labels or tuple(str(i) for i in range(network_config.classes))
    if len(labels) != network_config.classes:
        raise ConversionError(
            f"There are {len(labels)} labels for {network_config.classes} classes (MODEL.ROI_HEADS.NUM_CLASSES)."
        )
    size = 4 * sum(tensor.size for tensor in tensors.values())
    if size > LARGEST_FILE:
        raise ConversionError(
            f"The checkpoint's tensors are {size / 1e9:.1f} GB in float32. An ONNX file is one message of protocol "
            f"buffers, which cannot be larger than {LARGEST_FILE / 1e9:.1f} GB; a smaller model of the family converts."
        )
    facts = ModelMetadata(
        labels=labels,
        precision="fp32",
        render_factor=render_factor,
        stride=network_config.stride,
        fixed_bytes=0,
        bytes_per_pixel=0.0,
        bytes_per_instance=0.0,
        source=source,
        square=network_config.square,
    )
    return network.build(network_config, tensors, facts.to_metadata())


def load(path: Path) -> onnx.ModelProto:
    """A model file that `finish` wrote. Raises ConversionError."""
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's own errors have no common root
        raise ConversionError(f"{path.name} cannot be read as an ONNX file: {error}") from None
    _facts(model)
    return model


def quantised(
    model: onnx.ModelProto, photos: Sequence[Path] | None = None, proposals: int | None = None
) -> onnx.ModelProto:
    """The int8 form of an fp32 model, calibrated on `photos`, by default on those that come with this package.

    It looks at no more than `proposals`, INT8_PROPOSALS if None, and so does `model` from then on. Raises
    ConversionError.
    """
    from segment.convert import calibration
    from segment.convert.quantise import quantise

    facts = _facts(model)
    if facts.precision != "fp32":
        raise ConversionError(f"This model is {facts.precision} already; quantise the fp32 file.")
    limit(model, INT8_PROPOSALS if proposals is None else proposals)
    pictures = calibration.default(facts) if photos is None else calibration.from_files(photos, facts)
    narrow = quantise(model, pictures)
    helper.set_model_props(narrow, replace(facts, precision="int8").to_metadata())
    return narrow


def finish(model: onnx.ModelProto, path: Path) -> ModelMetadata:
    """Write a model file with what memory it takes, measured in a child process. Raises ConversionError, ModelError."""
    _save(model, path)
    measured = footprint.measure(path, threads=container.cpus())
    facts = replace(_facts(model), **asdict(measured))
    helper.set_model_props(model, facts.to_metadata())
    _save(model, path)
    return facts


def _facts(model: onnx.ModelProto) -> ModelMetadata:
    facts = ModelMetadata.from_metadata({entry.key: entry.value for entry in model.metadata_props})
    if facts is None:
        raise ConversionError("This ONNX file was not made by `segment convert`; only such files can be quantised.")
    return facts


def _save(model: onnx.ModelProto, path: Path) -> None:
    """Write a file whole or not at all."""
    part = path.with_suffix(path.suffix + ".part")
    part.write_bytes(model.SerializeToString())
    part.replace(path)
