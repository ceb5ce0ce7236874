"""What is in a TFLite file.

It is read through the generated accessors of the schema, in place: whether two tensors share a buffer or a table is a question of
where it lies.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeexport.errors import MissingExtra, ModelFileError
from edgeexport.inspection import weights
from edgeexport.inspection.model import Computes, ModelReport, OperatorUse, Signature, Value
from edgeexport.inspection.weights import BYTE_INTEGERS, FLOATS, QUANTIZATION, Constant, Product

# Operators that hold constant weights → positions of weights among the inputs, and of the activation that meets them.
# Source: the operators' kernels in tensorflow/lite/kernels.
PRODUCTS: dict[str, tuple[tuple[int, ...], int]] = {
    "FULLY_CONNECTED": ((1,), 0),
    "CONV_2D": ((1,), 0),
    "DEPTHWISE_CONV_2D": ((1,), 0),
    "CONV_3D": ((1,), 0),
    "TRANSPOSE_CONV": ((1,), 2),
    "CONV_3D_TRANSPOSE": ((1,), 2),
    "BATCH_MATMUL": ((0, 1), 0),
    "LSTM": (tuple(range(1, 9)), 0),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (tuple(range(1, 9)), 0),
    "UNIDIRECTIONAL_SEQUENCE_RNN": ((1, 2), 0),
    "RNN": ((1, 2), 0),
    "SVDF": ((1, 2), 0),
}

# No arithmetic on activations: moving and selecting data, its shape and its type, and control flow (whose body is counted itself).
MOVEMENT = frozenset({
    "RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS", "SHAPE", "RANK", "SLICE", "STRIDED_SLICE", "SPLIT", "SPLIT_V", "CONCATENATION",
    "PACK", "UNPACK", "GATHER", "GATHER_ND", "SCATTER_ND", "EMBEDDING_LOOKUP", "EMBEDDING_LOOKUP_SPARSE", "HASHTABLE_LOOKUP", "CAST",
    "BITCAST", "QUANTIZE", "DEQUANTIZE", "FAKE_QUANT", "DENSIFY", "PAD", "PADV2", "MIRROR_PAD", "TILE", "BROADCAST_TO",
    "BROADCAST_ARGS", "FILL", "ZEROS_LIKE", "RANGE", "ONE_HOT", "SELECT", "SELECT_V2", "WHERE", "REVERSE_V2", "REVERSE_SEQUENCE",
    "SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND", "DYNAMIC_UPDATE_SLICE", "TOPK_V2", "ARG_MAX",
    "ARG_MIN", "UNIQUE", "SPARSE_TO_DENSE", "MATRIX_DIAG", "MATRIX_SET_DIAG", "DILATE", "WHILE", "IF", "CALL_ONCE", "CALL",
    "VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "HASHTABLE", "HASHTABLE_FIND", "HASHTABLE_IMPORT", "HASHTABLE_SIZE",
    "STABLEHLO_COMPOSITE",
})
# What a constant may pass through before it is used.
CARRIERS = frozenset({"DEQUANTIZE", "RESHAPE", "TRANSPOSE", "DENSIFY", "CAST"})
# The converter names what it fused by all of its parts, the last operation last.
FUSED = ";;"
# A module in litert-torch's names: its class with its module, and the attribute that holds it.
MODULE = re.compile(r"(?:[\w<>]+\.)+[A-Za-z0-9]+_(\w+)")
QUANTIZED = BYTE_INTEGERS | {"int16"}


def inspect_tflite(path: Path) -> ModelReport:
    """What is in a TFLite file.

    Raises:
        ModelFileError: it is damaged.
        MissingExtra: ai-edge-litert is not installed.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return read_tflite(path, data)
    except ValueError as exc:  # an empty file can't be mapped
        raise ModelFileError(f"The TFLite file {path} is damaged.", why=str(exc), hint="build or download it again") from exc


def read_tflite(path: Path, data: Any) -> ModelReport:
    """What is in the content of a TFLite file, bytes; `path` is where it lies.

    Raises:
        ModelFileError: it is damaged.
        MissingExtra: ai-edge-litert is not installed.
    """
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as exc:
        raise MissingExtra.reader("TFLite", "ai-edge-litert") from exc
    try:
        return _Reader(path.name, data, schema).report()
    except (struct.error, LookupError, ValueError, TypeError, OverflowError, AttributeError) as exc:
        # The accessors check nothing: a wrong offset ends in any of these.
        raise ModelFileError(f"The TFLite file {path} is damaged.", why=str(exc) or type(exc).__name__,
                             hint="build or download it again") from exc


@dataclass(frozen=True)
class _Tensor:
    """A tensor of a subgraph.

    Attributes:
        name: as in the file.
        dtype: NumPy's name of the type.
        shape: as it is allocated at first.
        signature: the shape with ``?`` where it is dynamic.
        scales: by how many it is quantized.
        buffer: where its content lies (offset, size); None where it is not constant.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    signature: tuple[int | str, ...]
    scales: int
    buffer: tuple[int, int] | None


@dataclass(frozen=True)
class _Operator:
    """An operator of a subgraph; inputs and outputs are tensor numbers, -1 for an input left out."""

    name: str
    version: int
    custom: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class _Graph:
    """A subgraph: tensors, operators, and what makes and uses each tensor. A way through it is no longer than its operators are many."""

    def __init__(self, tensors: list[_Tensor], operators: list[_Operator]) -> None:
        self.tensors, self.operators = tensors, operators
        self.maker = {output: operator for operator in operators for output in operator.outputs}
        self.users: dict[int, list[_Operator]] = {}
        for operator in operators:
            for number in operator.inputs:
                self.users.setdefault(number, []).append(operator)

    def constant_behind(self, number: int) -> _Tensor | None:
        """The constant that a tensor is, perhaps dequantized or reshaped."""
        for _ in range(len(self.operators) + 1):
            if number < 0 or self.tensors[number].buffer is not None:
                return self.tensors[number] if number >= 0 else None
            maker = self.maker.get(number)
            if maker is None or maker.name not in CARRIERS or not maker.inputs:
                return None
            number = maker.inputs[0]
        raise ValueError("its operators go in a circle")

    def final_user(self, number: int) -> _Operator | None:
        """The operator that uses a constant, past those that only carry it there."""
        if number not in self.users:
            return None
        user = self.users[number][0]
        for _ in self.operators:
            if user.name not in CARRIERS or not user.outputs or user.outputs[0] not in self.users:
                return user
            user = self.users[user.outputs[0]][0]
        raise ValueError("its operators go in a circle")


class _Reader:
    def __init__(self, name: str, data: Any, schema: Any) -> None:
        self.name, self.data, self.schema = name, data, schema
        self.model = schema.Model.GetRootAs(data, 0)
        self.operator_names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
        self.type_names = {code: name.lower() for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
        self.behind = False
        self.buffers = [self._buffer(index) for index in range(self.model.BuffersLength())]

    def report(self) -> ModelReport:
        """Count everything."""
        graphs = [self._graph(self.model.Subgraphs(index)) for index in range(self.model.SubgraphsLength())]
        if not graphs:
            raise ValueError("it has no subgraph")
        constants = list(self._constants(graphs))
        uses: Counter[OperatorUse] = Counter()
        products = []
        for graph in graphs:
            for operator in graph.operators:
                computes = _computes(operator, graph)
                uses[OperatorUse(name=operator.name, version=operator.version, count=0, computes=computes, custom=operator.custom,
                                 per_channel=_is_per_channel(operator, graph))] += 1
                elements = sum(weights.count(constant.shape) for constant in _product_weights(operator, graph))
                if elements:
                    products.append(Product(elements, computes))
        return ModelReport(
            file=self.name, format="tflite", bytes=len(self.data), producer=_text(self.model.Description()) or None,
            signatures=tuple(self._signatures(graphs)),
            operators=tuple(use.model_copy(update={"count": number}) for use, number in uses.most_common()),
            weight_groups=weights.grouped(constants), float_weights=weights.still_float(constants),
            stored_twice=weights.stored_twice(constants), integer_weight_share=weights.integer_weight_share(constants),
            integer_compute_share=weights.integer_compute_share(products),
            overhead_bytes=len(self.data) - sum(constant.size for constant in constants), weights_behind_flatbuffer=self.behind)

    def _buffer(self, index: int) -> tuple[int, int] | None:
        """Where a buffer's content lies (offset, size) in the file; None where it is empty.

        Source: TFLite's schema.fbs, Buffer: an offset of 0 or 1 says that nothing lies behind the flatbuffer.
        """
        buffer = self.model.Buffers(index)
        if buffer.Offset() > 1:
            self.behind = True
            place = buffer.Offset(), buffer.Size()
        elif buffer.DataLength():
            place = _vector(buffer, 4), buffer.DataLength()
        else:
            return None
        if place[0] + place[1] > len(self.data):
            raise ValueError(f"buffer {index} ends at byte {place[0] + place[1]} of {len(self.data)}")
        return place

    def _graph(self, graph: Any) -> _Graph:
        tensors = []
        for index in range(graph.TensorsLength()):
            tensor = graph.Tensors(index)
            shape = tuple(tensor.Shape(axis) for axis in range(tensor.ShapeLength()))
            dynamic = tuple(tensor.ShapeSignature(axis) for axis in range(tensor.ShapeSignatureLength())) or shape
            table = tensor.Quantization()
            tensors.append(_Tensor(
                name=_text(tensor.Name()), dtype=self.type_names[tensor.Type()], shape=shape,
                signature=tuple("?" if size < 0 else size for size in dynamic),
                scales=table.ScaleLength() if table is not None else 0, buffer=self.buffers[tensor.Buffer()]))
        operators = []
        for index in range(graph.OperatorsLength()):
            operator = graph.Operators(index)
            code = self.model.OperatorCodes(operator.OpcodeIndex())
            # Codes above 127 do not fit into the first field that held them.
            number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
            custom = number == self.schema.BuiltinOperator.CUSTOM
            operators.append(_Operator(
                name=_text(code.CustomCode()) if custom else self.operator_names.get(number, f"operator {number}"),
                version=code.Version(), custom=custom,
                inputs=tuple(operator.Inputs(i) for i in range(operator.InputsLength())),
                outputs=tuple(operator.Outputs(i) for i in range(operator.OutputsLength()))))
        return _Graph(tensors, operators)

    def _signatures(self, graphs: list[_Graph]) -> Iterator[Signature]:
        for index in range(self.model.SignatureDefsLength()):
            signature = self.model.SignatureDefs(index)
            tensors = graphs[signature.SubgraphIndex()].tensors
            yield Signature(
                name=_text(signature.SignatureKey()),
                inputs=tuple(_value(_text(entry.Name()), tensors[entry.TensorIndex()])
                             for entry in map(signature.Inputs, range(signature.InputsLength()))),
                outputs=tuple(_value(_text(entry.Name()), tensors[entry.TensorIndex()])
                              for entry in map(signature.Outputs, range(signature.OutputsLength()))))
        if not self.model.SignatureDefsLength():
            first, tensors = self.model.Subgraphs(0), graphs[0].tensors
            yield Signature(name="main", inputs=tuple(_value(tensors[first.Inputs(i)].name, tensors[first.Inputs(i)])
                                                      for i in range(first.InputsLength())),
                            outputs=tuple(_value(tensors[first.Outputs(i)].name, tensors[first.Outputs(i)])
                                          for i in range(first.OutputsLength())))

    def _constants(self, graphs: list[_Graph]) -> Iterator[Constant]:
        """Each buffer and each quantization table once, described by the first tensor that refers to it."""
        seen: set[tuple[int, int]] = set()
        for index, graph in enumerate(graphs):
            for number, tensor in enumerate(graph.tensors):
                user = graph.final_user(number)
                output = graph.tensors[user.outputs[0]].name if user is not None and user.outputs else ""
                used_by = _module_path(output)
                if tensor.buffer is not None and tensor.buffer not in seen:
                    seen.add(tensor.buffer)
                    names = [part for name in (tensor.name, output) for part in reversed(name.split(FUSED))]
                    group = weights.group_of(names, user.name if user else "")
                    yield self._constant(tensor.name, used_by, group, tensor.dtype, tensor.shape, tensor.buffer)
                table = self.model.Subgraphs(index).Tensors(number).Quantization()
                for label, place in (("scales", self._scales(table)), ("zero points", self._zero_points(table))):
                    if place is not None and place not in seen:
                        seen.add(place)
                        width, dtype = (4, "float32") if label == "scales" else (8, "int64")
                        yield self._constant(f"{tensor.name} {label}", used_by, QUANTIZATION, dtype, (place[1] // width,), place)

    def _constant(self, name: str, used_by: str, group: str, dtype: str, shape: tuple[int, ...], place: tuple[int, int]) -> Constant:
        offset, size = place
        return Constant(name=name, used_by=used_by, group=group, dtype=dtype, shape=shape, elements=weights.count(shape), size=size,
                        content=lambda: self.data[offset:offset + size])

    def _scales(self, table: Any) -> tuple[int, int] | None:
        return (_vector(table, 8), 4 * table.ScaleLength()) if table is not None and table.ScaleLength() else None

    def _zero_points(self, table: Any) -> tuple[int, int] | None:
        return (_vector(table, 10), 8 * table.ZeroPointLength()) if table is not None and table.ZeroPointLength() else None


def _vector(table: Any, slot: int) -> int:
    """Where the elements of a table's vector lie in the file. Source: FlatBuffers' internals, "Tables" (a slot is 4 + 2 x field)."""
    position: int = table._tab.Vector(table._tab.Offset(slot))
    return position


def _text(value: bytes | None) -> str:
    return value.decode("utf-8", "replace") if value is not None else ""


def _module_path(name: str) -> str:
    """`encoder.0.attention.self.query` of a name that litert-torch gave, with `` + `` where it was fused; of any other, what it is before
    the number."""
    paths = []
    for part in name.split(FUSED):
        place = part.partition(";")[0]
        modules = [MODULE.fullmatch(piece) for piece in place.split("/")[1:]]
        paths.append(".".join(module[1] for module in modules if module) if modules and all(modules) else place)
    return " + ".join(dict.fromkeys(paths))


def _value(name: str, tensor: _Tensor) -> Value:
    return Value(name=name, dtype=tensor.dtype, shape=tensor.signature)


def _product_weights(operator: _Operator, graph: _Graph) -> list[_Tensor]:
    """The constant matrices or kernels of a product; empty for other operators."""
    positions = PRODUCTS.get(operator.name, ((), 0))[0]
    found = [graph.constant_behind(operator.inputs[position]) for position in positions if position < len(operator.inputs)]
    return [constant for constant in found if constant is not None and len(constant.shape) >= 2]


def _is_per_channel(operator: _Operator, graph: _Graph) -> bool:
    """Whether it makes floating-point numbers from integer constants with several scales."""
    inputs = [graph.tensors[number] for number in operator.inputs if number >= 0]
    return (any(value.buffer is not None and value.dtype in BYTE_INTEGERS and value.scales > 1 for value in inputs)
            and any(graph.tensors[number].dtype in FLOATS for number in operator.outputs))


def _computes(operator: _Operator, graph: _Graph) -> Computes:
    """How an operator's arithmetic is done."""
    if operator.name in MOVEMENT:
        return "other"
    inputs = [graph.tensors[number] for number in operator.inputs if number >= 0]
    if operator.name in PRODUCTS:
        positions, activation = PRODUCTS[operator.name]
        held = [operator.inputs[position] for position in positions if position < len(operator.inputs) and operator.inputs[position] >= 0]
        if operator.name == "BATCH_MATMUL":  # either side may be the constant
            activation = next((side for side in (0, 1) if graph.constant_behind(operator.inputs[side]) is None), 0)
        if graph.tensors[operator.inputs[activation]].dtype in QUANTIZED:
            return "int8"
        if any(graph.tensors[number].buffer is not None and graph.tensors[number].dtype in BYTE_INTEGERS for number in held):
            return "int8-dynamic"
        behind = [graph.constant_behind(number) for number in held]
        return "weights-int8" if any(constant is not None and constant.dtype in BYTE_INTEGERS for constant in behind) else "float"
    values = [*inputs, *(graph.tensors[number] for number in operator.outputs)]
    if any(value.dtype in FLOATS for value in values):
        return "float"
    return "int8" if any(value.dtype in QUANTIZED and value.scales for value in values) else "other"
