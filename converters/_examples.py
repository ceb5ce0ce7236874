"""Data sets as a model learns from them: tokenized as the lanes will, with what is right as class numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeexport.artifact import Task
from edgeexport.dataset import ROWS_FILE, Entity, Row, read_rows
from edgeexport.errors import DataError, NoRoom
from edgeexport.session.tasks import first_tokens, word_spans
from edgeexport.session.text import Encoded, TextSpec, Tokenizer
from edgeexport.step import View

from ._task_model import read_text

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True)
class Example:
    """A text as tokens.

    Attributes:
        row: its number in the data set.
        encoded: the tokens.
        anchors: key of a token → its position, for each token that another tokenizer of the same words has too: special tokens, by their
            number, and the first token of each word, by the text of the pair and the number of the word.
        truth: what is right, as numbers of classes: of the text, or of each word; None where nobody says.
    """

    row: int
    encoded: Encoded
    anchors: dict[tuple[int, int], int]
    truth: tuple[int, ...] | None

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.encoded.ids)


def read_examples(checkpoint: View, dataset: Path, longest: int | None = None) -> list[Example]:
    """The examples of a data set, without those that leave no room for the text that holds the answer.

    Args:
        checkpoint: the checkpoint artifact, for its tokenizer, text spec and classes.
        dataset: the data set artifact.
        longest: cut texts to so many tokens where the model could read more.

    Raises:
        DataError: there is none.
    """
    spec, task = read_text(checkpoint.path), checkpoint.spec.require_task()
    tokenizer = Tokenizer(checkpoint.path / "tokenizer.json", replace(spec, max_length=min(longest or spec.max_length, spec.max_length)),
                          "only_second" if task is Task.QUESTION_ANSWERING else "longest_first")
    labels = checkpoint.spec.facts.get("labels") or []
    found = []
    for number, row in enumerate(read_rows(dataset / ROWS_FILE)):
        try:
            encoded = tokenizer.encode(spec.prefixed(row.text, row.role), row.text_pair)
        except NoRoom:
            continue
        if task is Task.FILL_MASK and not (encoded.ids == spec.mask_id).any():
            continue
        found.append(Example(number, encoded, anchors(encoded), truth(task, row, encoded, labels)))
    if not found:
        raise DataError("No text of the data can be learned from.", why="none fits" if task is not Task.FILL_MASK else "none has a mask token")
    return found


def anchors(encoded: Encoded) -> dict[tuple[int, int], int]:
    """Tokens that stay where other tokens are cut in another way: key → position."""
    found = {}
    special = 0
    firsts = set(first_tokens(encoded))
    for position, (word, text) in enumerate(zip(encoded.words, encoded.sequence, strict=True)):
        if word is None or text is None:
            found[-1, special] = position
            special += 1
        elif position in firsts:
            found[text, word] = position
    return found


def truth(task: Task, row: Row, encoded: Encoded, labels: Sequence[str]) -> tuple[int, ...] | None:
    """What is right for a row, as numbers of classes; None where it does not say."""
    if task is Task.TEXT_CLASSIFICATION and row.label is not None:
        return (labels.index(row.label),)
    if task is Task.TOKEN_CLASSIFICATION and row.entities is not None:
        return tuple(word_classes(row.entities, word_spans(encoded), labels))
    return None


def word_classes(entities: Sequence[Entity], spans: np.ndarray, labels: Sequence[str]) -> Iterator[int]:
    """The class of each word: that of the entity in which it begins, as its first word or a later one."""
    number = {label: i for i, label in enumerate(labels)}
    begun: set[int] = set()
    for start, _ in spans.tolist():
        inside = next((i for i, entity in enumerate(entities) if entity.start <= start < entity.end), None)
        if inside is None:
            yield number["O"]
            continue
        name = entities[inside].label
        prefixes = ("I-", "") if inside in begun else ("B-", "I-", "")
        begun.add(inside)
        yield next(number[prefix + name] for prefix in prefixes if prefix + name in number)


def collate(examples: Sequence[Example], spec: TextSpec) -> dict[str, torch.Tensor]:
    """The model's inputs for a batch, filled up to its longest text: each int64 [batch, seq]."""
    import torch

    longest = max(example.length for example in examples)
    feeds = [example.encoded.feeds(spec, longest) for example in examples]
    return {name: torch.cat([torch.from_numpy(feed[name]) for feed in feeds]) for name in spec.inputs}


def evenly(examples: Sequence[Example], count: int) -> list[Example]:
    """At most `count` examples, evenly spread over the data set."""
    if len(examples) <= count:
        return list(examples)
    return [examples[round(i * (len(examples) - 1) / (count - 1))] for i in range(count)]


def by_length(examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
    """Batches of about equally long texts, shortest first."""
    batch: list[Example] = []
    for example in sorted(examples, key=lambda example: example.length):
        batch.append(example)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
