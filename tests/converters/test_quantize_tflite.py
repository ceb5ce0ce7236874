"""INT8 for TFLite: agreement with the original, weights against NumPy's rounding, the oldest runtime, overrides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from int8 import ASKED, CLASSIFIER, TAGGER, assert_near_the_original, assert_vectors_point_the_same_way, computed, model_file, packed, policy
from tiny import LENGTHS, TEXTS, Case
from zoo import Zoo, as_rows

from edgeexport.catalog import find_step
from edgeexport.errors import RecipeError
from edgeexport.policy import preset
from edgeexport.runner.environment import Environment
from edgeexport.runner.local import run_job
from edgeexport.session.evidence import Answers
from edgeexport.step import Context, View


@pytest.mark.parametrize(("precision", "error", "agreement"), [
    ("dynamic-int8", 0.08, 0.95), ("weight-only-int8", 0.06, 0.95), ("static-int8", 0.28, 0.85)])
@pytest.mark.parametrize("case", [CLASSIFIER, TAGGER], ids=str)
def test_int8_is_near_the_original(zoo: Zoo, case: Case, precision: str, error: float, agreement: float) -> None:
    assert_near_the_original(zoo, case, "tflite", precision, error, agreement)


@pytest.mark.parametrize("precision", ["dynamic-int8", "weight-only-int8"])
def test_int8_vectors_point_the_same_way(zoo: Zoo, precision: str) -> None:
    assert_vectors_point_the_same_way(zoo, "tflite", precision)


def rounded(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 and float32 scale [rows, 1] of a float32 matrix [rows, columns]: symmetric, one scale per row."""
    scale = np.abs(weights).max(axis=1, keepdims=True) / 127
    return np.clip(np.rint(weights / scale), -127, 127).astype(np.int8), scale.astype(np.float32)


def test_weight_only_is_the_float_model_with_rounded_weights(zoo: Zoo) -> None:
    """The float file's matrices, rounded and made float again by NumPy, must answer as the weight-only file does."""
    from ai_edge_litert import schema_py_generated as schema

    exported, quantized = zoo.exported(CLASSIFIER, "tflite"), zoo.quantized(CLASSIFIER, "tflite", "weight-only-int8")
    model = schema.ModelT.InitFromPackedBuf(model_file(exported).read_bytes(), 0)
    stored = model_file(quantized).read_bytes()
    count = 0
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex].builtinCode
            if code in {schema.BuiltinOperator.FULLY_CONNECTED, schema.BuiltinOperator.EMBEDDING_LOOKUP}:
                tensor = graph.tensors[operator.inputs[1]]
                weights = np.asarray(model.buffers[tensor.buffer].data, np.uint8).view(np.float32).reshape(tensor.shape)
                integers, scale = rounded(weights)
                model.buffers[tensor.buffer].data = np.frombuffer((integers * scale).astype(np.float32).tobytes(), np.uint8)
                if graph is model.subgraphs[0]:
                    assert stored.count(integers.tobytes()) == 1, tensor.name
                    count += 1
    assert count == 16  # two tables, six matrices in each of two layers, pooler, classifier; both signatures share them

    by_hand = zoo.place("by-hand") / "model.tflite"
    by_hand.write_bytes(packed(model))
    hand, session = zoo.session(CLASSIFIER, View(by_hand.parent, exported.spec)), zoo.session(CLASSIFIER, quantized)
    plain = zoo.session(CLASSIFIER, exported)
    moved = 0.0
    for text in ASKED:
        encoded = session.encode(text)
        logits = hand.outputs(encoded)["logits"]
        assert session.outputs(encoded)["logits"] == pytest.approx(logits, abs=1e-4)
        moved = max(moved, float(np.abs(plain.outputs(encoded)["logits"] - logits).max()))
    assert moved > 1e-2, "rounding must show"


def test_weight_only_in_the_oldest_runtime(zoo: Zoo, tmp_path: Path) -> None:
    """tflite-runtime 2.14 computes with the same weights in float: it must answer as LiteRT does."""
    quantized = zoo.quantized(CLASSIFIER, "tflite", "weight-only-int8")
    payload = zoo.payload(zoo.loaded(CLASSIFIER), quantized)
    rows = zoo.dataset("texts", as_rows(ASKED))
    run_job(Environment("tflite-runtime==2.14.0"), {
        "do": "answers", "payload": str(payload.path), "variant": "v", "runtime": "tflite-runtime", "threads": 1,
        "datasets": {"texts": str(rows.path / "rows.jsonl")}}, tmp_path / "out", Context(scratch=tmp_path))
    found = Answers.load(tmp_path / "out" / "texts.npz")
    session = zoo.session(CLASSIFIER, quantized)
    for text, numbers in zip(ASKED, found.numbers, strict=True):
        assert numbers == pytest.approx(session.outputs(session.encode(text))["logits"], abs=1e-4)


def test_overrides_leave_modules_in_float(zoo: Zoo) -> None:
    """Six matrices in each of the two layers, pooler and classifier: 14 products, once per signature."""
    count = len(LENGTHS)
    whole = computed(zoo.quantized(CLASSIFIER, "tflite", "dynamic-int8"))
    assert whole["FULLY_CONNECTED", "int8-dynamic"] == 14 * count and not whole["FULLY_CONNECTED", "float"]
    expected = {"*.layer.0.*": 6, "*.self.query": 2, "classifier": 1, "bert.encoder.layer.1.output.dense.weight": 1, "*.layer.?.*": 12}
    for match, left in expected.items():
        found = computed(zoo.quantized(CLASSIFIER, "tflite", "dynamic-int8-x", policy("dynamic", **{match: "float"})))
        assert found["FULLY_CONNECTED", "float"] == left * count, match
        assert found["FULLY_CONNECTED", "int8-dynamic"] == (14 - left) * count, match


def test_the_last_override_decides(zoo: Zoo) -> None:
    rules = policy("dynamic", **{"*.layer.0.*": "float", "op:FULLY_CONNECTED": "float", "classifier": "dynamic"})
    found = computed(zoo.quantized(CLASSIFIER, "tflite", "x", rules))
    assert found["FULLY_CONNECTED", "int8-dynamic"] == len(LENGTHS)
    assert found["FULLY_CONNECTED", "float"] == 13 * len(LENGTHS)


def test_static_ranges_come_from_cut_texts_where_none_is_short(zoo: Zoo) -> None:
    """Every signature has activations of its own, whatever lengths the texts have."""
    long = [text for text in TEXTS if len(text.split()) > 20][:40]
    inputs = {"model": zoo.exported(CLASSIFIER, "tflite"), "checkpoint": zoo.loaded(CLASSIFIER),
              "calibration": zoo.dataset("calibration", as_rows(long))}
    rules = preset("tflite", "static-int8")
    quantized = zoo.run(find_step("quantize_tflite")(precision="static-int8", policy=rules),
                        {"model": inputs["model"], "ranges": zoo.ranges(inputs, rules)})
    session, original = zoo.session(CLASSIFIER, quantized), zoo.original(CLASSIFIER)
    short = [text for text in TEXTS if len(session.encode(text).ids) <= LENGTHS[0]]
    same = [session.outputs(session.encode(text))["logits"].argmax() == original.outputs(text)["logits"].argmax() for text in short]
    assert len(same) > 20
    assert np.mean(same) > 0.7


def test_static_beside_dynamic(zoo: Zoo) -> None:
    rules = policy("dynamic", **{"*.layer.1.*": "static"})
    mixed = zoo.quantized(CLASSIFIER, "tflite", "mixed", rules)
    found = computed(mixed)
    assert found["FULLY_CONNECTED", "int8"] == 6 * len(LENGTHS)
    assert found["FULLY_CONNECTED", "int8-dynamic"] == 8 * len(LENGTHS)
    session, original = zoo.session(CLASSIFIER, mixed), zoo.original(CLASSIFIER)
    same = [session.outputs(session.encode(text))["logits"].argmax() == original.outputs(text)["logits"].argmax() for text in ASKED]
    assert np.mean(same) > 0.85


def test_an_operator_type_can_be_made_static(zoo: Zoo) -> None:
    assert not computed(zoo.quantized(CLASSIFIER, "tflite", "static-int8"))["GELU", "int8"]
    found = computed(zoo.quantized(CLASSIFIER, "tflite", "gelu", policy("static", **{"op:GELU": "static"})))
    assert found["GELU", "int8"] == 2 * len(LENGTHS)
    with pytest.raises(RecipeError, match="cannot make RSQRT weight-only"):
        zoo.quantized(CLASSIFIER, "tflite", "none", policy("weight-only", **{"op:RSQRT": "weight-only"}))


@pytest.mark.parametrize("match", ["*.layer.9.*", "op:Conv", "query"])
def test_an_override_that_matches_nothing_is_an_error(zoo: Zoo, match: str) -> None:
    with pytest.raises(RecipeError, match="matches no operator"):
        zoo.quantized(CLASSIFIER, "tflite", "x", policy("dynamic", **{match: "float"}))
