"""Search for the smallest, fastest model that is still good enough. Each candidate is a recipe, and evaluating it is running its plan.

Cheap candidates come first: INT8 alone, then what needs no training. From these it is known how bytes and milliseconds go with the shape, so
that for each number of layers the widest model that should fulfil the wish is tried next, each trained for a short time; the best of them is
trained for the rest of it. Everything that two candidates share is done once. What chooses are the development data; the evaluation data are
read once, for the winner.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import tomli_w

from edgeexport.artifact import Model, Task
from edgeexport.errors import OutputError, PlanError, RecipeError
from edgeexport.evaluation import Evaluation
from edgeexport.plan import make_plan
from edgeexport.prepare import Prepared
from edgeexport.recipe import CompressSection, DistillSection, PruneSection, Recipe, VocabularySection
from edgeexport.report.model import CandidateReport, SearchReport
from edgeexport.schedule import Event, Limits, Scheduler
from edgeexport.verify.intervals import Estimate
from edgeexport.verify.lane_report import LaneReport

# A text's training step costs forward and backward; an inference forward alone, in larger batches.
TRAINING_COST = 3.5
# Shares of the layers that are tried.
DEPTHS = (1.0, 2 / 3, 1 / 2, 1 / 3)
# A model of this width is timed, untrained, to know how latency goes with width.
TIMED_WIDTH = 0.35
# Narrower than this share of its heads and neurons, a layer is better left out.
LEAST_WIDTH = 0.15
# Shares of the vocabulary that are kept at least, each a way to divide the bytes between tokens and layers. With fewer tokens than the least,
# words of the user's own texts are cut to pieces.
VOCABULARIES = (0.6, 0.3)
# Predicted speed may be missed by about as much as two measurements of one model differ.
SPEED_MARGIN = 1.05
SHORTLIST = 3
# Share of the time for training the shortlist, together.
TRYING = 0.25
LEAST_EPOCHS = 0.5


class Wish(Model):
    """What the user wants.

    Attributes:
        max_size_mb: of each lane's file, in MB of 10^6 bytes; None for no limit.
        max_drop: of the task metric on the development data, as a share.
        min_speedup: of each lane against its float32 form, at the shortest and the longest length; None for no limit.
        lane_speedups: the same for single lanes, in place of `min_speedup`.
        minutes: for search and training.
    """

    max_size_mb: float | None
    max_drop: float
    min_speedup: float | None
    lane_speedups: dict[str, float] = {}
    minutes: float

    def speedup(self, lane: str) -> float | None:
        """What is wanted of a lane; None for no limit."""
        return self.lane_speedups.get(lane, self.min_speedup)

    @property
    def for_speed(self) -> bool:
        """Whether a speed is wanted at all."""
        return self.min_speedup is not None or bool(self.lane_speedups)


class Candidate(Model):
    """A way to make the model smaller.

    Attributes:
        vocabulary: tokens to keep; None for all.
        layers: to keep; None for all.
        width: share of heads and neurons to keep.
        epochs: of training; 0 for none.
        parameters: predicted number of weights.
        compute: predicted share of the original's multiply-accumulates in layers.
    """

    vocabulary: int | None = None
    layers: int | None = None
    width: float = 1.0
    epochs: float = 0.0
    parameters: int
    compute: float = 1.0

    @property
    def section(self) -> CompressSection:
        """The recipe's section that says it."""
        prune = PruneSection(layers=self.layers, heads=self.width, neurons=self.width) if self.layers is not None or self.width < 1 else None
        return CompressSection(vocabulary=VocabularySection(size=self.vocabulary) if self.vocabulary else None, prune=prune,
                               distill=DistillSection(epochs=self.epochs) if self.epochs else None)

    @property
    def title(self) -> str:
        """A short name for tables."""
        parts = [f"{self.vocabulary:,} tokens"] if self.vocabulary else []
        parts += [f"{self.layers} layers"] if self.layers is not None else []
        parts += [f"width {self.width:g}"] if self.width < 1 else []
        parts += [f"{self.epochs:g} epochs"] if self.epochs else []
        return ", ".join(parts) or "INT8 alone"


class LaneTrial(Model):
    """What a candidate came to in a lane: bytes, speed against float32 at the shortest and longest length, and the metric."""

    lane: str
    size_bytes: int
    latency_ms: dict[int, float]
    speedup: dict[int, float]
    metric: Estimate
    reference: Estimate
    drop: Estimate


class Trial(Model):
    """An evaluated candidate.

    Attributes:
        candidate: what was tried.
        lanes: what came out in each required lane.
        misses: what of the wish it does not fulfil, in words; empty where it fulfils all.
        shortfall: how far it is from the wish: 0 where it is fulfilled, 1 where a limit is missed by its own size.
        seconds: that it took, training included.
        training_seconds: of them, for training.
        starting_seconds: of those, before training began.
        distance: of its answers to the development data from the original's, after training; 0 for one that was not trained.
    """

    candidate: Candidate
    lanes: tuple[LaneTrial, ...]
    misses: tuple[str, ...]
    shortfall: float
    seconds: float
    training_seconds: float = 0.0
    starting_seconds: float = 0.0
    distance: float = 0.0

    @property
    def epoch_seconds(self) -> float:
        """How long an epoch of training took."""
        return max(self.training_seconds - self.starting_seconds, 1.0) / self.candidate.epochs

    @property
    def size(self) -> int:
        """Bytes of the largest lane."""
        return max(lane.size_bytes for lane in self.lanes)

    @property
    def worst(self) -> LaneTrial:
        """The lane with the lowest metric."""
        return min(self.lanes, key=lambda lane: lane.metric.value)

    @property
    def quality(self) -> float:
        """The metric of the worst lane."""
        return self.worst.metric.value

    @property
    def latency(self) -> float:
        """Milliseconds at the longest length, of the slowest lane."""
        return max(lane.latency_ms[max(lane.latency_ms)] for lane in self.lanes)

    @property
    def speedup(self) -> float:
        """Against float32, of the slowest lane at its slower length."""
        return min(min(lane.speedup.values()) for lane in self.lanes)


@dataclass
class Search:
    """A search for the best candidate.

    Attributes:
        prepared: the build without compression; its development data choose.
        wish: what is wanted.
        limits: jobs and memory.
        tell: told what the steps do.
        trials: what was evaluated, in order.
        refused: candidates that can't be made, with the reason.
    """

    prepared: Prepared
    wish: Wish
    limits: Limits
    tell: Callable[[Event], None]
    announce: Callable[[Trial], None] = lambda trial: None
    trials: list[Trial] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def run(self) -> Trial:
        """Evaluate candidates until one fulfils the wish, or the time is up; returns the best.

        Raises:
            RecipeError: there are no labelled development data, or no metric for the task.
            EdgeExportError: a step failed.
        """
        self._begun = time.monotonic()
        if not self._try(Candidate(parameters=self._parameters)):
            for candidate in self._untrained():
                if self._try(candidate):
                    break
            else:
                self._train()
        return min(self.trials, key=lambda trial: (trial.shortfall, trial.size if trial.shortfall == 0 else 0, -trial.quality))

    @property
    def pareto(self) -> list[Trial]:
        """The trials that no other beats in size, latency and quality at once."""
        def beaten(one: Trial) -> bool:
            return any(other.size <= one.size and other.latency <= one.latency and other.quality >= one.quality
                       and (other.size, other.latency, other.quality) != (one.size, one.latency, one.quality) for other in self.trials)
        return [trial for trial in self.trials if not beaten(trial)]

    def report(self, chosen: Trial) -> SearchReport:
        """The search for the report of what was chosen."""
        front = self.pareto
        candidates = tuple(CandidateReport(
            title=trial.candidate.title, size_bytes=trial.size, latency_ms=trial.latency, speedup=trial.speedup, metric=trial.worst.metric,
            front=trial in front, chosen=trial is chosen, misses=trial.misses) for trial in self.trials)
        return SearchReport(candidates=candidates, reference=self.trials[0].lanes[0].reference)

    # -- what there is to try

    @property
    def _parameters(self) -> int:
        return int(self.prepared.resolved.spec.parameters or 0)

    def _shape(self, name: str) -> int:
        return int(self.prepared.resolved.spec.facts.get(name) or 0)

    @property
    def _room(self) -> float:
        """How many weights of 8 bits fit: what the largest lane holds besides (scales, tables in float, operators) is taken for constant, so
        that a prediction errs on the safe side."""
        if self.wish.max_size_mb is None:
            return math.inf
        besides = self.trials[0].size - self._parameters if self.trials else 0
        return self.wish.max_size_mb * 1e6 - besides

    def _with_vocabulary(self, candidate: Candidate) -> Candidate:
        """The candidate with as many tokens as fit."""
        if candidate.parameters <= self._room:
            return candidate
        vocabulary, width = self._shape("vocabulary"), self._shape("embedding_width")
        kept = vocabulary - math.ceil((candidate.parameters - self._room) / max(width, 1))
        return candidate.model_copy(update={"vocabulary": kept, "parameters": candidate.parameters - (vocabulary - kept) * width})

    def _fits(self, candidate: Candidate) -> bool:
        """Whether it keeps enough tokens."""
        return candidate.vocabulary is None or candidate.vocabulary >= min(VOCABULARIES) * self._shape("vocabulary")

    def _shaped(self, layers: int, width: float) -> Candidate:
        """A candidate of so many layers, each of a share of its heads and neurons, and as many tokens as fit."""
        whole, inside = self._shape("layers"), self._shape("layer_parameters")
        # Heads and neurons scale what lies in attention and in feed-forward networks alike.
        compute = layers / whole * width
        return self._with_vocabulary(Candidate(layers=layers if layers < whole else None, width=width, compute=compute,
                                               parameters=self._parameters - inside + round(inside * compute)))

    def _untrained(self) -> Iterator[Candidate]:
        """Candidates that need no training: a smaller vocabulary alone; where speed is wanted, also a narrow model, whose speed tells that of
        others."""
        layers = self._shape("layers")
        smaller = self._shaped(layers, 1.0)
        if smaller.vocabulary is not None and self._fits(smaller) and not self.wish.for_speed:
            yield smaller
        if self.wish.for_speed and layers:
            yield self._shaped(layers, TIMED_WIDTH)

    def _structures(self) -> list[Candidate]:
        """What to train: for each number of layers the widest that should fulfil the wish, with more tokens and with fewer."""
        layers, found = self._shape("layers"), []
        for count in dict.fromkeys(max(1, round(depth * layers)) for depth in DEPTHS if layers):
            for share in VOCABULARIES:
                width = min(1.0, self._widest_by_speed(count / layers), self._widest_by_size(count / layers, share))
                candidate = self._shaped(count, math.floor(width * 100) / 100)
                if width >= LEAST_WIDTH and self._fits(candidate) and candidate.section.changes_model and candidate not in found:
                    found.append(candidate)
        return sorted(found, key=lambda candidate: (-round(candidate.compute, 1), -(candidate.layers or layers)))

    def _widest_by_size(self, depth: float, share: float) -> float:
        """The width at which a share of the vocabulary fits; more than 1 where there is room left."""
        tokens = round((1 - share) * self._shape("vocabulary")) * self._shape("embedding_width")
        inside = self._shape("layer_parameters")
        return (self._room - (self._parameters - inside - tokens)) / max(1.0, inside * depth)

    def _widest_by_speed(self, depth: float) -> float:
        """The width at which every lane should be as fast as wanted, at its shortest and at its longest length.

        A layer takes a time that stays and one that goes with its width; two measured models, of full width and of another, tell both. All
        times are shares of what the original takes in float32.
        """
        whole, narrow = self.trials[0], next((trial for trial in self.trials if trial.candidate.layers is None and trial.candidate.width < 1), None)
        widest = math.inf
        for number, lane in enumerate(whole.lanes):
            wanted = self.wish.speedup(lane.lane)
            for length, speedup in lane.speedup.items():
                if wanted is None:
                    continue
                full = slope = 1 / speedup
                if narrow is not None:
                    slope = max(1e-9, full - 1 / narrow.lanes[number].speedup[length]) / (1 - narrow.candidate.width)
                widest = min(widest, (1 / (SPEED_MARGIN * wanted * depth) - (full - slope)) / slope)
        return widest

    def _train(self) -> None:
        """Train the largest structures for a short time each, and the best of them for the rest."""
        shortlist = self._structures()[:SHORTLIST]
        if not shortlist:
            return
        rate = self._epoch_seconds(shortlist[0])
        seconds = TRYING * self._left() / len(shortlist)
        # Evaluating takes each candidate about as long as the first.
        evaluating = self.trials[0].seconds
        tried: list[Trial] = []
        for candidate in shortlist:
            epochs = round(max(LEAST_EPOCHS, seconds / (rate * candidate.compute)), 1)
            if self._left() < epochs * rate * candidate.compute + evaluating:
                break
            known = len(self.trials)
            if self._try(candidate.model_copy(update={"epochs": epochs})):
                return
            for trial in self.trials[known:]:
                tried.append(trial)
                rate = trial.epoch_seconds / candidate.compute
                evaluating = trial.seconds - trial.training_seconds
        if not tried:
            return
        # How far the answers are from the teacher's is known far better than how many of them are right.
        best = min(tried, key=lambda trial: trial.distance)
        # Afterwards the winner is evaluated once more, on the evaluation data.
        epochs = round((self._left() - 2 * evaluating - best.starting_seconds) / best.epoch_seconds, 1)
        if epochs > best.candidate.epochs:
            self._try(best.candidate.model_copy(update={"epochs": epochs}))

    def _left(self) -> float:
        return self.wish.minutes * 60 - (time.monotonic() - self._begun)

    def _epoch_seconds(self, candidate: Candidate) -> float:
        """Seconds that one epoch of the whole model would take, from what the teacher took to read the texts once."""
        prepared = self.prepared.planned_anew(self._recipe(candidate.model_copy(update={"epochs": 1.0})))
        teacher = next(node.id for node in prepared.plan.nodes.values() if node.step.name == "compute_teacher")
        entry = Scheduler(prepared.plan, prepared.store, self.limits, self.tell).run([teacher])[teacher]
        return TRAINING_COST * entry.run.seconds

    # -- trying

    def recipe_of(self, trial: Trial) -> Recipe:
        """The recipe of a candidate that was tried."""
        return self._recipe(trial.candidate)

    def _recipe(self, candidate: Candidate) -> Recipe:
        return self.prepared.resolved.recipe.model_copy(update={"compress": candidate.section})

    def _try(self, candidate: Candidate) -> bool:
        """Evaluate a candidate; whether it fulfils the wish. One that can't be made is no end of the search."""
        begun = time.monotonic()
        try:
            evaluation = Evaluation(self.prepared.planned_anew(self._recipe(candidate)), self.limits, self.tell)
        except (PlanError, RecipeError) as exc:
            if not self.trials:
                raise
            self.refused.append(f"{candidate.title}: {exc.what}")
            return False
        reports = [evaluation.report(plan) for plan in evaluation.lanes if plan.variant is not None and plan.lane.required]
        lanes = tuple(self._lane(report) for report in reports)
        misses, shortfall = self._misses(lanes)
        trial = Trial(candidate=candidate, lanes=lanes, misses=misses, shortfall=shortfall, seconds=time.monotonic() - begun,
                      **self._training(evaluation))
        self.trials.append(trial)
        self.announce(trial)
        return not misses

    def _training(self, evaluation: Evaluation) -> dict[str, float]:
        """How long training took and how far it came; nothing where there was none."""
        found = {node.id: node.step.name for node in evaluation.prepared.plan.nodes.values() if node.step.name in {"distill", "compute_teacher"}}
        trained = next((node for node, step in found.items() if step == "distill"), None)
        if trained is None:
            return {}
        seconds = {node: evaluation.seconds(node) for node in found}
        history = evaluation.facts(trained)["training"]["history"]
        # The teacher's answers to the few development data take hardly longer than it takes to start.
        return {"training_seconds": seconds[trained], "starting_seconds": min(seconds.values()), "distance": min(value for _, value in history)}

    def _lane(self, report: LaneReport) -> LaneTrial:
        if not report.metrics:
            raise RecipeError("tune needs a metric to choose by.", why=f"there is none for {self.prepared.resolved.spec.task} yet",
                              hint="build with a recipe of your own choice instead")
        result = (report.untruncated or report.metrics)[0]
        speed = report.speed
        assert speed is not None and speed.original_latency_ms is not None
        latency, base = ({length: times["p50"] for length, times in found.items()} for found in (speed.latency_ms, speed.original_latency_ms))
        return LaneTrial(lane=report.lane, size_bytes=report.size_bytes or 0, latency_ms=latency,
                         speedup={length: base[length] / latency[length] for length in sorted({min(latency), max(latency)})},
                         metric=result.lane, reference=result.reference, drop=result.drop)

    def _misses(self, lanes: Sequence[LaneTrial]) -> tuple[tuple[str, ...], float]:
        """What is not fulfilled, in words, and how far it is off in all."""
        misses, shortfall = [], 0.0
        for lane in lanes:
            if self.wish.max_size_mb is not None and lane.size_bytes > self.wish.max_size_mb * 1e6:
                misses.append(f"{lane.lane}: {lane.size_bytes / 1e6:.1f} MB, more than {self.wish.max_size_mb:g}")
                shortfall += lane.size_bytes / (self.wish.max_size_mb * 1e6) - 1
            if lane.drop.value > self.wish.max_drop:
                misses.append(f"{lane.lane}: the metric drops by {lane.drop.value:.3f}, more than {self.wish.max_drop:g}")
                shortfall += (lane.drop.value - self.wish.max_drop) / max(lane.reference.value, 1e-9)
            wanted = self.wish.speedup(lane.lane)
            for length, speedup in lane.speedup.items():
                if wanted is not None and speedup < wanted:
                    misses.append(f"{lane.lane}: {speedup:.2f} times as fast as float32 at {length} tokens, less than {wanted:g}")
                    shortfall += (1 - speedup / wanted) / len(lane.speedup)
        return tuple(misses), shortfall


def on_development(prepared: Prepared) -> Prepared:
    """The build judged by its development data, and timed beside the original.

    Raises:
        RecipeError: there are none, or they have no labels.
    """
    resolved = prepared.resolved
    data = resolved.datasets.get("development")
    if data is None or not any(row.labelled for row in data.rows):
        corpus = ' and corpus = "answers.jsonl"' if resolved.spec.task in {Task.SENTENCE_SIMILARITY, Task.FEATURE_EXTRACTION} else ""
        raise RecipeError("tune needs labelled development data to choose by.", why="the evaluation data may judge, but not choose",
                          hint=f'add [data.development] with file = "…"{corpus} to the recipe')
    chosen = replace(resolved, judging=("probes", "development"), beside_original=True)
    return replace(prepared, resolved=chosen, plan=make_plan(chosen, prepared.targets, prepared.host))


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe as a file; its paths become absolute, since it may lie elsewhere.

    Raises:
        OutputError: it can't be written.
    """
    data = recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude_none=True)
    given = (file for value in data.get("data", {}).values() for file in (value if isinstance(value, list) else [value]) if isinstance(file, dict))
    for file in given:
        for key in ("file", "corpus"):
            if key in file:
                file[key] = str((recipe.directory / file[key]).absolute())
    if "texts" in data.get("data", {}):
        data["data"]["texts"] = str((recipe.directory / data["data"]["texts"]).absolute())
    for key in ("source", "base"):
        if key in data["model"] and (recipe.directory / data["model"][key]).is_dir():
            data["model"][key] = str((recipe.directory / data["model"][key]).absolute())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(tomli_w.dumps(data), encoding="utf-8")
    except OSError as exc:
        raise OutputError(f"Cannot write {path}.", why=exc.strerror) from exc
