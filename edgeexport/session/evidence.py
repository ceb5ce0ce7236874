"""What a lane, or the reference, answered on a data set: arrays in one file, written and read by the same code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

# Only question answering leaves rows unanswered; its numbers are the start's and the end's logit.
UNANSWERED_WIDTH = 2
NO_WORDS = np.zeros((0, 2), np.int64)
NO_IDS = np.zeros(0, np.int64)


@dataclass
class Answers:
    """The answers to the rows of a data set, in the rows' order.

    Attributes:
        numbers: for each row float32 [positions, values], as :func:`edgeexport.session.tasks.numbers` gives them.
        decisions: for each row the integers of :func:`edgeexport.session.tasks.decision`.
        tokens: for each row the number of tokens that the model was given.
        truncated: for each row whether tokens were cut off.
        spans: for each row int64 [words, 2]: in token classification, where the words lie that the decisions are about; of a language model, from
            which character to which each token reaches that numbers are about.
        ids: for each row int64 [length]: the tokens that the model saw, and behind those that it was given the ones it went on with.
    """

    numbers: list[np.ndarray]
    decisions: list[list[int]]
    tokens: list[int]
    truncated: list[bool]
    spans: list[np.ndarray] = field(default_factory=list)
    ids: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Rows without words need not be given, nor tokens where nobody compares them."""
        self.spans += [NO_WORDS] * (len(self.tokens) - len(self.spans))
        self.ids += [NO_IDS] * (len(self.tokens) - len(self.ids))

    def add(self, numbers: np.ndarray, decision: list[int], tokens: int, truncated: bool, spans: np.ndarray = NO_WORDS,
            ids: np.ndarray = NO_IDS) -> None:
        """The answer to one more row."""
        for values, value in zip(self._lists(), (numbers.astype(np.float32), decision, tokens, truncated, spans, ids)):
            values.append(value)

    def add_unanswered(self) -> None:
        """A row without an answer: a question that leaves no room for the text that holds it."""
        self.add(np.zeros((0, UNANSWERED_WIDTH), np.float32), [], 0, True)

    def save(self, path: Path) -> None:
        """Write one .npz file."""
        width = self.numbers[0].shape[1] if self.numbers else 0
        np.savez(
            path,
            numbers=np.concatenate([*self.numbers, np.zeros((0, width), np.float32)]).astype(np.float32),
            positions=np.array([len(rows) for rows in self.numbers], np.int64),
            decisions=np.array([value for row in self.decisions for value in row], np.int64),
            decided=np.array([len(row) for row in self.decisions], np.int64),
            tokens=np.array(self.tokens, np.int64),
            truncated=np.array(self.truncated, np.bool_),
            spans=np.concatenate([*self.spans, NO_WORDS]),
            words=np.array([len(row) for row in self.spans], np.int64),
            ids=np.concatenate([*self.ids, NO_IDS]),
            read=np.array([len(row) for row in self.ids], np.int64),
        )

    def chosen(self, indices: Sequence[int]) -> Answers:
        """The answers to some of the rows."""
        return Answers(*([values[i] for i in indices] for values in self._lists()))

    def replaced(self, indices: Sequence[int], others: Answers) -> Answers:
        """The same with the answers to some of the rows replaced by `others`, one for each index."""
        fields = []
        for own, new in zip(self._lists(), others._lists()):
            values = list(own)
            for index, value in zip(indices, new):
                values[index] = value
            fields.append(values)
        return Answers(*fields)

    def _lists(self) -> tuple[list[Any], ...]:
        return self.numbers, self.decisions, self.tokens, self.truncated, self.spans, self.ids

    @classmethod
    def load(cls, path: Path) -> Answers:
        """Read what :meth:`save` wrote."""
        with np.load(path) as file:
            numbers, decided, spans, ids = (_split(file[values], file[counts]) for values, counts in (
                ("numbers", "positions"), ("decisions", "decided"), ("spans", "words"), ("ids", "read")))
            return cls(numbers, [row.tolist() for row in decided], file["tokens"].tolist(), file["truncated"].tolist(), spans, ids)


def _split(values: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    """The rows of which `values` were put together."""
    return np.split(values, np.cumsum(counts)[:-1]) if len(counts) else []


def untruncated(dataset: str) -> str:
    """How the answers to a data set are called where texts are cut only as the original must, not as the recipe does."""
    return f"{dataset}-untruncated"


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
