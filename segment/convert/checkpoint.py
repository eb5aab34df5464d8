"""Read the tensors of a checkpoint file without running code from it.

`.pkl`: the model zoo's format, a pickle of {"model": {name: array}} (detectron2/checkpoint/detection_checkpoint.py).
`.pth`: what `torch.save` writes since 1.6, a zip of data.pkl and one file per storage (torch/serialization.py), read
without torch. It contains the tensors alone, or under a key of _TENSORS.

A pickle can call any Python function. Only names that build plain data are allowed: NumPy's array constructors, torch's
tensor constructor and storage types, and OrderedDict. All others are refused before they are imported.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy._core import multiarray
from numpy.typing import NDArray

from segment.convert.document import shown
from segment.errors import ConversionError

Tensors = dict[str, NDArray[np.generic]]

MAX_PICKLE_BYTES = 64 << 20
"""Maximum size of data.pkl, which contains the names and shapes of a checkpoint's tensors."""
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The first object in a file of torch.save before 1.6 (torch/serialization.py)."""
_TENSORS = ("model", "state_dict")
"""Keys of the tensors: detectron2's and Lightning's."""
_WRAPPERS = ("module.", "model.")
"""Prefixes of all names if the model was saved inside of DistributedDataParallel, which detectron2 removes, too, or of
a LightningModule (detectron2/tools/lightning_train_net.py)."""


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
            f"The checkpoint {path.name} is damaged or truncated ({type(error).__name__}). Download or copy it again."
        ) from None
    if isinstance(document, int) and document == _LEGACY_MAGIC:
        raise ConversionError(
            f"The checkpoint {path.name} has the format of PyTorch 1.5 and earlier. Save it again in the current one: "
            f"torch.save(torch.load('{path.name}', map_location='cpu'), 'new.pth')."
        )
    tensors = _tensors(document, path.name)
    for name, tensor in tensors.items():
        if tensor.dtype.kind not in "fiub":
            raise ConversionError(f"The checkpoint's tensor {name} has the type {tensor.dtype}; it must be numeric.")
    return tensors


def _tensors(document: Any, file: str) -> Tensors:
    """The tensors in what a checkpoint contains, without the prefix of a wrapper. Raises ConversionError."""
    if not isinstance(document, Mapping):
        raise ConversionError(
            f'The checkpoint {file} has the wrong structure; it must be {{"model": {{name: array}}}}.'
        )
    given = next((document[key] for key in _TENSORS if key in document), document)
    items = given.items() if isinstance(given, Mapping) else ()
    tensors = {str(name): value for name, value in items if isinstance(value, np.ndarray)}
    if not tensors:
        raise ConversionError(
            f"The checkpoint {file} contains no tensors at a known place. Its keys are {shown(list(document))}; it "
            'must be {"model": {name: array}}, such as torch.save({"model": model.state_dict()}, "model.pth") writes.'
        )
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


class _Unpickler(pickle.Unpickler):
    """Only builds arrays and plain containers. `storage` looks up persistent ids."""

    def __init__(self, file: Any, storage: Callable[[Sequence[Any]], Any] | None = None) -> None:
        super().__init__(file, encoding="latin1")  # Caffe2's pickles were written by Python 2
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise ConversionError(
                f"The checkpoint is refused, because it would run {module}.{name}. A checkpoint may only contain "
                'arrays and plain containers, such as torch.save({"model": model.state_dict()}, "model.pth") writes.'
            )
        return _ADMITTED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        if self._storage is None:
            raise ConversionError("The checkpoint refers to data outside of its file.")
        return self._storage(pid)


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(1)
        file.seek(0)
        if start not in (b"\x80", b"(", b"}", b"c"):
            raise ConversionError(
                f"{path.name} is not a checkpoint: it is neither a pickle nor a file of torch.save. Save the tensors "
                'of another format, such as safetensors, with torch.save({"model": tensors}, "model.pth").'
            )
        return _Unpickler(file).load()


class _StorageType:
    """Replaces torch.FloatStorage and the other storage types."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype


def _rebuild_tensor(
    storage: NDArray[np.generic], offset: int, size: Sequence[int], stride: Sequence[int], *_: Any
) -> Any:
    """Replaces torch._utils._rebuild_tensor_v2: a view of a storage, as an array."""
    count = math.prod(size)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if count else offset - 1
    # An expanded tensor has more values than its data, and would take the memory of its whole shape.
    if offset < 0 or last >= storage.size or count > storage.size or any(s < 0 for s in stride):
        raise ConversionError("The checkpoint is damaged: a tensor is larger than its data.")
    steps = tuple(s * storage.itemsize for s in stride)
    view = np.lib.stride_tricks.as_strided(storage[offset:], tuple(size), steps, writeable=False)
    if storage.dtype == np.uint16:  # bfloat16: the upper half of a float32
        return (view.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(view)


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    """Replaces torch._utils._rebuild_parameter: the data of a parameter."""
    return data


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        entries = {name.partition("/")[2]: name for name in archive.namelist()}
        if "data.pkl" not in entries:
            raise ConversionError(f"{path.name} is not a checkpoint: it is a zip file without data.pkl.")

        storages: dict[str, NDArray[np.generic]] = {}

        def storage(pid: Sequence[Any]) -> NDArray[np.generic]:
            kind, key, count = pid[1], str(pid[2]), int(pid[4])
            if key in storages:
                return storages[key]
            size = archive.getinfo(entries["data/" + key]).file_size
            if size != count * np.dtype(kind.dtype).itemsize:
                raise ConversionError(f"The checkpoint is damaged: storage {key} has {size:,} bytes, which is wrong.")
            storages[key] = np.frombuffer(_entry(archive, entries["data/" + key], size), kind.dtype)
            return storages[key]

        return _Unpickler(io.BytesIO(_entry(archive, entries["data.pkl"], MAX_PICKLE_BYTES)), storage).load()


def _entry(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """The content of an entry. torch.save does not compress, so the content is not larger than the file."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise ConversionError("The checkpoint is a compressed zip file. Save it again with torch.save.")
    if info.file_size > limit:
        raise ConversionError(
            f"The checkpoint's {name[-40:]} has {info.file_size:,} bytes, more than the maximum of {limit:,}."
        )
    return archive.read(name)


def _encode(text: str, encoding: str) -> bytes:
    """Replaces _codecs.encode, with which pickle protocol 2 writes bytes."""
    return text.encode("latin1")


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: str, *_: Any) -> Any:
    """Replaces numpy._core.numeric._frombuffer, with which pickle protocol 5 writes arrays."""
    return np.frombuffer(buffer, dtype).reshape(shape, order="F" if order == "F" else "C")


_STORAGE_TYPES = {
    "Float": "f4",
    "Double": "f8",
    "Half": "f2",
    "BFloat16": "u2",
    "Long": "i8",
    "Int": "i4",
    "Short": "i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "?",
}
"""NumPy's type of each storage type of torch."""
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", f"{name}Storage"): _StorageType(dtype) for name, dtype in _STORAGE_TYPES.items()},
}
for _core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = multiarray._reconstruct  # noqa: SLF001 - named in pickles
    _ADMITTED[f"{_core}.multiarray", "scalar"] = multiarray.scalar
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = _from_buffer
