"""The probe set that ships: enough texts for every task, of every length, each with its own id."""

from __future__ import annotations

import pytest

from edgeexport.artifact import Task
from edgeexport.probes import hide_word, probe_set

# From a word to more than any bucket: upper ends in words, which have 1.3 tokens or so each.
CLASSES = ((1, 2), (3, 8), (9, 16), (17, 32), (33, 64), (65, 128), (129, 400))
MASK = "<hidden>"


@pytest.mark.parametrize("task", list(Task))
def test_every_task_has_enough_probes_for_a_tight_interval(task: Task) -> None:
    rows = probe_set(task, MASK).rows
    assert len(rows) >= 500
    assert len({row.id for row in rows}) == len(rows)
    assert all(row.label is None and row.role is None for row in rows)


@pytest.mark.parametrize("task", [Task.SENTENCE_SIMILARITY, Task.FILL_MASK])
@pytest.mark.parametrize(("least", "most"), CLASSES)
def test_every_length_class_has_probes(task: Task, least: int, most: int) -> None:
    words = [len(row.text.split()) for row in probe_set(task, MASK).rows]
    assert sum(least <= count <= most for count in words) >= 10


def test_texts_differ() -> None:
    texts = [row.text for row in probe_set(Task.SENTENCE_SIMILARITY).rows]
    assert len(set(texts)) == len(texts)


def test_probes_hold_what_breaks_tokenizers() -> None:
    everything = "".join(row.text for row in probe_set(Task.SENTENCE_SIMILARITY).rows)
    ranges = {"accents": "éüñ", "Cyrillic": "жди", "Greek": "αβγ", "Arabic": "اب", "Hebrew": "אב", "Devanagari": "कख", "CJK": "的是", "kana": "のを",
              "Hangul": "다이", "tab": "\t", "newline": "\n", "emoji": "\U0001f600\U0001f389\U0001f44d\u2764"}
    assert [name for name, letters in ranges.items() if not set(letters) & set(everything)] == []


def test_questions_come_with_a_context_and_several_contexts_are_long() -> None:
    rows = probe_set(Task.QUESTION_ANSWERING).rows
    assert all(row.text.strip() and row.text_pair and row.text_pair.strip() for row in rows)
    contexts = {row.text_pair for row in rows}
    assert len(contexts) >= 100
    assert sum(len(str(context).split()) > 64 for context in contexts) >= 10
    assert len({(row.text, row.text_pair) for row in rows}) == len(rows)


@pytest.mark.parametrize("mask", ["[MASK]", "<mask>", MASK])
def test_exactly_one_word_of_a_fill_mask_probe_is_hidden(mask: str) -> None:
    for row in probe_set(Task.FILL_MASK, mask).rows:
        before, found, after = row.text.partition(mask)
        assert found
        assert mask not in after
        assert len(before.split()) <= 10


@pytest.mark.parametrize(("text", "hidden"), [
    ("word", "M"), ("two words", "two M"), ("one two three", "one M three"), ("  spaced \n out  ", "spaced M"),
    (" ".join(map(str, range(100))), " ".join([*map(str, range(10)), "M", *map(str, range(11, 100))])),
])
def test_the_middle_word_of_the_first_twenty_is_hidden(text: str, hidden: str) -> None:
    assert hide_word(text, "M") == hidden
