"""Convert a detectron2 config and checkpoint to one self-contained ONNX file. Serving does not import this package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import onnx
from onnx import helper

from segment import container
from segment.convert import checkpoint, config, heads, network, storage
from segment.convert.architecture import Config
from segment.convert.proposals import limit
from segment.engine import footprint
from segment.errors import ConversionError
from segment.modelfile import ModelMetadata
from segment.wording import counted

__all__ = ["Config", "checkpoint", "config", "convert", "finish", "limit", "load", "quantised"]

INT8_PROPOSALS = 300
"""Default number of proposals of an int8 model. The zoo's configs have 1,000, which takes about 1.5 times as long."""
LARGEST_FILE = (2 << 30) - (16 << 20)
"""Maximum bytes of tensors: the limit of a protocol buffers message, minus 16 MiB for the graph."""
RENDER_FACTOR = 25
"""Default render factor of a model file."""


def convert(
    network_config: Config,
    tensors: checkpoint.Tensors,
    labels: tuple[str, ...] = (),
    source: str = "",
    render_factor: int = RENDER_FACTOR,
) -> onnx.ModelProto:
    """Build the fp32 model of a config with a checkpoint's tensors. Empties `tensors` to save memory.

    `labels`: class names by index; by default, the indices. `source`: description of the weights' origin. Raises
    ConversionError.
    """
    labels = labels or tuple(str(i) for i in range(network_config.classes))
    if len(labels) != network_config.classes:
        raise ConversionError(
            f"There must be one label per class: the config has {counted(network_config.classes, 'class', 'classes')} "
            f"(MODEL.ROI_HEADS.NUM_CLASSES), and {len(labels)} were given."
        )
    size = 4 * sum(tensor.size for tensor in tensors.values())
    if size > LARGEST_FILE:
        raise ConversionError(
            f"The checkpoint's tensors are {size / 1e9:.1f} GB in float32, and an ONNX file can hold at most "
            f"{LARGEST_FILE / 1e9:.1f} GB. Use a smaller model of the family."
        )
    facts = ModelMetadata(
        labels=labels,
        precision="fp32",
        render_factor=render_factor,
        stride=network_config.stride,
        fixed_bytes=0,
        bytes_per_pixel=0.0,
        bytes_per_instance=0.0,
        kept_bytes=0,
        source=source,
        square=network_config.square,
    )
    return network.build(network_config, tensors, facts.to_metadata())


def load(path: Path) -> onnx.ModelProto:
    """Load a model file written by `finish`. Raises ConversionError."""
    try:
        model = onnx.load(path)
    except OSError as error:
        raise ConversionError(f"The model {path.name} cannot be read: {error.strerror}.") from None
    except Exception:  # protobuf's errors have no common base class
        raise ConversionError(f"{path.name} is not an ONNX file, or it is truncated.") from None
    _facts(model)
    return model


def quantised(
    model: onnx.ModelProto, photos: Sequence[Path] | None = None, proposals: int | None = None
) -> onnx.ModelProto:
    """Quantise an fp32 model to int8, calibrated on `photos`, by default on those that come with this package.

    `proposals`: maximum number of proposals, by default INT8_PROPOSALS; it is also set in `model`. Raises
    ConversionError.
    """
    from segment.convert import calibration
    from segment.convert.quantise import quantise

    facts = _facts(model)
    if facts.precision != "fp32":
        raise ConversionError(f"This model already is {facts.precision}; give the fp32 file.")
    limit(model, INT8_PROPOSALS if proposals is None else proposals)
    pictures = calibration.default(facts) if photos is None else calibration.from_files(photos, facts)
    narrow = quantise(model, pictures)
    helper.set_model_props(narrow, replace(facts, precision="int8").to_metadata())
    return narrow


def finish(model: onnx.ModelProto, path: Path) -> ModelMetadata:
    """Write a model file and record its memory use, measured in a child process. Raises ConversionError, ModelError.

    It is measured without the score threshold, because a trained model finds few instances in noise.
    """
    with heads.any_score(model):
        _save(model, path)
    measured = footprint.measure(path, threads=container.cpus())
    facts = replace(_facts(model), **asdict(measured))
    helper.set_model_props(model, facts.to_metadata())
    _save(model, path)
    return facts


def _facts(model: onnx.ModelProto) -> ModelMetadata:
    facts = ModelMetadata.from_metadata({entry.key: entry.value for entry in model.metadata_props})
    if facts is None:
        raise ConversionError(
            "This ONNX file was not written by `python -m segment convert`; only such files can be quantised."
        )
    return facts


def _save(model: onnx.ModelProto, path: Path) -> None:
    """Write a file atomically."""
    part = path.with_suffix(path.suffix + ".part")
    storage.save(model, part)
    part.replace(path)
