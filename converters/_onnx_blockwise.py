"""Weights in blocks: so many along what is summed over share a scale. What a language model reads of them at each token is what its speed is made of.

Products become MatMulNBits, look-ups of rows GatherBlockQuantized; a table that is the head's matrix too is stored once. One tensor at a time is in
memory.

Source: ONNX Runtime's ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ._chosen_operator import ChosenOperator
from ._onnx_external import MODEL, ExternalReader, ExternalWriter, copy_constants

if TYPE_CHECKING:
    import onnx

CONTRIB = "com.microsoft"
BITS = {"blockwise": 8, "blockwise-4bit": 4}
# As many as llama.cpp's Q8_0 and Q4_0 have.
BLOCK = 32
# Rows that are rounded at once: a table of tokens is a matrix of a gigabyte, of which several copies are made.
SLICE = 4096
# Of MatMulNBits: activations may be rounded to 8 bits, so that products are of integers.
ROUND_ACTIVATIONS = 4


def quantize_blocks(rows: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """A matrix in blocks along its rows.

    Args:
        rows: float32 [rows, columns].
        bits: of a weight, 8 or 4.

    Returns:
        uint8 [rows, blocks, bytes], unsigned with the middle of the range for 0, two 4-bit weights in a byte with the first in the lower half; and
        float32 [rows, blocks], the scales. Columns are filled up to whole blocks with zeros.

    The weight of largest magnitude becomes the lowest number of the range, whatever its sign: there is one more below 0 than above.
    Source: ggml's quantize_row_q4_0_ref for that choice.
    """
    count, columns = rows.shape
    blocks = -(-columns // BLOCK)
    packed, scales = np.empty((count, blocks, BLOCK * bits // 8), np.uint8), np.empty((count, blocks), np.float32)
    for start in range(0, count, SLICE):
        part = slice(start, start + SLICE)
        packed[part], scales[part] = _quantize_slice(rows[part], blocks, bits)
    return packed, scales


def _quantize_slice(rows: np.ndarray, blocks: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    count, columns = rows.shape
    padded = np.zeros((count, blocks * BLOCK), np.float32)
    padded[:, :columns] = rows
    cut = padded.reshape(count, blocks, BLOCK)
    middle = 1 << (bits - 1)
    largest = np.take_along_axis(cut, np.abs(cut).argmax(axis=2)[:, :, None], axis=2)[:, :, 0]
    scales = (largest / -middle).astype(np.float32)
    inverse = np.divide(1.0, scales, out=np.zeros_like(scales), where=scales != 0)
    whole = np.rint(cut * inverse[:, :, None]) + middle
    packed = np.clip(whole, 0, 2 * middle - 1).astype(np.uint8)
    return packed if bits == 8 else packed[:, :, 0::2] | (packed[:, :, 1::2] << 4), scales


@dataclass
class _Rewriter:
    """A graph whose products and look-ups are made blockwise, one after another."""

    graph: onnx.GraphProto
    reader: ExternalReader
    writer: ExternalWriter
    replaced: dict[str, list[onnx.TensorProto]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tensors = {tensor.name: tensor for tensor in self.graph.initializer}
        self.transposed = {node.output[0]: node.input[0] for node in self.graph.node
                           if node.op_type == "Transpose" and node.input[0] in self.tensors and len(self.tensors[node.input[0]].dims) == 2}

    def product(self, node: onnx.NodeProto, bits: int) -> onnx.NodeProto | None:
        """A MatMul or Gemm with a constant matrix as MatMulNBits; None where it is none, or has other options than it can have."""
        import onnx

        options = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        if options.get("alpha", 1.0) != 1.0 or options.get("beta", 1.0) != 1.0 or options.get("transA", 0):
            return None
        name, across = self._matrix(node.input[1])
        if name is None:
            return None
        rows = bool(options.get("transB", 0)) != across  # whether the stored matrix is [out, in]
        outputs, inputs = self.tensors[name].dims if rows else reversed(self.tensors[name].dims)
        stored = self._stored(name, rows, bits)
        bias = ["", "", node.input[2]] if len(node.input) > 2 else []  # behind zero points and an order of columns, of which there are none
        return onnx.helper.make_node(
            "MatMulNBits", [node.input[0], *stored, *bias], list(node.output), node.name.replace(node.op_type, "MatMulNBits"), domain=CONTRIB,
            K=inputs, N=outputs, bits=bits, block_size=BLOCK, accuracy_level=ROUND_ACTIVATIONS)

    def look_up(self, node: onnx.NodeProto, bits: int) -> list[onnx.NodeProto] | None:
        """A Gather of rows of a constant table as GatherBlockQuantized; None where it is none."""
        import onnx

        axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 0)
        name, across = self._matrix(node.input[0])
        if name is None or axis != 0:
            return None
        count, width = (int(size) for size in (reversed(self.tensors[name].dims) if across else self.tensors[name].dims))
        if width % BLOCK:  # what fills up the last block would come out with the row
            return None
        weights, scales = self._stored(name, not across, bits)
        flat = f"{weights}_rows"
        shape = self.writer.tensor(f"{flat}_shape", np.array([count, width * bits // 8], np.int64))
        self.replaced[name].append(shape)
        return [onnx.helper.make_node("Reshape", [weights, shape.name], [flat], f"{node.name}_rows"),
                onnx.helper.make_node("GatherBlockQuantized", [flat, node.input[1], scales], list(node.output),
                                      node.name.replace("Gather", "GatherBlockQuantized"), domain=CONTRIB, bits=bits, block_size=BLOCK,
                                      gather_axis=0, quantize_axis=1)]

    def _matrix(self, value: str) -> tuple[str | None, bool]:
        """The stored matrix that a value is, and whether it is that matrix transposed."""
        name = self.transposed.get(value, value)
        known = name in self.tensors and len(self.tensors[name].dims) == 2
        return (name if known else None), value in self.transposed

    def _stored(self, name: str, rows: bool, bits: int) -> list[str]:
        """The names of a matrix's packed weights and scales, which are written the first time."""
        names = [f"{name}_q{bits}", f"{name}_q{bits}_scales"]
        made = self.replaced.setdefault(name, [])
        if not any(tensor.name == names[0] for tensor in made):
            values = self.reader.array(self.tensors[name])
            packed, scales = quantize_blocks(values if rows else values.T, bits)
            made += [self.writer.tensor(names[0], packed), self.writer.tensor(names[1], scales)]
        return names


def quantize_blockwise(path: Path, chosen: Iterable[ChosenOperator], target: Path) -> None:
    """Write a model with the weights of operators in blocks.

    Args:
        path: the folder of the float32 model.
        chosen: the operators that are not left in float.
        target: the folder to write to.
    """
    import onnx

    schemes = {each.scope: each.scheme for each in chosen}
    model = onnx.load(path / MODEL, load_external_data=False)
    with ExternalWriter(target) as writer:
        rewriter = _Rewriter(model.graph, ExternalReader(path), writer)
        nodes: list[onnx.NodeProto] = []
        # Look-ups last, so that a table which is the head's matrix too is laid out as the product wants it.
        changed: dict[str, list[onnx.NodeProto]] = {}
        for lookups in (False, True):
            for node in model.graph.node:
                if node.name in schemes and (node.op_type == "Gather") == lookups:
                    bits = BITS[schemes[node.name]]
                    made = rewriter.look_up(node, bits) if lookups else rewriter.product(node, bits)
                    if made is not None:
                        changed[node.name] = made if isinstance(made, list) else [made]
        for node in model.graph.node:
            nodes += changed.get(node.name, [node])
        used = {name for node in nodes for name in node.input} | {value.name for value in model.graph.output}
        nodes = [node for node in nodes if any(output in used for output in node.output)]
        used = {name for node in nodes for name in node.input}
        for name, made in rewriter.replaced.items():
            if name in used:  # by an operator that is left in float
                made.append(writer.tensor(name, rewriter.reader.array(rewriter.tensors[name])))
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        if not any(entry.domain == CONTRIB for entry in model.opset_import):
            model.opset_import.append(onnx.helper.make_opsetid(CONTRIB, 1))
        copy_constants(model, rewriter.reader, writer, rewriter.replaced)
        writer.save(model)
