"""The sources of a conversion: a model of the zoo, or a checkpoint with its config and labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from segment import zoo
from segment.errors import ModelError
from segment.extras import require
from segment.labels import read_labels
from segment.preparation import files
from segment.preparation.files import File, LocalFile
from segment.progress import Report

if TYPE_CHECKING:
    from segment.convert import Config


class Inputs(NamedTuple):
    """The inputs of the converter. `labels`: class names by index, or empty."""

    weights: Path
    config: Config
    labels: tuple[str, ...]


@dataclass(frozen=True)
class ZooModel:
    """A model of the zoo. `mirror`: URL of a mirror of the zoo; empty for the zoo's own server."""

    entry: zoo.Entry
    mirror: str = ""

    @property
    def name(self) -> str:
        """The model's name in the zoo."""
        return self.entry.name

    @property
    def key(self) -> str:
        """Text that identifies the files to download."""
        return self.name

    def inputs(self) -> Iterator[str]:
        """A line for each file that the model is made from."""
        yield self.name

    def check(self) -> None:
        """Do nothing; every entry of the zoo can be converted."""

    def fetch(self, report: Report) -> Inputs:
        """Download the checkpoint unless it exists. Raises ModelError, FetchError."""
        from segment import convert as converter

        weights = zoo.fetch(self.name, self.mirror, report)
        return Inputs(weights, converter.config.parse(self.entry.config), zoo.labels(self.entry))


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint with its detectron2 config and class names. Without `labels`, the names are the indices."""

    weights: File
    config: File
    labels: File | None

    @classmethod
    def find(cls, weights: str, config: str = "", labels: str = "") -> Checkpoint:
        """The checkpoint at a path or URL, with the files beside it in place of those that are not given."""
        file = files.at(weights)
        beside = file.beside("labels.txt")
        default = beside if isinstance(beside, LocalFile) and beside.path.is_file() else None
        return cls(
            weights=file,
            config=files.at(config) if config else file.beside("config.yaml"),
            labels=files.at(labels) if labels else default,
        )

    @property
    def name(self) -> str:
        """The checkpoint's file name without its extension."""
        return self.weights.stem

    @property
    def key(self) -> str:
        """Text that identifies the files to download."""
        return self.weights.key

    def inputs(self) -> Iterator[str]:
        """A line for each file that the model is made from, including those that the config builds on."""
        yield self.weights.version
        yield self.config.version
        yield self.labels.version if self.labels else ""
        if isinstance(self.config, LocalFile):
            yield from (LocalFile(base).version for base in _bases(self.config.path))

    def check(self) -> None:
        """Raise ModelError if a local file does not exist."""
        self.weights.check()
        beside = self.weights.beside("config.yaml")
        if self.config == beside and isinstance(beside, LocalFile) and not beside.path.is_file():
            raise ModelError(
                f"The checkpoint {self.weights} needs its detectron2 config: give --config FILE, or put it beside the "
                "checkpoint as config.yaml."
            )
        self.config.check()
        if self.labels:
            self.labels.check()

    def fetch(self, report: Report) -> Inputs:
        """Download the files that have URLs. Raises ModelError, FetchError, ConversionError."""
        from segment import convert as converter

        folder = zoo.cache() / "downloads" / hashlib.sha256(str(self.weights).encode()).hexdigest()[:8]
        # The config is read before the large checkpoint is downloaded, because it may not be supported.
        config = converter.config.read(
            self.config.fetch_text(folder / "config"), bases=isinstance(self.config, LocalFile)
        )
        labels = read_labels(self.labels.fetch_text(folder / "labels")) if self.labels else ()
        return Inputs(self.weights.fetch(folder, report), config, labels)


Source = ZooModel | Checkpoint


def _bases(config: Path) -> list[Path]:
    """The files that a config builds on (`_BASE_`). Raises ConversionError."""
    if b"_BASE_" not in config.read_bytes():
        return []  # without importing the converter, which a prepared model does not need
    require("yaml")
    from segment.convert import document

    return [file for file in document.files(config) if file != config]
