"""Parity of language models: arrays in, checks out, against what the whole distributions say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgeexport.artifact import Task
from edgeexport.dataset import Row
from edgeexport.session.evidence import Answers
from edgeexport.session.scoring import LIKELIEST, add_expectation, expectation
from edgeexport.verify.check import Check, Verdict
from edgeexport.verify.expectations import NEAR_TIE, agreements, aligned, divergences, faithful
from edgeexport.verify.metrics import compare, metric_check
from edgeexport.verify.parity import parity_checks

VOCABULARY = 200
SPREAD = 3.0


def texts(rows: int = 60, length: int = 30, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Tokens and logits of texts."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, VOCABULARY, length), SPREAD * rng.normal(size=(length - 1, VOCABULARY))) for _ in range(rows)]


def answers(given: list[tuple[np.ndarray, np.ndarray]], noise: float = 0.0, seed: int = 1) -> Answers:
    """What a model with these logits says, with some noise on them."""
    rng, found = np.random.default_rng(seed), Answers([], [], [], [])
    for ids, logits in given:
        noisy = logits + noise * rng.normal(size=logits.shape)
        add_expectation(found, ids, 4 * np.arange(1, len(ids) + 1), expectation(noisy.astype(np.float32), ids[1:]), False, continued=False)
    return found


def continued(choices: list[list[int]], logits: np.ndarray) -> Answers:
    """Continuations of a prompt of two tokens, each step with the same logits but for the choice."""
    found = Answers([], [], [], [])
    for chosen in choices:
        steps = []
        for token in chosen:
            step = logits.copy()
            step[token] = step.max() + 1e-6 if token != int(step.argmax()) else step[token]
            steps.append(step)
        add_expectation(found, np.array([5, 6]), np.array([4, 8]), expectation(np.stack(steps).astype(np.float32), chosen), False, continued=True)
    return found


def without_others(given: Answers) -> Answers:
    """The same of a runtime that tells how likely the tokens were that came, and no others."""
    return replace(given, numbers=[numbers[:, :1] for numbers in given.numbers], decisions=[[] for _ in given.decisions])


def checks(reference: Answers, lane: Answers) -> dict[str, Check]:
    return {check.name.rpartition(" (")[0]: check for check in parity_checks(Task.TEXT_GENERATION, "probes", reference, lane, {}, "here")}


def test_the_same_model_passes() -> None:
    given = texts(200)
    found = checks(answers(given), answers(given))
    assert {check.verdict for check in found.values()} == {Verdict.PASS}
    ratio = found["perplexity to the original's"].figure
    assert ratio is not None and not isinstance(ratio, float) and ratio.value == ratio.low == ratio.high == 1.0


def test_too_few_texts_are_told_however_near_the_lane_is() -> None:
    found = checks(answers(texts(100)), answers(texts(100)))["same likeliest token where the original is sure"]
    assert found.verdict is Verdict.INCONCLUSIVE and found.note == "100 texts are too few to prove it, even without any difference; 122 can"
    assert checks(answers(texts(122)), answers(texts(122)))["same likeliest token where the original is sure"].verdict is Verdict.PASS


@pytest.mark.parametrize(("count", "told"), [(1, "1 text proves nothing"), (4, "4 texts prove nothing")])
def test_hardly_a_text_proves_nothing_however_many_tokens_it_has(count: int, told: str) -> None:
    given = answers(texts(count))
    found = checks(given, given)
    assert {check.verdict for check in found.values()} == {Verdict.INCONCLUSIVE}
    for title in ("perplexity to the original's", "divergence from the original's expectation"):
        assert str(found[title].note).startswith(told)
    rows = [Row(id=str(number), text="t") for number in range(count)]
    check = metric_check(compare(Task.TEXT_GENERATION, rows, [], given, given), 0.02, "here", labelled=True)
    assert check.verdict is Verdict.INCONCLUSIVE and str(check.note).startswith(told)


def test_as_many_texts_as_there_are_tokens_are_not_asked_for_a_likelihood() -> None:
    given = answers(texts(20))
    rows = [Row(id=str(number), text="t") for number in range(20)]
    check = metric_check(compare(Task.TEXT_GENERATION, rows, [], given, given), 0.001, "here", labelled=True)
    assert check.verdict is Verdict.PASS and check.note is None


def test_what_a_runtime_does_not_tell_is_not_judged() -> None:
    given = texts(200)
    whole, found = (checks(answers(given), lane) for lane in (answers(given, 0.01), without_others(answers(given, 0.01))))
    assert set(found) == {"perplexity to the original's"} < set(whole)
    assert found["perplexity to the original's"].figure == whole["perplexity to the original's"].figure


def test_continuations_are_judged_by_their_tokens_and_as_far_as_they_are_told() -> None:
    logits = np.linspace(0, 10, VOCABULARY)
    best, near, far = VOCABULARY - 1, VOCABULARY - 2, 5
    reference = continued([[best, best], [best, best], [best, best], [best, best]], logits)
    lane = without_others(continued([[best], [best, near], [best, far], [best]], logits))
    lane.numbers[3], lane.ids[3] = lane.numbers[3][:0], lane.ids[3][:2]  # nothing is told
    assert faithful(*aligned(reference, lane)) == [True, True, False]
    lane.ids[3] = np.array([5, 7])
    assert faithful(*aligned(reference, lane)) == [True, True, False, False]


def test_texts_in_other_tokens_are_compared_by_their_characters() -> None:
    """The same model with two tokens made one everywhere: as likely as both together, and the metric is what it was."""
    rng = np.random.default_rng(0)
    logs = [rng.normal(-3, 1, 16) for _ in range(80)]
    whole, halves = Answers([], [], [], []), Answers([], [], [], [])
    for row in logs:
        ends = np.cumsum(rng.integers(1, 6, len(row)) + 1)
        spans = np.stack([np.concatenate([[1], ends[:-1]]), ends], axis=1)
        halves.add(row[:, None], [], 17, False, spans, ids=np.arange(17))
        whole.add(row.reshape(-1, 2).sum(axis=1)[:, None], [], 9, False, np.stack([spans[::2, 0], spans[1::2, 1]], axis=1), ids=100 + np.arange(9))
    (same,), (drop,) = compare(Task.TEXT_GENERATION, [], [], halves, halves), compare(Task.TEXT_GENERATION, [], [], halves, whole)
    assert drop.name == same.name and drop.reference.value == pytest.approx(same.reference.value) == pytest.approx(np.mean(logs))
    assert drop.drop.value == pytest.approx(0, abs=1e-6) and drop.drop.n == 80 * 16
    worse = replace(whole, numbers=[numbers - 0.2 for numbers in whole.numbers])
    (drop,) = compare(Task.TEXT_GENERATION, [], [], halves, worse)
    assert drop.drop.value == pytest.approx(0.1) and drop.drop.low > 0.09  # of a token of the reference


def test_another_model_fails_everywhere() -> None:
    found = checks(answers(texts(seed=0)), answers([(ids, logits) for (ids, _), (_, logits) in zip(texts(seed=0), texts(seed=9), strict=True)]))
    assert found["same likeliest token where the original is sure"].verdict is Verdict.FAIL
    assert found["divergence from the original's expectation"].verdict is Verdict.FAIL


def test_the_ratio_of_perplexities_is_that_of_the_whole_distributions() -> None:
    given = texts(80)
    reference, lane = answers(given), answers(given, noise=0.3)
    rng, losses = np.random.default_rng(1), []
    for ids, logits in given:
        noisy = logits + 0.3 * rng.normal(size=logits.shape)
        for each in (logits, noisy):
            logarithms = each - np.log(np.exp(each).sum(axis=1, keepdims=True))
            losses.append(-logarithms[np.arange(len(each)), ids[1:]].mean())
    expected = np.exp(np.mean(losses[1::2]) - np.mean(losses[0::2]))
    figure = checks(reference, lane)["perplexity to the original's"].figure
    assert figure is not None and not isinstance(figure, float)
    assert figure.value == pytest.approx(expected, rel=1e-4) and figure.low < expected < figure.high
    assert "over 80 clusters" in figure.method
    (metric,) = compare(Task.TEXT_GENERATION, [], [], reference, lane)
    assert metric.name == "log-likelihood per token" and metric.drop.value == pytest.approx(np.log(expected), rel=1e-3)
    assert metric.reference.value == pytest.approx(-np.mean(losses[0::2]), rel=1e-4)


def test_distributions_that_have_nothing_in_common_diverge() -> None:
    logits = np.zeros((1, VOCABULARY))
    logits[0, :20], other = 9.0, np.zeros((1, VOCABULARY))
    other[0, 100:120] = 9.0
    ids = np.array([1, 2])
    (found,) = divergences(answers([(ids, logits)]), answers([(ids, other)]))
    p, q = (np.exp(each[0]) / np.exp(each[0]).sum() for each in (logits, other))
    whole = float((p * np.log(p / q)).sum())
    assert whole > 8 and 2.5 < found <= whole


@pytest.mark.parametrize("noise", [0.05, 0.3, 1.0])
def test_the_divergence_is_a_little_less_than_that_of_the_whole_distributions(noise: float) -> None:
    given = texts(10)
    found = divergences(answers(given), answers(given, noise))
    rng, whole = np.random.default_rng(1), []
    for _, logits in given:
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        other = logits + noise * rng.normal(size=logits.shape)
        q = np.exp(other) / np.exp(other).sum(axis=1, keepdims=True)
        whole += (p * np.log(p / q)).sum(axis=1).tolist()
    assert (found <= np.array(whole) + 1e-6).all() and found.mean() > 0.75 * np.mean(whole)


def test_the_likeliest_tokens_are_counted_where_the_original_is_sure() -> None:
    given = texts(4)
    for _, logits in given:
        logits[:, 10] = 20.0
    given[1][1][5, 11] = 20.0 - 0.9 * NEAR_TIE
    swapped = [(ids, logits.copy()) for ids, logits in given]
    swapped[1][1][5, 11] = swapped[2][1][7, 3] = 100.0
    equal, rows = agreements(answers(given), answers(swapped))
    assert len(equal) == len(rows) == 4 * 29 - 1
    assert rows[~equal].tolist() == [2]


def test_answers_that_are_no_numbers_fail() -> None:
    given = texts(20)
    broken = answers(given)
    broken.numbers[3][:] = np.nan
    found = checks(answers(given), broken)
    assert found["finite numbers"].verdict is Verdict.FAIL
    assert found["perplexity to the original's"].verdict is not Verdict.PASS


def test_other_tokens_fail_and_are_not_compared() -> None:
    given = texts(20)
    other = [(ids if row else ids + 1, logits) for row, (ids, logits) in enumerate(given)]
    found = checks(answers(given), answers(other))
    assert found["texts cut into other tokens"].verdict is Verdict.FAIL and found["texts cut into other tokens"].figure == 1.0
    assert [len(rows) for rows in aligned(answers(given), answers(other))[1].numbers] == [0, *[29] * 19]


def test_a_continuation_counts_up_to_where_it_leaves_the_original() -> None:
    logits = np.linspace(0.0, 1.0, 50)
    reference = continued([[49, 49, 49, 49]] * 3, logits)
    lane = continued([[49, 49, 49, 49], [49, 49, 3, 49], [48, 1, 1, 1]], logits)
    kept, cut = aligned(reference, lane)
    assert [len(rows) for rows in kept.numbers] == [len(rows) for rows in cut.numbers] == [4, 3, 1]


def test_a_continuation_may_leave_the_original_at_a_near_tie_alone() -> None:
    logits = np.zeros(50)
    logits[10], logits[11], logits[12] = 5.0, 5.0 - 0.9 * NEAR_TIE, 5.0 - 1.1 * NEAR_TIE
    reference = continued([[10, 10]] * 4, logits)
    lane = continued([[10, 10], [10, 11], [10, 12], [3, 10]], logits)
    assert faithful(*aligned(reference, lane)) == [True, True, False, False]
    figure = checks(reference, lane)["continuations that leave the original at near ties only"].figure
    assert figure is not None and not isinstance(figure, float) and figure.value == 0.5 and figure.n == 4


def test_too_few_texts_prove_nothing() -> None:
    given = texts(2)
    found = checks(answers(given), answers(given))
    assert found["same likeliest token where the original is sure"].verdict is Verdict.INCONCLUSIVE
    nothing = Answers([np.zeros((0, 1 + LIKELIEST), np.float32)], [[]], [1], [False], ids=[np.array([4])])
    (only,) = parity_checks(Task.TEXT_GENERATION, "texts", nothing, nothing, {}, "here")
    assert only.verdict is Verdict.INCONCLUSIVE and only.note is not None and "two tokens" in only.note
