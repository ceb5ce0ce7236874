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


# Of a text that a language model learns from; what is behind it is another text's matter.
LONGEST_TO_GO_ON = 256


@dataclass(frozen=True)
class Example:
    """A text as tokens.

    Attributes:
        row: its number in the data set.
        encoded: the tokens.
        anchors: key of a token → its position, for each token that another tokenizer of the same words has too: special tokens around the texts,
            by (-1, their number), and the first token of each word, by (text of the pair, character at which the word begins).
        truth: what is right, as numbers of classes: of the text, or of each word, where -1 is unknown; None where nobody says.
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
    """The examples of a data set, without those that a model has no answer to: for which there is no room, without a word or a mask.

    Args:
        checkpoint: the checkpoint artifact, for its tokenizer, text spec and classes.
        dataset: the data set artifact.
        longest: cut texts to so many tokens where the model could read more.

    Raises:
        DataError: there is none.
    """
    spec, task = read_text(checkpoint.path), checkpoint.spec.require_task()
    longest = longest or (LONGEST_TO_GO_ON if task is Task.TEXT_GENERATION else spec.max_length)
    tokenizer = Tokenizer(checkpoint.path / "tokenizer.json", replace(spec, max_length=min(longest, spec.max_length)),
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
        if task is Task.TOKEN_CLASSIFICATION and not first_tokens(encoded):
            continue
        if task is Task.TEXT_GENERATION and len(encoded.ids) < 2:
            continue
        found.append(Example(number, encoded, anchors(encoded), truth(task, row, encoded, labels)))
    if not found:
        why = {Task.FILL_MASK: "none has a mask token", Task.TOKEN_CLASSIFICATION: "none has a word", Task.TEXT_GENERATION: "none has two tokens"}
        raise DataError("No text of the data can be learned from.", why=why.get(task, "none fits"))
    return found


def anchors(encoded: Encoded) -> dict[tuple[int, int], int]:
    """Tokens that stay where other tokens are cut in another way: key → position."""
    found: dict[tuple[int, int], int] = {}
    special = 0
    firsts = set(first_tokens(encoded))
    for position, text in enumerate(encoded.sequence):
        if text is None:
            found[-1, special] = position
            special += 1
        elif position in firsts:
            # Normalization may make several words of one character; the first of them stands for it.
            found.setdefault((text, encoded.offsets[position][0]), position)
    return found


def truth(task: Task, row: Row, encoded: Encoded, labels: Sequence[str]) -> tuple[int, ...] | None:
    """What is right for a row, as numbers of classes; None where it does not say."""
    if task is Task.TEXT_CLASSIFICATION and row.label is not None:
        return (labels.index(row.label),)
    if task is Task.TEXT_GENERATION:
        return tuple(encoded.ids[1:].tolist())
    if task is Task.TOKEN_CLASSIFICATION and row.entities is not None:
        return tuple(word_classes(row.text, row.entities, word_spans(encoded), labels))
    return None


def word_classes(text: str, entities: Sequence[Entity], spans: np.ndarray, labels: Sequence[str]) -> list[int]:
    """The class of each word: that of the entity in which it begins, by its place there; -1 where the classes have none for it.

    Args:
        text: the text.
        entities: what is named in it.
        spans: int64 [words, 2]: where each word lies; some tokenizers count the blank before a word as its first character.
        labels: the classes, as :func:`edgeexport.session.tasks.entity_runs` understands them.
    """
    number = {label: i for i, label in enumerate(labels)}
    begins = [end - len(text[start:end].lstrip()) for start, end in spans.tolist()]
    inside = [next((i for i, entity in enumerate(entities) if entity.start <= begin < entity.end), None) for begin in begins]
    found = []
    for word, entity in enumerate(inside):
        if entity is None:
            found.append(number.get("O", -1))
            continue
        first, last = (not 0 <= other < len(inside) or inside[other] != entity for other in (word - 1, word + 1))
        prefixes = {(True, True): ("S-", "U-", "B-"), (True, False): ("B-",), (False, True): ("E-", "L-")}.get((first, last), ())
        names = [prefix + entities[entity].label for prefix in (*prefixes, "I-", "")]
        found.append(next((number[name] for name in names if name in number), -1))
    return found


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
    return [examples[(2 * i + 1) * len(examples) // (2 * count)] for i in range(count)]


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
