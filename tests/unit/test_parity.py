"""Parity: a right lane passes, every planted wrong one does not, and what is no number fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from edgeexport.artifact import Task
from edgeexport.errors import UnknownName
from edgeexport.session.evidence import Answers
from edgeexport.verify.check import Check, Verdict
from edgeexport.verify.margins import MARGINS, check_names
from edgeexport.verify.parity import LARGEST_ERROR, agreement, cosines, largest_difference, logit_errors, parity_checks

PASS, FAIL, INCONCLUSIVE = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE
TASKS = [task for task in Task if task is not Task.TEXT_GENERATION]
VECTORS = (Task.FEATURE_EXTRACTION, Task.SENTENCE_SIMILARITY)


def answers(task: Task, n: int = 200, seed: int = 0) -> Answers:
    """What an original might answer to `n` texts of 3 to 9 tokens."""
    rng = np.random.default_rng(seed)
    numbers, decisions, tokens = [], [], []
    for length in rng.integers(3, 10, n):
        if task in VECTORS:
            rows, decision = rng.normal(size=(1, 32)), []
        elif task is Task.TEXT_CLASSIFICATION:
            rows = rng.normal(size=(1, 4))
            decision = [int(rows[0].argmax())]
        elif task is Task.TOKEN_CLASSIFICATION:
            rows = rng.normal(size=(length, 5))
            decision = rows.argmax(axis=1).tolist()
        elif task is Task.QUESTION_ANSWERING:
            rows = rng.normal(size=(length, 2))
            decision = rows.argmax(axis=0).tolist()
        else:
            rows = rng.normal(size=(1, 50))
            decision = [int(rows[0].argmax())]
        numbers.append(rows.astype(np.float32))
        decisions.append(decision)
        tokens.append(int(length))
    return Answers(numbers, decisions, tokens, [False] * n)


def copy(given: Answers) -> Answers:
    return Answers([rows.copy() for rows in given.numbers], [list(row) for row in given.decisions], list(given.tokens), list(given.truncated))


def checks(task: Task, reference: Answers, lane: Answers, **given: float) -> list[Check]:
    return parity_checks(task, "probes", reference, lane, given, "measured here")


def verdicts(task: Task, reference: Answers, lane: Answers) -> set[Verdict | None]:
    return {check.verdict for check in checks(task, reference, lane)}


# -- planted lanes


@pytest.mark.parametrize("task", TASKS)
def test_a_lane_that_differs_by_rounding_passes(task: Task) -> None:
    reference = answers(task)
    lane = copy(reference)
    rng = np.random.default_rng(1)
    for rows in lane.numbers:
        rows += rng.normal(scale=0.01, size=rows.shape).astype(np.float32)
    assert verdicts(task, reference, lane) == {PASS}


@pytest.mark.parametrize("task", TASKS)
def test_shuffled_answers_fail_in_every_figure(task: Task) -> None:
    reference = answers(task)
    order = np.random.default_rng(2).permutation(len(reference.numbers)).tolist()
    assert verdicts(task, reference, reference.chosen(order)) == {FAIL}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("plant", [np.zeros_like, np.negative, lambda rows: rows[:, ::-1]])
def test_zero_opposite_and_permuted_outputs_fail(task: Task, plant: Callable[[np.ndarray], np.ndarray]) -> None:
    reference = answers(task)
    lane = copy(reference)
    lane.numbers = [plant(rows).copy() for rows in lane.numbers]
    assert FAIL in verdicts(task, reference, lane)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["one number", "one text", "everything", "the original"])
def test_a_single_value_that_is_no_number_fails(task: Task, value: float, where: str) -> None:
    reference, lane = answers(task), answers(task)
    if where == "one number":
        lane.numbers[7][0, 1] = value
    elif where == "one text":
        lane.numbers[7][:] = value
    elif where == "everything":
        lane.numbers = [np.full_like(rows, value) for rows in lane.numbers]
    else:
        reference.numbers[7][0, 1] = value
    found = checks(task, reference, lane)
    assert FAIL in {check.verdict for check in found}
    failed = next(check for check in found if check.name == "finite numbers (probes)")
    assert failed.verdict is FAIL
    assert failed.figure == (200 if where == "everything" else 1)
    assert failed.note == f"{'the original' if where == 'the original' else 'the lane'} answers NaN or infinity"
    for check in found:
        check.model_dump_json()
        assert np.isfinite(_numbers(check)).all(), check


def _numbers(check: Check) -> list[float]:
    figure = check.figure
    return [] if figure is None else [figure] if isinstance(figure, float) else [figure.value, figure.low, figure.high]


@pytest.mark.parametrize("task", [Task.TOKEN_CLASSIFICATION, Task.QUESTION_ANSWERING])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_another_number_of_tokens_counts_against_the_lane_and_crashes_nothing(task: Task, share: float) -> None:
    reference = answers(task)
    lane = copy(reference)
    for i in range(int(share * 200)):
        lane.numbers[i] = lane.numbers[i][:-1]
        lane.tokens[i] -= 1
        if task is Task.TOKEN_CLASSIFICATION:
            lane.decisions[i] = lane.decisions[i][:-1]
        else:
            lane.decisions[i] = [0, 0]
    assert verdicts(task, reference, lane) == {FAIL}


def test_token_vectors_of_another_number_of_tokens_fail() -> None:
    rng = np.random.default_rng(0)
    reference = Answers([rng.normal(size=(5, 8)).astype(np.float32) for _ in range(200)], [[]] * 200, [5] * 200, [False] * 200)
    lane = Answers([rows[:4] for rows in reference.numbers], [[]] * 200, [4] * 200, [False] * 200)
    assert cosines(reference, lane).tolist() == [0.0] * 200
    assert verdicts(Task.FEATURE_EXTRACTION, reference, lane) == {FAIL}


@pytest.mark.parametrize("task", TASKS)
def test_equal_answers_to_a_few_texts_prove_nothing_and_say_how_many_would(task: Task) -> None:
    reference = answers(task, 10)
    found = checks(task, reference, copy(reference))
    assert {check.verdict for check in found} == {INCONCLUSIVE}
    assert any("too few to prove it, even without any difference" in str(check.note) for check in found)


@pytest.mark.parametrize("task", TASKS)
def test_as_many_texts_as_are_asked_for_are_enough(task: Task) -> None:
    # 0.95^72 and 0.97^122 are the first powers below 0.025.
    n = 122 if task is Task.TOKEN_CLASSIFICATION else 72
    assert verdicts(task, answers(task, n), answers(task, n)) == {PASS}
    assert INCONCLUSIVE in verdicts(task, answers(task, n - 1), answers(task, n - 1))


def test_a_wrong_lane_fails_also_on_a_few_texts() -> None:
    reference = answers(Task.SENTENCE_SIMILARITY, 80)
    assert verdicts(Task.SENTENCE_SIMILARITY, reference, answers(Task.SENTENCE_SIMILARITY, 80, seed=9)) == {FAIL}


# -- figures


def test_cosines_are_those_by_hand() -> None:
    def of(*rows: Sequence[float]) -> Answers:
        return Answers([np.array([row], np.float32) for row in rows], [[]] * len(rows), [1] * len(rows), [False] * len(rows))

    found = cosines(of((3, 4), (1, 0), (1, 0), (2, 0), (0, 0)), of((3, 4), (0, 2), (-1, 0), (1, 1), (1, 0)))
    assert found.tolist() == pytest.approx([1, 0, -1, 0.5**0.5, 0])


def test_a_logit_error_is_the_largest_difference_in_spreads_of_the_reference() -> None:
    reference = Answers([np.array([[0, 2.0]]), np.array([[4.0, 6.0]])], [[1], [1]], [1, 1], [False] * 2)
    lane = Answers([np.array([[0.5, 2.0]]), np.array([[4.0, 5.0]])], [[1], [1]], [1, 1], [False] * 2)
    spread = np.std([0, 2, 4, 6])
    assert logit_errors(reference, lane).tolist() == pytest.approx([0.5 / spread, 1 / spread])
    assert logit_errors(reference, reference.chosen([0, 1])).tolist() == [0, 0]
    other_shape = Answers([np.zeros((1, 3)), reference.numbers[1]], [[1], [1]], [1, 1], [False] * 2)
    assert logit_errors(reference, other_shape).tolist() == [LARGEST_ERROR, 0]


def test_a_reference_without_spread_divides_by_nothing() -> None:
    same = Answers([np.ones((1, 2))] * 3, [[0]] * 3, [1] * 3, [False] * 3)
    assert logit_errors(same, same).tolist() == [0, 0, 0]


def test_agreement_counts_equal_decisions_and_for_tokens_equal_labels() -> None:
    def of(*decisions: list[int]) -> Answers:
        return Answers([np.zeros((1, 1))] * len(decisions), list(decisions), [1] * len(decisions), [False] * len(decisions))

    found = agreement(Task.QUESTION_ANSWERING, of([1, 2], [3, 4]), of([1, 2], [3, 5]))
    assert found is not None
    assert (found.value, found.method) == (0.5, "Clopper-Pearson")
    found = agreement(Task.TOKEN_CLASSIFICATION, of([1, 2, 3], [4], [], [5, 6]), of([1, 2, 0], [4], [], [5]))
    assert found is not None
    assert found.value == pytest.approx(3 / 6)  # 2 of 3, 1 of 1, and 0 of 2: the last has another number of tokens
    assert found.method == "paired bootstrap over 3 clusters"
    found = agreement(Task.FILL_MASK, of([1], [2], [], []), of([1], [3], [], []))
    assert found is not None
    assert (found.value, found.n) == (0.5, 2)  # where the mask was cut off nothing is decided
    assert agreement(Task.TEXT_CLASSIFICATION, of([], []), of([], [])) is None  # a regression decides nothing


def test_texts_that_nobody_answers_prove_nothing() -> None:
    some = answers(Task.QUESTION_ANSWERING, 100)
    for _ in range(50):
        some.add_unanswered()
    found = {check.name: check for check in parity_checks(Task.QUESTION_ANSWERING, "probes", some, some, {}, "here")}
    assert {check.verdict for check in found.values()} == {PASS}
    assert {check.figure.n for check in found.values()} == {100}  # type: ignore[union-attr]
    none = Answers([], [], [], [])
    for _ in range(50):
        none.add_unanswered()
    (check,) = parity_checks(Task.QUESTION_ANSWERING, "probes", none, none, {}, "here")
    assert check.verdict is Verdict.INCONCLUSIVE


def test_the_largest_difference_is_that_of_any_number() -> None:
    reference, lane = answers(Task.FILL_MASK, 5), answers(Task.FILL_MASK, 5)
    lane.numbers[3][0, 7] += 0.25
    assert largest_difference(reference, lane) == pytest.approx(0.25, abs=1e-6)
    lane.numbers[1] = lane.numbers[1][:, :-1]
    assert largest_difference(reference, lane) == pytest.approx(0.25, abs=1e-6)
    lane.numbers[2][0, 0] = np.nan
    assert largest_difference(reference, lane) is None


# -- margins


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_figure_with_a_margin_and_its_reason(task: Task) -> None:
    mine = [by_task[task] for by_task in MARGINS.values() if task in by_task]
    assert mine
    assert all(0 < margin.bound < 1 and len(margin.reason) > 30 for margin in mine)
    assert [check.bound for check in checks(task, answers(task, 80), answers(task, 80))] == [margin.bound for margin in mine]


def test_the_recipes_margins_win() -> None:
    reference = answers(Task.SENTENCE_SIMILARITY)
    lane = copy(reference)
    rng = np.random.default_rng(1)
    lane.numbers = [rows + rng.normal(scale=0.1, size=rows.shape).astype(np.float32) for rows in lane.numbers]
    assert checks(Task.SENTENCE_SIMILARITY, reference, lane)[0].verdict is PASS
    assert checks(Task.SENTENCE_SIMILARITY, reference, lane, cosine_p5=0.9999)[0].verdict is FAIL
    assert checks(Task.SENTENCE_SIMILARITY, reference, lane, cosine_p5=0.9999)[0].bound == 0.9999


def test_an_unknown_figure_in_the_recipe_suggests_the_nearest() -> None:
    check_names({"cosine_p5": 0.9, "agreement": 0.9, "logit_error_p95": 1.0})
    with pytest.raises(UnknownName) as caught:
        check_names({"cosine_p05": 0.9})
    assert caught.value.hint == "did you mean 'cosine_p5'?"
