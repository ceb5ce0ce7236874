"""ONNX export of every architecture, against Transformers' own answer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from architectures import (
    CASES,
    TOLERANCE,
    assert_equals_the_original,
    assert_padding_changes_nothing,
    expected,
    output_names_of,
    outputs_at,
    spread,
    texts_for,
)
from reference import Original
from tiny import ARCHITECTURES, LENGTHS, Case
from zoo import Zoo

from edgeexport.architectures import ENCODERS
from edgeexport.artifact import Task
from edgeexport.catalog import find_step
from edgeexport.inspection import inspect_file
from edgeexport.recipe import ModelSection
from edgeexport.session import Payload, Session


def test_every_supported_architecture_is_tested() -> None:
    assert set(ENCODERS) == set(ARCHITECTURES) == {case.architecture for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_equals_the_original(zoo: Zoo, case: Case) -> None:
    assert_equals_the_original(zoo, case, "onnx")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_batch_with_padding_equals_each_text_alone(zoo: Zoo, case: Case) -> None:
    """ONNX has a dynamic batch: texts of several lengths together, all of them padded."""
    original, session = zoo.original(case), zoo.session(case, "onnx")
    texts = [text for text in texts_for(original) if len(session.encode(*text).ids) <= LENGTHS[0] + 1]
    encoded = [session.encode(*text) for text in texts]
    length = max(len(each.ids) for each in encoded) + 3
    rows = [each.feeds(session.payload.spec, length) for each in encoded]
    found = session.model.run({name: np.concatenate([row[name] for row in rows]) for name in rows[0]})
    right = [expected(original, text) for text in texts]
    unit = spread(right)
    for number, (each, wanted) in enumerate(zip(encoded, right, strict=True)):
        for name, value in wanted.items():
            row = found[name][number:number + 1]
            real = row if value.shape == row.shape else row[:, :len(each.ids)]
            assert np.abs(real - value).max() <= TOLERANCE * unit


@pytest.mark.parametrize("case", CASES, ids=str)
def test_padding_changes_nothing(zoo: Zoo, case: Case) -> None:
    assert_padding_changes_nothing(zoo, case, "onnx", (None, 21))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_are_named_by_the_task(zoo: Zoo, case: Case) -> None:
    (signature,) = inspect_file(zoo.exported(case, "onnx").path / "model.onnx").signatures
    assert tuple(value.name for value in signature.outputs) == output_names_of(case)


def test_padding_stays_hidden_from_large_scores(zoo: Zoo, tmp_path: Path) -> None:
    """Attention scores in the hundreds, as some trained models have them: the number that hides padding must outdo them."""
    from safetensors.torch import load_file, save_file

    case = Case("bert", Task.FEATURE_EXTRACTION, layers=1)
    directory = Path(shutil.copytree(zoo.directory(case), tmp_path / "m"))
    weights = load_file(directory / "model.safetensors")
    weights["encoder.layer.0.attention.self.query.weight"] *= 200
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    original = Original(directory, case.task)
    largest = 0.0

    def note(module: Any, inputs: Any, output: Any) -> None:  # the scores are the query times the key
        nonlocal largest
        largest = max(largest, float(output.abs().max()))

    original.model.encoder.layer[0].attention.self.query.register_forward_hook(note)
    checkpoint = zoo.load(directory, ModelSection(source="m", max_length=12))
    model = zoo.run(find_step("export_onnx")(), {"checkpoint": checkpoint})
    session = Session(Payload(zoo.payload(checkpoint, model).path), "v", "onnxruntime")
    for text in ("one", "two words here", "Rain, then snow"):
        encoded = session.encode(text)
        wanted = original.outputs(text)["last_hidden_state"]
        assert outputs_at(session, encoded, 12)["token_embeddings"][:, :len(encoded.ids)] == pytest.approx(wanted, abs=1e-3)
    assert largest > 500
