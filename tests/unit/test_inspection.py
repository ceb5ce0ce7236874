"""What the inspection says of small models whose figures are worked out by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeexport.errors import MissingExtra, ModelFileError
from edgeexport.inspection import ModelReport, inspect_file
from edgeexport.inspection.model import OperatorUse
from edgeexport.inspection.weights import group_of
from edgeexport.runner.compatibility import problems

RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    """Random float32 numbers."""
    return RANDOM.standard_normal(shape).astype(np.float32)


def bytes8(*shape: int) -> np.ndarray:
    """Random int8 numbers."""
    return RANDOM.integers(-128, 128, shape).astype(np.int8)


def use(report: ModelReport, name: str) -> OperatorUse:
    """The only entry for an operator."""
    (found,) = (entry for entry in report.operators if entry.name == name)
    return found


def group(report: ModelReport, name: str, dtype: str) -> tuple[int, int, int]:
    """Tensors, elements and bytes of a group."""
    (found,) = (entry for entry in report.weight_groups if (entry.group, entry.dtype) == (name, dtype))
    return found.tensors, found.elements, found.bytes


def assert_bytes_add_up(report: ModelReport) -> None:
    """Every byte is a constant's or overhead."""
    assert report.overhead_bytes > 0
    assert sum(entry.bytes for entry in report.weight_groups) + report.overhead_bytes == report.bytes


# ONNX


def onnx_file(path: Path, nodes: list[Any], constants: dict[str, np.ndarray], opset: int = 18, ir: int = 8, **domains: int) -> Path:
    """An ONNX file with input x [batch, 4] and output y."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes, "main", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()])
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(name.replace("_", "."), version) for name, version in domains.items())]
    model = helper.make_model(graph, opset_imports=opsets, producer_name="test", producer_version="1")
    model.ir_version = ir
    onnx.save_model(model, str(path))
    return path


def node(operator: str, inputs: str, outputs: str, name: str = "", **attributes: Any) -> Any:
    """An ONNX node; names are separated by blanks."""
    onnx = pytest.importorskip("onnx")
    return onnx.helper.make_node(operator, inputs.split(), outputs.split(), name=name, **attributes)


def test_float_onnx(tmp_path: Path) -> None:
    weight, bias = floats(4, 8), floats(8)
    path = onnx_file(tmp_path / "m.onnx", [node("MatMul", "x w", "h", "encoder.layer.0.intermediate.dense/MatMul"),
                                           node("Add", "h encoder.layer.0.intermediate.dense.bias", "y")],
                     {"w": weight, "encoder.layer.0.intermediate.dense.bias": bias})
    report = inspect_file(path)
    assert (report.format, report.file, report.bytes) == ("onnx", "m.onnx", path.stat().st_size)
    assert (report.ir_version, report.opsets, report.producer) == (8, {"ai.onnx": 18}, "test 1")
    (signature,) = report.signatures
    assert (signature.name, [value.model_dump() for value in signature.inputs]) == (
        "main", [{"name": "x", "dtype": "float32", "shape": ("batch", 4)}])
    assert use(report, "MatMul") == OperatorUse(name="MatMul", version=13, count=1, computes="float")
    assert use(report, "Add").version == 14
    assert group(report, "feed-forward", "float32") == (2, 32 + 8, 160)
    assert report.overhead_bytes == path.stat().st_size - 160
    assert (report.integer_weight_share, report.integer_compute_share) == (0, 0)
    (left,) = report.float_weights
    assert (left.name, left.used_by, left.shape, left.bytes) == ("w", "encoder.layer.0.intermediate.dense/MatMul", (4, 8), 128)
    assert ModelReport.model_validate_json(report.model_dump_json()) == report


def test_dynamic_int8_onnx_with_a_weight_left_in_float(tmp_path: Path) -> None:
    report = inspect_file(onnx_file(tmp_path / "m.onnx", [
        node("DynamicQuantizeLinear", "x", "q s z"), node("MatMulInteger", "q w_quantized z", "i"), node("Cast", "i", "f", to=1),
        node("Mul", "f s", "h"), node("MatMul", "h forgotten", "y"),
    ], {"w_quantized": bytes8(4, 8), "forgotten": floats(8, 2)}))
    assert use(report, "MatMulInteger").computes == "int8-dynamic"
    assert use(report, "MatMul").computes == "float"
    assert {use(report, name).computes for name in ("Cast", "DynamicQuantizeLinear")} == {"other"}
    assert report.integer_weight_share == pytest.approx(32 / 48)
    assert report.integer_compute_share == pytest.approx(32 / 48)
    assert [(left.name, left.bytes) for left in report.float_weights] == [("forgotten", 64)]
    assert_bytes_add_up(report)


QDQ = [("QuantizeLinear", "x x_scale x_zero", "xq"), ("DequantizeLinear", "xq x_scale x_zero", "xd"),
       ("DequantizeLinear", "w w_scale w_zero", "wd"), ("MatMul", "xd wd", "y")]
QDQ_CONSTANTS = {"w": bytes8(4, 8), "w_scale": np.float32(0.1), "w_zero": np.int8(0), "x_scale": np.float32(0.2), "x_zero": np.int8(0)}


def test_quantized_and_dequantized_on_both_sides_is_integer_arithmetic(tmp_path: Path) -> None:
    report = inspect_file(onnx_file(tmp_path / "m.onnx", [node(*entry) for entry in QDQ], QDQ_CONSTANTS))
    assert use(report, "MatMul").computes == "int8"
    assert (report.integer_weight_share, report.integer_compute_share) == (1, 1)
    assert group(report, "quantization", "float32") == (2, 2, 8)
    assert group(report, "quantization", "int8") == (2, 2, 2)


def test_a_scale_from_the_activation_itself_is_dynamic(tmp_path: Path) -> None:
    nodes = [node("Abs", "x", "a"), node("ReduceMax", "a", "x_scale", keepdims=0), *(node(*entry) for entry in QDQ)]
    constants = {name: value for name, value in QDQ_CONSTANTS.items() if name != "x_scale"}
    report = inspect_file(onnx_file(tmp_path / "m.onnx", nodes, constants))
    assert use(report, "MatMul").computes == "int8-dynamic"
    assert report.integer_compute_share == 1


def test_dequantized_weights_alone_are_float_arithmetic(tmp_path: Path) -> None:
    nodes = [node("DequantizeLinear", "w w_scale w_zero", "wd"), node("Transpose", "wd", "wt", perm=[1, 0]), node("MatMul", "x wt", "y")]
    report = inspect_file(onnx_file(tmp_path / "m.onnx", nodes, QDQ_CONSTANTS | {"w": bytes8(8, 4)}))
    assert use(report, "MatMul").computes == "weights-int8"
    assert (report.integer_weight_share, report.integer_compute_share) == (1, 0)


def test_activations_of_16_bits_are_no_int8_arithmetic(tmp_path: Path) -> None:
    constants = QDQ_CONSTANTS | {"x_zero": np.uint16(0)}
    report = inspect_file(onnx_file(tmp_path / "m.onnx", [node(*entry) for entry in QDQ], constants, opset=21, ir=10))
    assert use(report, "MatMul").computes == "weights-int8"
    assert report.integer_compute_share == 0


def test_an_operator_between_dequantizers_and_quantizers_is_integer_arithmetic(tmp_path: Path) -> None:
    nodes = [node("Abs", "x", "a"), node("QuantizeLinear", "a x_scale x_zero", "xq"), node("DequantizeLinear", "xq x_scale x_zero", "xd"),
             node("Add", "xd xd", "s"), node("QuantizeLinear", "s x_scale x_zero", "sq"),
             node("DequantizeLinear", "sq x_scale x_zero", "sd"), node("Relu", "sd", "y")]
    report = inspect_file(onnx_file(tmp_path / "m.onnx", nodes, QDQ_CONSTANTS))
    assert use(report, "Add").computes == "int8"
    assert use(report, "Abs").computes == "float"  # its input is not quantized
    assert use(report, "Relu").computes == "float"  # nor its output


def test_packed_blocks_count_their_elements(tmp_path: Path) -> None:
    nodes = [node("MatMulNBits", "x packed scales", "y", domain="com.microsoft", K=32, N=2, bits=4, block_size=32)]
    report = inspect_file(onnx_file(tmp_path / "m.onnx", nodes, {
        "packed": RANDOM.integers(0, 256, (2, 1, 16)).astype(np.uint8), "scales": floats(2, 1)}, com_microsoft=1))
    assert report.opsets == {"ai.onnx": 18, "com.microsoft": 1}
    assert use(report, "com.microsoft.MatMulNBits") == OperatorUse(
        name="com.microsoft.MatMulNBits", version=1, count=1, computes="weights-int8", custom=True)
    assert group(report, "other", "uint8") == (1, 2 * 32, 32)
    assert group(report, "quantization", "float32")[1] == 2
    assert report.integer_weight_share == 1


def test_arithmetic_on_shapes_is_no_arithmetic(tmp_path: Path) -> None:
    nodes = [node("Shape", "x", "s"), node("Mul", "s two", "t"), node("Div", "t two", "u"), node("Reshape", "x u", "r"),
             node("Relu", "r", "y")]
    report = inspect_file(onnx_file(tmp_path / "m.onnx", nodes, {"two": np.array([2], np.int64)}))
    assert {entry.name: entry.computes for entry in report.operators} == {
        "Shape": "other", "Mul": "other", "Div": "other", "Reshape": "other", "Relu": "float"}
    assert (report.integer_weight_share, report.integer_compute_share) == (None, None)


def test_bodies_of_branches_count(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    def branch(name: str) -> Any:
        return helper.make_graph([node("MatMul", f"x {name}_w", f"{name}_y")], name, [],
                                 [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)],
                                 [numpy_helper.from_array(floats(4, 4), f"{name}_w")])

    choice = node("If", "flag", "y", then_branch=branch("a"), else_branch=branch("b"))
    path = onnx_file(tmp_path / "m.onnx", [choice], {"flag": np.array(True)})
    report = inspect_file(path)
    assert use(report, "MatMul").count == 2
    assert group(report, "other", "float32") == (2, 32, 128)


def test_equal_weights_stored_twice_are_found(tmp_path: Path) -> None:
    table = floats(16, 16)
    nodes = [node("Gemm", "x first", "a"), node("Gemm", "a second", "b"), node("Gemm", "b third", "c"), node("Add", "c one", "d"),
             node("Add", "d two", "y")]
    report = inspect_file(onnx_file(tmp_path / "m.onnx", nodes, {
        "first": table, "second": floats(16, 16), "third": table, "one": np.float32(1), "two": np.float32(1)}))
    (twice,) = report.stored_twice
    assert (twice.names, twice.bytes, twice.wasted_bytes) == (("first", "third"), 1024, 1024)


def test_external_data_counts_and_must_be_there(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")

    path = onnx_file(tmp_path / "inside.onnx", [node("MatMul", "x w", "h"), node("MatMul", "h v", "y")],
                     {"w": np.ones((4, 512), np.float32), "v": np.ones((512, 4), np.float32)})
    inside = inspect_file(path)
    split = tmp_path / "split.onnx"
    onnx.save_model(onnx.load_model(str(path)), str(split), save_as_external_data=True, location="weights.bin", size_threshold=0)
    outside = inspect_file(split)
    assert outside.external_bytes == (tmp_path / "weights.bin").stat().st_size >= 16384
    assert outside.bytes == split.stat().st_size + outside.external_bytes
    assert outside.weight_groups == inside.weight_groups
    assert outside.stored_twice == inside.stored_twice != ()
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelFileError, match="not complete") as caught:
        inspect_file(split)
    assert "weights.bin" in str(caught.value)


def test_tensors_that_lie_in_one_place_count_once(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    path = onnx_file(tmp_path / "m.onnx", [node("Gemm", "x first", "a"), node("Gemm", "a second", "y")],
                     {"first": floats(16, 16), "second": floats(16, 16)})
    model = onnx.load_model(str(path))
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = tensor.EXTERNAL
        tensor.external_data.add(key="location", value="weights.bin")
        tensor.external_data.add(key="offset", value="64")
        tensor.external_data.add(key="length", value="1024")
    path.write_bytes(model.SerializeToString())
    (tmp_path / "weights.bin").write_bytes(bytes(64 + 1024))
    report = inspect_file(path)
    assert group(report, "other", "float32") == (1, 256, 1024)
    assert report.stored_twice == ()
    assert report.overhead_bytes == path.stat().st_size + 64


def test_external_data_outside_the_folder_is_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")

    path = onnx_file(tmp_path / "m.onnx", [node("MatMul", "x w", "y")], {"w": floats(4, 4)})
    model = onnx.load_model(str(path))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = tensor.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match="damaged") as caught:
        inspect_file(path)
    assert "outside the model's folder" in str(caught.value)


# TFLite


class Tflite:
    """Builds a TFLite model. Tensors that are given the same array share a buffer, also between subgraphs."""

    def __init__(self) -> None:
        self.schema = schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
        self.model = schema.ModelT()
        self.model.version, self.model.description = 3, "test"
        self.model.operatorCodes, self.model.subgraphs, self.model.signatureDefs = [], [], []
        self.model.buffers = [schema.BufferT()]
        self._buffers: dict[int, int] = {}

    def graph(self, name: str | None = None) -> None:
        """Start a subgraph, with a signature if it has a name. Tensor 0 will be its input, the last tensor its output."""
        graph = self.schema.SubGraphT()
        graph.tensors, graph.operators, graph.inputs, graph.outputs = [], [], [0], []
        self.model.subgraphs.append(graph)
        if name:
            signature = self.schema.SignatureDefT()
            signature.signatureKey, signature.subgraphIndex = name, len(self.model.subgraphs) - 1
            signature.inputs, signature.outputs = [self.schema.TensorMapT()], []
            signature.inputs[0].name, signature.inputs[0].tensorIndex = "x", 0
            self.model.signatureDefs.append(signature)

    def tensor(self, name: str, dtype: str, shape: tuple[int, ...], array: np.ndarray | None = None, scales: int = 0,
               table: Any = None, signature: tuple[int, ...] | None = None) -> int:
        """A tensor's number."""
        tensor = self.schema.TensorT()
        tensor.name, tensor.type, tensor.shape, tensor.buffer = name, getattr(self.schema.TensorType, dtype), list(shape), 0
        tensor.shapeSignature = signature
        if array is not None:
            if id(array) not in self._buffers:
                buffer = self.schema.BufferT()
                buffer.data = array.view(np.uint8).ravel()
                self._buffers[id(array)] = len(self.model.buffers)
                self.model.buffers.append(buffer)
            tensor.buffer = self._buffers[id(array)]
        if scales:
            tensor.quantization = self.schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [0.1] * scales, [0] * scales
        tensors = self.model.subgraphs[-1].tensors
        tensors.append(tensor)
        return len(tensors) - 1

    def operator(self, name: str, inputs: list[int], output: int, version: int = 1, custom: str | None = None) -> None:
        """An operator of the subgraph."""
        code = self.schema.OperatorCodeT()
        code.builtinCode, code.version, code.customCode = getattr(self.schema.BuiltinOperator, name), version, custom
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        operator = self.schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = len(self.model.operatorCodes), inputs, [output]
        self.model.operatorCodes.append(code)
        self.model.subgraphs[-1].operators.append(operator)
        self.model.subgraphs[-1].outputs = [output]

    def pack(self) -> bytes:
        """The file's content."""
        import flatbuffers

        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def save(self, path: Path) -> Path:
        """Write the file."""
        path.write_bytes(self.pack())
        return path


def fully_connected(model: Tflite, x: str, weight: np.ndarray, bias: np.ndarray | None, scales: int, version: int = 5,
                    module: str = "model/m.Layer_0/m.Intermediate_intermediate/torch.nn.modules.linear.Linear_dense") -> None:
    """A subgraph's only operator: x [1, in] times weight [out, in]."""
    outs, ins = weight.shape
    dtype = {"int8": "INT8", "float32": "FLOAT32"}[weight.dtype.name]
    inputs = [model.tensor("x", x, (1, ins), scales=1 if x == "INT8" else 0),
              model.tensor("arith.constant", dtype, weight.shape, weight, scales)]
    if bias is not None:
        inputs.append(model.tensor(f"{module};", "FLOAT32", (outs,), bias))
    model.operator("FULLY_CONNECTED", inputs, model.tensor(f"{module};1", x, (1, outs), scales=1 if x == "INT8" else 0), version)


def test_shared_weights_of_two_signatures_count_once(tmp_path: Path) -> None:
    weight, bias = bytes8(8, 4), floats(8)
    model = Tflite()
    for name in ("seq_16", "seq_32"):
        model.graph(name)
        fully_connected(model, "FLOAT32", weight, bias, scales=8)
    path = model.save(tmp_path / "m.tflite")
    report = inspect_file(path)
    assert (report.format, report.bytes, report.producer, report.ir_version) == ("tflite", path.stat().st_size, "test", None)
    assert [(signature.name, signature.inputs[0].shape) for signature in report.signatures] == [("seq_16", (1, 4)), ("seq_32", (1, 4))]
    assert report.operators == (OperatorUse(name="FULLY_CONNECTED", version=5, count=2, computes="int8-dynamic", per_channel=True),)
    assert group(report, "feed-forward", "int8") == (1, 32, 32)
    assert group(report, "feed-forward", "float32") == (1, 8, 32)
    # Quantization tables are not shared in this file: 2 x 8 scales of 4 bytes and zero points of 8.
    assert group(report, "quantization", "float32") == (2, 16, 64)
    assert group(report, "quantization", "int64") == (2, 16, 128)
    assert report.overhead_bytes == path.stat().st_size - 32 - 32 - 64 - 128
    assert (report.integer_weight_share, report.integer_compute_share) == (1, 1)
    assert report.float_weights == ()
    assert not report.weights_behind_flatbuffer


def test_dequantized_weights_are_float_arithmetic_in_tflite(tmp_path: Path) -> None:
    model = Tflite()
    model.graph("main")
    x = model.tensor("x", "FLOAT32", (1, 4))
    weight = model.tensor("w", "INT8", (8, 4), bytes8(8, 4), scales=8)
    dequantized = model.tensor("w_dequant", "FLOAT32", (8, 4))
    model.operator("DEQUANTIZE", [weight], dequantized, version=5)
    model.operator("FULLY_CONNECTED", [x, dequantized, -1], model.tensor("lm_head/dense", "FLOAT32", (1, 8)), version=6)
    report = inspect_file(model.save(tmp_path / "m.tflite"))
    assert use(report, "FULLY_CONNECTED").computes == "weights-int8"
    assert not use(report, "FULLY_CONNECTED").per_channel
    assert use(report, "DEQUANTIZE").computes == "other"
    assert group(report, "head", "int8") == (1, 32, 32)
    assert (report.integer_weight_share, report.integer_compute_share) == (1, 0)


def test_static_int8_and_a_weight_left_in_float(tmp_path: Path) -> None:
    model = Tflite()
    model.graph()
    fully_connected(model, "INT8", bytes8(8, 4), None, scales=8)
    model.graph()
    fully_connected(model, "FLOAT32", floats(2, 8), None, scales=0, module="model/m.Head_classifier")
    report = inspect_file(model.save(tmp_path / "m.tflite"))
    assert {entry.computes for entry in report.operators} == {"int8", "float"}
    assert not any(entry.per_channel for entry in report.operators)  # integer activations: every runtime has that
    assert report.integer_weight_share == pytest.approx(32 / 48)
    assert report.integer_compute_share == pytest.approx(32 / 48)
    (left,) = report.float_weights
    assert (left.used_by, left.group, left.bytes) == ("classifier", "head", 64)
    # Without a signature the first subgraph is the model.
    assert [(signature.name, signature.inputs[0].dtype) for signature in report.signatures] == [("main", "int8")]


def test_equal_buffers_are_found(tmp_path: Path) -> None:
    weight = floats(16, 16)
    model = Tflite()
    for copy in (weight, weight.copy(), weight):
        model.graph()
        fully_connected(model, "FLOAT32", copy, None, scales=0)
    (twice,) = inspect_file(model.save(tmp_path / "m.tflite")).stored_twice
    assert (twice.bytes, twice.wasted_bytes, len(twice.names)) == (1024, 1024, 2)


def test_dynamic_axes_and_arithmetic_by_type(tmp_path: Path) -> None:
    model = Tflite()
    model.graph("main")
    x = model.tensor("x", "FLOAT32", (1, 4), signature=(-1, 4))
    i = model.tensor("i", "INT32", (4,))
    q = model.tensor("q", "INT8", (4,), scales=1)
    model.operator("ADD", [i, i], model.tensor("i2", "INT32", (4,)))
    model.operator("ADD", [q, q], model.tensor("q2", "INT8", (4,), scales=1), version=2)
    model.operator("CUSTOM", [x], model.tensor("y", "FLOAT32", (1, 4)), custom="MyOperator")
    report = inspect_file(model.save(tmp_path / "m.tflite"))
    assert report.signatures[0].inputs[0].shape == ("?", 4)
    assert {(entry.name, entry.version): entry.computes for entry in report.operators} == {
        ("ADD", 1): "other", ("ADD", 2): "int8", ("MyOperator", 1): "float"}
    assert use(report, "MyOperator").custom


def test_weights_behind_the_flatbuffer(tmp_path: Path) -> None:
    weight = bytes8(8, 4)
    model = Tflite()
    model.graph("main")
    fully_connected(model, "FLOAT32", weight, None, scales=1)
    inside = inspect_file(model.save(tmp_path / "inside.tflite"))
    buffer = model.model.buffers[1]
    buffer.data, buffer.offset, buffer.size = None, 2**32, weight.nbytes
    buffer.offset = len(model.pack())  # a 64-bit field, so its value does not change the length
    path = tmp_path / "behind.tflite"
    path.write_bytes(model.pack() + weight.tobytes())
    report = inspect_file(path)
    assert report.weights_behind_flatbuffer and not inside.weights_behind_flatbuffer
    assert report.weight_groups == inside.weight_groups
    assert_bytes_add_up(report)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelFileError, match="damaged"):
        inspect_file(path)


def test_an_operator_version_from_the_future_is_a_problem(tmp_path: Path) -> None:
    found = {}
    for version in (9, 12):
        model = Tflite()
        model.graph("main")
        fully_connected(model, "FLOAT32", floats(8, 4), None, scales=0, version=version)
        found[version] = problems(inspect_file(model.save(tmp_path / "m.tflite")), "tflite-runtime", "2.14.0")
    assert found == {9: [], 12: ["FULLY_CONNECTED version 12 is newer than what tflite-runtime 2.14.0 has (10)"]}


# Both


@pytest.mark.parametrize(("name", "operator", "expected"), [
    ("encoder.layer.3.attention.self.query/MatMul", "MatMul", "attention"),
    ("encoder.layer.3.attention.output.LayerNorm.weight", "LayerNormalization", "normalization"),
    ("encoder.layer.3.attention.output.dense/MatMul_2", "MatMul", "attention"),
    ("encoder.layer.3.output.dense/MatMul", "MatMul", "feed-forward"),
    ("embeddings.word_embeddings.weight", "Gather", "embedding"),
    ("embeddings.LayerNorm.bias", "LayerNormalization", "normalization"),
    ("transformer.layer.0.attention.q_lin/MatMul", "MatMul", "attention"),
    ("transformer.layer.0.ffn.lin1/MatMul", "MatMul", "feed-forward"),
    ("transformer.h.0.mlp.c_fc/Gemm", "Gemm", "feed-forward"),
    ("transformer.h.0.ln_1.weight", "LayerNormalization", "normalization"),
    ("transformer.wte.weight", "Gather", "embedding"),
    ("model.layers.0.self_attn.k_proj/MatMul", "MatMul", "attention"),
    ("model.layers.0.mlp.gate_proj/MatMul", "MatMul", "feed-forward"),
    ("lm_head/MatMul", "MatMul", "head"),
    ("qa_outputs/MatMul", "MatMul", "head"),
    ("score/MatMul", "MatMul", "head"),
    ("val_17", "Gather", "embedding"),
    ("val_17", "MatMul", "other"),
])
def test_groups(name: str, operator: str, expected: str) -> None:
    assert group_of([name], operator) == expected


@pytest.mark.parametrize("fused", [False, True])
def test_the_last_operation_of_a_fused_name_tells_the_group(tmp_path: Path, fused: bool) -> None:
    norm, dense = "model/m.Attention_attention/m.LayerNorm_LayerNorm", "model/m.Intermediate_intermediate/m.Linear_dense"
    model = Tflite()
    model.graph("main")
    fully_connected(model, "FLOAT32", floats(8, 4), None, scales=0, module=f"{norm};;{dense}" if fused else dense)
    (left,) = inspect_file(model.save(tmp_path / "m.tflite")).float_weights
    assert left.group == "feed-forward"
    assert left.used_by == ("attention.LayerNorm + intermediate.dense" if fused else "intermediate.dense")


def test_damaged_and_unknown_files(tmp_path: Path) -> None:
    model = Tflite()
    model.graph("main")
    fully_connected(model, "FLOAT32", floats(64, 64), None, scales=0)
    whole = model.pack()
    good = onnx_file(tmp_path / "good.onnx", [node("MatMul", "x w", "y")], {"w": floats(4, 4)}).read_bytes()
    files = {
        "cut.tflite": (whole[:len(whole) // 2], "damaged"),
        "start.tflite": (whole[:20], "damaged"),
        "page.tflite": (b"<!doctype html>", "not a TFLite file"),
        "empty.tflite": (b"", "not a TFLite file"),
        "cut.onnx": (good[:len(good) // 2], "damaged"),
        "page.onnx": (b"<!doctype html>", "damaged"),
        "empty.onnx": (b"", "damaged"),
        "weights.bin": (b"\xff" * 64, "neither an ONNX nor a TFLite file"),
    }
    for name, (content, message) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelFileError, match=message) as caught:
            inspect_file(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(ModelFileError, match="Cannot read") as caught:
        inspect_file(tmp_path / "absent.onnx")
    assert "No such file" in str(caught.value)


def test_operators_in_a_circle_end(tmp_path: Path) -> None:
    model = Tflite()
    model.graph("main")
    weight = model.tensor("w", "FLOAT32", (4, 4), floats(4, 4))
    one, two = (model.tensor(name, "FLOAT32", (4, 4)) for name in ("one", "two"))
    for source in (weight, two):
        model.operator("RESHAPE", [source], one)
    model.operator("RESHAPE", [one], two)
    circle = onnx_file(tmp_path / "m.onnx", [node("Identity", "a", "b"), node("Identity", "b", "a"), node("MatMul", "x a", "y")], {})
    for path in (model.save(tmp_path / "m.tflite"), circle):
        with pytest.raises(ModelFileError) as caught:
            inspect_file(path)
        assert "in a circle" in str(caught.value)


def test_content_decides_before_the_suffix(tmp_path: Path) -> None:
    model = Tflite()
    model.graph("main")
    fully_connected(model, "FLOAT32", floats(8, 4), None, scales=0)
    assert inspect_file(model.save(tmp_path / "model.bin")).format == "tflite"
    path = onnx_file(tmp_path / "m.pb", [node("MatMul", "x w", "y")], {"w": floats(4, 4)})
    assert inspect_file(path).format == "onnx"


@pytest.mark.parametrize(("module", "file", "content", "hint"), [
    ("onnx", "m.onnx", b"\x08\x08", "pip install onnx"),
    ("ai_edge_litert", "m.tflite", b"\x00\x00\x00\x00TFL3", "pip install ai-edge-litert"),
])
def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, file: str, content: bytes,
                                    hint: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # importing it fails now
    (tmp_path / file).write_bytes(content)
    with pytest.raises(MissingExtra) as caught:
        inspect_file(tmp_path / file)
    assert hint in str(caught.value)
