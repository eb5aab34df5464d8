"""What a network takes and gives: the names, element types and shapes by which a file's family is recognised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Scale:
    """What a whole number in a quantised tensor stands for: (number - zero) * step (ONNX, DequantizeLinear)."""

    step: float
    zero: float


@dataclass(frozen=True)
class Port:
    """An input or output of a network: its name, element type and shape; None is a dimension that may vary.

    `type` is named as NumPy names it: "float32", "uint8", "int64". `scale` is given where whole numbers stand
    for real ones.
    """

    name: str
    type: str
    shape: tuple[int | None, ...]
    scale: Scale | None = None

    def __str__(self) -> str:
        shape = " x ".join("?" if n is None else str(n) for n in self.shape)
        return f"{self.name} {self.type} {shape or 'scalar'}"

    def fits(self, *shape: int | None) -> bool:
        """Whether arrays of this shape may pass; None fits anything."""
        return len(shape) == len(self.shape) and all(
            mine is None or wanted is None or mine == wanted for mine, wanted in zip(self.shape, shape, strict=True)
        )

    @property
    def is_float(self) -> bool:
        return self.type in ("float32", "float16")

    @property
    def is_real(self) -> bool:
        """Whether its values are real numbers, as they are or quantised."""
        return self.is_float or (self.type in ("int8", "uint8") and self.scale is not None)

    def to_real(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """The real numbers, float32, that `values` of this port stand for."""
        real = values.astype(np.float32, copy=False)
        return real if self.scale is None else (real - np.float32(self.scale.zero)) * np.float32(self.scale.step)

    def from_real(self, real: NDArray[np.float32]) -> NDArray[Any]:
        """`real` as this port takes it."""
        if self.scale is not None:
            limits = np.iinfo(self.type)
            real = np.clip(np.rint(real / np.float32(self.scale.step) + self.scale.zero), limits.min, limits.max)
        return np.ascontiguousarray(real, self.type)


@dataclass(frozen=True)
class Signature:
    """A file's inputs and outputs, in its order, and its metadata. `name` is for messages only."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.inputs))} -> {', '.join(map(str, self.outputs))}"
