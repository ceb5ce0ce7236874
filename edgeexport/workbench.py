"""Where a search's candidates are made and measured, each as far as a question needs it: fitted, timed, trained or evaluated.

A candidate is a recipe, and each question runs a part of its plan; what two of them share is done once. What the parts took is remembered, since
a search that has a limit of time must know what the next candidate will cost.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from edgeexport.candidates import GENTLEST_RATE, NEAR, Candidate, LaneTrial, Timing
from edgeexport.errors import PlanError, RecipeError
from edgeexport.evaluation import Evaluation
from edgeexport.plan import LanePlan
from edgeexport.prepare import Prepared
from edgeexport.recipe import Precision, Recipe
from edgeexport.runner.measure_speed import SPEED_FILE
from edgeexport.schedule import Event, Limits, Scheduler
from edgeexport.session.evidence import Answers
from edgeexport.store import Entry
from edgeexport.verify.judge import mean_distance
from edgeexport.verify.lane_report import LaneReport, SpeedReport

# An epoch's time, in that which the original takes to read the texts once: what goes with the size of what is trained, forward and backward, and
# what does not. An NER model of a quarter of its multiply-accumulates took 1.21 times as long as the teacher's whole step, one of a third of them 1.5
# times; and of such a step, 197 s, about a tenth is its start.
TRAINING_COST = 3.3
READING_COST = 0.5
TRAINING_STEPS = frozenset({"compute_teacher", "distill"})
# What all shapes share.
MEASURING_STEPS = frozenset({"measure_layers", "measure_channels"})
# What a shape takes once, however long it is then trained.
SHAPING_STEPS = frozenset({"trim_vocabulary", "factorize_embeddings", "drop_layers", "prune_channels", "reconstruct_layers"})
# What is run again for the evaluation data; the rest of the winner is stored by then.
JUDGING_STEPS = frozenset({"compute_reference", "measure_answers", "measure_speed"})


@dataclass(frozen=True)
class Scout:
    """A candidate that was trained for a short time, or is ready to be trained.

    Attributes:
        candidate: the candidate.
        loss: on the development data, which is how far its answers are from the original's; infinite where it was not trained yet.
        starting_seconds: before training begins.
        epoch_seconds: that an epoch takes.
    """

    candidate: Candidate
    loss: float
    starting_seconds: float
    epoch_seconds: float


@dataclass
class Workbench:
    """What makes and measures candidates.

    Attributes:
        prepared: the build without compression; its development data judge.
        limits: jobs and memory.
        tell: told what the steps do.
        needed_lanes: names of optional lanes that count all the same, beside the required ones.
        refused: candidates that could not be made, with the reason.
        shaping: seconds that the costliest shape took so far, before training.
        evaluating: seconds that the last evaluation took, besides shaping and training.
        judging: seconds of it that come again for the evaluation data.
        reading: seconds that the original takes to read the training texts once; corrected by what trainings took.
    """

    prepared: Prepared
    limits: Limits
    tell: Callable[[Event], None]
    needed_lanes: Collection[str] = ()
    refused: list[str] = field(default_factory=list)
    shaping: float = 0.0
    evaluating: float = 0.0
    judging: float = 0.0
    reading: float = 0.0

    def recipe(self, candidate: Candidate) -> Recipe:
        """The recipe of a candidate."""
        recipe = self.prepared.resolved.recipe
        lanes = recipe.precision.lanes | {lane: Precision(preset=name) for lane, name in candidate.precisions.items()}
        return recipe.model_copy(update={"compress": candidate.section, "precision": recipe.precision.model_copy(update={"lanes": lanes})})

    def evaluate(self, candidate: Candidate) -> tuple[LaneTrial, ...] | None:
        """What a candidate comes to in the lanes that count, from its training to its answers; None where it can't be made.

        Raises:
            RecipeError: there is no metric for the task.
            EdgeExportError: a step failed.
        """
        prepared = self._planned(candidate)
        if prepared is None:
            return None
        evaluation = Evaluation(prepared, self.limits, self.tell)
        # What was stored took its time too, when it was made.
        done = prepared, evaluation.entries
        self.shaping = max(self.shaping, seconds_of(*done, SHAPING_STEPS))
        self.evaluating = (seconds_of(*done) - seconds_of(*done, SHAPING_STEPS | MEASURING_STEPS | TRAINING_STEPS)) / self.limits.jobs
        self.judging = seconds_of(*done, JUDGING_STEPS) / self.limits.jobs
        return tuple(self._lane(evaluation.report(plan)) for plan in self._counted(evaluation.lanes))

    def distance(self, candidate: Candidate) -> float | None:
        """How far a candidate's answers in float32 are from the original's, on the development data; None where it can't be made, or nobody asks for
        these answers, since without evaluation data parity is with the original."""
        prepared = self._planned(candidate)
        if prepared is None or prepared.plan.reference == prepared.plan.original:
            return None
        nodes, resolved = (prepared.plan.original, prepared.plan.reference), prepared.resolved
        entries = self._run(prepared, nodes)
        original, own = (Answers.load(prepared.store.blob_path(entries[node].artifact.tree[f"{resolved.labelled}.npz"])) for node in nodes)
        return mean_distance(resolved.spec.require_task(), original, own)

    def time(self, candidate: Candidate) -> Timing | None:
        """How fast a candidate is beside the original, in the lanes that count; None where it can't be made.

        It is not fitted to the original, since that changes no speed.
        """
        recipe = self.recipe(candidate)
        prepared = self._planned(candidate, recipe.model_copy(update={"compress": recipe.compress.model_copy(update={"reconstruct": False})}))
        if prepared is None:
            return None
        nodes = {plan.lane.name: str(plan.speed) for plan in self._counted(prepared.plan.lanes)}
        entries = self._run(prepared, nodes.values())
        paths = {lane: prepared.store.blob_path(entries[node].artifact.tree[SPEED_FILE]) for lane, node in nodes.items() if node in entries}
        found = {lane: SpeedReport.model_validate({**json.loads(path.read_text(encoding="utf-8")), "how": ""}) for lane, path in paths.items()}
        return Timing(candidate=candidate, speedup={lane: speedup(speed) for lane, speed in found.items()})

    def read(self) -> None:
        """Have the original read the training texts, as the teacher of all that will be trained.

        Raises:
            PlanError: there is nothing to train on.
        """
        prepared = self.prepared.planned_anew(self.recipe(Candidate(epochs=1.0, parameters=0)))
        teachers = [node.id for node in prepared.plan.nodes.values() if node.step.name == "compute_teacher"]
        entries = self._run(prepared, teachers)
        self.reading = max(1.0, max(entries[node].run.seconds for node in teachers) - starting_seconds(prepared, entries))

    def epoch_seconds(self, candidate: Candidate) -> float:
        """Seconds that an epoch of a candidate should take."""
        return self.reading * (READING_COST + TRAINING_COST * candidate.compute)

    def make_ready(self, candidate: Candidate) -> Scout | None:
        """Do for a candidate what comes before training; None where it can't be made. It is given the rate that is best for one epoch."""
        candidate = candidate.model_copy(update={"epochs": 1.0, "learning_rate": GENTLEST_RATE if candidate.compute > NEAR else None})
        prepared = self._planned(candidate)
        if prepared is None:
            return None
        (training,) = (node for node in prepared.plan.nodes.values() if node.step.name == "distill")
        entries = self._run(prepared, [reference for reference in training.inputs.values() if not reference.startswith("@")])
        return Scout(candidate, math.inf, starting_seconds(prepared, entries), self.epoch_seconds(candidate))

    def train(self, candidate: Candidate) -> Scout | None:
        """Train a candidate, without exporting it; None where it can't be made."""
        prepared = self._planned(candidate)
        if prepared is None:
            return None
        steps = {node.id: node.step.name for node in prepared.plan.nodes.values() if node.step.name in TRAINING_STEPS}
        entries = self._run(prepared, steps)
        (trained,) = (entry for node, entry in entries.items() if steps.get(node) == "distill")
        training, starting = trained.artifact.spec.facts["training"], starting_seconds(prepared, entries)
        epoch = max(trained.run.seconds - starting, 1.0) / (candidate.epochs * training["steps"] / training["of"])
        self.reading *= epoch / self.epoch_seconds(candidate)
        return Scout(candidate, min(distance for _, distance in training["history"]), starting, epoch)

    def _planned(self, candidate: Candidate, recipe: Recipe | None = None) -> Prepared | None:
        """A candidate's plan, or that of a recipe in place of its own; None where it can't be made."""
        try:
            return self.prepared.planned_anew(recipe or self.recipe(candidate))
        except (PlanError, RecipeError) as exc:
            if not self.evaluating:
                raise  # the whole model
            self.refused.append(f"{candidate.title}: {exc.reason}")
            return None

    def _run(self, prepared: Prepared, wanted: Collection[str]) -> dict[str, Entry]:
        entries = Scheduler(prepared.plan, prepared.store, self.limits, self.tell).run(wanted)
        self.shaping = max(self.shaping, seconds_of(prepared, entries, SHAPING_STEPS))
        return entries

    def _counted(self, lanes: Iterable[LanePlan]) -> list[LanePlan]:
        """The lanes that count: those that are required or needed all the same; where there are none, all that are offered."""
        offered = [plan for plan in lanes if plan.variant is not None]
        return [plan for plan in offered if plan.lane.required or plan.lane.name in self.needed_lanes] or offered

    def _lane(self, report: LaneReport) -> LaneTrial:
        if not report.metrics:
            raise RecipeError("tune needs a metric to choose by.", why=f"there is none for {self.prepared.resolved.spec.task} yet",
                              hint="build with a recipe of your own choice instead")
        result = (report.untruncated or report.metrics)[0]
        speed = report.speed
        assert speed is not None and speed.original_latency_ms is not None and report.distance is not None
        return LaneTrial(lane=report.lane, size_bytes=report.size_bytes or 0, speedup=speedup(speed),
                         latency_ms={length: times["p50"] for length, times in speed.latency_ms.items()},
                         metric=result.lane, reference=result.reference, drop=result.drop, distance=report.distance)


def speedup(speed: SpeedReport) -> dict[int, float]:
    """How many times as fast as the original beside it a lane is, at its shortest and its longest length."""
    own, original = speed.latency_ms, speed.original_latency_ms or {}
    return {length: original[length]["p50"] / own[length]["p50"] for length in sorted({min(own), max(own)})}


def seconds_of(prepared: Prepared, entries: Mapping[str, Entry], steps: Collection[str] | None = None) -> float:
    """Seconds that some of a plan's steps took, whenever they ran; without names, all of them."""
    return sum(entry.run.seconds for node, entry in entries.items() if steps is None or prepared.plan.nodes[node].step.name in steps)


def starting_seconds(prepared: Prepared, entries: Mapping[str, Entry]) -> float:
    """Seconds before a training begins: the teacher's answers to the few development data take hardly longer than it takes to start."""
    return min(entry.run.seconds for node, entry in entries.items() if prepared.plan.nodes[node].step.name in TRAINING_STEPS)
