"""A thin writer of ONNX graphs: each method adds one node and returns the name of its output.

The networks of this package are sequences of calls of these methods, with shapes in comments. Opset 17 is the newest
one whose operators all behave the same in OpenVINO and ONNX Runtime.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8


class Graph:
    """An ONNX graph under construction. Tensors are identified by name.

    The graph is built inside the final model, because onnx.helper would copy every weight twice. `outer`: if this graph
    is the body of a loop, the graph with the loop. Its tensors can be used, and it stores the constants of both.
    """

    def __init__(self, outer: Graph | None = None, prefix: str = "") -> None:
        self._model = onnx.ModelProto(ir_version=IR_VERSION, producer_name="segment")
        self._model.opset_import.append(helper.make_opsetid("", OPSET))
        self._graph = self._model.graph
        self._graph.name = prefix or "segment"
        self._outer, self._prefix = outer, prefix
        self._constants: set[str] = set()
        self._names: set[str] = set()
        self._count = 0

    def op(self, kind: str, *inputs: str, name: str = "", outputs: int = 1, **attributes: Any) -> str:
        """Add a node with one output and return that output's name. An empty input name is an absent input."""
        return self.ops(kind, *inputs, name=name, outputs=outputs, **attributes)[0]

    def ops(self, kind: str, *inputs: str, outputs: int, name: str = "", **attributes: Any) -> list[str]:
        """Add a node with `outputs` outputs and return their names."""
        self._count += 1
        base = self._prefix + (name or f"{kind.lower()}_{self._count}")
        if base in self._names:  # a layer that is used more than once
            base = f"{base}_{self._count}"
        self._names.add(base)
        names = [base] + [f"{base}_{i}" for i in range(1, outputs)]
        self._graph.node.append(helper.make_node(kind, list(inputs), names, name=base, **attributes))
        return names

    def constant(self, value: Any, dtype: Any = None, name: str = "") -> str:
        """Add an initializer and return its name. Equal constants without a name are stored once."""
        if self._outer:
            return self._outer.constant(value, dtype, name)
        array = np.asarray(value, dtype)
        if not name:
            shape = "x".join(map(str, array.shape)) or "scalar"
            name = f"{array.dtype.name}_{shape}_{hashlib.sha256(array.tobytes()).hexdigest()[:16]}"
        if name not in self._constants:
            self._constants.add(name)
            self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def ints(self, *values: int) -> str:
        """A 1-D int64 constant."""
        return self.constant(np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        """A float32 scalar constant."""
        return self.constant(np.float32(value))

    def rename(self, tensor: str, name: str) -> None:
        """Rename a tensor, for example to the name of an output of the graph."""
        for node in self._graph.node:
            node.input[:] = [name if given == tensor else given for given in node.input]
            node.output[:] = [name if given == tensor else given for given in node.output]

    def loop(self, trips: str, body: Callable[[Graph, str], str]) -> str:
        """A loop that stacks the results of body(graph, number) for numbers from 0 to trips - 1: (trips, ...) float32.

        `trips`, `number`: int64 scalars. All results must have the same shape.
        """
        self._count += 1
        name = f"{self._prefix}loop_{self._count}"
        inner = Graph(self, name + "/")
        number, go, go_on = name + "/number", name + "/go", name + "/go_on"
        result = body(inner, number)
        inner._graph.node.append(helper.make_node("Identity", [go], [go_on], go_on))
        inner._graph.input.extend([tensor(number, INT64), tensor(go, BOOL)])
        inner._graph.output.extend([tensor(go_on, BOOL), helper.make_tensor_value_info(result, FLOAT, None)])
        self._graph.node.append(helper.make_node("Loop", [trips, ""], [name], name, body=inner._graph))
        return name

    # Composites.

    def conv(
        self,
        x: str,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
        *,
        name: str,
        weights: str = "",
        **attributes: Any,
    ) -> str:
        """A 2-D convolution with `weight` (out, in / groups, h, w). Nodes that share `weights` store them once."""
        inputs = [x, self.constant(weight, name=(weights or name) + ".weight")]
        if bias is not None:
            inputs.append(self.constant(bias, name=(weights or name) + ".bias"))
        return self.op("Conv", *inputs, name=name, kernel_shape=list(weight.shape[2:]), **attributes)

    def linear(self, x: str, weight: NDArray[np.float32], bias: NDArray[np.float32], *, name: str) -> str:
        """x (N, in) @ weight.T (in, out) + bias."""
        w, b = self.constant(weight, name=name + ".weight"), self.constant(bias, name=name + ".bias")
        return self.op("Gemm", x, w, b, name=name, transB=1)

    def gather(self, x: str, index: str, axis: int = 0) -> str:
        return self.op("Gather", x, index, axis=axis)

    def column(self, x: str, index: int, axis: int = 1) -> str:
        """One column of a matrix as a vector; in general, one index of an axis, which is removed."""
        return self.op("Gather", x, self.constant(np.int64(index)), axis=axis)

    def slice(self, x: str, start: str, stop: str, axis: int = 0) -> str:
        return self.op("Slice", x, start, stop, self.ints(axis))

    def dim(self, x: str, axis: int) -> str:
        """The size of an axis, as int64 of shape (1,)."""
        return self.op("Slice", self.op("Shape", x), self.ints(axis), self.ints(axis + 1))

    def shape(self, *sizes: int | str) -> str:
        """A shape made of numbers and int64 tensors (1,)."""
        if all(isinstance(size, int) for size in sizes):
            return self.ints(*(int(size) for size in sizes))
        return self.op("Concat", *(self.ints(size) if isinstance(size, int) else size for size in sizes), axis=0)

    def reshape(self, x: str, *shape: int) -> str:
        return self.op("Reshape", x, self.ints(*shape))

    def cast(self, x: str, dtype: int) -> str:
        return self.op("Cast", x, to=dtype)

    def minimum(self, a: str, b: str) -> str:
        return self.op("Min", a, b)

    def top(self, scores: str, k: str) -> tuple[str, str]:
        """The min(k, N) highest of `scores` (N,), best first: (values, indices); `k` is int64 (1,)."""
        count = self.minimum(k, self.op("Shape", scores))
        values, indices = self.ops("TopK", scores, count, outputs=2, axis=0)
        return values, indices

    def model(
        self,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        metadata: dict[str, str],
    ) -> onnx.ModelProto:
        """The finished model."""
        self._graph.input.extend(inputs)
        self._graph.output.extend(outputs)
        helper.set_model_props(self._model, metadata)
        return self._model


def tensor(name: str, dtype: int, *shape: int | str) -> onnx.ValueInfoProto:
    """The declaration of an input or output; a string is a dynamic axis."""
    return helper.make_tensor_value_info(name, dtype, list(shape))


FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64
UINT8, BOOL = TensorProto.UINT8, TensorProto.BOOL
