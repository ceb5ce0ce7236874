"""Search for the smallest, fastest model that is still good enough. Each candidate is a recipe, and evaluating it is running its plan.

Cheap candidates come first: INT8 alone, in each precision that is asked for, then what needs no training, or where speed is wanted a narrow model
that is timed and nothing else. From these it is known how bytes and milliseconds go with the shape, so that for each number of layers the widest
model that should fulfil the wish is trained for a short time; what comes nearest to the original is tried with another table of tokens and at a
lower learning rate too, and the best is trained for the rest of the time. Where there is time for one training alone, the deepest gets it all.
Everything that two candidates share is done once. What chooses are the development data; the evaluation data are read once, for the winner.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import tomli_w

from edgeexport.artifact import Task
from edgeexport.candidates import GENTLER, GENTLEST_RATE, USUAL_RATE, Candidate, Outlook, Timing, Trial, Wish
from edgeexport.errors import OutputError, PlanError, RecipeError
from edgeexport.plan import make_plan
from edgeexport.policy import PRESETS
from edgeexport.prepare import Prepared
from edgeexport.recipe import Recipe
from edgeexport.report.model import CandidateReport, FitReport, Report, ScoutReport, SearchReport, TimedReport
from edgeexport.workbench import Scout, Workbench

SHORTLIST = 3
# Share of the time for making and training the shortlist, together: on a slow machine to make a candidate takes longer than to train it for a while,
# and what is tried is not trained on.
TRYING = 0.2
LEAST_EPOCHS = 0.5
# Evaluating what was trained for a short time can end the search early; it is worth no more than this share of the time that is left.
LOOKING = 0.15
# Shortfalls that differ by no more, as a share of what a lane has, are alike: files of one model in two precisions of 8 bits differ by 3 %.
ALIKE = 0.05


@dataclass(frozen=True)
class Fit:
    """A candidate that was fitted, without training, and how far its answers to the development data are then from the original's."""

    candidate: Candidate
    distance: float


@dataclass
class Search:
    """A search for the best candidate.

    Attributes:
        bench: makes and measures candidates.
        wish: what is wanted.
        announce: told of each trial.
        presets: precisions to try in place of the lanes' own.
        precisions: lane → the preset that was best for it, where that is not its own.
        trials: what was evaluated, in order.
        fits: what was fitted to choose what to evaluate untrained.
        timing: of the narrow model that was timed.
        scouts: what was trained for a short time.
    """

    bench: Workbench
    wish: Wish
    announce: Callable[[Trial], None] = lambda trial: None
    presets: Sequence[str] = ()
    precisions: dict[str, str] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    fits: list[Fit] = field(default_factory=list)
    timing: Timing | None = None
    scouts: list[Scout] = field(default_factory=list)

    def run(self) -> Trial:
        """Evaluate candidates until one fulfils the wish, or the time is up; returns the best. One that was made smaller and fulfils it is trained
        on, unless the whole interval of its drop does.

        Raises:
            RecipeError: there are no labelled development data, or no metric for the task.
            EdgeExportError: a step failed.
        """
        self._begun = time.monotonic()
        stages = ((self._whole, self.wish.is_fulfilled), (self._mixed, self.wish.is_fulfilled), (self._untrained, self.wish.is_surely_fulfilled))
        for stage, is_enough in stages:
            # All of a stage for which there is time, since which is better can't be told before; to mix precisions that were tried takes none.
            tried = [self._try(candidate) for candidate in stage()
                     if not self.trials or stage == self._mixed or self._has_time(candidate, self.bench.evaluating)]
            if any(trial is not None and is_enough(trial) for trial in tried):
                break
        else:
            self._train()
        return self._best()

    def _best(self) -> Trial:
        """Where no size was asked for, what fulfils the wish with the fewest weights; else of all that are as small and fast, what is nearest to
        the original.

        The metric comes before the distance only where the development data can tell two candidates apart by it: a few hundred examples know
        a drop to a point or two, and the distance of the answers to a hundredth of itself.
        """
        fulfilled = [trial for trial in self.trials if self.wish.is_fulfilled(trial)]
        if fulfilled and self.wish.max_size_mb is None:
            return min(fulfilled, key=lambda trial: (trial.candidate.parameters, trial.distance))
        best = min(self.trials, key=lambda trial: (trial.shortfall, trial.worst.drop.value))
        alike = [trial for trial in self.trials
                 if trial.shape_shortfall <= best.shape_shortfall and trial.worst.drop.low <= best.worst.drop.value]
        return min(alike, key=lambda trial: trial.distance)

    def missed(self, chosen: Trial, reports: Sequence[Report]) -> list[str]:
        """What the winner does not fulfil, in words: of size and speed, and of the metric on the evaluation data, which chose nothing. Where
        these have no labels, the development data say it."""
        names = {lane.lane for lane in chosen.lanes}
        lanes = [lane for report in reports for lane in report.lanes if lane.lane in names and lane.metrics]
        judged = [(lane.lane, (lane.untruncated or lane.metrics)[0]) for lane in lanes]
        metric = [self.wish.metric_miss(lane, result.drop, result.reference) for lane, result in judged]
        found = [miss.words for miss in chosen.misses if miss.limit != "metric" or not judged] + [miss.words for miss in metric if miss is not None]
        return list(dict.fromkeys(found))

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
            distance=trial.distance, front=trial in front, chosen=trial is chosen, misses=tuple(miss.words for miss in trial.misses))
            for trial in self.trials)
        scouts = tuple(ScoutReport(title=scout.candidate.title, loss=scout.loss) for scout in self.scouts)
        timed = self.timing and TimedReport(title=self.timing.candidate.title, speedup=self.timing.least)
        fits = tuple(FitReport(title=fit.candidate.title, distance=fit.distance) for fit in self.fits)
        return SearchReport(candidates=candidates, fits=fits, timed=timed, scouts=scouts, reference=self.trials[0].lanes[0].reference)

    # -- the whole model

    def _whole(self) -> list[Candidate]:
        """The whole model in the lanes' own precisions, and in each of the presets where a lane's format has it."""
        lanes = [lane for target in self.bench.prepared.targets for lane in target.lanes]
        choices: list[dict[str, str]] = [{}]
        for name in self.presets:
            choice = {lane.name: name for lane in lanes if name in PRESETS[lane.model_format] and name != lane.precision}
            if choice:
                choices.append(choice)
            else:
                self.bench.refused.append(f"{name}: no lane has another precision that it could take the place of")
        return [Candidate(precisions=choice, parameters=self._shape["parameters"]) for choice in choices]

    def _mixed(self) -> list[Candidate]:
        """The whole model in the precision that was best for each lane, which all further candidates have; lanes do not depend on each other.

        Of those that are about as far from the wish that is the fastest where speed is wanted, else the nearest to the original.
        """
        for name in dict.fromkeys(lane.lane for trial in self.trials for lane in trial.lanes):
            pairs = [(lane, trial.candidate.precisions) for trial in self.trials for lane in trial.lanes if lane.lane == name]
            shortfalls = [sum(miss.share for miss in self.wish.misses(lane)) for lane, _ in pairs]
            alike = [pair for pair, shortfall in zip(pairs, shortfalls, strict=True) if 1 + shortfall <= (1 + ALIKE) * (1 + min(shortfalls))]
            _, best = min(alike, key=lambda pair: (0.0 if self.wish.for_speed else pair[0].distance, pair[0].latency))
            if name in best:
                self.precisions[name] = best[name]
        tried = any(trial.candidate.precisions == self.precisions for trial in self.trials)
        return [] if tried else [Candidate(precisions=self.precisions, parameters=self._shape["parameters"])]

    @property
    def _outlook(self) -> Outlook:
        whole = next(trial for trial in self.trials if trial.candidate.precisions == self.precisions)
        return Outlook(self.wish, self._shape, whole, self.timing)

    @property
    def _shape(self) -> dict[str, int]:
        spec = self.bench.prepared.resolved.spec
        facts = {name: int(spec.facts.get(name) or 0) for name in ("vocabulary", "embedding_width", "layers", "layer_parameters")}
        return {"parameters": int(spec.parameters or 0), **facts}

    # -- without training

    def _untrained(self) -> list[Candidate]:
        """What needs no training and may be good enough: the nearest to the original, once it is fitted, of as many tokens as fit and of the ways to
        divide the bytes between tokens and layers, from whole layers on."""
        fewer, balances = self._outlook.fewer_tokens(), self._outlook.balances()
        for candidate in balances:
            if not self._fit(candidate) or self.fits[-1] != self._nearest_fit:
                break
        if fewer is not None:
            self._fit(fewer)
        return [self._nearest_fit.candidate] if self.fits else [*balances[:1], *([fewer] if fewer else [])]

    def _fit(self, candidate: Candidate) -> bool:
        """Fit a candidate, and see how far it is from the original; False where it can't be made or no time is left."""
        needed = self.bench.shaping + self.bench.judging + self.bench.evaluating
        distance = self.bench.distance(candidate) if self._left() > needed else None
        if distance is not None:
            self.fits.append(Fit(candidate, distance))
        return distance is not None

    @property
    def _nearest_fit(self) -> Fit:
        return min(self.fits, key=lambda fit: fit.distance)

    # -- training

    def _train(self) -> None:
        """Train the shortlist for a short time each, and the best of it for the rest; where no two can be compared, the first of it at once."""
        narrow = self._outlook.to_time()
        self.timing = self.bench.time(narrow) if narrow is not None else None
        shortlist = self._outlook.structures()
        if self.fits:
            shortlist = [self._nearest_fit.candidate, *(candidate for candidate in shortlist if candidate.layers is not None)]
        shortlist = shortlist[:SHORTLIST]
        if not shortlist:
            self.bench.refused.append("training: no number of layers, of heads and neurons and of tokens would be small and fast enough")
            return
        if not self._has_time(shortlist[0], self.bench.evaluating + self.bench.judging):
            return
        try:
            self.bench.read()
        except (PlanError, RecipeError) as exc:
            self.bench.refused.append(f"training: {exc.reason}")
            return
        # Whatever is compared with it, the deepest is made, and tells what that takes.
        ready = self.bench.make_ready(shortlist[0])
        if self.bench.shaping + 2 * LEAST_EPOCHS * self.bench.epoch_seconds(shortlist[0]) > TRYING * self._left():
            if ready is not None and self._train_on(ready):
                self.bench.refused += [f"training {other.title}: {self.wish.minutes:g} minutes are too few to compare it" for other in shortlist[1:]]
            return
        self._train_to_choose(shortlist)
        # How far the answers are from the original's is known far better than how many of them are right.
        for scout in sorted(self.scouts, key=lambda scout: scout.loss):
            if any(trial.candidate.has_the_shape_of(scout.candidate) for trial in self.trials):
                continue  # too large or too slow, however it is trained
            if self.bench.evaluating > LOOKING * self._left() and self._train_on(scout):
                return
            trial = self._try(scout.candidate)
            if trial is None:
                continue
            if trial.has_the_shape or self._left() < self.bench.evaluating + self.bench.judging:
                if not self.wish.is_surely_fulfilled(trial):
                    self._train_on(scout)
                return

    def _train_to_choose(self, shortlist: Sequence[Candidate]) -> None:
        """Train what is worth a try for a short time each."""
        until = (1 - TRYING) * self._left()
        seconds = TRYING * self._left() / (len(shortlist) + 2)
        for candidate in self._worth_a_try(shortlist):
            epoch = self.bench.epoch_seconds(candidate)
            epochs = round(max(LEAST_EPOCHS, (seconds - self.bench.shaping) / epoch), 1)
            needed = self.bench.shaping + epochs * epoch
            if self.scouts and self._left() - needed < until:
                self.bench.refused.append(f"training {candidate.title}: {self.wish.minutes:g} minutes are too few to compare it")
                break
            if not self._has_time(candidate, needed + self.bench.evaluating):
                break
            scout = self.bench.train(candidate.model_copy(update={"epochs": epochs}))
            if scout is not None:
                self.scouts.append(scout)

    def _has_time(self, candidate: Candidate, seconds: float) -> bool:
        """Whether so much time is left; where it is not, the candidate is noted as not tried."""
        if self._left() >= seconds:
            return True
        self.bench.refused.append(f"{candidate.title}: no time is left for it; give more than {self.wish.minutes:g} minutes")
        return False

    def _worth_a_try(self, shortlist: Sequence[Candidate]) -> Iterator[Candidate]:
        """The shortlist, deep ones first, until one is farther off than one before it; then what came nearest with fewer tokens in place of fewer
        numbers for each, which serves texts of one field, but not those full of names; and then with lower learning rates, as long as that helps."""
        for candidate in shortlist:
            yield candidate
            if self.scouts and self.scouts[-1].candidate != self._nearest:
                break
        if self.scouts:
            other = self._outlook.with_another_table(self._nearest)
            if other is not None and other.vocabulary != self._nearest.vocabulary:
                yield other
            rate = USUAL_RATE
            while (self._nearest.learning_rate or USUAL_RATE) == rate > GENTLEST_RATE:
                rate = float(f"{rate * GENTLER:.0e}")
                yield self._nearest.model_copy(update={"learning_rate": rate})

    @property
    def _nearest(self) -> Candidate:
        return min(self.scouts, key=lambda scout: scout.loss).candidate

    def _train_on(self, scout: Scout) -> bool:
        """Train a candidate for the time that is left, but for its evaluation here and once more on the evaluation data; whether there was any."""
        epochs = round((self._left() - self.bench.evaluating - self.bench.judging - scout.starting_seconds) / scout.epoch_seconds, 1)
        if epochs <= (0 if math.isinf(scout.loss) else scout.candidate.epochs):
            return False
        self._try(scout.candidate.trained_for(epochs))
        return True

    def _left(self) -> float:
        return self.wish.minutes * 60 - (time.monotonic() - self._begun)

    def _try(self, candidate: Candidate) -> Trial | None:
        """Evaluate a candidate; None for one that can't be made, which is no end of the search."""
        lanes = self.bench.evaluate(candidate)
        if lanes is None:
            return None
        trial = Trial(candidate=candidate, lanes=lanes, misses=tuple(miss for lane in lanes for miss in self.wish.misses(lane)))
        self.trials.append(trial)
        self.announce(trial)
        return trial


def on_development(prepared: Prepared) -> Prepared:
    """The build judged by its development data, and timed beside the original.

    Raises:
        RecipeError: there are none, or they have no labels; or the task is one that nothing is searched for.
    """
    resolved = prepared.resolved
    if resolved.spec.task is Task.TEXT_GENERATION:
        raise RecipeError("tune is for encoders so far.", why="a language model's training takes longer than a search can wait for",
                          hint="say in [compress] how it is to be made smaller, and build it")
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
