"""What a build chooses beside its steps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgeexport.build import GOLDEN_COUNT, golden_choice
from edgeexport.session.evidence import Answers


@given(st.lists(st.integers(1, 512), min_size=1, max_size=700))
def test_golden_vectors_are_spread_over_all_lengths(tokens: list[int]) -> None:
    chosen = golden_choice(Answers([], [], tokens, []))
    lengths = [tokens[i] for i in chosen]
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(GOLDEN_COUNT, len(tokens))
    assert (min(lengths), max(lengths)) == (min(tokens), max(tokens))
    if len(tokens) >= 96:  # a quarter of the texts lies on each side of the quartiles, and so do a quarter of the chosen
        middle = sorted(tokens)[len(tokens) // 2]
        assert sum(length <= middle for length in lengths) >= len(chosen) // 3
