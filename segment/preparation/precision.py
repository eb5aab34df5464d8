"""The precisions of a model file. `proposals`: maximum number of region proposals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from segment import zoo
from segment.dataset.photos import find
from segment.errors import ConversionError
from segment.preparation.files import LocalFile
from segment.progress import Progress, Report
from segment.wording import counted

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Fp32:
    """32-bit floating point, as the checkpoint. Without `proposals`, their number is the config's."""

    suffix: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = ("onnx",)

    proposals: int | None = None

    def check(self) -> None:
        """Do nothing; there is nothing to calibrate."""

    def inputs(self) -> Iterator[str]:
        """A line for each input of the model file."""
        yield f"proposals={self.proposals}"

    def apply(self, model: onnx.ModelProto, _report: Report) -> onnx.ModelProto:
        """The converted model, with the number of proposals set."""
        from segment import convert as converter

        if self.proposals is not None:
            converter.limit(model, self.proposals)
        return model


@dataclass(frozen=True)
class Int8:
    """8-bit integers, calibrated on the photos in the folder `calibrate`, or on those that come with this package.

    Without `proposals`, their number is at most convert.INT8_PROPOSALS.
    """

    suffix: ClassVar[str] = zoo.INT8
    packages: ClassVar[tuple[str, ...]] = ("onnx", "nncf")

    calibrate: Path | None = None
    proposals: int | None = None

    def check(self) -> None:
        """Raise ConversionError if the folder contains no photos."""
        if self.calibrate is None:
            return
        if not self.calibrate.exists():
            raise ConversionError(f"--calibrate {self.calibrate}: there is no such folder.")
        if not next(find([self.calibrate]), None):
            raise ConversionError(f"--calibrate {self.calibrate}: there are no photos in this folder.")

    def inputs(self) -> Iterator[str]:
        """A line for each input of the model file."""
        yield f"proposals={self.proposals}"
        yield from (LocalFile(photo).version for photo in self._photos() or ())

    def apply(self, model: onnx.ModelProto, report: Report) -> onnx.ModelProto:
        """The quantised model. Raises ConversionError."""
        from segment import convert as converter

        photos = self._photos()
        on = "the photographs that come with this package"
        if photos is not None:
            on = f"{counted(len(photos), 'photo')} in {self.calibrate}"
        report(Progress("quantise", f"Quantising to int8, calibrated on {on}."))
        return converter.quantised(model, photos, self.proposals)

    def _photos(self) -> list[Path] | None:
        return None if self.calibrate is None else [photo.path for photo in find([self.calibrate])]


Precision = Fp32 | Int8
