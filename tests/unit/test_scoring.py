"""What a language model says of a text: where, and how it is read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeexport.session.evidence import Answers
from edgeexport.session.scoring import CONTINUED, LIKELIEST, NOTHING, PERIOD, add_expectation, continue_text, expectation, pieces, read_text, scored

VOCABULARY = 50


class Drift:
    """A model whose logits depend on all it has read, and on nothing else."""

    def __init__(self, context: int = 2000) -> None:
        self.context, self.held, self.calls = context, np.zeros(0, np.int64), []  # type: ignore[var-annotated]

    @property
    def position(self) -> int:
        return len(self.held)

    def logits(self, held: np.ndarray) -> np.ndarray:
        weights = np.cos(np.outer(np.arange(VOCABULARY), held + 1.0)) / np.arange(len(held), 0, -1)
        return weights.sum(axis=1).astype(np.float32)

    def read(self, ids: np.ndarray) -> np.ndarray:
        self.calls.append(len(ids))
        self.held = np.concatenate([self.held, ids])
        assert self.position <= self.context
        return self.logits(self.held)

    def rewind(self, position: int) -> None:
        self.held = self.held[:position]


@given(st.integers(0, 3 * PERIOD + 5))
def test_pieces_cover_every_token_once(count: int) -> None:
    found = pieces(count)
    assert [token for start, end in found for token in range(start, end)] == list(range(count))
    assert all(position + 1 < count for position in scored(count))


def test_every_depth_is_read_both_ways() -> None:
    ends = scored(1024)
    assert 192 - 1 in ends and 1022 in ends and len(ends) > 250
    lengths = [end - start for start, end in pieces(1024)]
    assert lengths.count(192) == 4 and lengths.count(1) == 256


def test_what_is_said_is_what_softmax_says() -> None:
    ids = np.arange(40) % 7
    model = Drift()
    model.read(np.arange(5))  # of what was read before nothing is left
    found = read_text(model, ids)
    assert found is not None and model.calls[1:] == [30, *[1] * 9]
    places = scored(40)
    for row, place in enumerate(places):
        logits = model.logits(ids[:place + 1]).astype(np.float64)
        logarithms = logits - np.log(np.exp(logits).sum())
        assert found.numbers[row, 0] == pytest.approx(logarithms[ids[place + 1]], abs=1e-5)
        assert found.tokens[row].tolist() == np.argsort(-logarithms, kind="stable")[:LIKELIEST].tolist()
        assert found.numbers[row, 1:].tolist() == pytest.approx(np.sort(logarithms)[::-1][:LIKELIEST].tolist(), abs=1e-5)


def test_a_text_of_one_token_says_nothing() -> None:
    assert read_text(Drift(), np.array([3])) is None and read_text(Drift(), np.zeros(0, np.int64)) is None
    found = Answers([], [], [], [])
    add_expectation(found, np.array([3]), np.array([1]), NOTHING, False, continued=False)
    assert found.numbers[0].shape == (0, 1 + LIKELIEST) and found.tokens == [1]


def test_a_prompt_is_gone_on_with_by_the_likeliest() -> None:
    model, ids = Drift(), np.array([1, 2, 3])
    found = continue_text(model, ids)
    assert found is not None and len(found.tokens) == CONTINUED and model.calls == [3, *[1] * (CONTINUED - 1)]
    held = ids
    for row in range(CONTINUED):
        best = int(model.logits(held).argmax())
        assert found.tokens[row, 0] == best and found.numbers[row, 0] == found.numbers[row, 1]
        held = np.append(held, best)
    kept = Answers([], [], [], [])
    add_expectation(kept, ids, np.arange(len(ids)), found, False, continued=True)
    assert kept.tokens == [3] and kept.ids[0].tolist() == held.tolist()


def test_the_context_ends_a_continuation() -> None:
    found = continue_text(Drift(context=6), np.array([1, 2, 3]))
    assert found is not None and len(found.tokens) == 4  # after 3, 4, 5 and 6 tokens
    assert continue_text(Drift(context=6), np.zeros(0, np.int64)) is None


def test_few_tokens_of_a_vocabulary_are_all_kept() -> None:
    found = expectation(np.zeros((2, 3), np.float32), [0, 1])
    assert found.tokens.shape == (2, 3) and np.exp(found.numbers[:, 1:]).sum() == pytest.approx(2)


def test_of_tokens_that_are_as_likely_the_lower_is_taken_as_argmax_takes_it() -> None:
    logits = np.zeros(1000, np.float32)
    logits[[900, 100, 500]] = 5
    assert expectation([logits], [100]).tokens[0].tolist() == [100, 500, 900, *range(LIKELIEST - 3)]
    assert logits.argmax() == 100


@pytest.mark.parametrize("bad", [slice(None), slice(3, 4), slice(0, VOCABULARY - 2)])
def test_what_is_no_number_is_kept_for_the_check_that_tells(bad: slice) -> None:
    logits = np.arange(VOCABULARY, dtype=np.float32)
    logits[bad] = np.nan
    found = expectation([logits, np.arange(VOCABULARY, dtype=np.float32)], [4, 4])
    assert found.tokens.shape == (2, LIKELIEST) and found.numbers.shape == (2, 1 + LIKELIEST)
    assert np.isnan(found.numbers[0]).all() and np.isfinite(found.numbers[1]).all()
