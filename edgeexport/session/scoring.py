"""What a language model says of a given text, token by token: the evidence that lanes and the original are compared by.

A text is not read at once, as a test would, but as a device reads one: pieces as prompts are read, and between them tokens one by one, as answers
are. So both ways through a lane are seen, each at every depth of the context, and one after the other as in a conversation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgeexport.session.evidence import Answers
from edgeexport.session.generation import Decoder

# Of so many tokens three quarters are read at once, and the others one by one.
PERIOD = 256
# So many of the likeliest tokens are kept for each position, with their probabilities.
LIKELIEST = 32
# How many tokens a prompt is continued by.
CONTINUED = 32


def pieces(count: int) -> list[tuple[int, int]]:
    """The pieces, from and to, in which `count` tokens are read."""
    found = []
    for start in range(0, count, PERIOD):
        end = min(start + PERIOD, count)
        cut = start + max(1, (end - start) * 3 // 4)
        found += [(start, cut), *((i, i + 1) for i in range(cut, end))]
    return found


def scored(count: int) -> list[int]:
    """The positions of a text of `count` tokens at which a lane says what it expects, and a token follows that it can be compared with."""
    return [end - 1 for _, end in pieces(count) if end < count]


@dataclass(frozen=True)
class Expectation:
    """What comes next, in a model's opinion, at some positions.

    Attributes:
        numbers: float32 [positions, 1 + LIKELIEST]: the logarithm of the probability of the token that came, and those of the likeliest; of a runtime
            that tells no others [positions, 1].
        tokens: int64 [positions, LIKELIEST] or [positions, 0]: the likeliest, first the first.
        came: int64 [positions]: the token that came.
    """

    numbers: np.ndarray
    tokens: np.ndarray
    came: np.ndarray


def came_only(numbers: np.ndarray, came: np.ndarray) -> Expectation:
    """What a runtime expects that tells the probabilities of the tokens that came, float32 [positions], and no others."""
    return Expectation(numbers.astype(np.float32)[:, None], np.zeros((len(came), 0), np.int64), came.astype(np.int64))


def expectation(logits: Iterable[np.ndarray], came: Sequence[int] | np.ndarray) -> Expectation:
    """What logits say.

    Args:
        logits: float32 [vocabulary] of each position; taken one by one, as those of a long text may be more than memory holds.
        came: the token that came after each.
    """
    numbers, tokens = [], []
    for row, token in zip(logits, came):
        shifted = row.astype(np.float64)
        shifted -= shifted.max()
        logarithms = shifted - np.log(np.exp(shifted).sum())
        best = likeliest_of(row)
        numbers.append(logarithms[[token, *best]].astype(np.float32))
        tokens.append(best)
    return Expectation(np.stack(numbers), np.stack(tokens), np.asarray(came[:len(numbers)], np.int64))


# Of a text without a position to score; the other of a runtime that tells the probabilities of given tokens only.
NOTHING = Expectation(np.zeros((0, 1 + LIKELIEST), np.float32), np.zeros((0, LIKELIEST), np.int64), np.zeros(0, np.int64))
NOTHING_BUT_CAME = came_only(np.zeros(0), np.zeros(0))


def likeliest_of(logits: np.ndarray) -> np.ndarray:
    """The likeliest tokens, first the first, int64 [LIKELIEST or all there are]; of equal ones the lower id, as argmax takes it. What is no number is
    least likely."""
    count, logits = min(LIKELIEST, len(logits)), np.where(np.isnan(logits), -np.inf, logits)
    least = np.partition(logits, -count)[-count]
    above = np.flatnonzero(logits > least)
    tokens = np.concatenate([above, np.flatnonzero(logits == least)[:count - len(above)]])
    return tokens[np.argsort(-logits[tokens], kind="stable")]


def read_text(decoder: Decoder, ids: np.ndarray) -> Expectation | None:
    """What a decoder expects at the scored positions of a text, int64 [length]; None where there is none."""
    decoder.rewind(0)

    def logits() -> Iterator[np.ndarray]:
        for start, end in pieces(len(ids)):
            if end < len(ids):
                yield decoder.read(ids[start:end])

    positions = scored(len(ids))
    return expectation(logits(), ids[np.add(positions, 1)]) if positions else None


def continue_text(decoder: Decoder, ids: np.ndarray) -> Expectation | None:
    """What a decoder goes on with after a text, int64 [length], taking the likeliest token each time; None where the context is full.

    What ends a text does not end this: a lane is compared with the original on what comes after, too.
    """
    decoder.rewind(0)
    logits: list[np.ndarray] = []
    while ids.size and len(logits) < CONTINUED and decoder.position + len(ids) <= decoder.context:
        logits.append(decoder.read(ids))
        ids = np.asarray([logits[-1].argmax()], np.int64)
    return expectation(logits, [int(each.argmax()) for each in logits]) if logits else None


def ends_of(offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Up to which character each token reaches, int64 [length], of where they lie; what a tokenizer adds lies nowhere."""
    return np.maximum.accumulate(np.array([end for _, end in offsets], np.int64))


def add_expectation(found: Answers, ids: np.ndarray, ends: np.ndarray, said: Expectation, truncated: bool, *, continued: bool) -> None:
    """Add what a model says of one row: of the tokens that it was given, or of those that it went on with.

    Args:
        found: gets it.
        ids: the tokens that it was given, int64 [length].
        ends: up to which character of the text each of them reaches, int64 [length or more].
        said: what it says.
        truncated: whether there were more.
        continued: whether it went on with them.
    """
    places = np.array([] if continued else scored(len(ids))[:len(said.numbers)], np.int64)
    found.add(said.numbers, said.tokens.ravel().tolist(), len(ids), truncated, np.stack([ends[places], ends[places + 1]], axis=1),
              ids=np.concatenate([ids, said.came]) if continued else ids)
