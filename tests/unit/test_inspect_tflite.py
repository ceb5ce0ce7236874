"""What the inspection says of small TFLite models whose figures are worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_files import Tflite, assert_bytes_add_up, bytes8, floats, fully_connected, group, use

from edgeexport.errors import ModelFileError
from edgeexport.inspection import inspect_file
from edgeexport.inspection.model import OperatorUse
from edgeexport.runner.compatibility import problems


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
