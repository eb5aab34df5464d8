"""Prepare a model file for serving: download, convert, quantise, and measure its memory.

A model is given as a name of the zoo (`segment models`), as a model file, or as a checkpoint with its config; files can
also be URLs. The model file is stored in the user's cache folder. Its name depends on all inputs, so that the same
model is prepared once, and another checkpoint, config or calibration results in another file.

    sources.py    what is converted: a model of the zoo, or a checkpoint
    precision.py  what it is converted to: fp32 or int8
    files.py      files that are given by a path or a URL
    writing.py    measure a converted model and write it

The service runs this in a child process (web/startup.py), so that its memory is released afterwards.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from segment import zoo
from segment.errors import ConversionError, ModelError
from segment.extras import require
from segment.modelfile import CHECKPOINT_SUFFIXES, MODEL_SUFFIX
from segment.preparation import files
from segment.preparation.files import File, LocalFile, RemoteFile
from segment.preparation.precision import Fp32, Int8, Precision
from segment.preparation.sources import Checkpoint, Source, ZooModel
from segment.preparation.writing import check_output, write
from segment.progress import Progress, Report, ignore
from segment.zoo.lock import exclusive

__all__ = ["Conversion", "Fp32", "Int8", "ModelFile", "Precision", "Preparation", "check_output", "resolve", "write"]


def resolve(
    model: str, precision: Precision | None = None, *, config: str = "", labels: str = "", mirror: str = ""
) -> Preparation:
    """The preparation of a model, checked before anything is downloaded.

    `model`: a name of the zoo, or the path or URL of a model file or of a checkpoint. `precision`: fp32 by default.
    `config`, `labels`: paths or URLs of a checkpoint's config and labels; by default `config.yaml` beside it, and for a
    local checkpoint `labels.txt` if it exists. A model file can also have labels. `mirror`: URL of a mirror of the zoo.

    Raises ModelError for an unknown name or a missing file, ConversionError for options that the model does not have
    and for an invalid calibration, and MissingPackage if the model must still be converted and the converter is not
    installed.
    """
    precision = precision or Fp32()
    preparation: Preparation
    if model.lower().endswith(MODEL_SUFFIX):
        if precision != Fp32():
            raise ConversionError(f"{model} is a model file. Use `python -m segment quantise` to convert it to int8.")
        if config:
            raise ConversionError(f"--config is for checkpoints; {model} is a model file, which needs none.")
        preparation = ModelFile(files.at(model), files.at(labels) if labels else None)
    elif model.lower().endswith(CHECKPOINT_SUFFIXES) and not zoo.find(model):
        preparation = Conversion(Checkpoint.find(model, config, labels), precision)
    else:
        if Path(model).is_file() and not zoo.find(model):
            raise ModelError(
                f"{model} is not a model: the name of a model file ends in {MODEL_SUFFIX}, "
                f"that of a checkpoint in {', '.join(CHECKPOINT_SUFFIXES)}."
            )
        entry = zoo.entry(model)
        if config or labels:
            raise ConversionError(f"--config and --labels are for checkpoints; {entry.name} is a model of the zoo.")
        preparation = Conversion(ZooModel(entry, mirror), precision)
    preparation.check()
    return preparation


class Preparation(ABC):
    """A way to obtain a model file."""

    @property
    @abstractmethod
    def path(self) -> Path:
        """The path of the model file, whether or not it exists."""

    @property
    @abstractmethod
    def lock_key(self) -> str:
        """Text that identifies the files that the preparation downloads."""

    @abstractmethod
    def check(self) -> None:
        """Raise the errors that can be detected before anything is downloaded."""

    @abstractmethod
    def create(self, path: Path, report: Report) -> None:
        """Create the model file at `path`. Raises ModelError, FetchError, ConversionError."""

    @property
    def ready(self) -> bool:
        """Whether the model file already exists."""
        return self.path.exists()

    def prepare(self, report: Report = ignore) -> Path:
        """Create the model file unless it exists. Returns its path. Raises ModelError, FetchError, ConversionError."""
        if not self.ready:
            with self._lock(report):
                if not self.ready:
                    self._create(self.path, report)
        return self.path

    def make(self, output: Path | None = None, report: Report = ignore) -> Path:
        """Create the model file even if it exists, at `output` or in the cache folder. Raises the errors of `prepare`.

        If another process was creating the same file, its result is used.
        """
        with self._lock(report) as waited:
            if output is None and waited and self.ready:
                return self.path
            self._create(output or self.path, report)
        return output or self.path

    def _create(self, path: Path, report: Report) -> None:
        check_output(path)
        self.create(path, report)

    def _lock(self, report: Report) -> AbstractContextManager[bool]:
        """Lock the model, so that no other process prepares it, in fp32 or int8. These share the downloaded files."""
        return exclusive(zoo.cache() / "locks", self.lock_key, report)


@dataclass(frozen=True)
class ModelFile(Preparation):
    """A model file is served as it is, and downloaded if it has a URL.

    `labels`: class names that replace those of the file while it is served.
    """

    file: File
    labels: File | None = None

    @property
    def path(self) -> Path:
        """The local file itself, or a file in the cache folder."""
        match self.file:
            case LocalFile(path):
                return path
            case RemoteFile(url):
                return _cached(self.file.stem, [url])

    @property
    def lock_key(self) -> str:
        """The path or URL."""
        return self.file.key

    def check(self) -> None:
        """Raise ModelError if a local file does not exist."""
        self.file.check()
        if self.labels:
            self.labels.check()

    def create(self, path: Path, report: Report) -> None:
        """Copy or download the file."""
        self.file.save_as(path, report)


@dataclass(frozen=True)
class Conversion(Preparation):
    """A source is converted to a model file of a precision."""

    source: Source
    precision: Precision

    @cached_property
    def path(self) -> Path:
        """A file in the cache folder. A model of the zoo with default options has the name that serving looks for."""
        if isinstance(self.source, ZooModel) and self.precision in (Fp32(), Int8()):
            return zoo.model_path(self.source.name + self.precision.suffix)
        inputs = [*self.source.inputs(), *self.precision.inputs()]
        return _cached(self.source.name + self.precision.suffix, inputs)

    @property
    def lock_key(self) -> str:
        """What identifies the source; the precision does not matter."""
        return self.source.key

    def check(self) -> None:
        """Raise ModelError, ConversionError, and MissingPackage unless the model file exists."""
        self.source.check()
        self.precision.check()
        if not self.ready:
            for package in self.precision.packages:
                require(package)

    def create(self, path: Path, report: Report) -> None:
        """Download the source unless it exists, convert it, and write the model file."""
        from segment import convert as converter

        weights, config, labels = self.source.fetch(report)
        report(Progress("convert", f"Converting {self.source.name}."))
        model = converter.convert(config, converter.checkpoint.read(weights), labels, self.source.name)
        model = self.precision.apply(model, report)
        write(model, path, report)


def _cached(name: str, inputs: Iterable[str]) -> Path:
    """The path of a model file in the cache folder, which depends on all inputs."""
    digest = hashlib.sha256("\n".join(inputs).encode()).hexdigest()[:8]
    return zoo.cache() / "models" / f"{name}-{digest}{MODEL_SUFFIX}"
