"""What the outputs of a model mean: for people (answers), and for proof (numbers and decisions).

Output names and shapes by task, as the exporters make them (batch of one):

====================  =====================================================================================
feature-extraction    ``sentence_embedding`` float32 [1, hidden], or unpooled ``token_embeddings`` [1, seq, hidden]
sentence-similarity   ``sentence_embedding`` float32 [1, hidden]
text-classification   ``logits`` float32 [1, classes]
token-classification  ``logits`` float32 [1, seq, classes]
question-answering    ``start_logits`` and ``end_logits`` float32 [1, seq]
fill-mask             ``logits`` float32 [1, seq, vocabulary]
====================  =====================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeexport.errors import DataError
from edgeexport.session.evidence import NO_WORDS, Answers
from edgeexport.session.text import Encoded, TextSpec, Tokenizer

Outputs = Mapping[str, np.ndarray]

# Tasks whose input may be two texts; only they need token_type_ids.
PAIR_TASKS = frozenset({"text-classification", "question-answering"})

# Of a vocabulary, so many evenly spaced logits are compared: all of them would be 60 MB for 500 texts.
FILL_MASK_SAMPLE = 1024
# Longest answer in tokens, as in Transformers' question-answering pipeline.
LONGEST_SPAN = 15


@dataclass(frozen=True)
class Head:
    """What a model's head means.

    Attributes:
        task: the task's name.
        labels: the names of the classes, in the order of the logits.
        problem_type: for text classification, as in config.json; None is one class out of several.
    """

    task: str
    labels: tuple[str, ...] = ()
    problem_type: str | None = None


def output_names(task: str, pooling: str | None) -> tuple[str, ...]:
    """The names of the outputs that a model for `task` has."""
    if task in {"feature-extraction", "sentence-similarity"}:
        return ("token_embeddings",) if pooling == "none" else ("sentence_embedding",)
    return ("start_logits", "end_logits") if task == "question-answering" else ("logits",)


def numbers(head: Head, spec: TextSpec, encoded: Encoded, outputs: Outputs) -> np.ndarray:
    """The numbers of one example that are compared between lanes: float32 [positions, values], those of each word where words are answered."""
    count = len(encoded.ids)
    if head.task in {"feature-extraction", "sentence-similarity"}:
        if "token_embeddings" in outputs:
            return outputs["token_embeddings"][0, :count]
        return outputs["sentence_embedding"]
    if head.task == "text-classification":
        return outputs["logits"]
    if head.task == "token-classification":
        return np.asarray(outputs["logits"][0, first_tokens(encoded)])
    if head.task == "question-answering":
        return np.stack([outputs["start_logits"][0, :count], outputs["end_logits"][0, :count]], axis=1)
    logits = outputs["logits"][0, mask_positions(spec, encoded)]
    vocabulary = logits.shape[-1]
    sample = np.linspace(0, vocabulary - 1, min(FILL_MASK_SAMPLE, vocabulary)).astype(np.int64)
    return np.asarray(logits[:, sample])


def decision(head: Head, spec: TextSpec, encoded: Encoded, outputs: Outputs) -> list[int]:
    """What the model answers, as integers that can be compared: empty for vectors.

    The class; the class of each word, which its first token decides; first and last token of the span; the token for each mask.
    """
    if head.task == "text-classification":
        logits = outputs["logits"][0]
        if head.problem_type == "multi_label_classification":
            return [int(value) for value in logits > 0]
        # One logit is a score, whatever config.json calls it: the largest of one decides nothing.
        return [] if head.problem_type == "regression" or len(logits) == 1 else [int(logits.argmax())]
    if head.task == "token-classification":
        return [int(i) for i in outputs["logits"][0, first_tokens(encoded)].argmax(axis=-1)]
    if head.task == "question-answering":
        start, end, _ = best_span(encoded, outputs)
        return [start, end]
    if head.task == "fill-mask":
        return [int(i) for i in outputs["logits"][0, mask_positions(spec, encoded)].argmax(axis=-1)]
    return []


def add_answer(found: Answers, head: Head, spec: TextSpec, encoded: Encoded, outputs: Outputs) -> None:
    """Add what the outputs say about one example: its numbers, its decision, and where the words lie that are decided about."""
    spans = word_spans(encoded) if head.task == "token-classification" else NO_WORDS
    found.add(numbers(head, spec, encoded, outputs), decision(head, spec, encoded, outputs), len(encoded.ids), encoded.truncated, spans, encoded.ids)


def first_tokens(encoded: Encoded) -> list[int]:
    """Positions of the first token of each word."""
    return [i for i, word in enumerate(encoded.words) if word is not None and (i == 0 or word != encoded.words[i - 1])]


def word_spans(encoded: Encoded) -> np.ndarray:
    """Where each word lies in its text, in characters: int64 [words, 2], in the order of :func:`first_tokens`."""
    words = encoded.words
    lasts = [i for i, word in enumerate(words) if word is not None and (i + 1 == len(words) or word != words[i + 1])]
    spans = [(encoded.offsets[first][0], encoded.offsets[last][1]) for first, last in zip(first_tokens(encoded), lasts)]
    return np.array(spans, np.int64).reshape(-1, 2)


def entity_runs(labels: Sequence[str]) -> list[tuple[int, int, str]]:
    """The entities that words' labels mean: first word, last word and name of each.

    A label is a name with a prefix, or without one. B-, S- and U- start an entity; I-, E- and L- go on with one of the same name, and start one
    where there is none.
    """
    found: list[tuple[int, int, str]] = []
    for i, label in enumerate(labels):
        prefix, name = (label[0], label[2:]) if label[:2] in {"B-", "I-", "E-", "S-", "L-", "U-"} else ("", label)
        if name == "O":
            continue
        if found and found[-1][1:] == (i - 1, name) and prefix not in {"B", "S", "U"}:
            found[-1] = (found[-1][0], i, name)
        else:
            found.append((i, i, name))
    return found


def mask_positions(spec: TextSpec, encoded: Encoded) -> np.ndarray:
    """Positions of the mask token: int64 [masks]; none where the text was cut before it.

    Raises:
        DataError: there was none.
    """
    positions = np.flatnonzero(encoded.ids == spec.mask_id)
    if not len(positions) and not encoded.truncated:
        raise DataError("The text has no mask token.", hint="put the model's mask token (such as [MASK] or <mask>) where a word is to be found")
    return positions


def best_span(encoded: Encoded, outputs: Outputs) -> tuple[int, int, float]:
    """First and last token of the best span within the context, and its probability.

    The first token of all, by which a model says that there is no answer, has its share of the probability, but is no answer itself.

    Source: QuestionAnsweringPipeline of Transformers 4.
    """
    context = np.array([sequence == 1 for sequence in encoded.sequence])
    if not context.any():
        return 0, 0, 0.0
    count = len(encoded.ids)
    counted = context.copy()
    counted[0] = True
    start, end = (context * softmax(np.where(counted, outputs[name][0, :count], -np.inf)) for name in ("start_logits", "end_logits"))
    # Both ends in order and at most LONGEST_SPAN apart: a band of the outer product.
    band = np.tril(np.triu(np.outer(start, end)), LONGEST_SPAN - 1)
    first, last = np.unravel_index(int(band.argmax()), band.shape)
    return int(first), int(last), float(band[first, last])


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def answer(head: Head, tokenizer: Tokenizer, encoded: Encoded, outputs: Outputs, text: str, pair: str | None) -> Any:
    """What a person wants to know, in the form of Transformers' pipelines (vectors: an array)."""
    return _ANSWERS[head.task](head, tokenizer, encoded, outputs, text, pair)


def _vector(head: Head, tokenizer: Tokenizer, encoded: Encoded, outputs: Outputs, text: str, pair: str | None) -> np.ndarray:
    found = numbers(head, tokenizer.spec, encoded, outputs)
    return found if "token_embeddings" in outputs else found[0]


def _classes(head: Head, tokenizer: Tokenizer, encoded: Encoded, outputs: Outputs, text: str, pair: str | None) -> list[dict[str, Any]]:
    logits = outputs["logits"][0]
    if head.problem_type == "regression":
        scores = logits
    elif head.problem_type == "multi_label_classification" or len(logits) == 1:
        scores = 1 / (1 + np.exp(-logits))
    else:
        scores = softmax(logits)
    return [{"label": head.labels[i], "score": float(scores[i])} for i in np.argsort(-scores)]


def _entities(head: Head, tokenizer: Tokenizer, encoded: Encoded, outputs: Outputs, text: str, pair: str | None) -> list[dict[str, Any]]:
    """Runs of words of one entity, as the pipeline with ``aggregation_strategy="first"``: a word's first token speaks for the word, and an
    entity's score is the mean of its words'.

    Three things differ, each where the pipeline guesses: words are the tokenizer's own, ``word`` is the text as it stands rather than
    decoded tokens, and besides B- and I- the prefixes E- and L- (end) and S- and U- (single) are understood.
    """
    scores = softmax(outputs["logits"][0, first_tokens(encoded)])
    spans = word_spans(encoded)
    found = []
    for first, last, name in entity_runs([head.labels[best] for best in scores.argmax(axis=-1)]):
        start, end = int(spans[first, 0]), int(spans[last, 1])
        found.append({"entity_group": name, "score": float(scores[first:last + 1].max(axis=-1).mean()), "word": text[start:end],
                      "start": start, "end": end})
    return found


def _span(head: Head, tokenizer: Tokenizer, encoded: Encoded, outputs: Outputs, text: str, pair: str | None) -> dict[str, Any]:
    """The best span, made longer to whole words, as the pipeline does."""
    first, last, score = best_span(encoded, outputs)
    words = list(zip(encoded.sequence, encoded.words))
    if words[first][1] is not None and words[last][1] is not None:
        first, last = words.index(words[first]), len(words) - 1 - words[::-1].index(words[last])
    start, end = encoded.offsets[first][0], encoded.offsets[last][1]
    return {"score": score, "start": start, "end": end, "answer": (pair or "")[start:end]}


def _fillers(head: Head, tokenizer: Tokenizer, encoded: Encoded, outputs: Outputs, text: str, pair: str | None) -> list[Any]:
    """The five likeliest tokens for the mask; of several masks, such a list for each."""
    positions = mask_positions(tokenizer.spec, encoded)
    if not len(positions):
        raise DataError(f"The mask token lies beyond the {tokenizer.spec.max_length} tokens that the model reads.", hint="give a shorter text")
    found = []
    for position in positions:
        scores = softmax(outputs["logits"][0, position])
        fillers = []
        for token_id in np.argsort(-scores)[:5].tolist():
            ids = encoded.ids.copy()
            ids[position] = token_id
            # With other masks in the text special tokens are shown, so that these are seen.
            fillers.append({"score": float(scores[token_id]), "token": token_id, "token_str": tokenizer.decode([token_id], keep_special=True),
                            "sequence": tokenizer.decode(ids.tolist(), keep_special=len(positions) > 1)})
        found.append(fillers)
    return found[0] if len(found) == 1 else found


_ANSWERS: dict[str, Callable[..., Any]] = {
    "feature-extraction": _vector,
    "sentence-similarity": _vector,
    "text-classification": _classes,
    "token-classification": _entities,
    "question-answering": _span,
    "fill-mask": _fillers,
}
