"""Write a model file that can be served: its memory is measured, and it is complete or not there."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from segment.errors import ModelError
from segment.modelfile import MODEL_SUFFIX, ModelMetadata
from segment.progress import Progress, Report

if TYPE_CHECKING:
    import onnx


def write(model: onnx.ModelProto, path: Path, report: Report) -> ModelMetadata:
    """Measure the memory of a converted model, and write it to `path`. Raises ConversionError, ModelError."""
    from segment import convert as converter

    report(Progress("measure", "Measuring the memory that the model needs."))
    unfinished = path.with_name(f"{path.stem}.unfinished{MODEL_SUFFIX}")  # must not be served until its memory is known
    try:
        metadata = converter.finish(model, unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return metadata


def check_output(path: Path) -> None:
    """Create the folder of a model file to be written. Raises ModelError if it cannot be written or served."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ModelError(f"The model file {path} cannot be written: {error.strerror}. Choose another output.") from None
    if path.suffix.lower() != MODEL_SUFFIX:
        raise ModelError(f"{path} would not be recognised as a model file. Choose a name that ends in {MODEL_SUFFIX}.")
