"""What the tests of both quantizers share: their models, and how near to the original INT8 must be."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from tiny import MAX_LENGTH, TEXTS, Case
from zoo import Zoo

from edgeexport.artifact import Task
from edgeexport.inspection import inspect_file
from edgeexport.policy import Override, Policy
from edgeexport.step import View

CLASSIFIER = Case("bert", Task.TEXT_CLASSIFICATION)
TAGGER = Case("bert", Task.TOKEN_CLASSIFICATION, layers=1)
EMBEDDER = Case("bert", Task.SENTENCE_SIMILARITY, "mean", normalize=True, layers=1)
ASKED = TEXTS[33:233:2]  # of the calibration's texts, every second is among them


def model_file(view: View) -> Path:
    return view.path / f"model.{view.spec.kind}"


def policy(default: str, **overrides: str) -> Policy:
    return Policy(default=default, overrides=tuple(Override(match=match, scheme=scheme) for match, scheme in overrides.items()))


def computed(view: View) -> Counter[tuple[str, str]]:
    """How many operators of each type compute how."""
    counts: Counter[tuple[str, str]] = Counter()
    for use in inspect_file(model_file(view)).operators:
        counts[use.name, use.computes] += use.count
    return counts


def packed(model: Any) -> bytes:
    """A TFLite model as a file."""
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def assert_near_the_original(zoo: Zoo, case: Case, model_format: str, precision: str, error: float, agreement: float) -> None:
    """Mean error of the logits in units of their spread, and share of equal classes.

    The bounds leave some room to what was measured (0.028–0.049 and 0.95–0.99 for weights alone or dynamic, 0.045–0.19 and 0.90–0.97
    static): random weights are wider than trained ones, and 100 texts are few.
    """
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
    assert 1e-4 < np.concatenate(errors).mean() < error
    assert np.mean(same) >= agreement

    report = inspect_file(model_file(quantized))
    assert quantized.spec.precision == precision
    assert report.integer_weight_share is not None and report.integer_weight_share > 0.85  # tables of positions stay float
    assert report.integer_compute_share == (0.0 if precision == "weight-only-int8" else 1.0)
    assert report.bytes < 0.7 * model_file(zoo.exported(case, model_format)).stat().st_size
    assert not report.weights_behind_flatbuffer


def assert_vectors_point_the_same_way(zoo: Zoo, model_format: str, precision: str) -> None:
    original, session = zoo.original(EMBEDDER), zoo.session(EMBEDDER, zoo.quantized(EMBEDDER, model_format, precision))
    cosines = [float(session.model.run(session.encode(text).feeds(session.payload.spec, MAX_LENGTH))["sentence_embedding"][0]
                     @ original.vector(text, "mean", normalize=True)) for text in ASKED]
    assert np.mean(cosines) > 0.99
    assert min(cosines) > 0.97
