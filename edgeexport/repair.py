"""When quantization costs a lane its budget: which layers are to blame, and the smallest change of precision that mends it.

Every layer is measured once, quantized alone. Then the most sensitive ones for their price get a gentler precision; how many, a binary
search finds, in which each trial is a plan of its own: quantized, run in the lane's runtime, and compared on calibration texts. What judges
the lane in the end is never looked at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from edgeexport.artifact import Task
from edgeexport.catalog import make_step
from edgeexport.evaluation import Evaluation
from edgeexport.graph import Graph
from edgeexport.plan import LanePlan, Plan, make_plan, plan_ranges
from edgeexport.policy import Override, Policy, Scheme
from edgeexport.prepare import Prepared
from edgeexport.recipe import Recipe
from edgeexport.schedule import Event, Limits, Scheduler
from edgeexport.session.evidence import Answers
from edgeexport.store import Entry
from edgeexport.verify.check import Check, Verdict
from edgeexport.verify.intervals import Estimate
from edgeexport.verify.lane_report import Group, LaneReport, Repair
from edgeexport.verify.margins import MARGINS, bound_for
from edgeexport.verify.parity import parity_checks

SENSITIVITY_FILE = "sensitivity.json"
# What a gentler precision costs at least, as a share of the whole: so that what has no weights is not free.
LEAST_PRICE = 0.01
# Share of the allowed error that may be used up on the texts that choose. Static ranges that are right for them clip what stranger texts need:
# all-MiniLM-L6-v2 mended to a cosine of 0.97 on questions came to 0.96 on the probe set.
CAUTION = 0.5
# Figures of parity that are errors; the others are likenesses, whose best is 1.
ERRORS = frozenset({"logit_error_p95"})
# The bytes of a weight that becomes float, against one of 8 bits, and what its products cost in time.
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Repairer:
    """Repairs lanes of a build.

    Attributes:
        prepared: the build.
        limits: jobs and memory.
        tell: told what happens.
    """

    prepared: Prepared
    limits: Limits
    tell: Callable[[Event], None]

    def causes(self, plan: LanePlan) -> tuple[Group, ...]:
        """The groups of a lane's model by how much they suffer, first the most; measured on the calibration texts."""
        resolved = self.prepared.resolved
        _, policy = resolved.recipe.policy(plan.lane)
        graph = Graph(dict(self.prepared.plan.leaves), dict(self.prepared.plan.nodes))
        inputs = {"model": str(plan.exported), "checkpoint": self.prepared.plan.checkpoint, "calibration": "@calibration"}
        if policy.needs_calibration:
            inputs["ranges"] = plan_ranges(graph, inputs["model"], inputs["checkpoint"], policy, plan.lane.model_format)
        node = graph.must(f"measure_sensitivity[{plan.variant}]", make_step("measure_sensitivity", policy=policy), inputs)
        entry = self._run(replace(self.prepared.plan, nodes=graph.nodes), [node])[node]
        blob = entry.artifact.tree[SENSITIVITY_FILE]
        found = json.loads(self.prepared.store.blob_path(blob).read_text(encoding="utf-8"))
        return tuple(Group.model_validate(group) for group in found)

    def repair(self, plan: LanePlan) -> tuple[Repair, Recipe]:
        """The smallest number of promotions that keeps the margins, and the recipe that has them.

        The recipe is the build's own where none does.
        """
        causes = self.causes(plan)
        ladder = promotions(causes)
        trials: dict[int, bool] = {}

        def passes(count: int) -> bool:
            if count not in trials:
                trials[count] = self._passes(plan, self._recipe(plan, ladder[:count]))
            return trials[count]

        repaired = Repair(lane=plan.lane.name, causes=causes)
        # Where the texts that choose see no harm, nothing says what would mend it.
        if not ladder or passes(0) or not passes(len(ladder)):
            return repaired.model_copy(update={"trials": trials}), self.prepared.resolved.recipe
        low, high = 0, len(ladder)  # low fails, high passes
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if passes(middle) else (middle, high)
        return (repaired.model_copy(update={"promoted": tuple(ladder[:high]), "trials": dict(sorted(trials.items()))}),
                self._recipe(plan, ladder[:high]))

    def _recipe(self, plan: LanePlan, promoted: Sequence[Override]) -> Recipe:
        """The recipe with more overrides for a lane."""
        recipe = self.prepared.resolved.recipe
        chosen = recipe.precision_of(plan.lane)
        changed = chosen.model_copy(update={"overrides": chosen.overrides + tuple(promoted)})
        lanes = recipe.precision.lanes | {plan.lane.name: changed}
        return recipe.model_copy(update={"precision": recipe.precision.model_copy(update={"lanes": lanes})})

    def _passes(self, plan: LanePlan, recipe: Recipe) -> bool:
        """Whether the lane keeps the margins of parity on the calibration texts, in its own runtime."""
        resolved = replace(self.prepared.resolved, recipe=recipe, judging=("calibration",))
        target = plan.target.model_copy(update={"lanes": (plan.lane,)})
        trial = make_plan(resolved, [target], self.prepared.host)
        answers = str(trial.lanes[0].answers)
        entries = self._run(trial, [trial.reference, answers])
        reference, lane = (Answers.load(self.prepared.store.blob_path(entries[node].artifact.tree["calibration.npz"]))
                           for node in (trial.reference, answers))
        task = resolved.spec.require_task()
        checks = parity_checks(task, "calibration", reference, lane, tightened(task, recipe.parity), "")
        # Half of the allowed error makes up for few texts, which could prove nothing.
        return all(check.verdict is not Verdict.FAIL and _met(check) for check in checks)

    def _run(self, plan: Plan, wanted: Sequence[str]) -> dict[str, Entry]:
        return Scheduler(plan, self.prepared.store, self.limits, self.tell).run(wanted)


def _met(check: Check) -> bool:
    """Whether a figure itself, whatever its interval, keeps its bound."""
    if not isinstance(check.figure, Estimate) or check.bound is None:
        return check.verdict is Verdict.PASS
    return check.figure.value <= check.bound if check.relation == "<=" else check.figure.value >= check.bound


def repairable(prepared: Prepared, plan: LanePlan) -> str | None:
    """Why a lane's precision can't be mended; None where it can."""
    _, policy = prepared.resolved.recipe.policy(plan.lane)
    if policy == Policy(default="float"):
        return "nothing of it is quantized"
    if "calibration" not in prepared.resolved.datasets:
        return "there are no texts to measure layers on: add [data.calibration]"
    return None


def tightened(task: Task, given: Mapping[str, float]) -> dict[str, float]:
    """The margins of parity with half the error allowed: other texts than those that choose have larger ones."""
    bounds = {name: bound_for(name, task, given) for name in MARGINS}
    return {name: CAUTION * bound if name in ERRORS else 1 - CAUTION * (1 - bound) for name, bound in bounds.items() if bound is not None}


def promotions(causes: Sequence[Group]) -> list[Override]:
    """Steps to a gentler precision, the most useful for its price first.

    From static to dynamic costs time, from integers to float also bytes; so everything first becomes dynamic that can, one after the other,
    and only then float.
    """
    total = sum(group.weights for group in causes) or 1

    def ladder(groups: Sequence[Group], scheme: Scheme, price: float) -> list[Override]:
        worth = sorted(groups, key=lambda group: group.distance / (LEAST_PRICE + price * group.weights / total), reverse=True)
        return [Override(match=group.match, scheme=scheme) for group in worth]

    static = [group for group in causes if group.scheme == "static"]
    weightless = {group.match for group in causes if group.match.startswith("op:")}
    found = []
    for override in ladder(static, "dynamic", 1.0):
        found.append(override.model_copy(update={"scheme": "float"}) if override.match in weightless else override)
    return found + ladder([group for group in causes if group.match not in weightless], "float", FLOAT_BYTES)


def repaired(evaluation: Evaluation, limits: Limits, tell: Callable[[Event], None], *,
             mend: bool) -> tuple[Evaluation, dict[tuple[str, str], Repair]]:
    """Find out what failed lanes suffer from, and mend what can be mended.

    Args:
        evaluation: of the recipe as it stands.
        limits: jobs and memory.
        tell: told what happens.
        mend: whether to change precisions, or only to name the layers.

    Returns:
        The evaluation of the mended recipe, and for each target and lane what was found.
    """
    found: dict[tuple[str, str], Repair] = {}
    prepared = evaluation.prepared
    if prepared.resolved.spec.task is Task.TEXT_GENERATION:
        return evaluation, found  # what its layers suffer is not measured yet
    for plan in evaluation.lanes:
        if plan.variant is None or not suffers(evaluation.report(plan), prepared.resolved.recipe) or repairable(prepared, plan) is not None:
            continue
        repairer = Repairer(prepared, limits, tell)
        repair = Repair(lane=plan.lane.name, causes=repairer.causes(plan))
        if mend:
            repair, recipe = repairer.repair(plan)
            prepared = prepared.planned_anew(recipe)
        found[plan.target.name, plan.lane.name] = repair
    if prepared is evaluation.prepared:
        return evaluation, found
    after = Evaluation(prepared, limits, tell)
    before = {(plan.target.name, plan.lane.name): evaluation.report(plan) for plan in evaluation.lanes}
    for plan in after.lanes:
        key = plan.target.name, plan.lane.name
        if key in found and found[key].promoted:
            found[key] = _with_costs(found[key], before[key], after.report(plan))
    return after, found


def suffers(report: LaneReport, recipe: Recipe) -> bool:
    """Whether a lane's answers, not its size or its operators, cost it the verdict; and quantization, not what was taken out of the model."""
    groups = {"parity"} if recipe.compress.changes_model else {"parity", "task metric"}
    return any(check.verdict is Verdict.FAIL for check in report.checks if check.group in groups)


def _with_costs(repair: Repair, before: LaneReport, after: LaneReport) -> Repair:
    latency = [max(report.speed.latency_ms.items())[1]["p50"] if report.speed else None for report in (before, after)]
    return repair.model_copy(update={"size_before": before.size_bytes, "size_after": after.size_bytes, "latency_before": latency[0],
                                     "latency_after": latency[1]})
