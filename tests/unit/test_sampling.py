"""Which token comes next."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from edgeexport.errors import DataError
from edgeexport.session.sampling import Sampler, Sampling, likely, penalized

LOGITS = np.log(np.array([0.05, 0.5, 0.15, 0.3], np.float32))


def drawn(sampling: Sampling, count: int = 4000) -> dict[int, float]:
    sampler = Sampler(sampling)
    return {token: number / count for token, number in Counter(sampler.choose(LOGITS, []) for _ in range(count)).items()}


def test_without_a_temperature_it_is_the_likeliest_whatever_else_is_asked_for() -> None:
    assert {Sampler(Sampling(top_k=3, top_p=0.9, seed=seed)).choose(LOGITS, []) for seed in range(20)} == {1}


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    found = drawn(Sampling(temperature=1.0, seed=0))
    assert found[1] == pytest.approx(0.5, abs=0.03) and found[0] == pytest.approx(0.05, abs=0.015)


def test_a_higher_temperature_evens_out() -> None:
    weights = np.sqrt([0.05, 0.5, 0.15, 0.3])
    found = drawn(Sampling(temperature=2.0, seed=0))
    assert found[0] == pytest.approx(weights[0] / weights.sum(), abs=0.03)


def test_top_k_and_top_p_leave_the_likeliest() -> None:
    assert set(drawn(Sampling(temperature=1.0, top_k=2, seed=0), 500)) == {1, 3}
    assert set(drawn(Sampling(temperature=1.0, top_p=0.6, seed=0), 500)) == {1, 3}  # 0.5 is too little, 0.8 is enough
    assert set(drawn(Sampling(temperature=1.0, top_p=0.001, seed=0), 500)) == {1}
    tokens, probabilities = likely(LOGITS, top_k=3, top_p=0.9)
    # Of 3 tokens that together have 0.95: 0.526, 0.316 and 0.158; the first two have 0.842.
    assert tokens.tolist() == [1, 3, 2] and probabilities.sum() == pytest.approx(1) and probabilities[0] == pytest.approx(0.5 / 0.95)


def test_the_same_seed_draws_the_same() -> None:
    one, two = (Sampler(Sampling(temperature=1.5, seed=7)) for _ in range(2))
    assert [one.choose(LOGITS, []) for _ in range(50)] == [two.choose(LOGITS, []) for _ in range(50)]


def test_what_was_said_is_less_likely_to_be_said_again() -> None:
    # As Transformers' RepetitionPenaltyLogitsProcessor: positive logits are divided, negative ones multiplied.
    logits = np.array([2.0, -2.0, 1.0, 0.0], np.float32)
    assert penalized(logits, [0, 1, 0], 2.0).tolist() == [1.0, -4.0, 1.0, 0.0]
    assert logits[0] == 2.0
    assert Sampler(Sampling(repetition_penalty=4.0)).choose(np.array([2.0, 1.0], np.float32), [0]) == 1


@pytest.mark.parametrize(("name", "value"), [("temperature", -0.1), ("temperature", float("nan")), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.5),
                                             ("repetition_penalty", 0.0), ("repetition_penalty", 1e300), ("temperature", 1e308),
                                             ("temperature", "hot"), ("temperature", None), ("top_k", 2.5), ("seed", 1.5), ("seed", -1)])
def test_what_cannot_be_is_told(name: str, value: object) -> None:
    with pytest.raises(DataError, match=name):
        Sampling(**{name: value})  # type: ignore[arg-type]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("temperature", [1e-40, 1e-308])
def test_next_to_no_temperature_is_none(temperature: float) -> None:
    assert drawn(Sampling(temperature=temperature, top_k=10**20, seed=0), 50) == {1: 1.0}
