"""Compile an ONNX file for the CPU with OpenVINO, and run it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segment.engine import openvino_graph
from segment.engine.signature import TensorSpec
from segment.errors import ModelError


class Network:
    """A compiled ONNX file. Raises ModelError.

    `streams`: number of runs that may take place at the same time, each on an equal share of the threads. They share
    the weights; each has its own buffers, and any of them may execute a run. `inputs` and `outputs` are in the file's
    order. `read_scales`: determine the scales of quantised inputs and outputs.
    """

    def __init__(
        self, path: Path, threads: int, cache: Path | None = None, read_scales: bool = False, streams: int = 1
    ) -> None:
        self._compiled = compile_network(path, threads, cache, streams)
        self.streams = int(self._compiled.get_property("NUM_STREAMS"))  # OpenVINO may create fewer
        self._requests = [self._compiled.create_infer_request() for _ in range(self.streams)]
        ports = [_tensor_spec(port) for port in (*self._compiled.inputs, *self._compiled.outputs)]
        if read_scales and any(port.type in ("int8", "uint8") for port in ports):
            scales = openvino_graph.scales(_read(path))
            ports = [replace(port, scale=scale) for port, scale in zip(ports, scales, strict=True)]
        self.inputs = tuple(ports[: len(self._compiled.inputs)])
        self.outputs = tuple(ports[len(self.inputs) :])

    def run(self, inputs: Mapping[str, NDArray[Any]], request: int = 0) -> tuple[NDArray[Any], ...]:
        """Run the network. The outputs are buffers of the runtime, which are valid until the next run of the request.

        `request`: a number below `streams`; different for runs at the same time. The first run must have ended before
        another thread starts one: pybind11 initializes the conversion of arrays in the first call, and two first calls
        can wait for each other forever.
        """
        result = self._requests[request].infer(dict(inputs), share_inputs=True, share_outputs=True)
        return tuple(result[index] for index in range(len(self.outputs)))

    def release(self) -> None:
        """Free the buffers that are kept between runs. There must be no run at the same time."""
        self._compiled.release_memory()


def disable_telemetry() -> None:
    """Prevent OpenVINO and NNCF from sending usage data: they do not if this package cannot be imported."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def compile_network(path: Path, threads: int, cache: Path | None, streams: int = 1) -> Any:
    """Compile a model file for this machine, or load it from the cache. Raises ModelError."""
    disable_telemetry()
    # oneDNN caches the code generated per layer and image size, by default 1,024 entries of about 50 kB. With few
    # entries, less is held after runs of many sizes. A run of the same size does not need the cache.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "60")
    import openvino

    properties: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",  # the default on CPUs with bf16 is bf16, which changes the results
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": streams,
        # OpenVINO would cache about 6 MB per image size for a Mask R-CNN and never free it. Without the cache, the
        # first run after a change of size takes a little longer.
        "CPU_RUNTIME_CACHE_CAPACITY": 0,
    }
    if cache:
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ModelError(
                f"The folder for compiled models, {cache}, cannot be created: {error.strerror}. Choose another one."
            ) from None
        properties["CACHE_DIR"] = str(cache)
    core = openvino.Core()
    with _locked(cache):
        try:
            return core.compile_model(str(path), "CPU", properties)
        except RuntimeError as error:
            first = error
        try:
            model = _read(path)
            openvino_graph.patch(model)
            return core.compile_model(model, "CPU", properties)
        except RuntimeError:
            reason = str(first).strip().splitlines()[-1]
            raise ModelError(f"The model {path.name} cannot be compiled: {reason}") from None


@contextlib.contextmanager
def _locked(cache: Path | None) -> Iterator[None]:
    """Lock the cache against other processes and threads that compile.

    OpenVINO maps a cached file into memory. If another process wrote the file at the same time, this process would be
    killed by SIGBUS, or read an incomplete file.
    """
    with contextlib.ExitStack() as until_compiled:
        if cache:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                folder = os.open(cache, os.O_RDONLY)
                until_compiled.callback(os.close, folder)
                fcntl.flock(folder, fcntl.LOCK_EX)
        yield


def _read(path: Path) -> Any:
    import openvino

    return openvino.Core().read_model(str(path))


def _tensor_spec(port: Any) -> TensorSpec:
    shape = tuple(n.get_length() if n.is_static else None for n in port.partial_shape)
    # A tensor can have several names; the file's own is the node's, of an output with what OpenVINO appends.
    name = port.node.friendly_name.removesuffix("/sink_port_0")
    name = name if name in port.get_names() else port.any_name
    return TensorSpec(name, np.dtype(port.element_type.to_dtype()).name, shape)
