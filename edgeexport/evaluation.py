"""A plan run and judged: every lane with what was found out about it. Building, repairing and searching start from here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from edgeexport.errors import EdgeExportError
from edgeexport.inspection.inspect_model import INSPECTION_FILE
from edgeexport.inspection.model import ModelReport
from edgeexport.plan import LanePlan
from edgeexport.prepare import Prepared
from edgeexport.runner import host
from edgeexport.runner.compatibility import oldest_admitted, problems
from edgeexport.runner.measure_speed import SPEED_FILE
from edgeexport.schedule import Event, Limits, Scheduler
from edgeexport.session.evidence import Answers, untruncated
from edgeexport.step import Refusal
from edgeexport.store import Entry
from edgeexport.verify.judge import Question, judge_lane
from edgeexport.verify.lane_report import LaneReport


class Evaluation:
    """What the steps of a plan found out.

    Attributes:
        prepared: the build.
        entries: node → its stored result, for all nodes that were used.
        ran: the nodes that were run now, not found.
        lanes: all lanes; one of which a step failed is not offered.
    """

    def __init__(self, prepared: Prepared, limits: Limits, tell: Callable[[Event], None]) -> None:
        """Run what is missing of the plan.

        Raises:
            EdgeExportError: a step failed that can't be done without.
        """
        scheduler = Scheduler(prepared.plan, prepared.store, limits, tell)
        self.prepared = prepared
        self.entries = scheduler.run(prepared.plan.wanted)
        self.ran = scheduler.ran
        self.lanes = [without_failed(lane, scheduler.failed) for lane in prepared.plan.lanes]

    def path(self, node: str | None, name: str) -> Path:
        """Where a file of a node's artifact lies."""
        return self.prepared.store.blob_path(self.entries[str(node)].artifact.tree[name])

    def answers(self, node: str | None) -> dict[str, Answers]:
        """Data set → answers of a node that measured, in the order in which data sets judge: the probes first, which every build has."""
        tree, resolved = self.entries[str(node)].artifact.tree, self.prepared.resolved
        names = (*resolved.judging, untruncated(resolved.labelled))
        return {name: Answers.load(self.path(node, f"{name}.npz")) for name in names if f"{name}.npz" in tree}

    def facts(self, node: str) -> dict[str, Any]:
        """What a node's step found out beside its artifact; empty where its result was dropped from the store, since nothing needs it."""
        entry = self._entry(node)
        return entry.artifact.spec.facts | {"parameters": entry.artifact.spec.parameters} if entry is not None else {}

    def seconds(self, node: str) -> float:
        """How long a node's step took, whenever it ran; 0 where its result was dropped from the store."""
        entry = self._entry(node)
        return entry.run.seconds if entry is not None else 0.0

    def _entry(self, node: str) -> Entry | None:
        planned = self.prepared.plan.nodes[node]
        return self.entries.get(node) or self.prepared.store.find(planned.step.name, planned.key)

    @cached_property
    def question(self) -> Question:
        """What is asked of every lane."""
        resolved, plan = self.prepared.resolved, self.prepared.plan
        recipe = resolved.recipe
        return Question(
            task=resolved.spec.require_task(), labels=resolved.spec.facts["labels"], parameters=resolved.spec.parameters,
            datasets=resolved.datasets, labelled=resolved.labelled, reference=self.answers(plan.reference), original=self.answers(plan.original),
            margins=recipe.parity, max_drop=recipe.metric.max_drop, budget=recipe.budget, host_isa=host.isa(), host=host.describe())

    def report(self, plan: LanePlan) -> LaneReport:
        """The judgement of a lane."""
        lane = plan.lane
        if plan.refusal is not None or plan.variant is None:
            return LaneReport(lane=lane.name, format=lane.format, runtime=lane.runtime, runtime_version=lane.version,
                              verified_by=lane.verified_by, required=lane.required, note=lane.note,
                              refusal=plan.refusal.reason if plan.refusal else None, scope="not offered")
        model = ModelReport.model_validate_json(self.path(plan.inspection, INSPECTION_FILE).read_text(encoding="utf-8"))
        speed = json.loads(self.path(plan.speed, SPEED_FILE).read_text(encoding="utf-8"))
        return judge_lane(self.question, plan.target, lane, plan.variant, self.answers(plan.answers), speed, model,
                          problems(model, lane.runtime, oldest_admitted(lane.version)))


def without_failed(lane: LanePlan, failed: Mapping[str, EdgeExportError]) -> LanePlan:
    """The lane, or where one of its steps failed, the same as one that is not offered for that reason."""
    error = next((failed[node] for node in lane.ends if node in failed), None)
    if error is None:
        return lane
    return LanePlan(lane.target, lane.lane, refusal=Refusal(reason=error.reason, hint=error.hint))
