"""What the inspection of both formats has in common: groups of weights, damaged files, which library is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from small_files import Tflite, floats, fully_connected, node, onnx_file

from edgeexport.errors import MissingExtra, ModelFileError
from edgeexport.inspection import inspect_file
from edgeexport.inspection.weights import group_of


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
        "weights.bin": (b"\xff" * 64, "neither an ONNX, a TFLite nor a LiteRT-LM file"),
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
