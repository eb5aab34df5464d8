"""The signature of a network: names, element types and shapes of its inputs and outputs, which identify its family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Scale:
    """The scale of a quantised tensor: real = (integer - zero) * step (ONNX, DequantizeLinear)."""

    step: float
    zero: float


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a network. `shape`: None is a dynamic dimension.

    `type`: NumPy's name, such as "float32", "uint8" or "int64". `scale`: given for quantised tensors.
    """

    name: str
    type: str
    shape: tuple[int | None, ...]
    scale: Scale | None = None

    def __str__(self) -> str:
        shape = " x ".join("?" if n is None else str(n) for n in self.shape)
        return f"{self.name} {self.type} {shape or 'scalar'}"

    def fits(self, *shape: int | None) -> bool:
        """Whether the tensor can have this shape; None matches any length."""
        return len(shape) == len(self.shape) and all(
            mine is None or wanted is None or mine == wanted for mine, wanted in zip(self.shape, shape, strict=True)
        )

    @property
    def is_float(self) -> bool:
        return self.type in ("float32", "float16")

    @property
    def is_real(self) -> bool:
        """Whether its values are real numbers, floating-point or quantised."""
        return self.is_float or (self.type in ("int8", "uint8") and self.scale is not None)

    def to_real(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Dequantise `values` to float32."""
        real = values.astype(np.float32, copy=False)
        return real if self.scale is None else (real - np.float32(self.scale.zero)) * np.float32(self.scale.step)

    def from_real(self, real: NDArray[np.float32]) -> NDArray[Any]:
        """Convert `real` to this tensor's type; quantise it if there is a scale."""
        if self.scale is not None:
            limits = np.iinfo(self.type)
            real = np.clip(np.rint(real / np.float32(self.scale.step) + self.scale.zero), limits.min, limits.max)
        return np.ascontiguousarray(real, self.type)


@dataclass(frozen=True)
class Signature:
    """The inputs, outputs and metadata of a file, in the file's order. `name`: for messages."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.inputs))} -> {', '.join(map(str, self.outputs))}"


@dataclass(frozen=True)
class ImageInput:
    """An input for one image. `size`: the fixed (width, height) in pixels; None if dynamic.

    `axes`: N is a batch of one, C channels, H rows, W columns.
    """

    port: TensorSpec
    axes: Literal["NCHW", "NHWC", "CHW"]
    size: tuple[int, int] | None

    @classmethod
    def of(cls, port: TensorSpec) -> ImageInput | None:
        """`port` as an ImageInput; None if it cannot be one."""
        shape = port.shape
        axes: Literal["NCHW", "NHWC", "CHW"]
        if port.fits(1, 3, None, None):
            axes = "NCHW"
        elif port.fits(1, None, None, 3):
            axes = "NHWC"
        elif port.fits(3, None, None):
            axes = "CHW"
        else:
            return None
        width, height = shape[axes.index("W")], shape[axes.index("H")]
        if (width is None) != (height is None) or not (port.is_real or port.type == "uint8"):
            return None
        return cls(port, axes, None if width is None or height is None else (width, height))

    def feed(self, image: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """The input by name for `image`, (3, H, W) float32 RGB in 0-1. Unscaled uint8 inputs get values of 0-255."""
        if self.port.type == "uint8" and self.port.scale is None:
            image = np.rint(image * np.float32(255))
        if self.axes == "NHWC":
            image = image.transpose(1, 2, 0)
        return {self.port.name: self.port.from_real(image if self.axes == "CHW" else image[None])}
