"""Every architecture in both formats, against Transformers' own answer.

Each architecture is sent through with another task, so that their different heads are met. `EDGEEXPORT_TEST_ALL=1` sends each through with
every task, which takes a quarter of an hour.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import Original, pooled
from tiny import ARCHITECTURES, LENGTHS, MAX_LENGTH, MODEL_CLASSES, TEXTS, Case
from zoo import Zoo

from edgeexport.artifact import Task
from edgeexport.catalog import find_step
from edgeexport.checkpoint import ENCODERS
from edgeexport.inspection import inspect_file
from edgeexport.recipe import ModelSection
from edgeexport.session import Payload, Session
from edgeexport.session.tasks import output_names
from edgeexport.session.text import Encoded

ALL = [Case(architecture, task) for architecture in ARCHITECTURES for task in MODEL_CLASSES]
SOME = [
    Case("bert", Task.TEXT_CLASSIFICATION),
    Case("distilbert", Task.TEXT_CLASSIFICATION),
    Case("roberta", Task.TEXT_CLASSIFICATION),
    Case("xlm-roberta", Task.TOKEN_CLASSIFICATION),
    Case("camembert", Task.FILL_MASK),
    Case("albert", Task.TEXT_CLASSIFICATION),
    Case("mobilebert", Task.FILL_MASK),
    Case("electra", Task.QUESTION_ANSWERING),
    Case("mpnet", Task.SENTENCE_SIMILARITY),
]
CASES = ALL if os.environ.get("EDGEEXPORT_TEST_ALL") else SOME
TOLERANCE = 1e-4  # of the outputs' spread over texts


def test_every_supported_architecture_is_tested() -> None:
    assert set(ENCODERS) == set(ARCHITECTURES) == {case.architecture for case in CASES}


def texts_for(original: Original) -> list[tuple[str, ...]]:
    """Texts of chosen numbers of tokens: the least, each bucket to the brim and one more, beyond the longest; and odd ones."""
    found: list[tuple[str, ...]] = []
    pair = () if original.task is not Task.QUESTION_ANSWERING else (TEXTS[150],)
    if pair:  # the context is what is made longer or shorter
        return [("who?", text_of(original, length, "who?")) for length in (8, *LENGTHS)] + [
            ("who?", "x"), ("who?", ""), ("who is it?", " ".join(TEXTS[100:110])), (TEXTS[40], TEXTS[60])]
    found = [(text_of(original, length),) for length in (3, LENGTHS[0], LENGTHS[0] + 1, MAX_LENGTH)]
    odd = ["", "  two  blanks ", "Ünïcödé — 東京 🙂", original.tokenizer.sep_token + " inside", " ".join(TEXTS[100:110])]
    return found + [(text,) for text in odd + list(TEXTS[5:200:40])]


def text_of(original: Original, length: int, question: str | None = None) -> str:
    """A text that has exactly so many tokens, special tokens included."""
    words = " ".join(TEXTS[100:130]).split()
    for first in range(len(words)):
        for count in range(1, length):
            text = " ".join(words[first:first + count])
            tokens = original.tokenizer(*([text] if question is None else [question, text]))["input_ids"]
            if len(tokens) == length:
                return text
    raise AssertionError(f"no text of {length} tokens")


def expected(original: Original, text: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The outputs by our names, without padding."""
    found = original.outputs(*text)
    if original.task is Task.SENTENCE_SIMILARITY:
        return {"sentence_embedding": pooled(found["last_hidden_state"][0], "mean")[None]}
    return {"token_embeddings": found["last_hidden_state"]} if original.task is Task.FEATURE_EXTRACTION else found


def spread(outputs: list[dict[str, np.ndarray]]) -> float:
    """Standard deviation of an output over texts (and tokens), the mean over the outputs."""
    rows = [value[0] if value.ndim == 3 else value if name not in {"start_logits", "end_logits"} else value.T
            for found in outputs for name, value in found.items()]
    return float(np.concatenate(rows).std(axis=0).mean())


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("model_format", ["onnx", "tflite"])
def test_float32_equals_the_original(zoo: Zoo, case: Case, model_format: str) -> None:
    original, session = zoo.original(case), zoo.session(case, model_format)
    texts = texts_for(original)
    right = [expected(original, text) for text in texts]
    unit = spread(right)
    assert unit > (1.0 if case.task not in {Task.FEATURE_EXTRACTION, Task.SENTENCE_SIMILARITY} else 0.1), "outputs must vary"

    worst = 0.0
    for text, wanted in zip(texts, right, strict=True):
        encoded = session.encode(*text)
        assert encoded.ids.tolist() == original.tokens(*text)["input_ids"][0].tolist()
        found = session.outputs(encoded)
        assert tuple(found) == tuple(wanted) if model_format == "onnx" else set(found) == set(wanted)
        for name, value in wanted.items():
            real = found[name][:, :len(encoded.ids)] if name != "sentence_embedding" and case.task is not Task.TEXT_CLASSIFICATION else found[name]
            assert real.shape == value.shape
            worst = max(worst, float(np.abs(real - value).max()) / unit)
    print(f"\nerror {case} {model_format} {worst:.1e}")
    assert worst <= TOLERANCE


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
    """The same text in a short and a long TFLite signature, and in ONNX with and without padding."""
    original = zoo.original(case)
    text = texts_for(original)[0]
    unit = spread([expected(original, other) for other in texts_for(original)])
    for model_format, lengths in (("tflite", LENGTHS), ("onnx", (None, 21))):
        session = zoo.session(case, model_format)
        encoded = session.encode(*text)
        short, long = (outputs_at(session, encoded, length or len(encoded.ids)) for length in lengths)
        for name, value in short.items():
            other = long[name]
            if other.shape != value.shape:
                value, other = value[:, :len(encoded.ids)], other[:, :len(encoded.ids)]
            assert np.abs(value - other).max() <= 1e-5 * max(unit, 1.0)


def outputs_at(session: Session, encoded: Encoded, length: int) -> dict[str, np.ndarray]:
    return session.model.run(encoded.feeds(session.payload.spec, length))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_are_named_by_the_task(zoo: Zoo, case: Case) -> None:
    names = output_names(case.task, "none" if case.task is Task.FEATURE_EXTRACTION else "mean")
    (onnx,) = inspect_file(zoo.exported(case, "onnx").path / "model.onnx").signatures
    assert tuple(value.name for value in onnx.outputs) == names
    lite = inspect_file(zoo.exported(case, "tflite").path / "model.tflite").signatures
    assert {signature.name for signature in lite} == {f"seq_{length}" for length in LENGTHS}
    assert all({value.name for value in signature.outputs} == set(names) for signature in lite)


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
