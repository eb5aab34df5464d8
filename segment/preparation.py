"""Prepare a model file for serving: download, convert, quantise, and measure its memory.

A model is given as a name of the zoo (`segment models`), as a model file, or as a checkpoint with its config; files can
also be URLs. The model file is stored in the user's cache folder. Its name depends on all inputs, so that the same
model is prepared once, and another checkpoint, config or calibration results in another file.

The service runs this in a child process (web/startup.py), so that its memory is released afterwards.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from segment import zoo
from segment.dataset.photos import find
from segment.errors import ConversionError, ModelError
from segment.extras import require
from segment.labels import read_labels
from segment.modelfile import ModelMetadata
from segment.progress import Progress, Report, ignore
from segment.zoo.download import download, download_once
from segment.zoo.lock import exclusive

if TYPE_CHECKING:
    import onnx

    from segment.convert import Config

MODEL_FILE, CHECKPOINTS = ".onnx", (".pkl", ".pth", ".pt")
LARGEST_CHECKPOINT, LARGEST_TEXT = 4 << 30, 1 << 20
"""Maximum bytes of a downloaded checkpoint, and of a downloaded config or labels file."""
_CHECKSUM = re.compile(r"[-_]([0-9a-f]{6,64})$")
"""The end of a published checkpoint's name: the first digits of its MD5 (detectron2) or SHA-256 (torch.hub)."""


@dataclass(frozen=True)
class Preparation:
    """The inputs of a model file.

    `model`: a name of the zoo, or the path or URL of a model file or of a checkpoint. `config`, `labels`: paths or URLs
    of a checkpoint's config and labels; by default `config.yaml` beside it, and for a local checkpoint `labels.txt` if
    it exists. `int8`: quantise, with the photos in the folder `calibrate` or by default those of the package.
    `proposals`: number of region proposals, by default that of the config, or convert.INT8_PROPOSALS in int8. `mirror`:
    URL of a mirror of the zoo.
    """

    model: str
    config: str = ""
    labels: str = ""
    int8: bool = False
    calibrate: Path | None = None
    proposals: int | None = None
    mirror: str = ""

    def check(self) -> None:
        """Detect errors before anything is downloaded.

        Raises ModelError for an unknown name or a missing file, ConversionError for an invalid calibration, and
        MissingPackage if the model must still be converted and the converter is not installed.
        """
        files = [self.config, self.labels]
        if self.is_model_file or self.is_checkpoint:
            files.append(self.model)
        else:
            zoo.entry(self.model)
        for file in files:
            if file and not _is_url(file) and not Path(file).is_file():
                raise ModelError(
                    f"There is no file {file}. A model is a model file (.onnx), a checkpoint "
                    f"({', '.join(CHECKPOINTS)}) with its config, or one of the names that `segment models` lists."
                )
        if self.is_checkpoint and not _is_url(self.model) and not Path(self._config).is_file():
            raise ModelError(
                f"The checkpoint {self.model} needs its detectron2 config: give --config FILE, or put it beside the "
                "checkpoint as config.yaml."
            )
        if self.is_model_file and (self.int8 or self.proposals is not None):
            raise ConversionError(f"{self.model} is a model file. Use `segment quantise` to convert it to int8.")
        check_calibration(self.calibrate)
        if not self.ready and not self.is_model_file:
            require("onnx")
            if self.int8:
                require("nncf")

    @property
    def is_model_file(self) -> bool:
        """Whether `model` is a model file, which needs no conversion."""
        return self.model.lower().endswith(MODEL_FILE)

    @property
    def is_checkpoint(self) -> bool:
        """Whether `model` is the file or URL of a checkpoint that is not the zoo's."""
        return self.model.lower().endswith(CHECKPOINTS) and not _is_zoo(self.model)

    @property
    def ready(self) -> bool:
        """Whether the model file already exists."""
        return self.path.exists()

    @cached_property
    def path(self) -> Path:
        """The path of the model file, whether or not it exists."""
        if self.is_model_file and not _is_url(self.model):
            return Path(self.model)
        if not self.is_model_file and not self.is_checkpoint and self.calibrate is None and self.proposals is None:
            return zoo.model_path(self.model + zoo.INT8 if self.int8 else self.model)
        digest = hashlib.sha256("\n".join(self._ingredients()).encode()).hexdigest()[:8]
        form = zoo.INT8 if self.int8 else ""
        return zoo.cache() / "models" / f"{self.name}{form}-{digest}{MODEL_FILE}"

    @property
    def name(self) -> str:
        """The name of the model."""
        if self.is_model_file or self.is_checkpoint:
            return PurePosixPath(urlsplit(self.model).path if _is_url(self.model) else self.model).stem
        return zoo.entry(self.model).name

    def prepare(self, report: Report = ignore) -> Path:
        """Create the model file unless it exists. Returns its path. Raises ModelError, FetchError, ConversionError."""
        if not self.ready:
            with self._lock(report):
                if not self.ready:
                    self._make(self.path, report)
        return self.path

    def make(self, output: Path | None = None, report: Report = ignore) -> Path:
        """Create the model file even if it exists, at `output` or in the cache folder. Raises the errors of `prepare`.

        If another process was creating the same file, its result is used.
        """
        with self._lock(report) as waited:
            if output is None and waited and self.ready:
                return self.path
            self._make(output or self.path, report)
        return output or self.path

    def _lock(self, report: Report) -> AbstractContextManager[bool]:
        """Lock the model, so that no other process prepares it, in fp32 or int8. These share the downloaded files."""
        local = (self.is_model_file or self.is_checkpoint) and not _is_url(self.model)
        source = str(Path(self.model).resolve()) if local else self.model if _is_url(self.model) else self.name
        return exclusive(zoo.cache() / "locks", source, report)

    def _make(self, path: Path, report: Report) -> None:
        check_output(path)
        if self.is_model_file:
            if _is_url(self.model):
                self._download(self.model, path, report)
            elif Path(self.model).resolve() != path.resolve():
                shutil.copyfile(self.model, path)
            return
        from segment import convert as converter

        if self.is_checkpoint:
            weights, config, labels = self._own(report)
        else:
            entry = zoo.entry(self.model)
            weights = zoo.fetch(entry.name, self.mirror, report)
            config, labels = converter.config.parse(entry.config), zoo.labels(entry)
        report(Progress("convert", f"Converting {self.name}."))
        model = converter.convert(config, converter.checkpoint.read(weights), labels, self.name)
        write(model, path, self.int8, self.calibrate, self.proposals, report)

    def _own(self, report: Report) -> tuple[Path, Config, tuple[str, ...]]:
        """Weights, config and labels of a checkpoint that is not from the zoo."""
        from segment import convert as converter

        folder = zoo.cache() / "downloads" / hashlib.sha256(self.model.encode()).hexdigest()[:8]
        local = {}
        for role, source in (("config", self._config), ("labels", self._labels)):
            local[role] = Path(source)
            if _is_url(source):
                local[role] = folder / role / PurePosixPath(urlsplit(source).path).name
                download(source, local[role], digest="", limit=LARGEST_TEXT)
        # The config is read before the large checkpoint is downloaded, because it may not be supported.
        config = converter.config.read(local["config"], bases=not _is_url(self._config))
        weights = Path(self.model)
        if _is_url(self.model):
            weights = folder / PurePosixPath(urlsplit(self.model).path).name
            self._download(self.model, weights, report)
        return weights, config, read_labels(local["labels"]) if self._labels else ()

    def _download(self, url: str, path: Path, report: Report) -> None:
        checksum = _CHECKSUM.search(PurePosixPath(urlsplit(url).path).stem)
        digest = checksum[1] if checksum else ""
        download_once(url, path, digest=digest, limit=LARGEST_CHECKPOINT, report=report)

    @property
    def _config(self) -> str:
        return self.config or self._beside("config.yaml")

    @property
    def _labels(self) -> str:
        if self.labels or _is_url(self.model):
            return self.labels
        beside = self._beside("labels.txt")
        return beside if Path(beside).is_file() else ""

    def _beside(self, name: str) -> str:
        return f"{self.model.rpartition('/')[0]}/{name}" if _is_url(self.model) else str(Path(self.model).parent / name)

    def _ingredients(self) -> Iterator[str]:
        """A line for each input of the model file."""
        yield f"proposals={self.proposals}"
        files = [self.model, self._config, self._labels] if self.is_checkpoint else [self.model]
        for file in files:
            yield _identity(Path(file)) if Path(file).is_file() else file
        if self.is_checkpoint and not _is_url(self._config):
            yield from map(_identity, _bases(Path(self._config)))
        if self.calibrate:
            yield from (_identity(photo.path) for photo in find([self.calibrate]))


def write(
    model: onnx.ModelProto, path: Path, int8: bool, calibrate: Path | None, proposals: int | None, report: Report
) -> ModelMetadata:
    """Quantise a converted model if `int8` is set, measure its memory, and write it to `path`.

    Raises ConversionError, ModelError.
    """
    from segment import convert as converter

    if int8:
        photos = [photo.path for photo in find([calibrate])] if calibrate else None
        on = f"{len(photos)} photos in {calibrate}" if photos else "the photographs that come with this package"
        report(Progress("quantise", f"Quantising to int8, calibrated on {on}."))
        model = converter.quantised(model, photos, proposals)
    elif proposals is not None:
        converter.limit(model, proposals)
    report(Progress("measure", "Measuring the memory that the model needs."))
    unfinished = path.with_name(f"{path.stem}.unfinished{MODEL_FILE}")  # must not be served until its memory is known
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
    if path.suffix.lower() != MODEL_FILE:
        raise ModelError(f"{path} would not be recognised as a model file. Choose a name that ends in {MODEL_FILE}.")


def check_calibration(calibrate: Path | None) -> None:
    """Raise ConversionError if the calibration folder contains no photos."""
    if calibrate and not calibrate.exists():
        raise ConversionError(f"--calibrate {calibrate}: there is no such folder.")
    if calibrate and not next(find([calibrate]), None):
        raise ConversionError(f"--calibrate {calibrate}: there are no photos in this folder.")


def _identity(file: Path) -> str:
    status = file.stat()
    return f"{file.resolve()} {status.st_size} {status.st_mtime_ns}"


def _bases(config: Path) -> list[Path]:
    """The files that a config builds on (`_BASE_`). Raises ConversionError."""
    if not config.is_file() or b"_BASE_" not in config.read_bytes():
        return []  # without importing the converter, which a prepared model does not need
    require("yaml")
    from segment.convert import document

    return [file for file in document.files(config) if file != config]


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def _is_zoo(text: str) -> bool:
    try:
        zoo.entry(text)
    except ModelError:
        return False
    return True
