"""What the tests of both exporters share: every architecture, its texts, and Transformers' own answers to them.

Each architecture is sent through with another task, so that their different heads are met. `EDGEEXPORT_TEST_ALL=1` sends each through with
every task, which takes a quarter of an hour.
"""

from __future__ import annotations

import os

import numpy as np
from reference import Original, pooled
from tiny import ARCHITECTURES, LENGTHS, MAX_LENGTH, MODEL_CLASSES, TEXTS, Case
from zoo import Zoo

from edgeexport.artifact import Task
from edgeexport.session import Session
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


def outputs_at(session: Session, encoded: Encoded, length: int) -> dict[str, np.ndarray]:
    """The outputs for a text that is filled up to a length."""
    return session.model.run(encoded.feeds(session.payload.spec, length))


def assert_equals_the_original(zoo: Zoo, case: Case, model_format: str) -> None:
    """A float32 export gives the tokens and outputs of the original, for every text."""
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
    assert worst <= TOLERANCE


def assert_padding_changes_nothing(zoo: Zoo, case: Case, model_format: str, lengths: tuple[int | None, int | None]) -> None:
    """The same text at two lengths; None is its own."""
    original, session = zoo.original(case), zoo.session(case, model_format)
    text = texts_for(original)[0]
    unit = spread([expected(original, other) for other in texts_for(original)])
    encoded = session.encode(*text)
    short, long = (outputs_at(session, encoded, length or len(encoded.ids)) for length in lengths)
    for name, value in short.items():
        other = long[name]
        if other.shape != value.shape:
            value, other = value[:, :len(encoded.ids)], other[:, :len(encoded.ids)]
        assert np.abs(value - other).max() <= 1e-5 * max(unit, 1.0)


def output_names_of(case: Case) -> tuple[str, ...]:
    """The names of the outputs that a case's model must have."""
    return output_names(case.task, "none" if case.task is Task.FEATURE_EXTRACTION else "mean")
