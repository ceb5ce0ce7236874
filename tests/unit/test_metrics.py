"""Task metrics against values by hand and scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import seqeval.metrics
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from edgeexport.artifact import Task
from edgeexport.dataset import Entity, Row
from edgeexport.session.evidence import Answers
from edgeexport.verify.check import Verdict
from edgeexport.verify.intervals import Estimate
from edgeexport.verify.metrics import MetricResult, compare, entities, macro_f1, metric_check, retrieval_ranks

LABELS = ("a", "b", "c")


def vectors(*rows: Sequence[float]) -> Answers:
    """An embedder's answers."""
    return Answers([np.array([row], np.float32) for row in rows], [[] for _ in rows], [3] * len(rows), [False] * len(rows))


def classes(decisions: Sequence[int]) -> Answers:
    """A classifier's answers."""
    return Answers([np.eye(3, dtype=np.float32)[[d]] for d in decisions], [[d] for d in decisions], [3] * len(decisions), [False] * len(decisions))


DOCUMENTS = tuple(Row(id=name, text=name, role="document") for name in ("x", "y", "z"))


def queries(*answers: str) -> tuple[Row, ...]:
    return tuple(Row(id=f"q{i}", text="?", role="query", label=answer) for i, answer in enumerate(answers))


AXES = ((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0))


# -- retrieval


def test_ranks_recall_and_mrr_are_those_by_hand() -> None:
    rows = (*DOCUMENTS, *queries("x", "y", "z", "x"))
    answers = vectors(*AXES, (0.9, 0.2, 0.1), (0.9, 0.2, 0.1), (0.9, 0.2, 0.1), (0.1, 0.5, 0.9))
    assert retrieval_ranks(rows, answers).tolist() == [0, 1, 2, 2]
    recall, mrr, wide = compare(Task.SENTENCE_SIMILARITY, rows, (), answers, answers)
    assert (recall.name, mrr.name, wide.name) == ("recall@1", "MRR", "recall@5")
    assert wide.lane.value == 1
    assert recall.reference.value == recall.lane.value == pytest.approx(1 / 4)
    assert mrr.lane.value == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 3) / 4)
    assert recall.drop.value == mrr.drop.value == 0
    assert (recall.broken, recall.fixed) == (0, 0)
    assert (mrr.broken, mrr.fixed) == (None, None)


def test_similarity_is_the_cosine() -> None:
    rows = (*DOCUMENTS, *queries("x"))
    assert retrieval_ranks(rows, vectors((0.1, 0, 0), (5, 5, 0), (0, 0, 1), (1, 0.1, 0))).tolist() == [0]


def test_ties_count_against_the_model() -> None:
    rows = (*DOCUMENTS, *queries("x", "y"))
    assert retrieval_ranks(rows, vectors((1, 0, 0), (1, 0, 0), (1, 0, 0), (1, 0, 0), (1, 0, 0))).tolist() == [2, 2]
    assert retrieval_ranks(rows, vectors(*[(0.0, 0, 0)] * 5)).tolist() == [2, 2]  # a model that answers zero finds nothing


@pytest.mark.parametrize("broken", [0, 2, 3])
def test_what_is_no_number_counts_against_the_model(broken: int) -> None:
    rows = (*DOCUMENTS, *queries("x", "x"))
    answers = vectors(*AXES, (1, 0, 0), (1, 0, 0))
    answers.numbers[broken][:] = np.nan
    ranks = retrieval_ranks(rows, answers)
    assert ranks[0] == {0: 2, 2: 1, 3: 2}[broken]  # the right document, another document, the query
    assert (ranks >= 0).all()
    recall, mrr, _ = compare(Task.SENTENCE_SIMILARITY, rows, (), vectors(*AXES, (1, 0, 0), (1, 0, 0)), answers)
    assert recall.lane.value < recall.reference.value
    assert np.isfinite([mrr.lane.value, mrr.drop.high]).all()


def test_vectors_per_token_are_searched_by_their_mean() -> None:
    rows = (*DOCUMENTS, *queries("y"))
    answers = vectors(*AXES, (0, 0, 0))
    answers.numbers[3] = np.array([[0.4, 0.6, 0], [0, 1, 0]], np.float32)
    assert retrieval_ranks(rows, answers).tolist() == [0]


def test_broken_and_fixed_answers_are_counted() -> None:
    rows = (*DOCUMENTS, *queries("x", "y", "z", "x", "y"))
    original = vectors(*AXES, AXES[0], AXES[1], AXES[2], AXES[1], AXES[0])  # right, right, right, wrong, wrong
    lane = vectors(*AXES, AXES[1], AXES[0], AXES[2], AXES[0], AXES[0])  # wrong, wrong, right, right, wrong
    recall = compare(Task.FEATURE_EXTRACTION, rows, (), original, lane)[0]
    assert (recall.broken, recall.fixed) == (2, 1)
    assert recall.drop.value == pytest.approx(3 / 5 - 2 / 5)


def test_questions_with_one_answer_are_one_cluster() -> None:
    rows = (*DOCUMENTS, *queries(*"xy" * 40))
    lane = vectors(*AXES, *[AXES[0], AXES[0]] * 40)
    recall = compare(Task.SENTENCE_SIMILARITY, rows, (), lane, lane)[0]
    assert recall.lane.n == 80
    assert recall.lane.method == "paired bootstrap over 2 clusters"
    assert recall.lane.high - recall.lane.low == 1.0  # all of x or all of y


# -- classification


predictions = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40)


@given(predictions)
def test_accuracy_and_macro_f1_are_scikit_learns(examples: list[tuple[int, int, int]]) -> None:
    truth, original, lane = (np.array(column) for column in zip(*examples, strict=True))
    weights = np.ones((1, len(truth)))
    present = np.unique(truth)
    assert macro_f1(truth, lane)(weights)[0] == pytest.approx(
        sklearn.metrics.f1_score(truth, lane, labels=present, average="macro", zero_division=0))
    resample = np.random.default_rng(0).integers(0, 3, (1, len(truth))).astype(float)
    assert macro_f1(truth, original)(resample)[0] == pytest.approx(
        sklearn.metrics.f1_score(truth, original, labels=present, average="macro", zero_division=0, sample_weight=resample[0]), abs=1e-9)


def test_a_classifiers_figures_and_flips_are_those_by_hand() -> None:
    truth = [0, 0, 1, 1, 2, 2]
    rows = tuple(Row(id=str(i), text="t", label=LABELS[label]) for i, label in enumerate(truth))
    original, lane = [0, 0, 1, 1, 2, 0], [0, 1, 1, 2, 2, 2]
    accuracy, f1 = compare(Task.TEXT_CLASSIFICATION, rows, LABELS, classes(original), classes(lane))
    assert (accuracy.name, f1.name) == ("accuracy", "macro F1")
    assert accuracy.reference.value == pytest.approx(sklearn.metrics.accuracy_score(truth, original))
    assert accuracy.lane.value == pytest.approx(sklearn.metrics.accuracy_score(truth, lane))
    assert f1.lane.value == pytest.approx(sklearn.metrics.f1_score(truth, lane, average="macro"))
    assert (accuracy.broken, accuracy.fixed) == (2, 1)
    assert accuracy.drop.value == pytest.approx(1 / 6)


def test_a_class_that_is_nowhere_in_the_data_does_not_count() -> None:
    assert macro_f1(np.array([0, 0]), np.array([0, 1]))(np.ones((1, 2)))[0] == pytest.approx(2 / 3)


@pytest.mark.parametrize("task", [Task.FILL_MASK, Task.QUESTION_ANSWERING])
def test_a_task_without_a_metric_gives_none(task: Task) -> None:
    rows = (Row(id="1", text="t"),)
    answers = classes([0])
    assert compare(task, rows, (), answers, answers) == []


def test_a_classifier_that_decides_several_or_no_classes_has_no_accuracy() -> None:
    rows = (Row(id="1", text="t", label="a"),)
    for decision in ([0, 1], []):
        answers = Answers([np.zeros((1, 3), np.float32)], [decision], [3], [False])
        assert compare(Task.TEXT_CLASSIFICATION, rows, LABELS, answers, answers) == []


# -- entities

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def tagged(*texts: str) -> Answers:
    """What a model says of texts: for each word the initial of a tag, such as ``P p O`` for a name of two words and no name."""
    ids = {"O": 0, "P": 1, "p": 2, "L": 3, "l": 4}
    decisions = [[ids[tag] for tag in text.split()] for text in texts]
    spans = [np.array([(10 * i, 10 * i + 5) for i in range(len(row))], np.int64).reshape(-1, 2) for row in decisions]
    logits = [np.zeros((len(row), 5), np.float32) for row in decisions]
    return Answers(logits, decisions, [len(row) for row in decisions], [False] * len(texts), spans)


def sentences(*texts: str) -> tuple[Row, ...]:
    """The rows whose truth is what :func:`tagged` says."""
    return tuple(Row(id=str(i), text="", entities=tuple(Entity(start=start, end=end, label=name) for start, end, name in sorted(spans)))
                 for i, spans in enumerate(entities(TAGS, tagged(*texts))))


@given(st.lists(st.tuples(*[st.lists(st.sampled_from("OPpLl"), min_size=6, max_size=6)] * 3), min_size=1, max_size=8))
def test_entity_f1_is_that_of_seqeval(texts: list[tuple[list[str], list[str], list[str]]]) -> None:
    truth, original, lane = ([" ".join(text[i]) for text in texts] for i in range(3))
    found = compare(Task.TOKEN_CLASSIFICATION, sentences(*truth), TAGS, tagged(*original), tagged(*lane))[0]
    names = [[[dict(zip("OPpLl", TAGS, strict=True))[tag] for tag in text.split()] for text in side] for side in (truth, original, lane)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = [seqeval.metrics.f1_score(names[0], side, zero_division=0) for side in names[1:]]
    assert found.name == "entity F1"
    assert (found.reference.value, found.lane.value) == pytest.approx(tuple(wanted))


def test_an_entity_counts_only_with_both_ends_and_its_name() -> None:
    rows = sentences("P p O L")
    for answer, f1 in (("P p O L", 1), ("P O O L", 0.5), ("L l O L", 0.5), ("P p P L", 0.8), ("O O O O", 0)):
        assert compare(Task.TOKEN_CLASSIFICATION, rows, TAGS, tagged(answer), tagged("P p O L"))[0].reference.value == pytest.approx(f1)


def test_few_texts_without_a_change_prove_no_small_drop_of_entities() -> None:
    texts = ["P p O L"] * 20
    same = compare(Task.TOKEN_CLASSIFICATION, sentences(*texts), TAGS, tagged(*texts), tagged(*texts))[0]
    assert same.drop.value == 0
    assert same.drop.high == pytest.approx(1 - 0.025 ** (1 / 20))


# -- the check that decides


def result(truth: Sequence[int], original: Sequence[int], lane: Sequence[int]) -> list[MetricResult]:
    rows = tuple(Row(id=str(i), text="t", label=LABELS[label]) for i, label in enumerate(truth))
    return compare(Task.TEXT_CLASSIFICATION, rows, LABELS, classes(original), classes(lane))


def test_a_lane_like_the_original_passes_on_enough_examples() -> None:
    truth = [0, 1] * 200
    check = metric_check(result(truth, truth, truth), 0.02, "here", labelled=True)
    assert (check.name, check.verdict, check.bound) == ("drop of accuracy", Verdict.PASS, 0.02)
    assert check.note == "0 answers broken, 0 fixed"
    assert check.how == "here"


def test_a_few_examples_without_any_change_prove_nothing() -> None:
    truth = [0, 1] * 10
    check = metric_check(result(truth, truth, truth), 0.02, "here", labelled=True)
    assert check.verdict is Verdict.INCONCLUSIVE
    assert str(check.note).endswith("20 are too few to prove it, even without any change; 183 can")
    one_fixed = metric_check(result(truth, [1, *truth[1:]], truth), 0.02, "here", labelled=True)
    assert one_fixed.verdict is Verdict.INCONCLUSIVE  # none was broken, and yet one in six might be
    assert str(one_fixed.note).startswith("0 answers broken, 1 fixed; 20 are too few")


def test_many_changes_in_both_directions_are_told_by_resampling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeexport.verify.intervals.RESAMPLES", 1500)
    truth = [0, 1] * 460
    original = [1 - t if i < 8 else t for i, t in enumerate(truth)]
    lane = [1 - t if 8 <= i < 17 else t for i, t in enumerate(truth)]
    check = metric_check(result(truth, original, lane), 0.02, "here", labelled=True)
    assert check.note == "9 answers broken, 8 fixed"
    assert check.verdict is Verdict.PASS
    assert isinstance(check.figure, Estimate)
    # One in 920 lost, with the standard deviation of a difference of two rare counts.
    assert check.figure.high == pytest.approx(1 / 920 + 1.96 * np.sqrt(17) / 920, rel=0.15)


def test_a_lane_that_lost_much_fails() -> None:
    truth = [0, 1] * 100
    check = metric_check(result(truth, truth, [0, 0] * 100), 0.02, "here", labelled=True)
    assert check.verdict is Verdict.FAIL
    assert check.note == "100 answers broken, 0 fixed"


def test_without_labelled_data_there_is_no_verdict() -> None:
    check = metric_check([], 0.02, "here", labelled=False)
    assert (check.verdict, check.figure, check.note) == (None, None, "no labelled data")
    assert "no metric for this task" in str(metric_check([], 0.02, "here", labelled=True).note)


@pytest.mark.parametrize(("n", "breaks", "fixes"), [(20, 0.05, 0.05), (100, 0.02, 0.0), (150, 0.02, 0.03)])
def test_the_upper_end_of_a_drop_holds_the_true_one(monkeypatch: pytest.MonkeyPatch, n: int, breaks: float, fixes: float) -> None:
    monkeypatch.setattr("edgeexport.verify.intervals.RESAMPLES", 250)
    rng, samples = np.random.default_rng(11), 120
    rows = tuple(Row(id=str(i), text="t", label="a") for i in range(n))
    held = 0
    for draw in rng.random((samples, n)):
        lane = np.where(draw < breaks, 1, 0)
        original = np.where((draw >= breaks) & (draw < breaks + fixes), 1, 0)
        accuracy = compare(Task.TEXT_CLASSIFICATION, rows, LABELS, classes(original.tolist()), classes(lane.tolist()))[0]
        held += accuracy.drop.high >= breaks - fixes
    assert held / samples >= 0.95
