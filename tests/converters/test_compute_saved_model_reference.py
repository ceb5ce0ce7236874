"""The reference of a SavedModel or Keras file, against TensorFlow's own answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from saved_models import (
    CLASSES,
    LENGTHS,
    TEXTS,
    Build,
    classifier,
    original_logits,
    source,
    tokens,
)
from zoo import as_rows

from edgeexport.artifact import Task
from edgeexport.session.evidence import Answers, untruncated


@pytest.mark.parametrize(("form", "shape"), [("keras", (None,)), ("exported", (None,)), ("exported", (32,))])
def test_reference_is_tensorflows_own_answer(tmp_path: Path, build: Callable[..., Build], form: str, shape: tuple[int | None, ...]) -> None:
    model = classifier(attention=True, shape=shape)
    free = classifier(attention=True)
    steps = build(Task.TEXT_CLASSIFICATION, max_length=16)
    checkpoint = steps.load(source(tmp_path / "model", model, form, id2label=dict(enumerate(CLASSES))))
    inputs = {"checkpoint": checkpoint, "texts": steps.dataset("texts", as_rows(TEXTS))}
    view = steps.step("compute_saved_model_reference", inputs, datasets=("texts",), untruncated=("texts",))
    for name, longest in (("texts", 16), (untruncated("texts"), LENGTHS[-1])):
        found = Answers.load(view.path / f"{name}.npz")
        for i, text in enumerate(TEXTS):
            cut = " ".join(text.split()[:longest - 2])
            assert found.numbers[i][0] == pytest.approx(original_logits(free, cut), abs=1e-5)
            assert found.decisions[i] == [int(original_logits(free, cut).argmax())]
            assert found.truncated[i] == (cut != text)
            assert found.tokens[i] == tokens(cut).shape[1]
