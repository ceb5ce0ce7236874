"""The search's choices: which candidates there are, what fulfils a wish, what no other beats, and that the winner is an ordinary recipe."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from test_compression import compressed
from test_plan import HOST, target

from edgeexport.candidates import Candidate, LaneTrial, Outlook, Timing, Trial, Wish
from edgeexport.dataset import Dataset, Row
from edgeexport.errors import OutputError, PlanError, RecipeError
from edgeexport.plan import make_plan
from edgeexport.prepare import Prepared
from edgeexport.recipe import Recipe, load_recipe
from edgeexport.report.model import Report
from edgeexport.tune import Search, on_development, write_recipe
from edgeexport.verify.intervals import Estimate
from edgeexport.verify.lane_report import LaneReport
from edgeexport.verify.metrics import MetricResult
from edgeexport.workbench import Scout, Workbench

# As all-MiniLM-L6-v2.
FACTS = {"vocabulary": 30522, "layers": 6, "layer_parameters": 10_646_784, "embedding_width": 384}
PARAMETERS = 22_713_216


def prepared(*, labelled: bool = True) -> Prepared:
    found = compressed()
    rows = (Row(id="1", text="t", role="query", label="x" if labelled else None),)
    datasets = found.datasets | {"development": Dataset(name="development", rows=rows, origin="")}
    spec = found.spec.model_copy(update={"parameters": PARAMETERS, "facts": found.spec.facts | FACTS})
    found = replace(found, datasets=datasets, spec=spec)
    return Prepared(found, make_plan(found, [target()], HOST), HOST, (target(),), None)  # type: ignore[arg-type]


def bench() -> Workbench:
    return Workbench(prepared(), None, lambda event: None)  # type: ignore[arg-type]


def wish(size: float | None = 11.4, drop: float = 0.02, speedup: float | None = None) -> Wish:
    return Wish(max_size_mb=size, max_drop=drop, min_speedup=speedup, minutes=20)


def estimate(value: float) -> Estimate:
    return Estimate(value=value, low=value - 0.01, high=value + 0.01, n=100, method="given")


def trial(size: float = 20e6, quality: float = 0.7, latency: float = 10.0, speedup: float = 2.0, distance: float = 0.1) -> Trial:
    lane = LaneTrial(lane="litert", size_bytes=int(size), latency_ms={16: latency / 10, 128: latency}, speedup={16: speedup, 128: speedup},
                     metric=estimate(quality), reference=estimate(0.72), drop=estimate(0.72 - quality), distance=distance)
    return Trial(candidate=Candidate(parameters=1), lanes=(lane,), misses=())


def timing(speedup: float) -> Timing:
    """Of a model of 0.35 of its width."""
    return Timing(candidate=Candidate(width=0.35, parameters=1), speedup={"litert": {16: speedup, 128: speedup}})


def outlook(wanted: Wish, whole: Trial, timed: Timing | None = None) -> Outlook:
    return Outlook(wanted, {"parameters": PARAMETERS, **FACTS}, whole, timed)


def misses(wanted: Wish, measured: Trial) -> list[str]:
    return [miss.words for lane in measured.lanes for miss in wanted.misses(lane)]


def test_structures_are_the_widest_that_should_fulfil_the_wish() -> None:
    """Latency here is 2 ms a layer that stays and 8 ms that go with its width; float32 takes 150 ms, so that 50 are wanted."""
    whole, narrow = (150 / (6 * (2 + 8 * width)) for width in (1.0, 0.35))
    found = outlook(wish(11.4, speedup=3.0), trial(PARAMETERS + 1.2e6, speedup=whole), timing(narrow)).structures()
    assert len(found) >= 3
    for candidate in found:
        layers, width, rank = candidate.layers or 6, candidate.width, candidate.rank or 384

        def parameters(width: float, rank: int, layers: int = layers) -> float:
            table = 30522 * 384 - rank * (30522 + 384) if rank < 384 else 0
            return PARAMETERS - 10_646_784 * (1 - layers / 6 * width) - table

        assert candidate.parameters == pytest.approx(parameters(width, rank), abs=2)
        assert parameters(width, rank) + 1.2e6 <= 11.4e6 / 1.003 + 1
        assert layers * (2 + 8 * width) <= 50 / 1.05
        assert rank >= 96 and rank % 8 == 0
        # The table is as large as the size allows; a wider model would be too slow, or leave no room for the least table.
        assert parameters(width, rank + 8) + 1.2e6 > 11.4e6 / 1.003
        wider = width + 0.011
        least = 192 if rank >= 192 else 96
        assert layers * (2 + 8 * wider) > 50 / 1.05 or wider > 1 or parameters(wider, least) + 1.2e6 > 11.4e6 / 1.003
    assert [candidate.layers for candidate in found][:3] == [None, 4, 3]  # deep ones first, each number of layers once


def test_each_lane_has_a_speed_of_its_own_to_reach() -> None:
    wanted = Wish(max_size_mb=None, max_drop=0.1, min_speedup=3.0, lane_speedups={"litert": 2.0}, minutes=20)
    assert misses(wanted, trial(speedup=2.5)) == []
    assert misses(wanted, trial(speedup=1.9)) == ["litert: 1.90 times as fast as float32 at 16 tokens, less than 2",
                                                  "litert: 1.90 times as fast as float32 at 128 tokens, less than 2"]
    other = Wish(max_size_mb=None, max_drop=0.1, min_speedup=None, lane_speedups={"onnx": 2.0}, minutes=20)
    assert misses(other, trial(speedup=1.0)) == []


def test_without_a_limit_of_size_the_tokens_stay() -> None:
    assert all(candidate.vocabulary is candidate.rank is None for candidate in outlook(wish(None), trial()).structures())


def test_a_size_that_no_structure_reaches_leaves_nothing_to_train() -> None:
    assert outlook(wish(1.0), trial()).structures() == []


def test_bytes_are_divided_between_tokens_and_layers_where_size_is_all() -> None:
    base = trial(PARAMETERS + 1.2e6)
    for size, least in ((17.0, 150), (14.0, 96)):  # of 14 MB whole layers leave too little for a table
        found = outlook(wish(size), base).balances()
        assert len(found) >= 3
        assert (found[0].width == 1.0) == (size == 17.0)
        assert min(candidate.rank or 0 for candidate in found) >= least
        for one, next_one in pairwise(found):
            assert one.width > next_one.width and (one.rank or 0) < (next_one.rank or 0)
        for candidate in found:
            assert (candidate.layers, candidate.vocabulary, candidate.epochs) == (None, None, 0.0)
            # As large as the size allows, but for a step of the rank.
            assert size * 1e6 / 1.003 - 1.2e6 - 8 * 30906 < candidate.parameters <= size * 1e6 / 1.003 - 1.2e6
    assert outlook(wish(30.0), base).balances() == outlook(wish(None), base).balances() == []  # nothing to take out
    assert outlook(wish(17.0, speedup=2.0), base).balances() == []


def test_fewer_tokens_alone_are_tried_where_size_is_all() -> None:
    base = trial(PARAMETERS + 1.2e6)
    fewer = outlook(wish(17.0), base).fewer_tokens()
    assert fewer is not None and (fewer.layers, fewer.width, fewer.epochs, fewer.rank) == (None, 1.0, 0.0, None)
    assert 17e6 / 1.003 - 1.2e6 - 384 < fewer.parameters <= 17e6 / 1.003 - 1.2e6
    for wanted in (wish(14.0), wish(30.0), wish(None), wish(17.0, speedup=2.0)):  # too few to be of use, or nothing to take out
        assert outlook(wanted, base).fewer_tokens() is None


def test_a_model_of_unknown_shape_is_left_as_it_is() -> None:
    unknown = Outlook(wish(5.0, speedup=9.0), dict.fromkeys({"parameters", *FACTS}, 0), trial())
    assert unknown.balances() == unknown.structures() == []
    assert unknown.to_time() is None
    assert unknown.fewer_tokens() is None
    for name in FACTS:
        partly = Outlook(wish(5.0), {"parameters": PARAMETERS, **FACTS, name: 0}, trial())
        assert partly.balances() == partly.structures() == []
        assert partly.fewer_tokens() is None


@pytest.mark.parametrize("size", [0.5, 5.0, 17.0, None])
def test_where_speed_is_wanted_a_narrow_model_is_timed_first(size: float | None) -> None:
    ahead = outlook(wish(size, speedup=2.0), trial(PARAMETERS + 1.2e6))
    found = ahead.to_time()
    assert found is not None and (found.layers, found.width, found.epochs, found.vocabulary) == (None, 0.35, 0.0, None)
    assert outlook(wish(size), trial(PARAMETERS + 1.2e6)).to_time() is None


def test_a_candidate_is_a_section_of_a_recipe() -> None:
    section = Candidate(vocabulary=9000, rank=96, layers=4, width=0.75, epochs=2.5, parameters=1).section
    assert section.model_dump(exclude_defaults=True) == {
        "vocabulary": {"size": 9000}, "embeddings": {"rank": 96}, "prune": {"layers": 4, "heads": 0.75, "neurons": 0.75}, "distill": {"epochs": 2.5}}
    assert not Candidate(parameters=1).section.changes_model


@pytest.mark.parametrize(("wanted", "given", "words"), [
    (wish(11.4, drop=0.1), {"size": 12e6}, "12 MB, more than 11.4"),
    (wish(None, drop=0.01), {"quality": 0.70}, "the metric drops by 0.020, more than 0.01"),
])
def test_what_is_missed_is_said_and_measured(wanted: Wish, given: dict[str, Any], words: str) -> None:
    measured = trial(**given)
    assert misses(wanted, measured) == [f"litert: {words}"]
    whole = measured.model_copy(update={"misses": tuple(wanted.misses(measured.lanes[0]))})
    assert 0 < whole.shortfall < 1
    assert whole.has_the_shape == ("metric" in words)
    assert misses(wish(100, 0.5, 1.0), measured) == []


def in_lanes(precisions: dict[str, str], **latency: float) -> Trial:
    """The whole model, with a latency for each lane."""
    (lane,) = trial().lanes
    lanes = tuple(lane.model_copy(update={"lane": name, "latency_ms": {128: value}}) for name, value in latency.items())
    return Trial(candidate=Candidate(precisions=precisions, parameters=PARAMETERS), lanes=lanes, misses=())


def test_each_lane_takes_the_precision_that_serves_it_best() -> None:
    search = Search(bench(), wish(30), presets=("static-int8", "weight-only-int8"))
    own, static, weights = (candidate.precisions for candidate in search._whole())
    assert own == {}
    assert static == {"litert": "static-int8", "onnx": "static-int8"}
    assert weights == {"litert": "weight-only-int8"}  # which ONNX does not have
    search.trials = [in_lanes(own, litert=5.0, onnx=9.0), in_lanes(static, litert=18.0, onnx=8.0), in_lanes(weights, litert=20.0, onnx=9.0)]
    (mixed,) = search._mixed()
    assert mixed.precisions == {"onnx": "static-int8"}
    assert mixed.title == "static-int8 for onnx"
    assert search.bench.recipe(mixed).precision.lanes["onnx"].preset == "static-int8"
    # All that is tried from there has the same, and is predicted from trials that have it.
    search.trials.append(in_lanes(mixed.precisions, litert=5.0, onnx=8.0))
    assert search._outlook.whole == search.trials[-1]
    assert search._outlook._sized(6, 0.5).precisions == mixed.precisions
    # What does not fulfil the wish is worth less than what is slow.
    search.wish, search.precisions = wish(19), {}
    small = in_lanes(weights, litert=20.0).lanes[0].model_copy(update={"size_bytes": int(18e6)})
    search.trials = [in_lanes(own, litert=5.0), in_lanes(weights).model_copy(update={"lanes": (small,)})]
    assert search._mixed() == []  # tried already
    assert search.precisions == weights


def test_a_precision_that_is_hardly_smaller_and_much_farther_off_is_not_better() -> None:
    whole = trial(23.5e6, distance=0.04, latency=11.0).model_copy(update={"candidate": Candidate(parameters=PARAMETERS)})
    static = trial(22.9e6, distance=0.32, latency=10.0).model_copy(
        update={"candidate": Candidate(precisions={"litert": "static-int8"}, parameters=PARAMETERS)})
    for speedup, wanted in ((None, {}), (1.5, {"litert": "static-int8"})):  # where speed is wanted, it is faster
        search = Search(bench(), wish(17.0, speedup=speedup), trials=[whole, static])
        assert search._mixed() == []
        assert search.precisions == wanted


def test_a_precision_that_no_lane_has_is_said() -> None:
    search = Search(bench(), wish(), presets=("dynamic-int8",))
    assert [candidate.precisions for candidate in search._whole()] == [{}]
    assert search.bench.refused == ["dynamic-int8: no lane has another precision that it could take the place of"]


def chosen(wanted: Wish, *trials: Trial) -> Trial:
    """Which of some trials a search takes."""
    search = Search(bench(), wanted)
    search.trials = [each.model_copy(update={"misses": tuple(miss for lane in each.lanes for miss in wanted.misses(lane))}) for each in trials]
    return search._best().model_copy(update={"misses": ()})


def test_within_the_size_that_was_asked_for_what_is_nearest_to_the_original_is_best() -> None:
    """An interval reaches 0.01 to either side: two drops that differ by less can't be told apart."""
    near, far, large = trial(11e6, 0.700, distance=0.02), trial(10e6, 0.709, distance=0.05), trial(20e6, 0.72, distance=0.01)
    for wanted in (wish(11.4), wish(11.4, drop=0.015), wish(11.4, drop=0.001)):  # which both, one, and none of the two fulfil
        assert chosen(wanted, far, near, large) == near
    better = trial(10e6, 0.715, distance=0.05)
    assert chosen(wish(11.4), better, near, large) == better
    # Trained for longer, it is nearer, whatever a few examples say.
    once, longer = trial(11e6, 0.71, distance=0.04), trial(11e6, 0.705, distance=0.03)
    assert chosen(wish(11.4), once, longer) == longer


def test_without_a_size_the_fewest_weights_that_do_are_best() -> None:
    def sized(parameters: int, quality: float, distance: float) -> Trial:
        return trial(quality=quality, distance=distance).model_copy(update={"candidate": Candidate(parameters=parameters)})

    large, small, longer, bad = sized(9, 0.72, 0.01), sized(5, 0.71, 0.04), sized(5, 0.705, 0.03), sized(3, 0.6, 0.2)
    assert chosen(wish(None), large, small, longer, bad) == longer


def test_what_fits_nothing_is_measured_by_how_far_it_is_from_the_wish() -> None:
    large, nearly, hopeless = trial(20e6, 0.72), trial(12e6, 0.69, distance=0.1), trial(11.5e6, 0.1, distance=0.9)
    assert chosen(wish(11.4), large, nearly, hopeless) == nearly


def test_the_evaluation_data_say_whether_the_metric_was_reached() -> None:
    wanted = wish(11.4, drop=0.01)
    search = Search(bench(), wanted)
    found = trial(12e6, 0.69)
    found = found.model_copy(update={"misses": tuple(wanted.misses(found.lanes[0]))})
    size, metric = "litert: 12 MB, more than 11.4", "litert: the metric drops by 0.030, more than 0.01"
    assert search.missed(found, []) == [size, metric]

    def report(drop: float) -> Report:
        result = MetricResult(name="accuracy", reference=estimate(0.8), lane=estimate(0.8 - drop), drop=estimate(drop))
        lane = LaneReport.model_construct(lane="litert", metrics=(result,), untruncated=())
        other = lane.model_copy(update={"lane": "onnx", "metrics": (result.model_copy(update={"drop": estimate(0.5)}),)})  # does not count
        return Report.model_construct(lanes=(lane, other))

    assert search.missed(found, [report(0.0)]) == [size]
    assert search.missed(found, [report(0.02)]) == [size, "litert: the metric drops by 0.020, more than 0.01"]


def test_the_front_holds_what_no_other_beats() -> None:
    small, fast, good = trial(10e6, 0.6, 9), trial(12e6, 0.6, 5), trial(20e6, 0.7, 10)
    worse = trial(12e6, 0.59, 9)
    search = Search(bench(), wish(), trials=[small, worse, fast, good])
    assert search.pareto == [small, fast, good]


def test_development_data_choose_and_need_labels() -> None:
    chosen = on_development(prepared())
    assert chosen.resolved.judging == ("probes", "development")
    assert chosen.resolved.labelled == "development"
    timed = [node for node in chosen.plan.nodes.values() if node.step.name == "measure_speed"]
    assert timed and all(node.inputs["original"].endswith("float32]") for node in timed)
    assert all("@evaluation" not in node.inputs.values() for node in chosen.plan.nodes.values())
    with pytest.raises(RecipeError, match="labelled development data"):
        on_development(prepared(labelled=False))


def test_the_winner_is_an_ordinary_recipe_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    recipe = Recipe.model_validate({
        "schema": 1, "name": "x", "model": {"source": "model"}, "metric": {"max_drop": 0.03},
        "data": {"evaluation": {"file": "e.csv", "corpus": "c.jsonl"}, "training": [{"file": "t.txt"}], "texts": "u.txt"},
        "compress": Candidate(vocabulary=9000, layers=4, epochs=2.0, parameters=1).section.model_dump(mode="json", exclude_none=True)})
    recipe = recipe.model_copy(update={"directory": tmp_path})
    write_recipe(recipe, tmp_path / "elsewhere" / "tuned.toml")
    found = load_recipe(tmp_path / "elsewhere" / "tuned.toml")
    assert found.compress == recipe.compress
    assert found.metric == recipe.metric
    assert found.model.source == str(tmp_path / "model")
    assert found.data.evaluation is not None
    assert (found.data.evaluation.file, found.data.evaluation.corpus) == (tmp_path / "e.csv", tmp_path / "c.jsonl")
    assert [file.file for file in found.data.training] == [tmp_path / "t.txt"]
    assert found.data.texts == tmp_path / "u.txt"
    with pytest.raises(OutputError):
        write_recipe(recipe, tmp_path / "model")


class RehearsedBench(Workbench):
    """Nothing runs here: candidates come to what a test says, and the clock goes as far as it says.

    Attributes:
        distances: number of layers → loss after a short training; those of others can't be made.
        shapes: number of layers → whether it is fast enough.
        fitted: rank → distance of what is fitted.
        good: from how many epochs on a candidate is good enough.
    """

    def __init__(self, distances: dict[int | None, float], shapes: dict[int | None, bool], reading: float = 10.0, evaluating: float = 60.0,
                 shaping: float = 0.0) -> None:
        super().__init__(prepared(), None, lambda event: None, evaluating=evaluating, judging=25.0, shaping=shaping)  # type: ignore[arg-type]
        self.distances, self.shapes, self.seconds_of_reading = distances, shapes, reading
        self.fitted: dict[int | None, float] = {}
        self.spent, self.trained, self.evaluated = 0.0, [], []  # type: ignore[var-annotated]

    def read(self) -> None:
        self.reading = self.seconds_of_reading
        self.spent += self.reading

    def time(self, candidate: Candidate) -> Timing | None:
        return timing(3.0)

    def distance(self, candidate: Candidate) -> float | None:
        self.spent += 30
        return self.fitted.get(candidate.rank)

    def make_ready(self, candidate: Candidate) -> Scout | None:
        self.spent += 40
        ready = Scout(candidate.model_copy(update={"epochs": 1.0}), math.inf, 10.0, 25 * candidate.compute)
        return ready if candidate.layers in self.distances else None

    def train(self, candidate: Candidate) -> Scout | None:
        if candidate.layers not in self.distances:
            return None
        self.trained.append(candidate)
        self.spent += self.shaping + 10 + 25 * candidate.compute * candidate.epochs
        return Scout(candidate, self.distances[candidate.layers], 10.0, 25 * candidate.compute)

    def evaluate(self, candidate: Candidate) -> tuple[LaneTrial, ...] | None:
        self.spent += self.evaluating + (10 + 25 * candidate.compute * candidate.epochs if candidate.epochs and candidate not in self.trained else 0)
        self.evaluated.append(candidate)
        fast = candidate.epochs and self.shapes[candidate.layers]
        return trial(candidate.parameters + 1.2e6, speedup=3.0 if fast else 1.0).lanes


class Rehearsed(Search):
    """A search on such a bench, whose clock is the bench's. Candidates that were trained for `good` epochs fulfil the wish."""

    def __init__(self, bench: RehearsedBench, minutes: float = 20.0, good: float | None = None, drop: float = 0.0, size: float | None = None) -> None:
        super().__init__(bench, Wish(max_size_mb=size, max_drop=drop, min_speedup=2.0, minutes=minutes))
        self.rehearsed, self.good = bench, good

    def _left(self) -> float:
        return self.wish.minutes * 60 - self.rehearsed.spent

    def _try(self, candidate: Candidate) -> Trial | None:
        tried = super()._try(candidate)
        if tried is not None and self.good is not None and candidate.epochs >= self.good:
            tried = self.trials[-1] = tried.model_copy(update={"misses": ()})
        return tried


def rehearse(distances: dict[int | None, float], shapes: dict[int | None, bool], reading: float = 10.0, evaluating: float = 60.0,
             shaping: float = 0.0, **options: Any) -> Rehearsed:
    search = Rehearsed(RehearsedBench(distances, shapes, reading, evaluating, shaping), **options)
    search.trials = [trial(PARAMETERS + 1.2e6, speedup=1.2)]
    search._train()
    return search


def test_the_nearest_of_the_right_shape_gets_the_rest_of_the_time() -> None:
    found = rehearse({None: 0.3, 4: 0.1, 3: 0.2}, {None: True, 4: False, 3: True})
    assert [candidate.layers for candidate in found.rehearsed.trained] == [None, 4, 3, 4]
    # The nearest turns out too slow, at whatever rate it is trained; the next one is trained on.
    assert [candidate.layers for candidate in found.rehearsed.evaluated] == [4, 3, 3]
    assert found.rehearsed.evaluated[1] in found.rehearsed.trained
    short, long = found.rehearsed.evaluated[1:]
    assert long.epochs > 3 * short.epochs
    assert long.learning_rate == pytest.approx(min(1e-3, 3e-4 * (long.epochs / short.epochs) ** 0.5), rel=0.1)
    assert -1 < found._left() - found.bench.judging < 1  # the winner is judged by the evaluation data, too


def test_what_surely_fulfils_the_wish_ends_the_search() -> None:
    distances, shapes = {None: 0.3, 4: 0.1, 3: 0.2}, {None: True, 4: True, 3: True}
    found = rehearse(distances, shapes, good=0.1, drop=0.05)  # a drop of 0.02 with an interval up to 0.03
    assert [candidate.layers for candidate in found.rehearsed.evaluated] == [4]
    # What fulfils it by the middle of its interval is trained on.
    found = rehearse(distances, shapes, good=0.1, drop=0.025)
    assert [candidate.layers for candidate in found.rehearsed.evaluated] == [4, 4]
    assert found.rehearsed.evaluated[1].epochs > 3 * found.rehearsed.evaluated[0].epochs


def test_where_fewer_layers_are_farther_off_still_fewer_are_not_tried() -> None:
    found = rehearse({None: 0.1, 4: 0.2, 3: 0.05}, {None: True, 4: True, 3: True})
    assert [candidate.layers for candidate in found.rehearsed.trained] == [None, 4, None]


def test_the_nearest_is_tried_with_fewer_tokens_and_a_lower_rate_too() -> None:
    distances = {None: 0.3, 4: 0.1, 3: 0.2}
    found = rehearse(distances, dict.fromkeys(distances, True), size=11.4)
    assert [(candidate.layers, candidate.rank is None, candidate.vocabulary is None) for candidate in found.rehearsed.trained] == [
        (None, False, True), (4, False, True), (3, False, True), (4, True, False), (4, False, True)]
    first, other, gentle = found.rehearsed.trained[1], *found.rehearsed.trained[3:]
    assert gentle == first.model_copy(update={"learning_rate": 1e-4, "epochs": gentle.epochs})
    assert gentle.section.distill is not None and gentle.section.distill.learning_rate == 1e-4 and gentle.title.endswith("rate 0.0001")
    assert first.width == other.width
    assert abs(first.parameters - other.parameters) < 8 * 30522  # a step of the rank


def test_the_rate_that_did_better_is_kept() -> None:
    class Gentle(RehearsedBench):
        def train(self, candidate: Candidate) -> Scout | None:
            found = super().train(candidate)
            return found and replace(found, loss=found.loss / 2 if candidate.learning_rate == 1e-4 else found.loss)

    search = Rehearsed(Gentle({4: 0.1}, {4: True}))
    search.trials = [trial(PARAMETERS + 1.2e6, speedup=1.2)]
    search._train()
    assert search.rehearsed.evaluated[0].learning_rate == 1e-4
    assert 1e-4 < (search.rehearsed.evaluated[1].learning_rate or 0) < 1e-3


def test_what_cannot_be_made_is_left_out() -> None:
    assert [candidate.layers for candidate in rehearse({3: 0.2}, {3: True}).rehearsed.evaluated] == [3, 3]
    assert rehearse({}, {}).rehearsed.evaluated == []


def test_a_search_says_why_it_trains_nothing() -> None:
    search = Rehearsed(RehearsedBench({}, {}), minutes=0.1)
    search.trials = [trial(PARAMETERS + 1.2e6, speedup=1.2)]
    search.rehearsed.spent = 1000.0
    search._train()
    assert "no time is left" in search.bench.refused[0] and "0.1 minutes" in search.bench.refused[0]
    search = Rehearsed(RehearsedBench({}, {}))
    search.trials = [trial(PARAMETERS + 1.2e6, speedup=0.01)]
    search.bench.time = lambda candidate: None  # type: ignore[method-assign]
    search._train()
    assert search.bench.refused == ["training: no number of layers, of heads and neurons and of tokens would be small and fast enough"]


def test_where_there_is_time_for_one_training_alone_the_deepest_gets_it_all() -> None:
    found = rehearse({None: 0.3, 4: 0.1, 3: 0.2}, {None: True, 4: True, 3: True}, reading=250.0)
    assert found.rehearsed.trained == []
    (only,) = found.rehearsed.evaluated
    assert only.layers is None and only.epochs > 10
    assert only.learning_rate == pytest.approx(min(1e-3, 3e-4 * only.epochs ** 0.5), rel=0.1)
    assert -3 < found._left() - found.bench.judging < 3
    assert len(found.bench.refused) == 2 and all("too few to compare it" in words for words in found.bench.refused)
    assert rehearse({4: 0.1}, {4: True}, reading=250.0).rehearsed.evaluated == []  # the deepest can't be made


def test_to_try_takes_a_fifth_of_the_time_with_what_comes_before_training() -> None:
    everything: tuple[dict[int | None, float], dict[int | None, bool]] = ({None: 0.1, 4: 0.2, 3: 0.3}, {None: True, 4: True, 3: True})
    assert len(rehearse(*everything, shaping=5.0).rehearsed.trained) > 2
    for shaping, trained in ((80.0, 2), (150.0, 1)):
        few = rehearse(*everything, shaping=shaping)
        assert len(few.rehearsed.trained) == trained and few.rehearsed.evaluated[-1].epochs > 5
        assert any("too few to compare it" in words for words in few.bench.refused)
    slow = rehearse(*everything, shaping=300.0)
    assert slow.rehearsed.trained == [] and [candidate.layers for candidate in slow.rehearsed.evaluated] == [None]


def test_what_was_trained_to_choose_is_not_evaluated_where_that_costs_much_of_the_time() -> None:
    distances, shapes = {None: 0.3, 4: 0.1, 3: 0.2}, {None: True, 4: True, 3: True}
    for evaluating, evaluated in ((60.0, [4, 4]), (200.0, [4])):
        found = rehearse(distances, shapes, evaluating=evaluating)
        assert [candidate.layers for candidate in found.rehearsed.evaluated] == evaluated
        assert found.rehearsed.evaluated[-1].epochs > 3 * found.rehearsed.trained[1].epochs
        assert -3 < found._left() - found.bench.judging < 3


def test_little_time_is_not_overdrawn() -> None:
    for minutes in (0.5, 2.0, 4.0, 8.0):
        found = rehearse({None: 0.3, 4: 0.1, 3: 0.2}, {None: True, 4: True, 3: True}, minutes=minutes)
        assert found._left() > -70 if found.rehearsed.evaluated else found.rehearsed.trained == [] or minutes < 4


def test_what_needs_no_training_is_tried_as_long_as_there_is_time() -> None:
    for minutes, fitted, tried in ((20.0, 3, 2), (3.2, 2, 2), (2.6, 1, 2), (1.0, 0, 1)):  # a trial takes a minute and a fit half of one
        search = Rehearsed(RehearsedBench({}, {}), minutes=minutes)
        search.wish = wish(17.0).model_copy(update={"minutes": minutes})
        search.rehearsed.fitted = {152: 0.1, 232: 0.2, None: 0.3}
        search._train = lambda: None  # type: ignore[method-assign]
        search.run()
        assert (len(search.fits), len(search.rehearsed.evaluated)) == (fitted, tried), minutes
        assert all("no time is left" in words for words in search.bench.refused)
        assert bool(search.bench.refused) == (tried == 1)


def test_of_the_ways_to_divide_the_bytes_the_nearest_is_tried_and_trained() -> None:
    search = Rehearsed(RehearsedBench({None: 0.1}, {None: True}))
    search.wish = wish(17.0)
    search.rehearsed.fitted = {152: 0.3, 232: 0.1, 312: 0.2, 352: 0.0, None: 0.4}  # the last rank is not asked for: the one before is farther off
    search.run()
    assert [fit.candidate.rank for fit in search.fits] == [152, 232, 312, None]
    assert [candidate.rank for candidate in search.rehearsed.evaluated[:2]] == [None, 232]
    assert search.rehearsed.evaluated[0].vocabulary is None and search.fits[-1].candidate.vocabulary is not None
    assert {candidate.rank for candidate in search.rehearsed.trained if candidate.vocabulary is None} == {232}
    found = search.report(search.trials[1])
    assert [(fit.title, fit.distance) for fit in found.fits][1] == ("rank 232, width 0.77", 0.1)


def test_what_was_made_smaller_without_training_is_trained_unless_it_surely_fulfils_the_wish() -> None:
    for drop, trained in ((0.025, True), (0.05, False)):  # a drop of 0.02 with an interval up to 0.03
        search = Rehearsed(RehearsedBench({None: 0.1}, {None: True}))
        search.wish = wish(17.0, drop=drop)
        search.rehearsed.fitted = {152: 0.1, 232: 0.2, None: 0.3}
        search.run()
        assert not search.trials[1].misses
        assert any(candidate.epochs for candidate in search.rehearsed.evaluated) == trained


def test_a_mixture_of_precisions_that_were_tried_needs_no_time() -> None:
    search = Rehearsed(RehearsedBench({}, {}), minutes=2.0)  # for two trials, and none after them
    search.presets, search._train = ("static-int8",), lambda: None  # type: ignore[method-assign]

    def mixed() -> list[Candidate]:
        search.precisions = {"litert": "static-int8"}
        return [Candidate(precisions=search.precisions, parameters=PARAMETERS)]

    search._mixed = mixed  # type: ignore[method-assign]
    search.run()
    assert [candidate.precisions for candidate in search.rehearsed.evaluated][-1] == {"litert": "static-int8"}
    assert search._outlook.whole.candidate.precisions == search.precisions


def test_fewer_tokens_are_not_trained_twice() -> None:
    search = Rehearsed(RehearsedBench({None: 0.1}, {None: True}), size=17.0)
    search.trials = [trial(PARAMETERS + 1.2e6, speedup=1.2)]
    fewer = outlook(wish(17.0), search.trials[0]).fewer_tokens()
    assert fewer is not None
    search.timing, search.scouts = timing(3.0), []
    tried = []
    for candidate in search._worth_a_try([fewer]):
        tried.append(candidate)
        search.scouts.append(Scout(candidate, 0.1 + len(tried), 1.0, 1.0))
    assert [candidate.learning_rate for candidate in tried] == [None, 1e-4]  # and no other table


def test_where_fewer_tokens_are_nearer_they_are_tried() -> None:
    search = Rehearsed(RehearsedBench({}, {}))
    search.wish = wish(17.0)
    search.rehearsed.fitted = {152: 0.3, 232: 0.4, None: 0.1}
    search.run()
    assert [candidate.vocabulary is not None for candidate in search.rehearsed.evaluated] == [False, True]


def test_without_training_data_the_search_says_so() -> None:
    search = Rehearsed(RehearsedBench({}, {}))
    search.trials = [trial(PARAMETERS + 1.2e6, speedup=1.2)]

    def refuse() -> None:
        raise PlanError("compress.distill needs training data.", why="it goes by texts", hint="add some")

    search.bench.read = refuse  # type: ignore[method-assign]
    search._train()
    assert search.bench.refused == ["training: compress.distill needs training data: it goes by texts"]
    assert search.rehearsed.evaluated == []
