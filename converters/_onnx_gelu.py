"""GELU in ONNX graphs: where it is, and in the order in which onnxruntime knows it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ._onnx_graph import Graph

if TYPE_CHECKING:
    import onnx

# The least value of x·Φ(x), at x = -0.7518.
MINIMUM = -0.16998


def order_gelus(graph: Graph) -> list[str]:
    """Find each GELU made of an error function and order its factors as ``(x · (1 + erf(x/√2))) · ½``, in place; returns their outputs.

    PyTorch's exporter multiplies the half first, which onnxruntime's fusion does not recognize: the activation then takes five passes over
    memory instead of one.

    Source: onnxruntime/core/optimizer/gelu_fusion.cc.
    """
    return [output for node in graph.nodes if node.op_type == "Erf" and (output := _order(graph, node)) is not None]


def _order(graph: Graph, erf: onnx.NodeProto) -> str | None:
    scaled, added = graph.maker.get(erf.input[0]), graph.only_user(erf.output[0])
    if scaled is None or added is None or added.op_type != "Add" or not _is_number(graph, _other(added, erf.output[0]), 1):
        return None
    x, divisor = scaled.input
    if scaled.op_type != "Div" or not _is_number(graph, divisor, math.sqrt(2)):
        return None
    first = graph.only_user(added.output[0])
    second = graph.only_user(first.output[0]) if first is not None else None
    if first is None or second is None or first.op_type != "Mul" or second.op_type != "Mul":
        return None
    factors = [_other(first, added.output[0]), _other(second, first.output[0])]
    half = next((factor for factor in factors if factor != x), "")
    if x not in factors or not _is_number(graph, half, 0.5):
        return None
    first.input[:] = [x, added.output[0]]
    second.input[:] = [first.output[0], half]
    return str(second.output[0])


def _other(node: onnx.NodeProto, known: str) -> str:
    return str(next((name for name in node.input if name != known), known))


def _is_number(graph: Graph, name: str, number: float) -> bool:
    value = graph.constant(name)
    return value is not None and value.size == 1 and math.isclose(float(value.item()), number, rel_tol=1e-5)
