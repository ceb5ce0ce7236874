"""Dynamic INT8 in ONNX graphs: weights stored as INT8, products in integers, each token's activation with a scale of its own.

A scale per token costs no more time than one for the whole tensor, and is far better; and a text's answer does not depend on what else is
in its batch or on padding. In an ONNX graph a product becomes ::

    largest   = max |x| of each token                               float32 [..., 1]
    quantized = QuantizeLinear(x / largest, 1/127, 128)             uint8 [..., k]
    y         = MatMulIntegerToFloat(quantized, weights) · largest + bias

with x rotated before where it may have outliers (:func:`._int8_weights.rotation`). All products of one activation, as query, key and value,
share its quantization and are one product; a bias that a normalization can carry needs no operator. MatMulIntegerToFloat is onnxruntime's own
operator, 2 to 5 % faster than MatMulInteger, Cast and Mul of the standard set. Products of two activations stay float.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import TYPE_CHECKING, Any

from . import _onnx_gelu
from ._int8_weights import ROTATED_TOGETHER, quantize_columns, rotation, unrotated
from ._onnx_graph import Graph, attribute, attributes, ranks
from ._onnx_products import Product, find_products, move_biases

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

# A table with a smaller share of the model's numbers, as of positions or token types, stays float: it would save less space than its three
# more operators cost time.
LEAST_SHARE = 1 / 64
# Zero point where an activation is never below GELU's minimum: at 24 both ends of the range are used alike for usual activations.
GELU_ZERO = 24


@dataclass(frozen=True)
class _Form:
    """How an activation is quantized.

    Attributes:
        zero: the zero point.
        levels: the integer of the largest number, less the zero point.
        minimum: what the activation never falls below; None where it may be anything.
        group: how many neighbours are rotated together; 1 if none.
    """

    zero: int
    levels: int
    minimum: float | None
    group: int


def quantize_dynamically(model: onnx.ModelProto, left: Sequence[str]) -> None:
    """Replace products with constant matrices, and tables that rows are looked up in, by INT8 ones, in place.

    Args:
        model: float32, ONNX opset 18 or later.
        left: names of nodes to leave in float.
    """
    import onnx

    graph = Graph(model.graph)
    minima = dict.fromkeys(_onnx_gelu.order_gelus(graph), _onnx_gelu.MINIMUM)
    for node in graph.nodes:
        if node.op_type in {"Gelu", "Relu"}:
            minima[node.output[0]] = _onnx_gelu.MINIMUM if node.op_type == "Gelu" else 0.0
    _Rewriting(graph, ranks(model), minima, frozenset(left)).write(model.graph)
    if not any(entry.domain == "com.microsoft" for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))


class _Rewriting:
    def __init__(self, graph: Graph, ranks: dict[str, int], minima: dict[str, float], left: frozenset[str]) -> None:
        self.graph, self.ranks, self.minima, self.left = graph, ranks, minima, left
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._by_content: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._least_table = LEAST_SHARE * sum(prod(tensor.dims) for tensor in graph.initializers.values())

    def write(self, target: onnx.GraphProto) -> None:
        """Put the rewritten nodes and what they use into a graph."""
        lookups = {node.output[0]: node for node in self.graph.nodes if self._is_lookup(node)}
        tables = {node.input[0] for node in lookups.values()}
        products = find_products(self.graph, self.left, tables)
        betas = move_biases(self.graph, products)
        groups: dict[tuple[str, str], list[Product]] = {}
        for product in products:
            groups.setdefault((product.activation, product.tied), []).append(product)
        at = {id(group[0].nodes[0]): group for group in groups.values()}
        replaced = {id(node) for product in products for node in product.nodes}
        for node in self.graph.nodes:
            if id(node) in at:
                self._multiply(at[id(node)])
            elif node.output[0] in lookups:
                self._look_up(node)
            elif node.output[0] in betas:
                name = node.name.partition("/")[0]
                beta = self._constant(f"{name}_bias", betas[node.output[0]])
                self._node("LayerNormalization", name, [*node.input[:2], beta], node.output, **attributes(node))
            elif id(node) not in replaced:
                self.nodes.append(node)

        used = {value.name for value in target.output}
        kept = []
        for node in reversed(self.nodes):
            if used.intersection(node.output):
                kept.append(node)
                used.update(node.input)
        constants = [tensor for name, tensor in (self.graph.initializers | self.constants).items() if name in used]
        del target.node[:], target.initializer[:]
        target.node.extend(reversed(kept))
        target.initializer.extend(constants)

    # What is to be replaced

    def _is_lookup(self, node: onnx.NodeProto) -> bool:
        table = self.graph.initializers.get(node.input[0]) if node.op_type == "Gather" and node.name not in self.left else None
        return (table is not None and table.data_type == table.FLOAT and len(table.dims) == 2 and prod(table.dims) >= self._least_table
                and attribute(node, "axis", 0) == 0)

    # What comes instead

    def _multiply(self, products: list[Product]) -> None:
        """One product for all that share an activation."""
        import numpy as np

        first = products[0]
        name = "+".join(product.name for product in products)
        weights = np.concatenate([product.weights for product in products], axis=1)
        bias = np.concatenate([product.bias for product in products])
        form = self._form(first.activation, len(weights), tied=bool(first.tied))
        quantized, largest, zero = self._quantize(first.activation, len(weights), name, form)
        if first.tied:
            table, scales = self._table(first.tied)
            matrix = self._node("Transpose", name, [table], perm=[1, 0])
            scale = self._node("Squeeze", name, [scales, self._constant("last_axis", np.array([-1], np.int64))])
        else:
            integers, steps = quantize_columns(unrotated(weights, form.group))
            matrix, scale = self._constant(f"{name}_quantized", integers), self._constant(f"{name}_scale", steps)
        step = self._constant(f"1/{form.levels}_scale", np.float32(1 / form.levels))
        y = self._node("MatMulIntegerToFloat", name, [quantized, matrix, step, scale, zero], domain="com.microsoft")
        outputs = [product.output for product in products]
        whole = outputs if len(outputs) == 1 else []
        if bias.any():
            y = self._node("Mul", name, [y, largest])
            # Two dimensions, because onnxruntime would fuse a bias of one with a GELU that follows: that kernel is slower than the two.
            y = self._node("Add", name, [y, self._constant(f"{name}_bias", bias[None].astype(np.float32))], whole)
        else:
            y = self._node("Mul", name, [y, largest], whole)
        if len(outputs) > 1:
            sizes = np.array([product.weights.shape[1] for product in products], np.int64)
            self._node("Split", name, [y, self._constant(f"{name}_sizes", sizes)], outputs, axis=-1)

    def _form(self, activation: str, size: int, tied: bool) -> _Form:
        minimum = self.minima.get(activation)
        if minimum is not None:
            zero = GELU_ZERO if minimum < 0 else 0
            return _Form(zero, 255 - zero, minimum, 1)
        # A table that is looked up too is stored as it is. What attention puts out is a mean of many tokens' values, without outliers.
        as_it_is = tied or activation not in self.ranks or self._is_from_attention(activation)
        return _Form(128, 127, None, 1 if as_it_is else gcd(size, ROTATED_TOGETHER))

    def _is_from_attention(self, value: str) -> bool:
        """Whether a value is, but for its shape, a product of two activations."""
        node = self.graph.maker.get(value)
        while node is not None and node.op_type in {"Reshape", "Transpose"}:
            node = self.graph.maker.get(node.input[0])
        return node is not None and node.op_type == "MatMul" and self.graph.constant(node.input[1]) is None

    def _quantize(self, x: str, size: int, name: str, form: _Form) -> tuple[str, str, str]:
        """Quantize an activation with a scale per token: its integers, uint8 [..., size]; what to multiply by, float32 [..., 1]; zero point.

        A token of zeros is divided by zero. Whatever integers that gives, they are multiplied by zero afterwards.
        """
        import numpy as np

        if form.group > 1:
            # A zero stands for the size that the axis has.
            axes = [0] * (self.ranks[x] - 1)
            groups = np.array([*axes, size // form.group, form.group], np.int64)
            x = self._node("Reshape", name, [x, self._constant(f"{name}_groups", groups)])
            x = self._node("MatMul", name, [x, self._constant(f"{form.group}_rotation", rotation(form.group))])
            x = self._node("Reshape", name, [x, self._constant(f"{name}_whole", np.array([*axes, size], np.int64))])
        magnitude = x if form.minimum is not None else self._node("Abs", name, [x])
        largest = self._node("ReduceMax", name, [magnitude, self._constant("last_axis", np.array([-1], np.int64))], keepdims=1)
        if form.minimum:
            # The minimum must be within reach of the zero point.
            least = self._constant("least_largest", np.float32(-form.minimum * form.levels / form.zero))
            largest = self._node("Max", name, [largest, least])
        step = self._constant(f"1/{form.levels}_scale", np.float32(1 / form.levels))
        zero = self._constant(f"{form.zero}_zero_point", np.uint8(form.zero))
        return self._node("QuantizeLinear", name, [self._node("Div", name, [x, largest]), step, zero]), largest, zero

    def _look_up(self, node: onnx.NodeProto) -> None:
        """Rows of an INT8 table, each times its scale."""
        import onnx

        table, scale = self._table(node.input[0])
        rows = self._node("Gather", node.name, [table, node.input[1]])
        rows = self._node("Cast", node.name, [rows], to=onnx.TensorProto.FLOAT)
        self._node("Mul", node.name, [rows, self._node("Gather", node.name, [scale, node.input[1]])], [node.output[0]])

    def _table(self, name: str) -> tuple[str, str]:
        """A table in INT8 with a scale per row, fit to be a product's weights too: int8 [rows, width] and float32 [rows, 1]."""
        table = self.graph.constant(name)
        if table is None:
            raise KeyError(name)
        integers, scale = quantize_columns(table.T)
        return self._constant(f"{name}_quantized", integers.T), self._constant(f"{name}_scale", scale[:, None])

    def _node(self, operator: str, name: str, inputs: Sequence[str], outputs: Sequence[str] = (), **attributes: Any) -> str:
        """Add a node; returns its first output."""
        import onnx

        unique = f"{name}/{operator}_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(operator, list(inputs), list(outputs) or [unique], name=unique, **attributes))
        return str(self.nodes[-1].output[0])

    def _constant(self, name: str, value: np.generic | NDArray[Any]) -> str:
        """Store a constant; one that is stored already, maybe under another name, is used again."""
        import numpy as np
        from onnx.numpy_helper import from_array

        array = np.ascontiguousarray(value)
        content = (array.dtype.str, np.shape(value), hashlib.blake2b(array.tobytes()).digest())
        if content not in self._by_content:
            number, unique = 1, name
            while unique in self.constants or unique in self.graph.initializers:
                number += 1
                unique = f"{number}_{name}"
            self._by_content[content] = unique
            self.constants[unique] = from_array(array.reshape(np.shape(value)), unique)
        return self._by_content[content]
