"""Data sets as a model learns from them: which rows there are, which class each word has, and which tokens two tokenizers share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compressed import SHORT, data_for
from edgeexport.converters._examples import anchors, by_length, collate, evenly, read_examples, word_classes
from tiny import BPE, CLASSES, ENTITIES, UNIGRAM, WORDPIECE, Case
from tokenizers import Tokenizer as Library
from tokenizers import pre_tokenizers
from zoo import Zoo

from edgeexport.artifact import Task
from edgeexport.dataset import Entity, Row
from edgeexport.errors import DataError
from edgeexport.session.tasks import word_spans
from edgeexport.session.text import Tokenizer, read_text_spec

KIND_OF = {WORDPIECE: "bert", BPE: "roberta", UNIGRAM: "xlm-roberta"}
TAGGER = Case("bert", Task.TOKEN_CLASSIFICATION, layers=1)


def spans_of(text: str) -> np.ndarray:
    """Where the words of a text with single blanks lie."""
    ends = np.cumsum([len(word) + 1 for word in text.split()])
    return np.array([(end - len(word) - 1, end - 1) for word, end in zip(text.split(), ends, strict=True)])


@pytest.mark.parametrize(("labels", "wanted"), [
    (("O", "B-PER", "I-PER", "B-ORG", "I-ORG"), "B-PER I-PER I-PER O B-ORG B-PER"),
    (("O", "B-PER", "I-PER", "E-PER", "S-PER", "S-ORG"), "B-PER I-PER E-PER O S-ORG S-PER"),
    (("O", "B-PER", "I-PER", "L-PER", "U-PER", "U-ORG"), "B-PER I-PER L-PER O U-ORG U-PER"),
    (("O", "PER", "ORG"), "PER PER PER O ORG PER"),
    (("O", "I-PER", "I-ORG"), "I-PER I-PER I-PER O I-ORG I-PER"),
    (("PER", "ORG"), "PER PER PER - ORG PER"),
    (("O", "PER"), "PER PER PER O - PER"),
])
def test_words_have_the_class_of_their_entity(labels: tuple[str, ...], wanted: str) -> None:
    """In each way of writing where an entity begins and ends; what the model has no class for is unknown."""
    text = "Maria da Silva joined Acme Ann"
    entities = [Entity(start=0, end=14, label="PER"), Entity(start=22, end=26, label="ORG"), Entity(start=27, end=30, label="PER")]
    found = word_classes(text, entities, spans_of(text), labels)
    assert [labels[number] if number >= 0 else "-" for number in found] == wanted.split()


def test_neighbours_of_one_kind_are_two_entities() -> None:
    text = "Ann Bob"
    found = word_classes(text, [Entity(start=0, end=3, label="PER"), Entity(start=4, end=7, label="PER")], spans_of(text), ENTITIES)
    assert found == [ENTITIES.index("B-PER")] * 2


@pytest.mark.parametrize("kind", KIND_OF)
def test_a_word_begins_after_its_blank(zoo: Zoo, tmp_path: Path, kind: str) -> None:
    """Where SentencePiece's pre-tokenizer stands alone, the blank before a word is its first character."""
    view = zoo.loaded(Case(KIND_OF[kind], Task.TOKEN_CLASSIFICATION, layers=1))
    text = "then Anna went to Rome"
    row = Row(id="0", text=text, entities=(Entity(start=5, end=9, label="PER"), Entity(start=18, end=22, label="ORG")))
    wanted = [ENTITIES.index(name) for name in ("O", "B-PER", "O", "O", "B-ORG")]
    (example,) = read_examples(view, zoo.dataset("one", [row]).path)
    assert list(example.truth or ()) == wanted

    if kind == UNIGRAM:
        library = Library.from_file(str(view.path / "tokenizer.json"))
        library.pre_tokenizer = pre_tokenizers.Metaspace()
        library.save(str(tmp_path / "tokenizer.json"))
        spans = word_spans(Tokenizer(tmp_path / "tokenizer.json", read_text_spec(view.path / "text.json")).encode(text))
        assert spans.tolist() == [[0, 4], [4, 9], [9, 14], [14, 17], [17, 22]], "the blank must count"
        assert word_classes(text, row.entities or (), spans, ENTITIES) == wanted


def test_labels_are_numbers_of_classes(zoo: Zoo) -> None:
    case = Case("bert", Task.TEXT_CLASSIFICATION, layers=1)
    rows = [Row(id=str(number), text=text, label=label) for number, (text, label) in enumerate(zip(SHORT, (*CLASSES, None), strict=False))]
    found = read_examples(zoo.loaded(case), zoo.dataset("labels", rows).path)
    assert [example.truth for example in found] == [(0,), (1,), (2,), None]


def test_rows_without_an_answer_are_left_out(zoo: Zoo) -> None:
    """A tagger has nothing to say about a text without words."""
    rows = [Row(id="0", text=" "), Row(id="1", text="one word"), Row(id="2", text="\u200b")]
    found = read_examples(zoo.loaded(TAGGER), zoo.dataset("few", rows).path)
    assert [example.row for example in found] == [1]
    with pytest.raises(DataError, match="can be learned from") as caught:
        read_examples(zoo.loaded(TAGGER), zoo.dataset("none", rows[:1]).path)
    assert caught.value.why == "none has a word"

    filler = Case("bert", Task.FILL_MASK, layers=1)
    rows = [Row(id="0", text="no mask"), Row(id="1", text="a [MASK] here"), Row(id="2", text="word " * 60 + "[MASK]")]
    assert [example.row for example in read_examples(zoo.loaded(filler), zoo.dataset("masks", rows).path)] == [1]


def test_anchors_are_the_beginnings_of_words(zoo: Zoo) -> None:
    """By the character at which they begin, so that they mean the same in a tokenizer that divides a text in another way."""
    spec = read_text_spec(zoo.loaded(TAGGER).path / "text.json")
    tokenizer = Tokenizer(zoo.loaded(TAGGER).path / "tokenizer.json", spec)
    encoded = tokenizer.encode("Anna, it [MASK] ½", "went")
    pieces = {key: tokenizer.decode([int(encoded.ids[position])], keep_special=True) for key, position in anchors(encoded).items()}
    assert pieces == {(-1, 0): "[CLS]", (0, 0): "an", (0, 4): ",", (0, 6): "it", (0, 8): "[MASK]", (0, 16): "[UNK]", (-1, 1): "[SEP]",
                      (1, 0): "went", (-1, 2): "[SEP]"}


def test_batches_are_filled_up_to_their_longest(zoo: Zoo) -> None:
    view = zoo.loaded(TAGGER)
    spec = read_text_spec(view.path / "text.json")
    examples = read_examples(view, data_for(zoo, TAGGER).path)
    batches = list(by_length(examples, 4))
    assert sorted(example.row for batch in batches for example in batch) == [example.row for example in examples]
    lengths = [example.length for batch in batches for example in batch]
    assert lengths == sorted(lengths)
    for batch in batches:
        feeds = collate(batch, spec)
        assert feeds["input_ids"].shape == (len(batch), max(example.length for example in batch))
        for example, ids, mask in zip(batch, feeds["input_ids"].tolist(), feeds["attention_mask"].tolist(), strict=True):
            assert ids == [*example.encoded.ids.tolist(), *[spec.pad_id] * (len(ids) - example.length)]
            assert mask == [1] * example.length + [0] * (len(ids) - example.length)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 39, 40, 50])
def test_evenly(count: int) -> None:
    found: list[Any] = evenly(range(40), count)  # type: ignore[arg-type]
    assert len(set(found)) == len(found) == min(count, 40)
    assert found == sorted(found)
    for part in range(count):  # each part of the data gives about one
        assert sum(part / count <= (number + 0.5) / 40 < (part + 1) / count for number in found) == (1 if count <= 40 else pytest.approx(1, abs=1))
