"""INT8 in its runtimes: agreement, weights against NumPy's rounding, overrides, and the compact TFLite file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgeexport.converters._tflite_file import compact
from tiny import LENGTHS, MAX_LENGTH, TEXTS, Case
from zoo import Zoo, as_rows

from edgeexport.artifact import Task
from edgeexport.errors import RecipeError
from edgeexport.inspection import inspect_file
from edgeexport.policy import Override, Policy
from edgeexport.runner.environment import Environment
from edgeexport.runner.local import run_job
from edgeexport.session.evidence import Answers
from edgeexport.step import Context, View

CLASSIFIER = Case("bert", Task.TEXT_CLASSIFICATION)
TAGGER = Case("bert", Task.TOKEN_CLASSIFICATION, layers=1)
EMBEDDER = Case("bert", Task.SENTENCE_SIMILARITY, "mean", normalize=True, layers=1)
ASKED = TEXTS[33:233:2]  # of the calibration's texts, every second is among them


def model_file(view: View) -> Path:
    return view.path / f"model.{view.spec.kind}"


# Mean error in units of the logits' spread and share of equal classes, with some room below what was measured (0.028–0.049 and 0.95–0.99
# for weights alone or dynamic, 0.045–0.19 and 0.90–0.97 static): random weights are wider than trained ones, and 100 texts are few.
@pytest.mark.parametrize(("model_format", "precision", "error", "agreement"), [
    ("onnx", "dynamic-int8", 0.08, 0.92), ("onnx", "static-int8", 0.13, 0.92),
    ("tflite", "dynamic-int8", 0.08, 0.95), ("tflite", "weight-only-int8", 0.06, 0.95), ("tflite", "static-int8", 0.28, 0.85)])
@pytest.mark.parametrize("case", [CLASSIFIER, TAGGER], ids=str)
def test_int8_is_near_the_original(zoo: Zoo, case: Case, model_format: str, precision: str, error: float, agreement: float) -> None:
    original, quantized = zoo.original(case), zoo.quantized(case, model_format, precision)
    session = zoo.session(case, quantized)
    right = {text: original.outputs(text)["logits"][0] for text in ASKED}
    spread = np.concatenate([np.atleast_2d(logits) for logits in right.values()]).std(axis=0).mean()
    errors, same = [], []
    for text, logits in right.items():
        encoded = session.encode(text)
        found = session.outputs(encoded)["logits"][0]
        found = found[:len(encoded.ids)] if logits.ndim == 2 else found
        errors.append(np.abs(found - logits).ravel() / spread)
        same.append(np.mean(found.argmax(axis=-1) == logits.argmax(axis=-1)))
    print(f"\n{case} {model_format} {precision} error {np.concatenate(errors).mean():.3f} agreement {np.mean(same):.3f}")
    assert 1e-4 < np.concatenate(errors).mean() < error
    assert np.mean(same) >= agreement

    report = inspect_file(model_file(quantized))
    assert quantized.spec.precision == precision
    assert report.integer_weight_share is not None and report.integer_weight_share > 0.85  # tables of positions stay float
    assert report.integer_compute_share == (0.0 if precision == "weight-only-int8" else 1.0)
    assert report.bytes < 0.7 * model_file(zoo.exported(case, model_format)).stat().st_size
    assert not report.weights_behind_flatbuffer


@pytest.mark.parametrize(("model_format", "precision"), [("onnx", "dynamic-int8"), ("tflite", "dynamic-int8"), ("tflite", "weight-only-int8")])
def test_int8_vectors_point_the_same_way(zoo: Zoo, model_format: str, precision: str) -> None:
    original, session = zoo.original(EMBEDDER), zoo.session(EMBEDDER, zoo.quantized(EMBEDDER, model_format, precision))
    cosines = [float(session.model.run(session.encode(text).feeds(session.payload.spec, MAX_LENGTH))["sentence_embedding"][0]
                     @ original.vector(text, "mean", normalize=True)) for text in ASKED]
    assert np.mean(cosines) > 0.99
    assert min(cosines) > 0.97


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


def packed(model: Any) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize("precision", ["dynamic-int8", "static-int8"])
def test_onnx_weights_are_within_half_a_step(zoo: Zoo, precision: str) -> None:
    """Each stored matrix, made float again, is off by at most half its channel's step (and by the rounding of the zero point)."""
    import onnx
    from onnx.numpy_helper import to_array

    before = {tensor.name: to_array(tensor) for tensor in onnx.load(str(model_file(zoo.exported(CLASSIFIER, "onnx")))).graph.initializer}
    after = {tensor.name: to_array(tensor) for tensor in onnx.load(str(model_file(zoo.quantized(CLASSIFIER, "onnx", precision)))).graph.initializer}
    count = 0
    for name, weights in before.items():
        if f"{name}_quantized" not in after or weights.ndim != 2:
            continue
        integers, scale, zero = (after[f"{name}_{part}"] for part in ("quantized", "scale", "zero_point"))
        # A channel is a row or a column, and the matrix may have been turned: right is the reading that fits.
        steps = []
        for against in (weights, weights.T):
            for shape in ((1, -1), (-1, 1)):
                step, middle = scale.reshape(shape), zero.astype(np.float32).reshape(shape)
                if integers.shape == against.shape and all(a in (1, b) for a, b in zip(step.shape, integers.shape, strict=True)):
                    steps.append(np.abs((integers - middle) * step - against) / step)
        best = min(steps, key=np.max)
        assert best.max() <= 1.01, name
        assert 0.2 < best.mean() < 0.3, name  # 0.25 where rounding is all that happens
        count += 1
    assert count == 17


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


def computed(view: View) -> Counter[tuple[str, str]]:
    """How many operators of each type compute how."""
    counts: Counter[tuple[str, str]] = Counter()
    for use in inspect_file(model_file(view)).operators:
        counts[use.name, use.computes] += use.count
    return counts


def policy(default: str, **overrides: str) -> Policy:
    return Policy(default=default, overrides=tuple(Override(match=match, scheme=scheme) for match, scheme in overrides.items()))


def test_overrides_leave_modules_in_float(zoo: Zoo) -> None:
    """Six matrices in each of the two layers, pooler and classifier: 14 products, in TFLite once per signature."""
    count = len(LENGTHS)
    whole = computed(zoo.quantized(CLASSIFIER, "tflite", "dynamic-int8"))
    assert whole["FULLY_CONNECTED", "int8-dynamic"] == 14 * count and not whole["FULLY_CONNECTED", "float"]
    expected = {"*.layer.0.*": 6, "*.self.query": 2, "classifier": 1, "bert.encoder.layer.1.output.dense.weight": 1, "*.layer.?.*": 12}
    for match, left in expected.items():
        found = computed(zoo.quantized(CLASSIFIER, "tflite", "dynamic-int8-x", policy("dynamic", **{match: "float"})))
        assert found["FULLY_CONNECTED", "float"] == left * count, match
        assert found["FULLY_CONNECTED", "int8-dynamic"] == (14 - left) * count, match

    whole = computed(zoo.quantized(CLASSIFIER, "onnx", "dynamic-int8"))
    assert whole["MatMulInteger", "int8-dynamic"] == 14
    for match, left in (("*.layer.0.*", 6), ("*.self.query", 2), ("classifier", 1), ("*.layer.?.*", 12)):
        found = computed(zoo.quantized(CLASSIFIER, "onnx", "dynamic-int8-x", policy("dynamic", **{match: "float"})))
        assert found["MatMulInteger", "int8-dynamic"] == 14 - left, match


def test_the_last_override_decides(zoo: Zoo) -> None:
    rules = policy("dynamic", **{"*.layer.0.*": "float", "op:FULLY_CONNECTED": "float", "classifier": "dynamic"})
    found = computed(zoo.quantized(CLASSIFIER, "tflite", "x", rules))
    assert found["FULLY_CONNECTED", "int8-dynamic"] == len(LENGTHS)
    assert found["FULLY_CONNECTED", "float"] == 13 * len(LENGTHS)
    found = computed(zoo.quantized(CLASSIFIER, "onnx", "x", policy("float", **{"op:MatMul": "dynamic", "*.layer.1.*": "float"})))
    assert found["MatMulInteger", "int8-dynamic"] == 6
    assert found["MatMul", "float"] == 12  # layer 1, pooler and classifier, and two products of activations in each layer


def refusal(zoo: Zoo, model_format: str, rules: Policy) -> Any:
    from edgeexport.catalog import find_step

    return find_step(f"quantize_{model_format}")(precision="x", policy=rules).infer({"model": zoo.exported(CLASSIFIER, model_format).spec})


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


@pytest.mark.parametrize("model_format", ["onnx", "tflite"])
@pytest.mark.parametrize("match", ["*.layer.9.*", "op:Conv", "query"])
def test_an_override_that_matches_nothing_is_an_error(zoo: Zoo, model_format: str, match: str) -> None:
    with pytest.raises(RecipeError, match="matches no operator"):
        zoo.quantized(CLASSIFIER, model_format, "x", policy("dynamic", **{match: "float"}))


def test_what_onnx_cannot_mix_is_refused(zoo: Zoo) -> None:
    assert "can't hold dynamic and static" in refusal(zoo, "onnx", policy("dynamic", classifier="static")).reason
    assert "weight-only" in refusal(zoo, "onnx", policy("weight-only")).reason


class TestCompact:
    """The quantizer's own file against the compacted one."""

    @pytest.fixture(scope="class")
    def raw(self, zoo: Zoo) -> bytes:
        from ai_edge_quantizer import quantizer

        tool = quantizer.Quantizer(str(model_file(zoo.exported(CLASSIFIER, "tflite"))))
        tool.add_dynamic_config(".*", "*", num_bits=8)
        return bytes(tool.quantize().quantized_model)

    def test_answers_are_the_same_to_the_bit(self, raw: bytes) -> None:
        from ai_edge_litert.interpreter import Interpreter

        one, other = (Interpreter(model_content=content, num_threads=1) for content in (raw, bytes(compact(raw))))
        assert one.get_signature_list() == other.get_signature_list()
        rng = np.random.default_rng(0)
        for length in LENGTHS:
            ids, mask = rng.integers(5, 400, (1, length)).astype(np.int32), np.ones((1, length), np.int32)
            mask[0, length // 2:] = 0
            feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            found = [each.get_signature_runner(f"seq_{length}")(**feeds)["logits"] for each in (one, other)]
            assert found[0].tobytes() == found[1].tobytes()
            assert np.abs(found[0]).max() > 0.1

    def test_everything_is_stored_once_and_inside(self, raw: bytes) -> None:
        from ai_edge_litert import schema_py_generated as schema

        small = bytes(compact(raw))
        assert len(small) < len(raw)
        model = schema.ModelT.InitFromPackedBuf(small, 0)
        contents = [bytes(buffer.data) for buffer in model.buffers if buffer.data is not None and len(buffer.data)]
        assert len(contents) == len(set(contents))
        assert all(buffer.offset <= 1 for buffer in model.buffers)
        assert bytes(compact(small)) == small

    def test_bytes_behind_the_flatbuffer_come_inside(self, raw: bytes) -> None:
        """Past 2 GB, or when told so, the quantizer writes weights behind the flatbuffer; here they are put there by hand."""
        from ai_edge_litert import schema_py_generated as schema
        from ai_edge_litert.interpreter import Interpreter

        model = schema.ModelT.InitFromPackedBuf(bytes(compact(raw)), 0)
        largest = max((buffer for buffer in model.buffers if buffer.data is not None), key=lambda buffer: len(buffer.data))
        content = bytes(largest.data)
        largest.data, largest.size, largest.offset = None, len(content), 2**40
        size = -(-len(packed(model)) // 16) * 16
        largest.offset = size
        behind = packed(model).ljust(size, b"\0") + content
        inside = bytes(compact(behind))
        found = schema.ModelT.InitFromPackedBuf(inside, 0)
        assert all(buffer.offset <= 1 for buffer in found.buffers)
        assert content in inside
        assert Interpreter(model_content=inside).get_signature_list() == Interpreter(model_content=raw).get_signature_list()
