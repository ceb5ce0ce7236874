"""A build: schedule what was prepared, judge, seal. What `edgeexport build` calls; it prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeexport import bundle
from edgeexport.evaluation import Evaluation
from edgeexport.inspection.inspect_model import INSPECTION_FILE
from edgeexport.prepare import Prepared
from edgeexport.repair import repaired
from edgeexport.report.html import render_html
from edgeexport.report.model import CompressionReport, DatasetReport, Report, SearchReport, StepReport
from edgeexport.runner import host
from edgeexport.schedule import Event, Limits
from edgeexport.session.evidence import Answers
from edgeexport.target import Target
from edgeexport.verify.check import Verdict, together
from edgeexport.verify.expectations import is_continued
from edgeexport.verify.judge import scope
from edgeexport.verify.lane_report import LaneReport, Repair

# So many golden vectors, of evenly spread lengths: enough to see a wrong kernel, few enough to check on a device in a moment.
GOLDEN_COUNT = 24


@dataclass(frozen=True)
class Built:
    """A sealed bundle."""

    directory: Path
    archive: Path
    report: Report
    manifest: bundle.Manifest


def build(prepared: Prepared, out: Path, limits: Limits, tell: Callable[[Event], None], *, repair: bool = True,
          search: SearchReport | None = None) -> list[Built]:
    """Make, measure and seal a bundle for each target.

    Args:
        prepared: the plan.
        out: the directory that gets the bundles, as ``NAME-TARGET`` and ``NAME-TARGET.zip``.
        limits: jobs and memory.
        tell: is told what happens, from several threads.
        repair: whether a lane that quantization costs its budget gets a gentler precision where it needs one.
        search: how the recipe was found, for the report.

    Raises:
        EdgeExportError: a step failed, or a bundle can't be written.
    """
    places = {target.name: out / f"{prepared.resolved.recipe.name}-{target.name}" for target in prepared.targets}
    for place in places.values():
        bundle.require_writable(place)
    with prepared.store.in_use():
        evaluation = Evaluation(prepared, limits, tell)
        evaluation, repairs = repaired(evaluation, limits, tell, mend=repair)
        return [_seal(evaluation, target, places[target.name], repairs, search) for target in prepared.targets]


def _seal(evaluation: Evaluation, target: Target, destination: Path, repairs: Mapping[tuple[str, str], Repair],
          search: SearchReport | None) -> Built:
    lanes = [lane for lane in evaluation.lanes if lane.target.name == target.name]
    reports = [evaluation.report(lane).model_copy(update={"repair": repairs.get((target.name, lane.lane.name))}) for lane in lanes]
    prepared = evaluation.prepared
    report = _report(evaluation, target, reports).model_copy(update={"search": search})
    offered = [plan for plan in lanes if plan.variant is not None]
    store, recipe = prepared.store, prepared.resolved.recipe
    with bundle.new_bundle(destination) as place, ExitStack() as stack:
        views = stack.enter_context(store.workplace())
        payloads = [store.view(evaluation.entries[node].artifact.tree, views / str(number))
                    for number, node in enumerate(dict.fromkeys(str(plan.payload) for plan in offered))]
        payload = bundle.lay_out_payload(place, payloads)
        rows = [row.model_dump(exclude_none=True) for row in prepared.resolved.datasets["probes"].rows]
        reference = evaluation.question.reference["probes"]
        bundle.add_golden(place, rows, golden_choice(reference), reference,
                          {plan.lane.name: evaluation.answers(plan.answers)["probes"] for plan in offered})
        bundle.add_inspections(place, {str(plan.variant): evaluation.path(plan.inspection, INSPECTION_FILE) for plan in offered})
        bundle.add_programs(place)
        (place / "report.json").write_text(report.model_dump_json(indent=1), encoding="utf-8")
        (place / "report.html").write_text(render_html(report), encoding="utf-8")
        manifest = bundle.seal(place, report, payload, _lineage(prepared),
                               bundle.Margins(parity=recipe.parity, max_drop=recipe.metric.max_drop))
    archive = destination.with_name(destination.name + ".zip")
    bundle.write_archive(destination, archive)
    return Built(destination, archive, report, manifest)


def golden_choice(answers: Answers) -> list[int]:
    """Which rows become golden vectors: evenly spread over the order by length, the shortest and the longest among them.

    None that a language model goes on with: on another machine it may fall to the other side of a near tie, and go another way.
    """
    order = sorted((i for i in range(len(answers.tokens)) if not is_continued(answers, i)), key=lambda i: (answers.tokens[i], i))
    count = min(GOLDEN_COUNT, len(order))
    return sorted({order[round(k * (len(order) - 1) / max(count - 1, 1))] for k in range(count)})


def _report(evaluation: Evaluation, target: Target, lanes: Sequence[LaneReport]) -> Report:
    resolved = evaluation.prepared.resolved
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
               "base": resolved.base.given if resolved.base else None, "base_revision": resolved.base.leaf.revision if resolved.base else None,
               "lossy_source": facts.get("lossy_source"), "architecture": resolved.spec.architecture,
               "parameters": resolved.spec.parameters, "licence": facts.get("licence"), "labels": facts["labels"],
               "float32_bytes": 4 * resolved.spec.parameters if resolved.spec.parameters else None},
        text=resolved.text.as_dict(),
        datasets=tuple(
            DatasetReport(name=name, rows=len(dataset.rows), labelled=any(row.labelled for row in dataset.rows), origin=dataset.origin,
                          digest=resolved.leaves[name].artifact.digest)
            for name, dataset in resolved.datasets.items()),
        lanes=tuple(lanes),
        steps=tuple(StepReport(id=node_id, stored=node_id not in evaluation.ran, seconds=entry.run.seconds, peak_rss_mb=entry.run.peak_rss_mb,
                               bytes=entry.artifact.size) for node_id, entry in evaluation.entries.items()),
        compression=_compression(evaluation))


def _compression(evaluation: Evaluation) -> CompressionReport | None:
    """What was taken out of the model; None where it is exported as it is."""
    resolved, plan = evaluation.prepared.resolved, evaluation.prepared.plan
    if not resolved.recipe.compress.changes_model:
        return None
    before, after = resolved.spec, evaluation.facts(plan.checkpoint)
    return CompressionReport(
        parameters=(before.parameters, after.get("parameters")),
        vocabulary=(before.facts.get("vocabulary"), after.get("vocabulary")),
        embedding=(before.facts.get("embedding_width"), after.get("embedding_rank", after.get("embedding_width"))),
        layers=(before.facts.get("layers"), after.get("layers")),
        heads=after.get("heads", ()), neurons=after.get("neurons", ()), coverage=after.get("coverage", {}).get("data", {}),
        reconstruction=after.get("reconstruction"),
        training=after.get("training", {}))


def _lineage(prepared: Prepared) -> dict[str, Any]:
    resolved, plan = prepared.resolved, prepared.plan
    source, base = resolved.source, resolved.base
    return {
        "source": {"given": resolved.recipe.model.source, "revision": source.revision, "lossy": resolved.spec.facts.get("lossy_source"),
                   "files": {name: blob.digest for name, blob in source.artifact.tree.items()}},
        "base": None if base is None else {
            "given": base.given, "by_recipe": base.by_recipe, "revision": base.leaf.revision,
            "files": {name: blob.digest for name, blob in base.leaf.artifact.tree.items()}},
        "datasets": {name: leaf.artifact.digest for name, leaf in prepared.resolved.leaves.items()},
        "steps": [{"id": node.id, "key": node.key, "step": node.step.name, "options": node.parts["options"], "code": node.parts["code"],
                   "backends": node.parts["backends"], "inputs": dict(node.inputs)} for node in plan.nodes.values()],
    }
