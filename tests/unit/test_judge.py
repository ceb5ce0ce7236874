"""A lane's verdict: all checks together, with their scope; what is not measured is null and never 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from edgeexport.artifact import Task, canonical_json
from edgeexport.dataset import Dataset, Row
from edgeexport.inspection.model import ModelReport
from edgeexport.session.evidence import Answers, untruncated
from edgeexport.target import Budget, Lane, Target
from edgeexport.verify.audit import audit_checks
from edgeexport.verify.check import Check, Verdict
from edgeexport.verify.judge import FLOAT_TOLERANCE, Question, judge_lane, mean_distance, relative_distances, scope, tolerance
from edgeexport.verify.lane_report import LaneReport

PASS, FAIL, INCONCLUSIVE = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE
LANE = Lane(name="onnx", format="onnx", runtime="onnxruntime", version=">=1.17", precision="dynamic-int8", verified_by="onnxruntime==1.31.1")
SPEED = {"load_seconds": 0.1, "latency_ms": {"16": {"p50": 2.0, "p95": 3.0}, "64": {"p50": 7.0, "p95": 9.0}}, "peak_rss_mb": 80.0, "rounds": 15,
         "threads": 1}
MODEL = ModelReport(file="model.onnx", format="onnx", bytes=23_000_000, signatures=(), operators=(), weight_groups=(), float_weights=(),
                    stored_twice=(), integer_weight_share=0.99, integer_compute_share=0.9, overhead_bytes=0)


def target(isa: str = "aarch64", **budget: float) -> Target:
    return Target.model_validate({"schema": 1, "name": "board", "title": "Board", "lanes": [LANE.model_dump(mode="json")], "budget": budget,
                                  "device": {"isa": isa, "cpu": "x", "cores": 4, "ram_mb": 1024}})


def vectors(n: int = 300, seed: int = 0, noise: float = 0.0) -> Answers:
    numbers = [row[None].astype(np.float32) for row in np.random.default_rng(seed).normal(size=(n, 16))]
    rng = np.random.default_rng(99)
    return Answers([rows + noise * rng.normal(size=rows.shape).astype(np.float32) for rows in numbers], [[]] * n, [5] * n,
                   [i % 4 == 0 for i in range(n)])


def question(**changes: Any) -> Question:
    probes = Dataset(name="probes", rows=tuple(Row(id=str(i), text="t") for i in range(300)), origin="o")
    fields: dict[str, Any] = {"task": Task.SENTENCE_SIMILARITY, "labels": (), "parameters": 22_000_000, "datasets": {"probes": probes},
                              "labelled": "evaluation", "reference": {"probes": vectors()}, "margins": {}, "max_drop": 0.02,
                              "budget": Budget(), "host_isa": "x86_64", "host": "host x86-64"}
    fields |= changes
    return Question(**{"original": fields["reference"]} | fields)


def judged(asked: Question | None = None, *, lane: Answers | None = None, device: Target | None = None, model: ModelReport = MODEL,
           answers: Mapping[str, Answers] | None = None, problems: tuple[str, ...] = ()) -> LaneReport:
    found = answers if answers is not None else {"probes": lane if lane is not None else vectors(noise=0.01)}
    return judge_lane(asked or question(), device or target(), LANE, "onnx-dynamic-int8", found, SPEED, model, problems)


def check(report: LaneReport, name: str) -> Check:
    (found,) = [check for check in report.checks if check.name == name]
    return found


# -- the verdict and its scope


def test_a_right_lane_passes_and_says_where_it_was_not_run() -> None:
    report = judged()
    assert report.verdict is PASS
    assert report.scope == "pass (host x86-64; not run on aarch64); parity: pass; task metric: null, no labelled data; audit: pass"
    assert check(report, "task metric").verdict is None


def test_a_lane_that_ran_on_its_own_instruction_set_does_not_say_so() -> None:
    assert judged(device=target("x86_64")).scope.startswith("pass (host x86-64); parity: pass;")


@pytest.mark.parametrize("lane", [vectors(seed=1), vectors(noise=5.0)])
def test_a_wrong_lane_fails(lane: Answers) -> None:
    report = judged(lane=lane)
    assert report.verdict is FAIL
    assert report.scope.startswith("fail (host x86-64; not run on aarch64); parity: fail;")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_value_that_is_no_number_fails_the_lane_and_can_still_be_sealed(bad: float) -> None:
    lane = vectors(noise=0.01)
    lane.numbers[3][0, 0] = bad
    report = judged(lane=lane)
    assert report.verdict is FAIL
    assert report.largest_difference is None
    canonical_json(report.model_dump(mode="json"))  # raises where a figure is no number
    assert LaneReport.model_validate_json(report.model_dump_json()) == report


def test_a_few_texts_are_inconclusive() -> None:
    few = {"probes": vectors(20)}
    report = judged(question(reference=few), answers=few)
    assert report.verdict is INCONCLUSIVE
    assert "parity: inconclusive" in report.scope


def test_every_data_set_is_judged_and_the_worst_counts() -> None:
    asked = question(reference={"probes": vectors(), "texts": vectors(seed=5)})
    report = judged(asked, answers={"probes": vectors(noise=0.01), "texts": vectors(seed=6)})
    assert check(report, "cosine, 5th percentile (probes)").verdict is PASS
    assert check(report, "cosine, 5th percentile (texts)").verdict is FAIL
    assert report.verdict is FAIL
    assert report.truncated == {"probes": 0.25, "texts": 0.25}


def test_a_file_that_the_runtime_cannot_run_fails() -> None:
    report = judged(problems=("opset 23 is newer than onnxruntime 1.17's 20",))
    assert report.verdict is FAIL
    assert "audit: fail" in report.scope


@pytest.mark.parametrize(("share", "verdict"), [(0.99, PASS), (0.95, PASS), (0.5, FAIL), (None, FAIL)])
def test_a_file_that_is_called_int8_must_be(share: float | None, verdict: Verdict) -> None:
    report = judged(model=MODEL.model_copy(update={"integer_weight_share": share}))
    assert check(report, "weights stored as INT8").verdict is verdict
    assert report.verdict is verdict


@pytest.mark.parametrize(("share", "verdict"), [(0.99, PASS), (0.0, FAIL)])
def test_a_file_that_is_called_int4_must_be_integers(share: float, verdict: Verdict) -> None:
    _, found = audit_checks(MODEL.model_copy(update={"integer_weight_share": share}), LANE, "blockwise-int4", ())
    assert (found.name, found.verdict) == ("weights stored as INT4 or INT8", verdict)


# -- budgets


def test_limits_are_kept_or_not_by_what_was_counted_and_measured() -> None:
    report = judged(device=target(size_mb_max=23.0, size_ratio_max=0.3, ram_mb_max=79.9))
    assert check(report, "size").verdict is PASS
    assert check(report, "size").figure == 23.0
    assert check(report, "size to float32 weights").figure == pytest.approx(23 / 88)
    assert check(report, "peak memory").verdict is FAIL
    assert check(report, "peak memory").how == "measured on this host x86-64 in onnxruntime==1.31.1"
    assert report.verdict is FAIL


def test_the_recipes_limit_comes_before_the_targets() -> None:
    asked = question(budget=Budget(size_mb_max=20))
    assert check(judged(asked, device=target(size_mb_max=30.0)), "size").verdict is FAIL
    assert check(judged(asked, device=target()), "size").bound == 20


def test_a_limit_that_only_a_device_can_show_stays_null() -> None:
    report = judged(device=target(latency_ms_max=10.0))
    latency = check(report, "latency at the largest length")
    assert (latency.verdict, latency.figure, latency.how) == (None, None, None)
    assert "not measured on the device" in str(latency.note)
    assert report.verdict is PASS
    assert "budget: null, not measured on the device" in report.scope


def test_a_ratio_without_a_known_number_of_parameters_stays_null() -> None:
    report = judged(question(parameters=None), device=target(size_ratio_max=0.3))
    assert (check(report, "size to float32 weights").verdict, check(report, "size to float32 weights").figure) == (None, None)
    assert report.size_ratio is None


def test_without_limits_there_is_no_word_of_a_budget() -> None:
    assert "budget" not in judged().scope


# -- the task metric


def retrieval(n: int, right: int) -> tuple[Dataset, Answers]:
    """`n` queries of `n` documents, the first `right` of which find theirs."""
    rows = [Row(id=str(i), text="d", role="document") for i in range(n)] + [Row(id=f"q{i}", text="q", role="query", label=str(i)) for i in range(n)]
    eye = np.eye(n, dtype=np.float32)
    found = [*eye, *eye[:right], *np.roll(eye, 1, axis=0)[right:]]
    return Dataset(name="evaluation", rows=tuple(rows), origin="o"), Answers([row[None] for row in found], [[]] * 2 * n, [3] * 2 * n,
                                                                            [False] * 2 * n)


@pytest.mark.parametrize(("right", "verdict"), [(200, PASS), (120, FAIL)])
def test_labelled_data_judge_the_drop_of_the_metric(right: int, verdict: Verdict) -> None:
    data, original = retrieval(200, 200)
    probes = question()
    asked = question(datasets={**probes.datasets, "evaluation": data}, reference={**probes.reference, "evaluation": original})
    report = judged(asked, answers={"probes": vectors(noise=0.01), "evaluation": retrieval(200, right)[1]})
    drop = check(report, "drop of recall@1")
    assert drop.verdict is verdict
    assert drop.note == f"{200 - right} answers broken, 0 fixed"
    assert f"task metric: {verdict.value}" in report.scope
    assert [result.name for result in report.metrics] == ["recall@1", "MRR", "recall@5"]
    assert report.distance == pytest.approx((200 - right) / 400)  # a wrong answer is at a right angle: nothing is left of it


def test_where_the_recipe_cuts_texts_the_uncut_original_decides() -> None:
    data, uncut = retrieval(80, 80)
    probes = question()
    cut = retrieval(80, 60)[1]
    cut.truncated[0] = True
    reference = {**probes.reference, "evaluation": cut, untruncated("evaluation"): uncut}
    asked = question(datasets={**probes.datasets, "evaluation": data}, reference=reference)
    report = judged(asked, answers={"probes": vectors(noise=0.01), "evaluation": cut})
    assert report.metrics[0].drop.value == 0
    assert report.untruncated[0].drop.value == pytest.approx(0.25)
    assert check(report, "drop of recall@1").verdict is FAIL


def test_where_nothing_was_cut_both_originals_say_the_same() -> None:
    data, original = retrieval(80, 80)
    probes = question()
    reference = {**probes.reference, "evaluation": original, untruncated("evaluation"): original}
    report = judged(question(datasets={**probes.datasets, "evaluation": data}, reference=reference),
                    answers={"probes": vectors(noise=0.01), "evaluation": retrieval(80, 60)[1]})
    assert report.untruncated == report.metrics != ()


def test_the_words_for_several_lanes_hide_no_failure() -> None:
    """Each lane fails in a group of its own; together both fail."""
    parity, budget = judged(lane=vectors(noise=5.0)), judged(question(budget=Budget(size_mb_max=1)))
    assert "parity: fail" in parity.scope and "budget: fail" in budget.scope
    words = scope([*parity.checks, *budget.checks], FAIL, "x86_64", "aarch64", "host x86-64")
    assert "parity: fail" in words and "budget: fail" in words and "audit: pass" in words


# -- figures of the report


def test_the_report_carries_sizes_speed_and_how_they_were_obtained() -> None:
    report = judged()
    assert (report.size_bytes, report.precision, report.variant) == (23_000_000, "dynamic-int8", "onnx-dynamic-int8")
    assert report.size_ratio == pytest.approx(23 / 88)
    assert report.speed is not None
    assert report.speed.latency_ms == {16: {"p50": 2.0, "p95": 3.0}, 64: {"p50": 7.0, "p95": 9.0}}
    assert report.speed.how == "measured on this host x86-64 in onnxruntime==1.31.1"


def test_golden_vectors_may_differ_as_much_as_was_accepted_and_at_least_by_float_rounding() -> None:
    assert tolerance(vectors(), vectors()) == FLOAT_TOLERANCE
    reference, lane = vectors(), vectors(noise=0.05)
    assert tolerance(reference, lane) == pytest.approx(np.quantile(relative_distances(reference, lane), 0.99))


def test_distances_are_relative_and_infinite_where_they_are_no_numbers() -> None:
    def of(*rows: list[float]) -> Answers:
        return Answers([np.array([row]) for row in rows], [[]] * len(rows), [1] * len(rows), [False] * len(rows))

    found = relative_distances(of([3, 4], [3, 4], [3, 4], [3, 4], [3, 4]), of([3, 4], [3, 9], [3, np.nan], [3, np.inf], [3, 4, 5]))
    assert found == pytest.approx([0, 1, np.inf, np.inf, np.inf])
    assert not max(found) <= 1.0
    # What can't be compared counts as a text of which nothing is left.
    assert mean_distance(Task.TEXT_CLASSIFICATION, of([3, 4], [3, 4], [3, 4]), of([3, 5], [3, np.nan], [-3, -4])) == pytest.approx((0.2 + 1 + 1) / 3)


def test_a_distance_between_models_that_cut_words_in_another_way() -> None:
    def of(*rows: list[float]) -> Answers:
        return Answers([np.array(rows)], [[]], [1], [False])

    three, two = of([1, 0], [0, 1], [3, 4]), of([1, 0], [0, 1])
    # One of them read fewer words of the text, or made other tokens of it.
    assert mean_distance(Task.TOKEN_CLASSIFICATION, three, two) == mean_distance(Task.TOKEN_CLASSIFICATION, two, three) == 0
    assert mean_distance(Task.FEATURE_EXTRACTION, of([2, 0], [0, 2]), of([1, 1])) == 0
    assert mean_distance(Task.FEATURE_EXTRACTION, of([2, 0], [0, 2]), of([0, 0])) == 1
