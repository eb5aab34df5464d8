"""Read the tensors of a checkpoint file without running code from it.

`.pkl`: the model zoo's format, a pickle of {"model": {name: array}} (detectron2/checkpoint/detection_checkpoint.py).
`.pth`: what `torch.save` writes since 1.6, a zip of data.pkl and one file per storage
(torch/serialization.py); read without torch.

A pickle can call any Python function. Only names that build plain data are allowed: NumPy's array constructors, torch's
tensor constructor and storage types, and OrderedDict. All others are refused before they are imported.
"""

from __future__ import annotations

import collections
import importlib
import io
import math
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segment.errors import ConversionError

Tensors = dict[str, NDArray[np.generic]]

MAX_PICKLE_BYTES = 64 << 20
"""Length of a checkpoint's index: names and shapes."""
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The first object in a file of torch.save before 1.6 (torch/serialization.py)."""


def read(path: Path) -> Tensors:
    """The tensors of a .pkl or .pth checkpoint by name. Raises ConversionError."""
    try:
        document = _read_zip(path) if zipfile.is_zipfile(path) else _read_pickle(path)
    except OSError as error:
        raise ConversionError(f"The checkpoint {path.name} cannot be read: {error.strerror or error}.") from None
    except ConversionError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise ConversionError(
            f"The checkpoint {path.name} is damaged or cut off ({type(error).__name__}); fetch or copy it again."
        ) from None
    if document == _LEGACY_MAGIC:
        raise ConversionError(
            f"The checkpoint {path.name} was saved by a PyTorch older than 1.6. Write it again with a newer one: "
            f"torch.save(torch.load('{path.name}', map_location='cpu'), 'new.pth')."
        )
    model = document.get("model", document) if isinstance(document, Mapping) else None
    if not isinstance(model, Mapping):
        raise ConversionError(f'The checkpoint {path.name} holds no {{"model": {{name: array}}}}.')
    tensors = {str(name): value for name, value in model.items() if isinstance(value, np.ndarray)}
    if not tensors:
        raise ConversionError(f"The checkpoint {path.name} holds no tensors.")
    numeric = {name: t for name, t in tensors.items() if t.dtype.kind in "fiub"}
    for name in tensors.keys() - numeric.keys():
        raise ConversionError(f"The checkpoint's tensor {name} holds {tensors[name].dtype}, not numbers.")
    return numeric


class _Unpickler(pickle.Unpickler):
    """Admits arrays and plain containers; persistent ids are looked up with `storage`."""

    def __init__(self, file: Any, storage: Callable[[Sequence[Any]], Any] | None = None) -> None:
        super().__init__(file, encoding="latin1")  # Caffe2's pickles are Python 2's
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        admitted = _ADMITTED.get((module, name))
        if admitted is None:
            raise ConversionError(
                f"The checkpoint asks to run {module}.{name}. A checkpoint needs arrays and plain containers only, so "
                "this file is refused."
            )
        return admitted()

    def persistent_load(self, pid: Any) -> Any:
        if self._storage is None:
            raise ConversionError("The checkpoint refers to storages outside its own file.")
        return self._storage(pid)


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(1)
        file.seek(0)
        if start not in (b"\x80", b"(", b"}", b"c"):
            raise ConversionError(f"{path.name} is no checkpoint: neither a pickle nor a file of torch.save.")
        return _Unpickler(file).load()


class _StorageType:
    """Stands for torch.FloatStorage and its like."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype


def _rebuild_tensor(
    storage: NDArray[np.generic], offset: int, size: Sequence[int], stride: Sequence[int], *_: Any
) -> Any:
    """torch._utils._rebuild_tensor_v2: a view of a storage, made a plain array."""
    count = math.prod(size)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if count else offset - 1
    if offset < 0 or last >= storage.size or any(s < 0 for s in stride):
        raise ConversionError("A tensor of the checkpoint reaches beyond its storage: the file is damaged.")
    steps = tuple(s * storage.itemsize for s in stride)
    view = np.lib.stride_tricks.as_strided(storage[offset:], tuple(size), steps, writeable=False)
    if storage.dtype == np.uint16:  # bfloat16: the upper half of a float32
        return (view.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(view)


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    """torch._utils._rebuild_parameter: its data."""
    return data


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        entries = {name.partition("/")[2]: name for name in archive.namelist()}
        if "data.pkl" not in entries:
            raise ConversionError(f"{path.name} is a zip, but not one that torch.save writes.")

        storages: dict[str, NDArray[np.generic]] = {}

        def storage(pid: Sequence[Any]) -> NDArray[np.generic]:
            kind, key, count = pid[1], str(pid[2]), int(pid[4])
            if key in storages:
                return storages[key]
            size = archive.getinfo(entries["data/" + key]).file_size
            if size != count * np.dtype(kind.dtype).itemsize:
                raise ConversionError(f"Storage {key} of the checkpoint is cut off, or not of the size that it says.")
            storages[key] = np.frombuffer(_entry(archive, entries["data/" + key], size), kind.dtype)
            return storages[key]

        return _Unpickler(io.BytesIO(_entry(archive, entries["data.pkl"], MAX_PICKLE_BYTES)), storage).load()


def _entry(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """The content of an entry. torch.save stores without compressing, so nothing is larger than the file itself."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise ConversionError("The checkpoint is compressed, which torch.save never does. Save it again with torch.")
    if info.file_size > limit:
        raise ConversionError(f"The checkpoint's {name[-40:]} has {info.file_size:,} bytes, more than {limit:,}.")
    return archive.read(name)


def _array_constructors() -> dict[tuple[str, str], Callable[[], Any]]:
    core = importlib.import_module(
        "numpy._core.multiarray"
    )  # NumPy 2's home of what older pickles call numpy.core.multiarray
    constructors: dict[tuple[str, str], Callable[[], Any]] = {
        ("numpy", "ndarray"): lambda: np.ndarray,
        ("numpy", "dtype"): lambda: np.dtype,
        ("_codecs", "encode"): lambda: _encode,
        ("collections", "OrderedDict"): lambda: collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): lambda: _rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): lambda: _rebuild_parameter,
    }
    for home in ("numpy.core.multiarray", "numpy._core.multiarray"):
        constructors[home, "_reconstruct"] = lambda: core._reconstruct
        constructors[home, "scalar"] = lambda: core.scalar
    constructors["numpy._core.numeric", "_frombuffer"] = lambda: _from_buffer
    constructors["numpy.core.numeric", "_frombuffer"] = lambda: _from_buffer
    types = {"Float": "f4", "Double": "f8", "Half": "f2", "BFloat16": "u2", "Long": "i8", "Int": "i4", "Short": "i2"}
    types |= {"Char": "i1", "Byte": "u1", "Bool": "?"}
    for name, dtype in types.items():
        constructors["torch", name + "Storage"] = lambda dtype=dtype: _StorageType(dtype)  # type: ignore[misc]
    return constructors


def _encode(text: str, encoding: str) -> bytes:
    """_codecs.encode as protocol 2 uses it to write bytes."""
    return text.encode("latin1")


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: str, *_: Any) -> Any:
    """numpy._core.numeric._frombuffer, which protocol 5 writes arrays with."""
    return np.frombuffer(buffer, dtype).reshape(shape, order="F" if order == "F" else "C")


_ADMITTED = _array_constructors()
