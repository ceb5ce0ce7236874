"""What a model asks for beyond a runtime's version, and whether the tables tell the truth about the runtimes that are installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from edgeexport.artifact import Kind, Spec
from edgeexport.catalog import make_step
from edgeexport.errors import RuntimeUnavailable, StepFailed, TargetError, UnknownName
from edgeexport.inspection.model import ModelReport, OperatorUse
from edgeexport.runner import compatibility
from edgeexport.runner.compatibility import known, oldest_admitted, problems
from edgeexport.step import Context, View

RUNTIMES = ("onnxruntime", "ai-edge-litert", "tflite-runtime")


def report(model_format: str, *operators: OperatorUse, **facts: Any) -> ModelReport:
    """A report with those operators and facts, and otherwise nothing."""
    return ModelReport.model_validate({
        "file": "model", "format": model_format, "bytes": 1, "signatures": (), "operators": operators, "weight_groups": (),
        "float_weights": (), "stored_twice": (), "integer_weight_share": None, "integer_compute_share": None, "overhead_bytes": 1, **facts})


def operator(name: str, version: int = 1, **facts: Any) -> OperatorUse:
    """One operator."""
    return OperatorUse(name=name, version=version, count=1, computes="float", **facts)


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of tables in place of the shipped ones."""
    monkeypatch.setattr(compatibility, "_folder", lambda: tmp_path)
    known.cache_clear()
    yield tmp_path
    known.cache_clear()


# Expected values: ONNX Runtime's documentation, "ONNX opset support" (1.14: opset 18, IR 8; 1.17: 20, 9; 1.18: 21, 10).
@pytest.mark.parametrize(("version", "facts", "expected"), [
    ("1.14", {"opsets": {"ai.onnx": 18}, "ir_version": 8}, []),
    ("1.14", {"opsets": {"ai.onnx": 22}}, ["opset 22 is newer than onnxruntime 1.14's 18"]),
    ("1.17.3", {"opsets": {"ai.onnx": 18}, "ir_version": 10}, ["IR version 10 is newer than onnxruntime 1.17.3's 9"]),
    ("1.18", {"opsets": {"ai.onnx": 21}, "ir_version": 10}, []),
    ("1.17", {"opsets": {"ai.onnx": 21}}, ["opset 21 is newer than onnxruntime 1.17's 20"]),
    ("1.14", {"opsets": {"ai.onnx.ml": 5}}, ["opset 5 of ai.onnx.ml is newer than onnxruntime 1.14's 3"]),
    ("1.31.1", {"opsets": {"ai.onnx": 99, "com.microsoft": 1}}, ["opset 99 is newer than onnxruntime 1.31.1's 26"]),
    ("99.0", {"opsets": {"ai.onnx": 99}}, ["opset 99 is newer than onnxruntime 99.0's 26"]),
    ("1.13", {}, ["nothing is known of onnxruntime 1.13: the oldest known version is 1.14.0"]),
])
def test_opsets_and_ir_versions(version: str, facts: dict[str, Any], expected: list[str]) -> None:
    assert problems(report("onnx", **facts), "onnxruntime", version) == expected


def test_a_file_that_the_stand_in_lacks_operators_for_is_not_run(tmp_path: Path) -> None:
    """The measuring steps refuse it before there is an environment or a process."""
    for facts, said in (({"opsets": {"ai.onnx": 99}}, "opset 99 is newer than onnxruntime 1.31.1's 26"),
                        ({"opsets": {"ai.onnx": 18}, "ir_version": 99}, "IR version 99")):
        (tmp_path / "inspection.json").write_text(report("onnx", **facts).model_dump_json(), encoding="utf-8")
        inputs = {"payload": View(tmp_path / "nothing", Spec(kind=Kind.PAYLOAD)), "inspection": View(tmp_path, Spec(kind=Kind.EVIDENCE))}
        common = {"variant": "v", "runtime": "onnxruntime", "stand_in": "onnxruntime==1.31.1", "agent": "a", "environment": "e"}
        for step in (make_step("measure_answers", **common, datasets=(), isa=()), make_step("measure_speed", **common, lengths=(), host="h")):
            with pytest.raises(StepFailed) as caught:
                step.run(inputs, tmp_path / "out", Context(tmp_path))
            assert "onnxruntime==1.31.1 cannot run model" in caught.value.what
            assert said in str(caught.value.why)
    assert not (tmp_path / "out").exists()


def test_what_is_only_computed_wrongly_is_run_and_shown() -> None:
    wrong = report("tflite", operator("FULLY_CONNECTED", 4, per_channel=True))
    assert any("gives wrong answers" in problem for problem in problems(wrong, "tflite-runtime", "2.14.0"))
    assert problems(wrong, "tflite-runtime", "2.14.0", wrong=False) == []


@pytest.mark.parametrize(("version", "name", "found"), [
    ("1.17.0", "com.microsoft.MatMulNBits", False),  # new in 1.17, by its release notes
    ("1.16.3", "com.microsoft.MatMulNBits", True),
    ("1.15.0", "com.microsoft.MatMulNBits", False),  # nobody looked before 1.16, so nothing is claimed
    ("1.31.1", "com.microsoft.QAttention", False),
    ("1.31.1", "com.example.Mine", True),
])
def test_operators_from_outside_onnx(version: str, name: str, found: bool) -> None:
    expected = [f"custom operator {name} is not in onnxruntime {version}"] if found else []
    assert problems(report("onnx", operator(name, custom=True)), "onnxruntime", version) == expected


# Expected values: tensorflow/lite/core/kernels/register.cc (FULLY_CONNECTED to 10, BROADCAST_TO from 2 to 3, no STABLEHLO_COMPOSITE).
@pytest.mark.parametrize(("use", "expected"), [
    (operator("FULLY_CONNECTED", 10), None),
    (operator("FULLY_CONNECTED", 12), "FULLY_CONNECTED version 12 is newer than what tflite-runtime 2.14.0 has (10)"),
    (operator("GELU", 1), None),
    (operator("BROADCAST_TO", 2), None),
    (operator("BROADCAST_TO", 1), "BROADCAST_TO version 1 is older than what tflite-runtime 2.14.0 has (2 to 3)"),
    (operator("STABLEHLO_COMPOSITE"), "operator STABLEHLO_COMPOSITE is not in tflite-runtime 2.14.0"),
    (operator("Mfcc", custom=True), None),
    (operator("FlexErf", custom=True), "custom operator FlexErf is not in tflite-runtime 2.14.0"),
    (operator("FULLY_CONNECTED", 5, per_channel=True),
     "FULLY_CONNECTED with INT8 weights of one scale per channel gives wrong answers in tflite-runtime 2.14.0"),
    (operator("CONV_2D", 5, per_channel=True), None),
])
def test_tflite_operators(use: OperatorUse, expected: str | None) -> None:
    assert problems(report("tflite", use), "tflite-runtime", "2.14.0") == ([expected] if expected else [])


def test_a_problem_is_told_once() -> None:
    model = report("tflite", operator("GELU", 9), operator("GELU", 9, per_channel=True))
    assert problems(model, "tflite-runtime", "2.14.0") == ["GELU version 9 is newer than what tflite-runtime 2.14.0 has (2)"]


def test_later_versions_keep_what_earlier_ones_had() -> None:
    model = report("tflite", operator("FULLY_CONNECTED", 13), operator("CAST", 9), operator("FULLY_CONNECTED", 5, per_channel=True))
    assert problems(model, "ai-edge-litert", "2.3.0") == []
    assert problems(model, "ai-edge-litert", "2.2.9") == ["CAST version 9 is newer than what ai-edge-litert 2.2.9 has (8)"]


def test_a_file_of_the_other_format() -> None:
    assert problems(report("onnx"), "tflite-runtime", "2.14.0") == ["tflite-runtime runs tflite files, and model is an onnx file"]


def test_weights_that_a_runtime_does_not_find(made_up: Path) -> None:
    (made_up / "old.toml").write_text(
        'runtime = "old"\nformat = "tflite"\n[versions."1.0"]\nsource = "made up"\nweights_behind_flatbuffer = false\n'
        '[versions."2.0"]\nsource = "made up"\nweights_behind_flatbuffer = true\n')
    model = report("tflite", weights_behind_flatbuffer=True)
    assert problems(model, "old", "1.5") == ["weights lie behind the flatbuffer, where old 1.5 does not look"]
    assert problems(model, "old", "2.0") == []
    assert problems(report("tflite"), "old", "1.5") == []


def test_a_table_with_an_unknown_key_is_refused(made_up: Path) -> None:
    (made_up / "odd.toml").write_text('runtime = "odd"\nformat = "tflite"\n[versions."1.0"]\nsource = "made up"\noperator = {}\n')
    with pytest.raises(RuntimeUnavailable, match="Unknown key") as caught:
        known("odd")
    assert "operators" in str(caught.value)


def test_unknown_names_and_versions() -> None:
    with pytest.raises(UnknownName) as caught:
        problems(report("onnx"), "onnxruntimes", "1.0")
    assert "did you mean 'onnxruntime'?" in str(caught.value)
    with pytest.raises(TargetError, match="not a version"):
        problems(report("onnx"), "onnxruntime", "newest")


@pytest.mark.parametrize(("specifier", "expected"), [
    (">=2.14,<2.15", "2.14"), ("==2.14.0", "2.14.0"), ("~=1.17", "1.17"), (">=1.17,>=1.18.1", "1.18.1")])
def test_the_oldest_version_of_a_range(specifier: str, expected: str) -> None:
    assert oldest_admitted(specifier) == expected


@pytest.mark.parametrize("specifier", ["<2", "2.14", "", ">=new"])
def test_a_range_must_have_a_lower_end(specifier: str) -> None:
    with pytest.raises(TargetError):
        oldest_admitted(specifier)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_tables_rise_and_name_their_sources(runtime: str) -> None:
    entries = known(runtime).versions
    assert list(entries) == sorted(entries, key=Version)
    assert all(entry.source for entry in entries.values())
    for before, after in zip(list(entries.values()), list(entries.values())[1:], strict=False):
        assert (before.ir or 0) <= (after.ir or 0)
        assert all(after.opsets[domain] >= opset for domain, opset in before.opsets.items())
        assert before.operators.keys() <= after.operators.keys()
        assert set(before.custom or ()) <= set(after.custom or ())


def test_the_table_agrees_with_the_installed_onnxruntime() -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    has = known("onnxruntime").versions.get(onnxruntime.__version__)
    if has is None:
        pytest.skip(f"onnxruntime {onnxruntime.__version__} is not in the table")

    def loads(ir: int, opset: int) -> bool:
        x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
        graph = onnx.helper.make_graph([onnx.helper.make_node("Sqrt", ["x"], ["y"])], "g", [x], [y])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
        model.ir_version = ir
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        except Exception as exc:
            assert "version" in str(exc) or "opset" in str(exc)
            return False
        return True

    opset = has.opsets["ai.onnx"]
    assert has.ir is not None
    assert [loads(has.ir, opset), loads(has.ir + 1, opset), loads(has.ir, opset + 1)] == [True, False, False]


def test_the_table_agrees_with_the_installed_litert() -> None:
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    from importlib.metadata import version

    import flatbuffers
    from ai_edge_litert.interpreter import Interpreter

    has = known("ai-edge-litert").versions.get(version("ai-edge-litert"))
    if has is None:
        pytest.skip("the installed LiteRT is not in the table")

    def loads(name: str, number: int) -> bool:
        code, graph, model = schema.OperatorCodeT(), schema.SubGraphT(), schema.ModelT()
        code.builtinCode, code.version = getattr(schema.BuiltinOperator, name), number
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        graph.tensors, graph.operators, graph.inputs, graph.outputs = [], [], [], []
        model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [schema.BufferT()]
        builder = flatbuffers.Builder(256)
        builder.Finish(model.Pack(builder), b"TFL3")
        try:
            Interpreter(model_content=bytes(builder.Output()))
        except ValueError as exc:
            assert "Didn't find op for builtin opcode" in str(exc)
            return False
        return True

    for name in ("FULLY_CONNECTED", "EMBEDDING_LOOKUP", "SOFTMAX", "GELU", "STABLEHLO_COMPOSITE"):
        highest = has.operators[name]
        assert isinstance(highest, int)
        assert [loads(name, highest), loads(name, highest + 1)] == [True, False], name
