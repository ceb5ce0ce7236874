"""SavedModels and Keras files on their way to TFLite, against TensorFlow's own outputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from saved_models import (
    CLASSES,
    LENGTHS,
    TEXTS,
    VOCABULARY,
    WIDTH,
    Build,
    Embedder,
    classifier,
    keras,
    original_logits,
    outputs,
    source,
    spans,
    tf,
    tokens,
)

from edgeexport.artifact import Task
from edgeexport.catalog import find_step
from edgeexport.errors import CheckpointError
from edgeexport.saved_model import read_saved_model
from edgeexport.step import Refusal, View


def operators(model: View) -> set[str]:
    from ai_edge_litert import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    codes = schema.ModelT.InitFromPackedBuf((model.path / "model.tflite").read_bytes(), 0).operatorCodes
    return {names[code.builtinCode] for code in codes}


@pytest.mark.parametrize(("form", "options"), [
    ("keras", {}), ("exported", {}), ("keras", {"attention": True}), ("exported", {"attention": True}),
    ("keras", {"named": False}), ("exported", {"named": False}), ("exported", {"dtype": "int64"}), ("keras", {"dtype": "float32"})])
def test_classifier_answers_as_in_tensorflow(tmp_path: Path, build: Callable[..., Build], form: str, options: dict[str, Any]) -> None:
    model = classifier(**options)
    steps = build(Task.TEXT_CLASSIFICATION)
    checkpoint = steps.load(source(tmp_path / "model", model, form, id2label=dict(enumerate(CLASSES))))
    converted = steps.step("convert_saved_model", {"checkpoint": checkpoint}, lengths=LENGTHS)
    expected = {text: original_logits(model, text) for text in TEXTS}

    assert converted.spec.parameters == model.count_params()
    assert converted.spec.bytes == (converted.path / "model.tflite").stat().st_size
    session = steps.session(checkpoint, converted)
    assert session.model.lengths == LENGTHS
    for text, logits in expected.items():
        assert outputs(session, text)["logits"][0] == pytest.approx(logits, abs=1e-5)
        answer = session.answer(text)
        assert [entry["label"] for entry in answer] == [CLASSES[i] for i in np.argsort(-logits)]

    spread = float(np.std(list(expected.values())))
    for precision in ("dynamic-int8", "weight-only-int8"):
        session = steps.session(checkpoint, steps.quantize(checkpoint, converted, precision))
        for text, logits in expected.items():
            found = outputs(session, text)["logits"][0]
            assert found == pytest.approx(logits, abs=0.05 * spread), precision
            assert found.argmax() == logits.argmax(), precision


def test_static_int8_runs(tmp_path: Path, build: Callable[..., Build]) -> None:
    model, steps = classifier(), build(Task.TEXT_CLASSIFICATION)
    checkpoint = steps.load(source(tmp_path / "model", model, "exported", id2label=dict(enumerate(CLASSES))))
    converted = steps.step("convert_saved_model", {"checkpoint": checkpoint}, lengths=LENGTHS)
    session = steps.session(checkpoint, steps.quantize(checkpoint, converted, "static-int8"))
    right = [outputs(session, text)["logits"][0].argmax() == original_logits(model, text).argmax() for text in TEXTS]
    assert np.mean(right) > 0.8


def test_weights_are_stored_once_and_the_table_is_quantized(tmp_path: Path, build: Callable[..., Build]) -> None:
    model, steps = classifier(), build(Task.TEXT_CLASSIFICATION)
    checkpoint = steps.load(source(tmp_path / "model", model, "keras", id2label=dict(enumerate(CLASSES))))
    converted = steps.step("convert_saved_model", {"checkpoint": checkpoint}, lengths=LENGTHS)
    table = model.get_layer("words").embeddings.numpy()
    assert (converted.path / "model.tflite").read_bytes().count(table.tobytes()) == 1
    assert operators(converted) >= {"EMBEDDING_LOOKUP"}
    assert not operators(converted) & {"GATHER", "READ_VARIABLE"}

    quantized = (steps.quantize(checkpoint, converted, "dynamic-int8").path / "model.tflite").read_bytes()
    rounded = np.rint(table / (np.abs(table).max(axis=1, keepdims=True) / 127)).astype(np.int8)
    assert quantized.count(rounded.tobytes()) == 1
    assert table.tobytes() not in quantized


def test_embedder_with_int64_inputs_equals_numpy(tmp_path: Path, build: Callable[..., Build]) -> None:
    model, steps = Embedder(), build(Task.SENTENCE_SIMILARITY)
    checkpoint = steps.load(source(tmp_path / "model", model, "module"))
    assert json.loads((checkpoint.path / "text.json").read_text())["pooling"] is None
    converted = steps.step("convert_saved_model", {"checkpoint": checkpoint}, lengths=LENGTHS)
    exact, rough = (steps.session(checkpoint, view) for view in (converted, steps.quantize(checkpoint, converted, "dynamic-int8")))
    for text in TEXTS:
        expected = model.by_hand(tokens(text))
        assert exact.answer(text) == pytest.approx(expected, abs=1e-5)
        assert rough.answer(text) @ expected > 0.995


def test_spans_by_named_inputs_and_outputs(tmp_path: Path, build: Callable[..., Build]) -> None:
    model, steps = spans(), build(Task.QUESTION_ANSWERING)
    question, context = TEXTS[2], TEXTS[9]
    for form in ("keras", "exported"):
        checkpoint = steps.load(source(tmp_path / form, model, form))
        assert json.loads((checkpoint.path / "text.json").read_text())["inputs"] == ["input_ids", "attention_mask", "token_type_ids"]
        converted = steps.step("convert_saved_model", {"checkpoint": checkpoint}, lengths=LENGTHS)
        found = outputs(steps.session(checkpoint, converted), question, context)
        ids = np.concatenate([tokens(question), tokens(context)[:, 1:]], axis=1)
        types = np.array([[0] * tokens(question).shape[1] + [1] * (tokens(context).shape[1] - 1)])
        expected = model({"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": types}, training=False)
        for name, value in expected.items():
            assert found[name][0, :ids.shape[1]] == pytest.approx(value.numpy()[0], abs=1e-5)


@pytest.mark.parametrize("form", ["keras", "exported"])
def test_a_model_without_a_mask_hides_padding_itself(tmp_path: Path, build: Callable[..., Build], form: str) -> None:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((None,), dtype="int32", name="input_ids"),
                              keras.layers.Embedding(len(VOCABULARY), WIDTH, mask_zero=True),
                              keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(len(CLASSES))])
    steps = build(Task.TEXT_CLASSIFICATION)
    checkpoint = steps.load(source(tmp_path / "model", model, form, id2label=dict(enumerate(CLASSES))))
    session = steps.session(checkpoint, steps.step("convert_saved_model", {"checkpoint": checkpoint}, lengths=LENGTHS))
    for text in TEXTS:
        assert outputs(session, text)["logits"][0] == pytest.approx(model(tokens(text), training=False).numpy()[0], abs=1e-5)


@pytest.mark.parametrize("form", ["keras", "exported"])
def test_fixed_length(tmp_path: Path, build: Callable[..., Build], form: str) -> None:
    directory = source(tmp_path / "model", classifier(shape=(24,)), form, id2label=dict(enumerate(CLASSES)))
    steps = build(Task.TEXT_CLASSIFICATION)
    found = read_saved_model(directory)
    assert found.fixed_length == 24
    assert found.text_spec(steps.section).own_max_length == 24
    refused = find_step("convert_saved_model")(lengths=(16, 24)).infer({"checkpoint": found.spec(steps.section)})
    assert isinstance(refused, Refusal) and "fixed length 24" in refused.reason

    checkpoint = steps.load(directory)
    session = steps.session(checkpoint, steps.step("convert_saved_model", {"checkpoint": checkpoint}, lengths=(24,)))
    free = classifier()  # the same seed, any length
    for text in TEXTS[:16]:
        assert outputs(session, text)["logits"][0] == pytest.approx(original_logits(free, text), abs=1e-5)


@pytest.mark.parametrize("form", ["keras", "exported"])
@pytest.mark.parametrize(("activation", "message"), [("softmax", "holds probabilities"), ("sigmoid", "holds probabilities"),
                                                     ("erfinv", "TFLite does not have: Erfinv")])
def test_refused_by_the_converter(tmp_path: Path, build: Callable[..., Build], form: str, activation: str, message: str) -> None:
    if activation == "erfinv":
        model = classifier()
        model = keras.Model(model.inputs, {"logits": keras.ops.erfinv(model.output["logits"])})
    else:
        model = classifier(activation=activation)
    steps = build(Task.TEXT_CLASSIFICATION)
    checkpoint = steps.load(source(tmp_path / "model", model, form, id2label=dict(enumerate(CLASSES))))
    with pytest.raises(CheckpointError, match=message):
        steps.step("convert_saved_model", {"checkpoint": checkpoint}, lengths=(8,))


def test_a_model_with_state_is_refused(tmp_path: Path, build: Callable[..., Build]) -> None:
    class Counter(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = tf.Variable(0.0)

        @tf.function(input_signature=[tf.TensorSpec((None, None), tf.int32, name=name) for name in ("input_ids", "attention_mask")])
        def __call__(self, input_ids: Any, attention_mask: Any) -> dict[str, Any]:
            return {"logits": tf.cast(input_ids * attention_mask, tf.float32)[:, :2] + self.calls.assign_add(1.0)}

    steps = build(Task.TEXT_CLASSIFICATION)
    checkpoint = steps.load(source(tmp_path / "model", Counter(), "module", id2label={"0": "a", "1": "b"}))
    with pytest.raises(CheckpointError, match="variables that it changes while it runs"):
        steps.step("convert_saved_model", {"checkpoint": checkpoint}, lengths=(8,))
