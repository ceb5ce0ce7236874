"""What the inspection says of small ONNX models whose figures are worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_files import RANDOM, assert_bytes_add_up, bytes8, floats, group, node, onnx_file, use

from edgeexport.errors import ModelFileError
from edgeexport.inspection import ModelReport, inspect_file
from edgeexport.inspection.model import OperatorUse


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


@pytest.mark.parametrize(("divisor", "computes"), [("largest", "int8-dynamic"), ("limited", "int8-dynamic"), ("mean", "int8"), ("x_scale", "int8")])
def test_a_constant_scale_after_a_division_by_the_largest_is_dynamic(tmp_path: Path, divisor: str, computes: str) -> None:
    report = inspect_file(onnx_file(tmp_path / "m.onnx", [
        node("Abs", "x", "a"), node("ReduceMax", "a", "largest", keepdims=1), node("Max", "largest x_scale", "limited"),
        node("ReduceMean", "a", "mean", keepdims=1), node("Div", f"x {divisor}", "d"), node("QuantizeLinear", "d x_scale x_zero", "q"),
        node("MatMulIntegerToFloat", "q w x_scale w_scale x_zero", "y", domain="com.microsoft"),
    ], QDQ_CONSTANTS | {"x_zero": np.uint8(128)}, com_microsoft=1))
    assert use(report, "com.microsoft.MatMulIntegerToFloat").computes == computes
    assert report.integer_compute_share == 1


def test_rotating_an_activation_is_part_of_quantizing_it(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x 4_rotation", "r"), node("MatMul", "r w", "y")]
    report = inspect_file(onnx_file(tmp_path / "m.onnx", nodes, {"4_rotation": floats(4, 4), "w": floats(4, 8)}))
    assert group(report, "quantization", "float32") == (1, 16, 64)
    assert [left.name for left in report.float_weights] == ["w"]


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
