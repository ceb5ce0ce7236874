"""What is in an ONNX file."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgeexport.errors import MissingExtra, ModelFileError
from edgeexport.inspection import weights
from edgeexport.inspection.model import Computes, ModelReport, OperatorUse, Signature, Value
from edgeexport.inspection.weights import BYTE_INTEGERS, FLOATS, QUANTIZATION, Constant, Product

if TYPE_CHECKING:
    import onnx

CONTRIB = "com.microsoft."
STANDARD_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview", "ai.onnx.preview.training"})

# Matrix products and convolutions in floating point → positions of their two operands, or of activation and weights.
# Source: onnx/docs/Operators.md; onnxruntime/docs/ContribOperators.md.
FLOAT_PRODUCTS: dict[str, tuple[int, ...]] = {
    "MatMul": (0, 1), "Gemm": (0, 1), "Conv": (0, 1), "ConvTranspose": (0, 1), "LSTM": (0, 1, 2), "GRU": (0, 1, 2), "RNN": (0, 1, 2),
    CONTRIB + "FusedMatMul": (0, 1), CONTRIB + "FusedGemm": (0, 1), CONTRIB + "FusedConv": (0, 1), CONTRIB + "TransposeMatMul": (0, 1),
    CONTRIB + "Attention": (0, 1),
}
# The same in integers.
INTEGER_PRODUCTS: dict[str, tuple[int, ...]] = {
    "MatMulInteger": (0, 1), "ConvInteger": (0, 1), "QLinearMatMul": (0, 3), "QLinearConv": (0, 3), CONTRIB + "QGemm": (0, 3),
    CONTRIB + "QLinearConv": (0, 3), CONTRIB + "QAttention": (0, 1), CONTRIB + "MatMulIntegerToFloat": (0, 1),
    CONTRIB + "DynamicQuantizeMatMul": (0, 1), CONTRIB + "DynamicQuantizeLSTM": (0, 1, 2),
}
# Weights packed in blocks of few bits; `accuracy_level` 4 allows the kernel to quantize the activation and multiply in integers.
BLOCK_PRODUCTS: dict[str, tuple[int, ...]] = {
    CONTRIB + "MatMulNBits": (0, 1), CONTRIB + "MatMulBnb4": (0, 1), CONTRIB + "MatMulFpQ4": (0, 1),
}
PRODUCTS = FLOAT_PRODUCTS | INTEGER_PRODUCTS | BLOCK_PRODUCTS
BLOCK_PACKED = frozenset({CONTRIB + "MatMulNBits", CONTRIB + "GatherBlockQuantized"})

# Inputs that are scales and zero points.
QUANTIZATION_INPUTS: dict[str, tuple[int, ...]] = {
    "QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2), CONTRIB + "QuantizeLinear": (1, 2), CONTRIB + "DequantizeLinear": (1, 2),
    "MatMulInteger": (2, 3), "ConvInteger": (2, 3), "QLinearMatMul": (1, 2, 4, 5, 6, 7), "QLinearConv": (1, 2, 4, 5, 6, 7),
    CONTRIB + "QLinearConv": (1, 2, 4, 5, 6, 7), CONTRIB + "QGemm": (1, 2, 4, 5, 7, 8), CONTRIB + "QAttention": (3, 4, 6, 7),
    CONTRIB + "MatMulIntegerToFloat": (2, 3, 4, 5), CONTRIB + "DynamicQuantizeMatMul": (2, 3),
    CONTRIB + "DynamicQuantizeLSTM": (8, 9, 10, 11), CONTRIB + "MatMulNBits": (2, 3), CONTRIB + "MatMulBnb4": (2,),
    CONTRIB + "GatherBlockQuantized": (2, 3),
}
# How quantizers, onnxruntime's and ours, name what they multiply by outside such operators.
QUANTIZATION_NAMES = ("_scale", "_scales", "_zero_point", "_zero_points", "_rotation")

# No arithmetic on activations: moving and selecting data, its shape and its type, and control flow (whose body is counted itself).
MOVEMENT = frozenset({
    "Constant", "ConstantOfShape", "Identity", "Shape", "Size", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Concat",
    "Split", "Slice", "Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND", "Expand", "Tile", "Pad", "Cast",
    "CastLike", "Range", "OneHot", "EyeLike", "Where", "NonZero", "Compress", "TopK", "ArgMax", "ArgMin", "DepthToSpace",
    "SpaceToDepth", "ReverseSequence", "Trilu", "Dropout", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "If", "Loop",
    "Scan", "BitCast", "TensorScatter", CONTRIB + "QuantizeLinear", CONTRIB + "DequantizeLinear", CONTRIB + "GatherBlockQuantized",
    CONTRIB + "ExpandDims", CONTRIB + "GatherND", CONTRIB + "QLinearConcat", CONTRIB + "Trilu", CONTRIB + "Pad", CONTRIB + "Range",
    CONTRIB + "Unique",
})
DEQUANTIZERS = frozenset({"DequantizeLinear", CONTRIB + "DequantizeLinear"})
QUANTIZERS = frozenset({"QuantizeLinear", CONTRIB + "QuantizeLinear"})
# What a value may pass through and stay what it is.
CARRIERS = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast", "Expand"})


def inspect_onnx(path: Path) -> ModelReport:
    """What is in an ONNX file; weights in files of external data are counted, and read only where two may be equal.

    Raises:
        ModelFileError: it is damaged, or a file of external data is missing.
        MissingExtra: onnx is not installed.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as exc:
        raise MissingExtra.reader("ONNX", "onnx") from exc
    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except DecodeError as exc:
        raise ModelFileError(f"The ONNX file {path} is damaged.", why=str(exc), hint="build or download it again") from exc
    if not model.graph.output or not model.opset_import:
        raise ModelFileError(f"The ONNX file {path} is damaged.", why="it holds no graph with outputs", hint="build or download it again")
    if model.functions:
        import onnx.inliner

        model = onnx.inliner.inline_local_functions(model)
    try:
        return _Reader(path, model).report()
    except (LookupError, TypeError, ValueError) as exc:  # a type, attribute or input that must be there, and is not
        raise ModelFileError(f"The ONNX file {path} is damaged.", why=str(exc), hint="`onnx.checker.check_model` tells more") from exc


class _Reader:
    def __init__(self, path: Path, model: onnx.ModelProto) -> None:
        self.path, self.model = path, model
        self.opsets: dict[str, int] = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
        self.types = _types(model)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, onnx.TensorProto] = {}
        for graph in _with_bodies(model.graph):
            self.nodes += graph.node
            self.tensors |= {tensor.name: tensor for tensor in graph.initializer}
        # Names are unique among a graph and its bodies.
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.tensors[node.output[0]] = node.attribute[0].t
        self.maker = {output: node for node in self.nodes for output in node.output}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.external: dict[str, int] = {}

    def report(self) -> ModelReport:
        """Count everything."""
        constants = list(self._constants())
        uses: Counter[OperatorUse] = Counter()
        products = []
        for node in self.nodes:
            computes = self._computes(node)
            uses[OperatorUse(name=_operator(node), version=self._version(node), count=0, computes=computes,
                             custom=node.domain not in STANDARD_DOMAINS)] += 1
            elements = sum(self._elements(constant) for constant in self._product_weights(node))
            if elements:
                products.append(Product(elements, computes))
        size, external = self.path.stat().st_size, sum(self.external.values())
        graph, inside = self.model.graph, {tensor.name for tensor in self.model.graph.initializer}
        return ModelReport(
            file=self.path.name, format="onnx", bytes=size + external, external_bytes=external, ir_version=self.model.ir_version,
            opsets=self.opsets, producer=f"{self.model.producer_name} {self.model.producer_version}".strip() or None,
            # Before IR version 4 an initializer was listed among the inputs too.
            signatures=(Signature(name="main", inputs=tuple(_value(value) for value in graph.input if value.name not in inside),
                                  outputs=tuple(map(_value, graph.output))),),
            operators=tuple(use.model_copy(update={"count": number}) for use, number in uses.most_common()),
            weight_groups=weights.grouped(constants), float_weights=weights.still_float(constants),
            stored_twice=weights.stored_twice(constants), integer_weight_share=weights.integer_weight_share(constants),
            integer_compute_share=weights.integer_compute_share(products),
            overhead_bytes=size + external - sum(constant.size for constant in constants))

    def _version(self, node: onnx.NodeProto) -> int:
        """The opset in which the operator got its present meaning; of an unknown domain, the opset itself."""
        from onnx import defs

        opset = self.opsets.get(node.domain or "ai.onnx", 1)
        try:
            schema = defs.get_schema(node.op_type, opset, "" if node.domain == "ai.onnx" else node.domain)
        except defs.SchemaError:
            return opset
        return int(schema.since_version)

    # Constants

    def _constants(self) -> Iterator[Constant]:
        seen: set[tuple[str, int]] = set()
        for name, tensor in self.tensors.items():
            external = {entry.key: entry.value for entry in tensor.external_data} if _is_external(tensor) else None
            if external is not None:
                file, place = self._external_file(name, external), (external["location"], int(external.get("offset", 0)))
                if place in seen:
                    continue
                seen.add(place)
                size = int(external.get("length", 0)) or file.stat().st_size - place[1]
                content = partial(_slice_of, file, place[1], size)
            else:
                size, content = len(_data_of(tensor)), partial(_data_of, tensor)
            user, position = self._final_user(name)
            operator = _operator(user) if user is not None else ""
            used_by = user.name or (user.output[0] if user.output else "") if user is not None else ""
            scales = position in QUANTIZATION_INPUTS.get(operator, ()) or name.endswith(QUANTIZATION_NAMES)
            names = (name, used_by, *(user.output if user is not None else ()))
            yield Constant(
                name=name, used_by=used_by, group=QUANTIZATION if scales else weights.group_of(names, operator.removeprefix(CONTRIB)),
                dtype=_dtype(tensor.data_type), shape=tuple(tensor.dims), elements=self._elements(name), size=size, content=content)

    def _external_file(self, name: str, external: dict[str, str]) -> Path:
        location = Path(external.get("location", ""))
        if not location.parts or location.is_absolute() or ".." in location.parts:
            raise ModelFileError(f"The ONNX file {self.path} is damaged.",
                                 why=f"tensor '{name}' lies in '{location}', outside the model's folder")
        file = self.path.parent / location
        if not file.is_file():
            raise ModelFileError(f"The ONNX file {self.path} is not complete.", why=f"tensor '{name}' lies in {location}, which is missing",
                                 hint="keep the files of external data beside the model")
        self.external[str(location)] = file.stat().st_size
        return file

    def _elements(self, name: str) -> int:
        """How many numbers a constant holds; in packed blocks, more than its shape says."""
        tensor = self.tensors[name]
        stored = weights.count(tensor.dims)
        for node in self.users.get(name, ()):
            if _operator(node) in BLOCK_PACKED and tensor.data_type == tensor.UINT8:
                return stored * 8 // _integer(node, "bits", 4)
        return stored

    def _final_user(self, name: str) -> tuple[onnx.NodeProto | None, int]:
        """What uses a constant, past what only carries it there, and as which input."""
        if name not in self.users:
            return None, 0
        for _ in self.nodes:
            node, position = self.users[name][0], list(self.users[name][0].input).index(name)
            if not (node.op_type in CARRIERS or _operator(node) in DEQUANTIZERS) or position > 0 or node.output[0] not in self.users:
                return node, position
            name = node.output[0]
        raise ValueError("its nodes go in a circle")

    def _origin(self, value: str, past_dequantizers: bool) -> tuple[str, onnx.NodeProto | None]:
        """Where a value comes from, before what only carries it: its name there, and the node that made it."""
        for _ in range(len(self.nodes) + 1):
            node = self.maker.get(value)
            if node is None or not (node.op_type in CARRIERS or (past_dequantizers and _operator(node) in DEQUANTIZERS)):
                return value, node
            value = node.input[0]
        raise ValueError("its nodes go in a circle")

    def _constant_behind(self, value: str) -> str | None:
        """The constant that a value is, perhaps dequantized or reshaped."""
        name, _ = self._origin(value, past_dequantizers=True)
        return name if name in self.tensors else None

    # Arithmetic

    def _product_weights(self, node: onnx.NodeProto) -> list[str]:
        """The constant matrices or kernels of a product; empty for other operators, and for what is part of quantizing an activation."""
        positions = PRODUCTS.get(_operator(node), ())
        found = [self._constant_behind(node.input[position]) for position in positions if position < len(node.input)]
        return [name for name in found if name is not None and len(self.tensors[name].dims) >= 2 and not name.endswith(QUANTIZATION_NAMES)]

    def _computes(self, node: onnx.NodeProto) -> Computes:
        """How an operator's arithmetic is done."""
        name = _operator(node)
        if name in MOVEMENT:
            return "other"
        if name in INTEGER_PRODUCTS:
            return "int8-dynamic" if node.op_type.startswith("Dynamic") or self._scaled_at_run_time(node.input[0]) else "int8"
        if name in BLOCK_PRODUCTS:
            return "int8-dynamic" if _integer(node, "accuracy_level", 0) == 4 else "weights-int8"
        if name in FLOAT_PRODUCTS:
            operands = [node.input[position] for position in FLOAT_PRODUCTS[name] if position < len(node.input) and node.input[position]]
            dequantized = [self._is_dequantized(operand) for operand in operands]
            if all(dequantized):
                return "int8-dynamic" if any(map(self._scaled_at_run_time, operands)) else "int8"
            held = [operand for operand, is_int in zip(operands, dequantized, strict=True) if is_int and self._constant_behind(operand)]
            return "weights-int8" if held else "float"
        if name.startswith((CONTRIB + "QLinear", CONTRIB + "QOrdered")):
            return "int8"
        if not self._is_float(node):
            return "other"
        # A runtime makes an integer operator of one that stands between dequantizers and quantizers.
        inputs = [value for value in node.input if value and value not in self.tensors and self.types.get(value, "float32") in FLOATS]
        between = all(map(self._is_dequantized, inputs)) and all(
            _operator(user) in QUANTIZERS for output in node.output for user in self.users.get(output, ()))
        return "int8" if inputs and between and any(output in self.users for output in node.output) else "float"

    def _is_float(self, node: onnx.NodeProto) -> bool:
        """Whether floating-point numbers go in or come out; a type that nobody could infer is taken for one."""
        return any(self.types.get(value, "float32") in FLOATS for value in (*node.input, *node.output) if value)

    def _is_dequantized(self, value: str) -> bool:
        """Whether a value comes out of a dequantizer of integers of at most 8 bits."""
        _, node = self._origin(value, past_dequantizers=False)
        return node is not None and _operator(node) in DEQUANTIZERS and self.types.get(node.input[0]) in BYTE_INTEGERS

    def _scaled_at_run_time(self, value: str) -> bool:
        """Whether a quantized activation got its scale from its own content."""
        _, node = self._origin(value, past_dequantizers=True)
        if node is None:
            return False
        if _operator(node) in QUANTIZERS:
            return self._constant_behind(node.input[1]) is None or self._is_divided_by_its_largest(node.input[0])
        return node.op_type == "DynamicQuantizeLinear"

    def _is_divided_by_its_largest(self, value: str) -> bool:
        """Whether a value was divided by a maximum taken at run time; a constant scale after that is a dynamic one."""
        division = self.maker.get(value)
        if division is None or division.op_type != "Div":
            return False
        divisor = self.maker.get(division.input[1])
        if divisor is not None and divisor.op_type == "Max":
            divisor = self.maker.get(divisor.input[0])
        return divisor is not None and divisor.op_type == "ReduceMax"


def _operator(node: onnx.NodeProto) -> str:
    """The operator's name, with its domain where that is not ai.onnx."""
    return node.op_type if node.domain in {"", "ai.onnx"} else f"{node.domain}.{node.op_type}"


def _integer(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def _with_bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the bodies of its loops and branches."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _with_bodies(attribute.g)
            for body in attribute.graphs:
                yield from _with_bodies(body)


def _types(model: onnx.ModelProto) -> dict[str, str]:
    """Type of each value that can be inferred. The weights are left out: only their types matter, and a model may be large."""
    import onnx

    light = onnx.ModelProto(ir_version=max(model.ir_version, 4), opset_import=model.opset_import)
    light.graph.name = "types"
    light.graph.node.extend(model.graph.node)
    known = {value.name for value in model.graph.input}
    light.graph.input.extend(model.graph.input)
    light.graph.input.extend(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
                             for tensor in model.graph.initializer if tensor.name not in known)
    light.graph.output.extend(model.graph.output)
    with contextlib.suppress(onnx.shape_inference.InferenceError, RuntimeError, ValueError):  # what stays unknown counts as float
        light = onnx.shape_inference.infer_shapes(light)
    return {value.name: _dtype(value.type.tensor_type.elem_type) for graph in _with_bodies(light.graph)
            for value in (*graph.input, *graph.value_info, *graph.output) if value.type.HasField("tensor_type")}


def _dtype(data_type: int) -> str:
    """NumPy's name of an ONNX type. Source: onnx.proto, TensorProto.DataType."""
    import onnx

    name: str = onnx.TensorProto.DataType.Name(data_type).lower()
    return {"float": "float32", "double": "float64", "float8e4m3fn": "float8_e4m3fn", "float8e4m3fnuz": "float8_e4m3fnuz",
            "float8e5m2": "float8_e5m2", "float8e5m2fnuz": "float8_e5m2fnuz", "float4e2m1": "float4_e2m1fn"}.get(name, name)


def _value(value: onnx.ValueInfoProto) -> Value:
    tensor = value.type.tensor_type
    shape = tuple(axis.dim_value if axis.HasField("dim_value") else axis.dim_param or "?" for axis in tensor.shape.dim)
    return Value(name=value.name, dtype=_dtype(tensor.elem_type), shape=shape)


def _is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == tensor.EXTERNAL)


def _data_of(tensor: onnx.TensorProto) -> bytes:
    """The tensor's content as the file holds it."""
    import onnx

    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    data = onnx.TensorProto()
    data.CopyFrom(tensor)
    for name in ("name", "dims", "data_type", "doc_string", "metadata_props"):
        data.ClearField(name)
    return bytes(data.SerializeToString())


def _slice_of(file: Path, offset: int, size: int) -> bytes:
    with file.open("rb") as opened:
        opened.seek(offset)
        return opened.read(size)
