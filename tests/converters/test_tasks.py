"""Every task with a BERT and a RoBERTa: numbers, decisions and answers, against Transformers' outputs and pipelines."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from reference import Original, softmax
from tiny import CLASSES, MAX_LENGTH, TEXTS, Case
from zoo import Zoo

from edgeexport.artifact import Task
from edgeexport.errors import DataError
from edgeexport.session import Session, TruncationWarning, tasks

# Without layers RoBERTa's heads are traced in half the time; its layers are BERT's, and test_architectures sends them through.
FAMILIES = {"bert": 1, "roberta": 0}
FORMATS = ("onnx", "tflite")
SHORT = tuple(text for text in TEXTS if 2 <= len(text.split()) <= 5 and text.isascii())[:24]
PLAIN = tuple(" ".join(word for word in text.split() if word.isalpha())[:60] for text in TEXTS[60:200])
PAIRS = tuple(zip(SHORT[::2], SHORT[1::2], strict=True))
CLOSE = 1e-4


@pytest.fixture(params=FORMATS)
def model_format(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def small(family: str, task: Task, *pooling: str, normalize: bool = False) -> Case:
    return Case(family, task, *pooling, normalize=normalize, layers=FAMILIES[family])


def pipeline(original: Original, name: str, **options: Any) -> Any:
    """Transformers' pipeline on the original's model and tokenizer."""
    import transformers

    made = transformers.pipeline(name, model=original.model, tokenizer=original.tokenizer, device="cpu", **options)

    def call(*inputs: Any, **keywords: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return made(*inputs, **keywords)

    return call


def evidence(session: Session, text: str, pair: str | None = None) -> tuple[np.ndarray, list[int]]:
    """Numbers and decision, as the agent takes them down."""
    head, spec, encoded = session.payload.head, session.payload.spec, session.encode(text, pair)
    outputs = session.outputs(encoded)
    return tasks.numbers(head, spec, encoded, outputs), tasks.decision(head, spec, encoded, outputs)


def test_one_vector_per_token(zoo: Zoo, family: str, model_format: str) -> None:
    case = small(family, Task.FEATURE_EXTRACTION)
    original, session = zoo.original(case), zoo.session(case, model_format)
    assert session.payload.spec.pooling == "none"
    for text in (*SHORT, ""):
        wanted = original.outputs(text)["last_hidden_state"][0]
        assert session.answer(text) == pytest.approx(wanted, abs=CLOSE)
        numbers, decision = evidence(session, text)
        assert numbers == pytest.approx(wanted, abs=CLOSE)
        assert decision == []


@pytest.mark.parametrize("pooling", ["cls", "max", "lasttoken", "mean_sqrt_len"])
def test_poolings(zoo: Zoo, pooling: str, model_format: str) -> None:
    case = Case("bert", Task.FEATURE_EXTRACTION if pooling == "cls" else Task.SENTENCE_SIMILARITY, pooling, layers=0)
    original, session = zoo.original(case), zoo.session(case, model_format)
    spec = session.payload.spec
    assert (spec.pooling, spec.normalize, spec.sources["pooling"]) == (pooling, False, "1_Pooling/config.json")
    for text in (*SHORT, "", "one", " ".join(TEXTS[100:110])):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)
            assert session.answer(text) == pytest.approx(original.vector(text, pooling), abs=CLOSE)


def test_sentence_vectors(zoo: Zoo, family: str, model_format: str) -> None:
    case = small(family, Task.SENTENCE_SIMILARITY, "mean", normalize=True)
    original, session = zoo.original(case), zoo.session(case, model_format)
    assert session.payload.spec.normalize
    for text in (*SHORT, ""):
        wanted = original.vector(text, "mean", normalize=True)
        found = session.answer(text)
        assert found.shape == (32,)
        assert found == pytest.approx(wanted, abs=CLOSE)
        assert evidence(session, text)[0] == pytest.approx(wanted[None], abs=CLOSE)


def test_classes_of_texts_and_pairs(zoo: Zoo, family: str, model_format: str) -> None:
    case = Case(family, Task.TEXT_CLASSIFICATION)
    original, session = zoo.original(case), zoo.session(case, model_format)
    pipe = pipeline(original, "text-classification", top_k=None)
    differ = 0
    for text, pair in [(text, None) for text in SHORT] + [*PAIRS, ("one", ""), ("", "two"), (" ".join(TEXTS[100:104]), TEXTS[120])]:
        logits = original.outputs(text, pair)["logits"]
        numbers, decision = evidence(session, text, pair)
        assert numbers == pytest.approx(logits, abs=CLOSE * 3)
        assert decision == [int(logits.argmax())]
        if pair == "":
            continue  # the pipeline drops an empty second text
        wanted = pipe({"text": text} | ({"text_pair": pair} if pair is not None else {}), truncation=True, max_length=MAX_LENGTH)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)
            found = session.answer(text, pair)
        assert [entry["label"] for entry in found] == [entry["label"] for entry in wanted]
        assert [entry["score"] for entry in found] == pytest.approx([entry["score"] for entry in wanted], abs=CLOSE)
        differ += pair is not None and decision != evidence(session, text)[1]
    assert differ > 1, "the second text must matter"


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression", None])
def test_what_logits_mean(zoo: Zoo, problem_type: str | None) -> None:
    case = Case("bert", Task.TEXT_CLASSIFICATION)
    original, session = zoo.original(case), zoo.session(case, "onnx")
    original.model.config.problem_type = problem_type
    session = _with_head(session, replace(session.payload.head, problem_type=problem_type))
    pipe = pipeline(original, "text-classification", top_k=None)
    for text in SHORT:
        wanted, found = pipe({"text": text}), session.answer(text)
        assert [entry["label"] for entry in found] == [entry["label"] for entry in wanted]
        assert [entry["score"] for entry in found] == pytest.approx([entry["score"] for entry in wanted], abs=CLOSE * 3)
        logits = original.outputs(text)["logits"][0]
        assert evidence(session, text)[1] == {
            "multi_label_classification": [int(value > 0) for value in logits], "regression": [], None: [int(logits.argmax())]}[problem_type]
    original.model.config.problem_type = None


def _with_head(session: Session, head: tasks.Head) -> Session:
    from copy import copy

    other = copy(session)
    other.payload = copy(session.payload)
    other.payload.head = head
    return other


def test_a_single_logit_is_a_score(zoo: Zoo) -> None:
    session = zoo.session(Case("bert", Task.TEXT_CLASSIFICATION), "onnx")
    encoded = session.encode("any")
    outputs = {"logits": np.array([[0.3]], np.float32)}
    for problem_type, score in ((None, 1 / (1 + np.exp(-0.3))), ("regression", 0.3)):
        head = tasks.Head("text-classification", ("LABEL_0",), problem_type)
        assert tasks.answer(head, session.tokenizer, encoded, outputs, "any", None) == [{"label": "LABEL_0", "score": pytest.approx(score, abs=1e-6)}]
        assert tasks.decision(head, session.payload.spec, encoded, outputs) == []


def test_entities(zoo: Zoo, family: str, model_format: str) -> None:
    """Of RoBERTa's words the pipeline knows only what lies between blanks: it is asked about texts without punctuation, and without a token
    that is but a blank."""
    case = small(family, Task.TOKEN_CLASSIFICATION)
    original, session = zoo.original(case), zoo.session(case, model_format)
    pipe = pipeline(original, "token-classification", aggregation_strategy="first")
    count = 0
    for text in (TEXTS[33:100] if family == "bert" else PLAIN):
        logits, firsts = original.outputs(text)["logits"][0], original.firsts(text)
        numbers, decision = evidence(session, text)
        assert numbers == pytest.approx(logits[firsts], abs=CLOSE * 3)
        best = np.sort(logits[1:-1], axis=-1)
        if (best[:, -1] - best[:, -2]).min() < 1e-3:
            continue  # two classes are as good as equal
        assert decision == logits[firsts].argmax(axis=-1).tolist()
        if len(logits) == MAX_LENGTH or any(start == end for start, end in session.encode(text).offsets[1:-1]):
            continue
        wanted, found = pipe(text), session.answer(text)
        keys = ("entity_group", "start", "end")
        assert [[entry[key] for key in keys] for entry in found] == [[entry[key] for key in keys] for entry in wanted]
        assert [entry["score"] for entry in found] == pytest.approx([float(entry["score"]) for entry in wanted], abs=CLOSE)
        assert all(entry["word"] == text[entry["start"]:entry["end"]] for entry in found)
        count += len(found)
    assert count > 40


def test_entity_labels_of_other_schemes(zoo: Zoo) -> None:
    session = zoo.session(Case("bert", Task.TOKEN_CLASSIFICATION, layers=1), "onnx")
    encoded = session.encode("one two three four five six")
    assert encoded.words == [None, *[i for i in encoded.words if i is not None], None]
    firsts = [encoded.words.index(word) for word in range(6)]

    def entities(labels: list[str]) -> list[tuple[str, str]]:
        names = tuple(dict.fromkeys(["O", *labels]))
        logits = np.zeros((1, len(encoded.ids), len(names)), np.float32)
        for first, label in zip(firsts, labels, strict=True):
            logits[0, first, names.index(label)] = 9
        head = tasks.Head("token-classification", names)
        return [(entry["entity_group"], entry["word"])
                for entry in tasks.answer(head, session.tokenizer, encoded, {"logits": logits}, "one two three four five six", None)]

    assert entities(["B-PER", "I-PER", "B-PER", "O", "I-PER", "O"]) == [("PER", "one two"), ("PER", "three"), ("PER", "five")]
    assert entities(["B-PER", "E-PER", "S-PER", "S-PER", "O", "O"]) == [("PER", "one two"), ("PER", "three"), ("PER", "four")]
    assert entities(["PER", "PER", "ORG", "O", "PER", "PER"]) == [("PER", "one two"), ("ORG", "three"), ("PER", "five six")]
    assert entities(["B-first-name", "I-first-name", "O", "O", "last-name", "O"]) == [("first-name", "one two"), ("last-name", "five")]


def best_answer(original: Original, question: str, context: str) -> tuple[dict[str, Any], list[int], np.ndarray]:
    """The answer of Transformers 4's question-answering pipeline, its span in tokens and the logits [seq, 2], by trying every span.

    Source: QuestionAnsweringPipeline of Transformers 4.57 with its defaults (max_answer_len=15, align_to_words=True), for a context that
    fits into one window; the first token takes part in the softmax and is no answer.
    """
    encoding = original.tokens(question, context).encodings[0]
    outputs = original.outputs(question, context)
    in_context = [i for i, sequence in enumerate(encoding.sequence_ids) if sequence == 1]
    start, end = (dict(zip([0, *in_context], softmax(outputs[name][0, [0, *in_context]]), strict=True)) for name in ("start_logits", "end_logits"))
    spans = {(i, j): start[i] * end[j] for i in in_context for j in in_context if i <= j < i + 15}
    first, last = max(spans, key=lambda span: spans[span])
    left = encoding.word_to_chars(encoding.token_to_word(first), 1)[0]
    right = encoding.word_to_chars(encoding.token_to_word(last), 1)[1]
    answer = {"score": float(spans[first, last]), "start": left, "end": right, "answer": context[left:right]}
    return answer, [first, last], np.stack([outputs["start_logits"][0], outputs["end_logits"][0]], axis=1)


def test_spans(zoo: Zoo, family: str, model_format: str) -> None:
    case = small(family, Task.QUESTION_ANSWERING)
    original, session = zoo.original(case), zoo.session(case, model_format)
    within_words = 0
    for question, context in [(SHORT[i], TEXTS[60 + i]) for i in range(len(SHORT))] + [("who?", "x"), ("", "Anna and Bo")]:
        wanted, span, logits = best_answer(original, question, context)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)
            found = session.answer(question, context)
        assert {**found, "score": 0} == {**wanted, "score": 0}
        assert found["score"] == pytest.approx(wanted["score"], abs=CLOSE)
        numbers, decision = evidence(session, question, context)
        assert numbers == pytest.approx(logits, abs=CLOSE * 3)
        assert decision == span
        offsets = session.encode(question, context).offsets
        within_words += (offsets[span[0]][0], offsets[span[1]][1]) != (found["start"], found["end"])
    assert within_words, "some span must end within a word"


def test_spans_where_there_is_nothing_to_find(zoo: Zoo, family: str) -> None:
    session = zoo.session(small(family, Task.QUESTION_ANSWERING), "onnx")
    assert session.answer("who?", "") == {"score": 0.0, "start": 0, "end": 0, "answer": ""}
    with pytest.raises(DataError, match="needs the text"):
        session.answer("who?")
    with pytest.raises(DataError, match="cannot be cut"):
        session.answer(" ".join(TEXTS[100:110]), "a context that finds no place")


def test_fillers(zoo: Zoo, family: str, model_format: str) -> None:
    case = small(family, Task.FILL_MASK)
    original, session = zoo.original(case), zoo.session(case, model_format)
    mask = original.tokenizer.mask_token
    pipe = pipeline(original, "fill-mask")
    for text in (f"the {mask} is here", mask, f"{mask} and {mask} again.", f"Rain, then{mask}"):
        wanted, found = pipe(text), session.answer(text)
        for ours, theirs in zip(*([x] if isinstance(x[0], dict) else x for x in (found, wanted)), strict=True):
            keys = ("token", "token_str", "sequence")
            assert [[entry[key] for key in keys] for entry in ours] == [[entry[key] for key in keys] for entry in theirs]
            assert [entry["score"] for entry in ours] == pytest.approx([entry["score"] for entry in theirs], abs=CLOSE)
        ids = original.tokens(text)["input_ids"][0].tolist()
        places = [i for i, token in enumerate(ids) if token == original.tokenizer.mask_token_id]
        logits = original.outputs(text)["logits"][0, places]
        numbers, decision = evidence(session, text)
        assert decision == logits.argmax(axis=-1).tolist()
        assert numbers == pytest.approx(logits, abs=CLOSE * 3)  # fewer than 1,024 tokens: all of them
    with pytest.raises(DataError, match="no mask token"):
        session.answer("nothing hidden here")
    # Cut off, it decides nothing, and is no error where evidence is gathered.
    far = f"{' '.join(TEXTS[100:110])} {mask}"
    numbers, decision = evidence(session, far)
    assert (len(numbers), decision) == (0, [])
    with pytest.raises(DataError, match=f"beyond the {MAX_LENGTH} tokens"), pytest.warns(TruncationWarning):
        session.answer(far)


def test_a_cut_text_says_so(zoo: Zoo) -> None:
    session = zoo.session(Case("bert", Task.TEXT_CLASSIFICATION), "onnx")
    with pytest.warns(TruncationWarning, match=f"cut to {MAX_LENGTH} tokens"):
        session.answer(" ".join(TEXTS[100:110]))
    assert session.payload.head.labels == CLASSES
