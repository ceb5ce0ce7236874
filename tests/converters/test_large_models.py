"""Models beyond 2 GB, whose weights lie outside of what a file's format can address: tiny ones are sent the same way by a lower limit."""

from __future__ import annotations

import numpy as np
import pytest
from edgeexport.converters import _onnx_external, _tflite_file
from int8 import ASKED, CLASSIFIER, TAGGER, model_file
from zoo import Zoo

from edgeexport.inspection import inspect_file
from edgeexport.step import View


def answers(zoo: Zoo, model: View) -> np.ndarray:
    session = zoo.session(CLASSIFIER, model)
    return np.stack([session.outputs(session.encode(text))["logits"][0] for text in ASKED[:8]])


@pytest.fixture
def large(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Zoo:
    """A zoo where models are large."""
    monkeypatch.setattr(_onnx_external, "LARGEST", 1000)
    monkeypatch.setattr(_tflite_file, "LARGEST", 1000)
    return Zoo(tmp_path_factory.mktemp("large"))


@pytest.mark.parametrize(("model_format", "precision"), [
    ("onnx", "float32"), ("onnx", "dynamic-int8"), ("onnx", "static-int8"), ("tflite", "float32"), ("tflite", "dynamic-int8")])
def test_answers_do_not_depend_on_where_the_weights_lie(zoo: Zoo, large: Zoo, model_format: str, precision: str) -> None:
    found, expected = (each.exported(CLASSIFIER, model_format) if precision == "float32" else each.quantized(CLASSIFIER, model_format, precision)
                       for each in (large, zoo))
    report, whole = inspect_file(model_file(found)), inspect_file(model_file(expected))
    outside = report.external_bytes > 0 if model_format == "onnx" else report.weights_behind_flatbuffer
    assert outside or precision == "static-int8"  # onnxruntime's quantizer writes the file, which is a quarter as large
    assert report.integer_weight_share == whole.integer_weight_share
    assert np.array_equal(answers(zoo, found), answers(zoo, expected))


def test_overrides_are_about_weights_wherever_they_lie(large: Zoo) -> None:
    """A constant that was taken for an activation would be no part of any module."""
    report = inspect_file(model_file(large.quantized(TAGGER, "tflite", "dynamic-int8")))
    assert report.integer_compute_share == 1.0
