"""Products of activations with constant matrices in an ONNX graph, each with the bias that is added to it."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ._onnx_graph import Graph, attribute

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Product:
    """A product of an activation with a constant matrix.

    Attributes:
        activation: float32 [..., k].
        weights: float32 [k, n].
        bias: float32 [n], zeros where there is none.
        output: float32 [..., n], the bias included.
        nodes: what it consists of.
        name: the module's.
        tied: the table that the weights are the transpose of, if it is one of the tables that rows are looked up in.
    """

    activation: str
    weights: NDArray[Any]
    bias: NDArray[Any]
    output: str
    nodes: tuple[onnx.NodeProto, ...]
    name: str
    tied: str = ""


def find_products(graph: Graph, left: Set[str], tables: Set[str]) -> list[Product]:
    """The products of a graph, in its order.

    Args:
        graph: the graph.
        left: names of nodes to leave out.
        tables: names of constants that rows are looked up in.
    """
    return [product for node in graph.nodes if node.name not in left and (product := _product(graph, node, tables)) is not None]


def _product(graph: Graph, node: onnx.NodeProto, tables: Set[str]) -> Product | None:
    import numpy as np

    if node.op_type not in {"MatMul", "Gemm"} or attribute(node, "transA", 0):
        return None
    weights = graph.constant(node.input[1])
    if weights is None or weights.ndim != 2:
        return None
    name = node.name.partition("/")[0] or node.output[0]
    if node.op_type == "Gemm":
        weights = attribute(node, "alpha", 1.0) * (weights.T if attribute(node, "transB", 0) else weights)
        bias = graph.constant(node.input[2]) if len(node.input) > 2 else np.zeros(1, np.float32)
        if bias is None or bias.size not in {1, weights.shape[1]}:
            return None
        bias = attribute(node, "beta", 1.0) * np.broadcast_to(bias.reshape(-1), weights.shape[1:])
        return Product(node.input[0], weights, bias, node.output[0], (node,), name)
    transposed = graph.maker.get(node.input[1])
    tied = transposed.input[0] if transposed is not None and transposed.input[0] in tables and transposed.op_type == "Transpose" else ""
    product = Product(node.input[0], weights, np.zeros(weights.shape[1], np.float32), node.output[0], (node,), name, tied)
    add = graph.only_user(node.output[0])
    if add is not None and add.op_type == "Add":
        for addend in add.input:
            bias = graph.constant(addend)
            if bias is not None and bias.shape == product.bias.shape:
                return replace(product, bias=bias, output=add.output[0], nodes=(node, add))
    return product


def move_biases(graph: Graph, products: list[Product]) -> dict[str, NDArray[Any]]:
    """Take biases out of products where a normalization's can carry them: an operator less for the same numbers.

    In an encoder that normalizes after each sum, one value h = normalize(x) · γ + β is used by products h W + b, and by a sum h + (z V + c).
    c may as well be added to β; the products then have c W less in their own biases.

    Args:
        graph: the graph; it stays as it is.
        products: of the graph; some are replaced, in place, by such with another bias.

    Returns:
        For each of those normalizations, by its output: the new β, float32 [k].
    """
    import numpy as np

    moved = {}
    for node in graph.nodes:
        beta = graph.constant(node.input[2]) if node.op_type == "LayerNormalization" and len(node.input) > 2 else None
        if beta is None:
            continue
        h = node.output[0]
        users = [index for index, product in enumerate(products) if product.activation == h]
        others = [user for user in graph.users(h) if all(user is not products[index].nodes[0] for index in users)]
        if len(others) != 1 or others[0].op_type != "Add" or graph.is_output(h):
            continue
        addends = set(others[0].input) - {h}
        giver = next((index for index, product in enumerate(products) if product.output in addends and graph.only_user(product.output)), None)
        if giver is None or products[giver].bias.shape != beta.shape or not products[giver].bias.any():
            continue
        # A product without a bias would get one, and an operator more.
        if not all(products[index].bias.any() for index in users):
            continue
        bias = products[giver].bias
        products[giver] = replace(products[giver], bias=np.zeros_like(bias))
        for index in users:
            products[index] = replace(products[index], bias=products[index].bias - bias @ products[index].weights)
        moved[h] = (beta + bias).astype(np.float32)
    return moved
