"""The tensors of a checkpoint, by name, with checks of their shapes.

Batch norms are folded into the preceding convolution: at test time they are a fixed affine map per channel. If tensors
are left after the network has been built, the config and the checkpoint belong to different networks.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from segment.convert.architecture import BATCH_NORMS
from segment.errors import ConversionError

BN_EPSILON = 1e-5
"""Default of torch's BatchNorm2d and detectron2's FrozenBatchNorm2d."""
SAME_MODEL = "Config and checkpoint must belong to the same model of detectron2."
_NOT_NEEDED = re.compile(r"num_batches_tracked$|anchor_generator\.|^pixel_(mean|std)$")
"""Buffers that a checkpoint may contain, whose values come from the config."""

Array = NDArray[np.float32]


class Weights:
    """The tensors of a checkpoint. Each can be taken once, except those whose names start with `shared`."""

    def __init__(self, tensors: Mapping[str, NDArray[np.generic]], shared: str = "") -> None:
        self._tensors, self._shared = dict(tensors), shared
        self._taken: set[str] = set()

    def take(self, name: str, *shape: int) -> Array:
        """The tensor `name` as float32 of `shape`. Raises ConversionError."""
        if name not in self._tensors:
            similar = difflib.get_close_matches(name, self._tensors, 1)
            raise ConversionError(
                f"The checkpoint has no tensor {name}, which the config requires."
                + (f" The most similar name is {similar[0]}." if similar else "")
                + f" {SAME_MODEL}"
            )
        tensor = self._tensors[name]
        if not (self._shared and name.startswith(self._shared)):
            del self._tensors[name]
        self._taken.add(name)
        if tensor.shape != shape:
            classes = " Its rows are the classes (MODEL.ROI_HEADS.NUM_CLASSES) and the background."
            raise ConversionError(
                f"The checkpoint's tensor {name} has the shape {tensor.shape}; the config requires {shape}."
                + (classes if ".cls_score." in name else "")
            )
        values = np.asarray(tensor, np.float32)
        if not np.isfinite(values).all():
            raise ConversionError(f"The checkpoint's tensor {name} contains NaN or infinite values.")
        return values

    def replace(self, name: str, change: Callable[[Array], Array]) -> None:
        """Replace the tensor `name` by change(tensor), if it exists."""
        if name in self._tensors:
            self._tensors[name] = change(np.asarray(self._tensors[name], np.float32))

    def conv(
        self, name: str, out: int, into: int, kernel: int, norm: str = "", norm_name: str = "", bias: bool = True
    ) -> tuple[Array, Array | None]:
        """Weight (out, into, kernel, kernel) and bias (out,) of a convolution, with its batch norm folded in.

        In the checkpoint, a convolution has a bias only if it has no norm, and not even then without `bias`. With GN
        and LN the bias is None; see `affine`. `norm_name`: name of the norm in the checkpoint, by default
        `{name}.norm`.
        """
        weight = self.take(f"{name}.weight", out, into, kernel, kernel)
        if not norm:
            return weight, self.take(f"{name}.bias", out) if bias else None
        if norm not in BATCH_NORMS:
            return weight, None
        factor, shift = self.batch_norm(norm_name or f"{name}.norm", out)
        return (weight * factor[:, None, None, None]).astype(np.float32), shift.astype(np.float32)

    def batch_norm(self, norm_name: str, channels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The factor and the shift of each channel by a batch norm, (channels,) each."""
        scale, shift = self.affine(norm_name, channels)
        mean = self.take(f"{norm_name}.running_mean", channels).astype(np.float64)
        variance = self.take(f"{norm_name}.running_var", channels).astype(np.float64)
        factor = scale / np.sqrt(variance + BN_EPSILON)
        return factor, shift - mean * factor

    def affine(self, norm_name: str, channels: int) -> tuple[Array, Array]:
        """Scale and shift (channels,) of the norm called `norm_name`."""
        return self.take(f"{norm_name}.weight", channels), self.take(f"{norm_name}.bias", channels)

    def finish(self) -> None:
        """Raise ConversionError if a tensor has not been used."""
        left = sorted(name for name in self._tensors.keys() - self._taken if not _NOT_NEEDED.search(name))
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise ConversionError(
                f"The checkpoint has tensors that the config does not use: {left[0]}{more}. {SAME_MODEL}"
            )
