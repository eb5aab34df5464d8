"""Read the scales of quantised inputs and outputs from a network's graph, and work around a bug of OpenVINO.

Only some files of other families (YOLO26, int8 exports) need this.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from segment.engine.signature import Scale


def scales(model: Any) -> list[Scale | None]:
    """The scale of each input, then of each output, of an openvino.Model; None if it is not quantised.

    OpenVINO imports DequantizeLinear as Convert, Subtract and Multiply, and QuantizeLinear as FakeQuantize and Convert.
    """
    _fold_constants(model)
    return [*map(_input_scale, model.inputs), *map(_output_scale, model.outputs)]


def patch(model: Any) -> None:
    """Replace Slice before GatherElements by an equivalent VariadicSplit.

    An optimisation of OpenVINO removes such a Slice if it starts at 0, and then fails because the shapes do not match.
    End-to-end exports of YOLO26 contain it.
    """
    from openvino import opset13

    _fold_constants(model)
    for node in model.get_ordered_ops():
        cut = node.input_value(0).get_node() if node.get_type_name() == "GatherElements" else None
        if cut is None or cut.get_type_name() != "Slice" or cut.get_input_size() != 5:
            continue
        start, stop, step, axis = (_number(cut.input_value(at).get_node()) for at in range(1, 5))
        if start == 0 and step == 1 and stop is not None and axis is not None:
            split = opset13.variadic_split(cut.input_value(0), int(axis), [int(stop), -1])
            node.input(0).replace_source_output(split.output(0))


def _input_scale(port: Any) -> Scale | None:
    """The scale in Convert, an optional Subtract (zero), and Multiply or Divide (step) after an input."""
    zero = 0.0
    for expected in (("Convert",), ("Subtract", "Multiply", "Divide"), ("Multiply", "Divide")):
        users = list(port.get_target_inputs())
        node = users[0].get_node() if len(users) == 1 else None
        if node is None or node.get_type_name() not in expected:
            return None
        kind, port = node.get_type_name(), node.output(0)
        number = None if kind == "Convert" else _number(node.input_value(1).get_node())
        if number is not None and kind == "Subtract":
            zero = number
        elif number:
            return Scale(number if kind == "Multiply" else 1 / number, zero)
    return None


def _output_scale(port: Any) -> Scale | None:
    """The scale in FakeQuantize and an optional Convert before an output."""
    node = port.get_node().input_value(0).get_node()
    node = node.input_value(0).get_node() if node.get_type_name() == "Convert" else node
    if node.get_type_name() != "FakeQuantize":
        return None
    low, high, first, last = (_number(node.input_value(at).get_node()) for at in range(1, 5))
    if low is None or high is None or first is None or last is None or high <= low:
        return None
    step = (high - low) / (last - first)
    return Scale(step, first - low / step)


def _number(node: Any) -> float | None:
    """The value of a scalar constant; None for any other node."""
    if node.get_type_name() != "Constant":
        return None
    values = np.asarray(node.data).ravel()
    return float(values[0]) if values.size == 1 else None


def _fold_constants(model: Any) -> None:
    from openvino.passes import ConstantFolding, Manager

    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(model)
