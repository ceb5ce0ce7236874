"""A build: schedule what was prepared, judge, seal. What `edgeexport build` calls; it prints nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeexport import bundle
from edgeexport.errors import EdgeExportError
from edgeexport.inspection.inspect_model import INSPECTION_FILE
from edgeexport.inspection.model import ModelReport
from edgeexport.plan import LanePlan
from edgeexport.prepare import Prepared
from edgeexport.report.html import render_html
from edgeexport.report.model import DatasetReport, Report, StepReport
from edgeexport.resolve import JUDGING
from edgeexport.runner import host
from edgeexport.runner.compatibility import oldest_admitted, problems
from edgeexport.runner.measure_speed import SPEED_FILE
from edgeexport.schedule import Event, Limits, Scheduler
from edgeexport.session.evidence import Answers, untruncated
from edgeexport.step import Refusal
from edgeexport.store import Entry
from edgeexport.target import Target
from edgeexport.verify.check import Verdict, together
from edgeexport.verify.judge import Question, judge_lane, scope
from edgeexport.verify.lane_report import LaneReport

# So many golden vectors, of evenly spread lengths: enough to see a wrong kernel, few enough to check on a device in a moment.
GOLDEN_COUNT = 24


@dataclass(frozen=True)
class Built:
    """A sealed bundle."""

    directory: Path
    archive: Path
    report: Report
    manifest: bundle.Manifest


def build(prepared: Prepared, out: Path, limits: Limits, tell: Callable[[Event], None]) -> list[Built]:
    """Make, measure and seal a bundle for each target.

    Args:
        prepared: the plan.
        out: the directory that gets the bundles, as ``NAME-TARGET`` and ``NAME-TARGET.zip``.
        limits: jobs and memory.
        tell: is told what happens, from several threads.

    Raises:
        EdgeExportError: a step failed, or a bundle can't be written.
    """
    places = {target.name: out / f"{prepared.resolved.recipe.name}-{target.name}" for target in prepared.targets}
    for place in places.values():
        bundle.require_writable(place)
    with prepared.store.in_use():
        scheduler = Scheduler(prepared.plan, prepared.store, limits, tell)
        entries = scheduler.run(prepared.plan.wanted)
        evidence = _Evidence(prepared, entries)
        lanes = [without_failed(lane, scheduler.failed) for lane in prepared.plan.lanes]
        return [_seal(prepared, target, [lane for lane in lanes if lane.target.name == target.name], places[target.name], evidence, scheduler.ran)
                for target in prepared.targets]


def without_failed(lane: LanePlan, failed: Mapping[str, EdgeExportError]) -> LanePlan:
    """The lane, or where one of its steps failed, the same as one that is not offered for that reason."""
    error = next((failed[node] for node in lane.ends if node in failed), None)
    if error is None:
        return lane
    return LanePlan(lane.target, lane.lane, refusal=Refusal(reason=" ".join(filter(None, (error.what, error.why))), hint=error.hint))


class _Evidence:
    """Reads what the steps found out from the store."""

    def __init__(self, prepared: Prepared, entries: Mapping[str, Entry]) -> None:
        self.entries = entries
        self._store, self._plan, self._resolved = prepared.store, prepared.plan, prepared.resolved
        self.reference = self.answers(self._plan.reference)
        resolved, recipe = self._resolved, self._resolved.recipe
        self.question = Question(
            task=resolved.spec.require_task(), labels=resolved.spec.facts["labels"], parameters=resolved.spec.parameters,
            datasets=resolved.datasets, reference=self.reference,
            original=self.answers(self._plan.original), margins=recipe.parity, max_drop=recipe.metric.max_drop,
            budget=recipe.budget, host_isa=host.isa(), host=host.describe())

    def path(self, node: str | None, name: str) -> Path:
        """Where a file of a node's artifact lies."""
        return self._store.blob_path(self.entries[str(node)].artifact.tree[name])

    def answers(self, node: str | None) -> dict[str, Answers]:
        """Data set → answers of a node that measured."""
        tree = self.entries[str(node)].artifact.tree
        names = (*JUDGING, untruncated("evaluation"))
        return {name: Answers.load(self.path(node, f"{name}.npz")) for name in names if f"{name}.npz" in tree}

    def lane(self, plan: LanePlan) -> LaneReport:
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


def _seal(prepared: Prepared, target: Target, lanes: Sequence[LanePlan], destination: Path, evidence: _Evidence, ran: frozenset[str]) -> Built:
    report = _report(prepared, target, [evidence.lane(plan) for plan in lanes], evidence, ran)
    offered = [plan for plan in lanes if plan.variant is not None]
    store, recipe = prepared.store, prepared.resolved.recipe
    with bundle.new_bundle(destination) as place, ExitStack() as stack:
        views = stack.enter_context(store.workplace())
        payloads = [store.view(evidence.entries[node].artifact.tree, views / str(number))
                    for number, node in enumerate(dict.fromkeys(str(plan.payload) for plan in offered))]
        payload = bundle.lay_out_payload(place, payloads)
        rows = [row.model_dump(exclude_none=True) for row in prepared.resolved.datasets["probes"].rows]
        bundle.add_golden(place, rows, golden_choice(evidence.reference["probes"]), evidence.reference["probes"],
                          {plan.lane.name: evidence.answers(plan.answers)["probes"] for plan in offered})
        bundle.add_inspections(place, {str(plan.variant): evidence.path(plan.inspection, INSPECTION_FILE) for plan in offered})
        bundle.add_programs(place)
        (place / "report.json").write_text(report.model_dump_json(indent=1), encoding="utf-8")
        (place / "report.html").write_text(render_html(report), encoding="utf-8")
        manifest = bundle.seal(place, report, payload, _lineage(prepared),
                               bundle.Margins(parity=recipe.parity, max_drop=recipe.metric.max_drop))
    archive = destination.with_name(destination.name + ".zip")
    bundle.write_archive(destination, archive)
    return Built(destination, archive, report, manifest)


def golden_choice(answers: Answers) -> list[int]:
    """Which rows become golden vectors: evenly spread over the order by length, the shortest and the longest among them."""
    order = sorted(range(len(answers.tokens)), key=lambda i: (answers.tokens[i], i))
    count = min(GOLDEN_COUNT, len(order))
    return sorted({order[round(k * (len(order) - 1) / max(count - 1, 1))] for k in range(count)})


def _report(prepared: Prepared, target: Target, lanes: Sequence[LaneReport], evidence: _Evidence, ran: frozenset[str]) -> Report:
    resolved, entries = prepared.resolved, evidence.entries
    judged = [lane for lane in lanes if lane.verdict is not None]
    counted = [lane for lane in judged if lane.required] or judged
    verdict = together(lane.verdict for lane in counted) or Verdict.INCONCLUSIVE
    # Of all that count together: no lane's failure may hide behind another's.
    words = scope([check for lane in counted for check in lane.checks], verdict, host.isa(), target.device.isa, host.describe())
    facts = resolved.spec.facts
    return Report(
        name=resolved.recipe.name, target=target.name, target_title=target.title, isa=target.device.isa,
        host=f"{host.describe()}, {host.cpu_model()}, {host.cores()} cores", verdict=verdict, scope=words,
        model={"source": resolved.recipe.model.source, "revision": resolved.source.revision, "task": resolved.spec.require_task().value,
               "architecture": resolved.spec.architecture, "parameters": resolved.spec.parameters, "licence": facts.get("licence"),
               "labels": facts["labels"],
               "float32_bytes": 4 * resolved.spec.parameters if resolved.spec.parameters else None},
        text=resolved.text.as_dict(),
        datasets=tuple(
            DatasetReport(name=name, rows=len(dataset.rows), labelled=any(row.labelled for row in dataset.rows), origin=dataset.origin,
                          digest=resolved.leaves[name].artifact.digest)
            for name, dataset in resolved.datasets.items()),
        lanes=tuple(lanes),
        steps=tuple(StepReport(id=node_id, stored=node_id not in ran, seconds=entry.run.seconds, peak_rss_mb=entry.run.peak_rss_mb,
                               bytes=entry.artifact.size) for node_id, entry in entries.items()))


def _lineage(prepared: Prepared) -> dict[str, Any]:
    source, plan = prepared.resolved.source, prepared.plan
    return {
        "source": {"given": prepared.resolved.recipe.model.source, "revision": source.revision,
                   "files": {name: blob.digest for name, blob in source.artifact.tree.items()}},
        "datasets": {name: leaf.artifact.digest for name, leaf in prepared.resolved.leaves.items()},
        "steps": [{"id": node.id, "key": node.key, "step": node.step.name, "options": node.parts["options"], "code": node.parts["code"],
                   "backends": node.parts["backends"], "inputs": dict(node.inputs)} for node in plan.nodes.values()],
    }
