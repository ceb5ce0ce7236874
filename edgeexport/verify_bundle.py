"""Verify a bundle that was built elsewhere: its files, and its golden vectors in the runtimes that are here."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from edgeexport.artifact import Model
from edgeexport.bundle import GOLDEN_REFERENCE, GOLDEN_ROWS, ManifestLane, Margins, check_files, read_manifest
from edgeexport.checkpoint import DOCUMENTS
from edgeexport.dataset import ROWS_FILE
from edgeexport.errors import BundleError, EdgeExportError, RuntimeUnavailable, UnknownName
from edgeexport.prepare import Prepared, prepare
from edgeexport.recipe import DataFile, recipe_for
from edgeexport.records import read_records
from edgeexport.runner import host
from edgeexport.runner.local import run_lane
from edgeexport.schedule import Event, Limits, Scheduler
from edgeexport.session.evidence import Answers
from edgeexport.source import Leaf
from edgeexport.store import Store
from edgeexport.verify.check import Check, Verdict, together
from edgeexport.verify.judge import lane_metrics, relative_distances
from edgeexport.verify.metrics import MetricResult, metric_check
from edgeexport.verify.parity import parity_checks


class GoldenResult(Model):
    """What became of a lane's golden vectors here.

    Attributes:
        verdict: None where the runtime can't run here.
        distance: largest relative distance to what the lane answered when it was built.
        tolerance: how far it may be.
        reference_distance: largest relative distance to the original's recorded answers; None where they can't be compared.
        same_decisions: how many decisions are the same, of `texts`.
        where: the machine and runtime.
        problem: why there is no distance.
    """

    lane: str
    verdict: Verdict | None
    distance: float | None = None
    tolerance: float | None = None
    reference_distance: float | None = None
    same_decisions: int | None = None
    texts: int = 0
    where: str = ""
    problem: str | None = None


class Verification(Model):
    """What verifying a bundle found.

    Attributes:
        verdict: of the golden vectors here and the recorded verdict together.
        recorded: the verdict that was sealed.
    """

    name: str
    target: str
    verdict: Verdict
    recorded: Verdict
    scope: str
    files: int
    payload: str
    lanes: tuple[GoldenResult, ...]
    reference: str = "recorded at build"


def verify_bundle(place: Path, lanes: Iterable[str], report: Callable[[str], None]) -> Verification:
    """Check every file against the manifest, and run every lane's golden vectors where its runtime can run.

    Args:
        place: the bundle's directory.
        lanes: only these lanes; empty for all.
        report: told what is happening.

    Raises:
        BundleError: the bundle is damaged or edited.
        UnknownName: no such lane.
    """
    manifest = read_manifest(place)
    report("checking the files")
    check_files(place, manifest)
    chosen = list(lanes) or list(manifest.lanes)
    for name in chosen:
        if name not in manifest.lanes:
            raise UnknownName.among("lane", name, manifest.lanes)
    results = tuple(verify_lane(place, name, manifest.lanes[name], report) for name in chosen)
    found = [result.verdict for result in results]
    ran = together(found)
    verdict = together([ran or Verdict.INCONCLUSIVE, manifest.verdict]) or Verdict.INCONCLUSIVE
    return Verification(name=manifest.name, target=manifest.target, verdict=verdict, recorded=manifest.verdict, scope=manifest.scope,
                        files=len(manifest.files), payload=manifest.payload, lanes=results)


def verify_lane(place: Path, name: str, lane: ManifestLane, report: Callable[[str], None]) -> GoldenResult:
    """Run a lane's golden vectors in its stand-in here, and compare with what it answered when it was built."""
    report(f"{name}: golden vectors")
    with tempfile.TemporaryDirectory(prefix="edgeexport-verify-") as scratch:
        try:
            run_lane(place, lane, {"do": "answers", "datasets": {"golden": str((place / GOLDEN_ROWS).absolute())}}, Path(scratch),
                     lambda message: report(f"{name}: {message}"))
        except EdgeExportError as exc:
            runs_here = not isinstance(exc, (RuntimeUnavailable, UnknownName))
            return GoldenResult(lane=name, verdict=Verdict.FAIL if runs_here else None, problem=exc.reason)
        here = Answers.load(Path(scratch) / "out" / "golden.npz")
    then, original = Answers.load(place / "golden" / f"{name}.npz"), Answers.load(place / GOLDEN_REFERENCE)
    distances = relative_distances(then, here)
    worst, to_original = max(distances, default=0.0), max(relative_distances(original, here), default=0.0)
    same = sum(a == b for a, b in zip(then.decisions, here.decisions, strict=True))
    if not math.isfinite(worst):
        return GoldenResult(lane=name, verdict=Verdict.FAIL, tolerance=lane.golden_tolerance, same_decisions=same, texts=len(then.tokens),
                            where=f"{host.describe()}, {lane.verified_by}", problem="answers that are no numbers, or of another shape")
    return GoldenResult(
        lane=name, verdict=Verdict.PASS if worst <= lane.golden_tolerance else Verdict.FAIL, distance=worst, tolerance=lane.golden_tolerance,
        reference_distance=to_original if math.isfinite(to_original) else None, same_decisions=same, texts=len(then.tokens),
        where=f"{host.describe()}, {lane.verified_by}")



class RecomputedLane(Model):
    """What a lane of a bundle proves against a reference that was computed anew."""

    lane: str
    verdict: Verdict | None
    checks: tuple[Check, ...] = ()
    metrics: tuple[MetricResult, ...] = ()
    problem: str | None = None


def verify_against_source(place: Path, source: str, data: DataFile, lanes: Iterable[str], limits: Limits, store: Store,
                          tell: Callable[[Event], None], *, trusted: bool = False) -> list[RecomputedLane]:
    """Answer data of the user's with the original and with the bundle's own files, and compare.

    Args:
        place: the bundle's directory; its files were checked.
        source: the checkpoint that the bundle says it is made from: hub id or directory.
        data: texts; labelled where they have the field ``label`` or ``entities`` or, with a corpus, ``answer``.
        lanes: only these lanes; empty for all.
        limits: jobs and memory for the reference.
        store: takes the reference.
        tell: told what happens.
        trusted: whether code that the checkpoint brings along may be run.

    Raises:
        BundleError: the source is another checkpoint.
        EdgeExportError: the source or the data can't be used.
    """
    manifest = read_manifest(place)
    labelled = data.corpus is not None or any({"label", "entities"} & {*data.fields, *record} for record in read_records(data.file, data.format)[:1])
    text, sealed, base = manifest.text, manifest.lineage["source"], manifest.lineage.get("base") or {}
    section = {"source": source, "revision": sealed["revision"] if source == sealed["given"] else None, "task": manifest.task,
               "base": base["given"] if base.get("by_recipe") else None, "base_revision": base.get("revision"),
               "max_length": text["max_length"], "pooling": text["pooling"], "normalize": text["normalize"],
               "query_prefix": text["query_prefix"], "document_prefix": text["document_prefix"]}
    sections: dict[str, Any] = {"evaluation": data.model_dump(mode="json")} if labelled else {"texts": str(data.file)}
    recipe = recipe_for(source, model={key: value for key, value in section.items() if value is not None}, data=sections)
    with store.in_use():
        prepared = prepare(recipe, [], store, trusted=trusted)
        resolved = prepared.resolved
        _require_same(manifest.name, source, resolved.source, sealed)
        if base:
            if resolved.base is None:
                raise BundleError(f"{source} is not the adapter that {manifest.name} was made from.", hint=f"the manifest names {sealed['given']}")
            _require_same(manifest.name, resolved.base.given, resolved.base.leaf, base)
        entry = Scheduler(prepared.plan, store, limits, tell).run([prepared.plan.reference])[prepared.plan.reference]
        reference = {name.removesuffix(".npz"): Answers.load(store.blob_path(blob)) for name, blob in entry.artifact.tree.items()}
        found = []
        for name in list(lanes) or list(manifest.lanes):
            lane = manifest.lanes[name]
            tell(Event(f"measure_answers[{name}]", "started"))
            try:
                answers = _answer(place, lane, prepared, store)
            except RuntimeUnavailable as exc:
                found.append(RecomputedLane(lane=name, verdict=None, problem=exc.reason))
                continue
            found.append(_compare(name, lane, prepared, manifest.margins, reference, answers))
    return found


def _require_same(bundle: str, source: str, leaf: Leaf, sealed: Mapping[str, Any]) -> None:
    """Raises BundleError where a source's files are not those that a manifest names."""
    given = {name: blob.digest for name, blob in leaf.artifact.tree.items()}
    other = [name for name, digest in sealed["files"].items() if given.get(name) != digest and not DOCUMENTS.fullmatch(name)]
    if other:
        raise BundleError(f"{source} is not the checkpoint that {bundle} was made from.", why=f"{other[0]} is missing or another",
                          hint=f"the manifest names {sealed['given']}")


def _answer(place: Path, lane: ManifestLane, prepared: Prepared, store: Store) -> dict[str, Answers]:
    """A lane's answers to every judging data set, from the bundle's own files."""
    with tempfile.TemporaryDirectory(prefix="edgeexport-verify-") as scratch:
        leaves = prepared.resolved.leaves
        paths = {name: str(store.view(leaves[name].artifact.tree, Path(scratch) / name) / ROWS_FILE) for name in prepared.resolved.judging}
        run_lane(place, lane, {"do": "answers", "datasets": paths}, Path(scratch), lambda message: None)
        return {name: Answers.load(Path(scratch) / "out" / f"{name}.npz") for name in paths}


def _compare(name: str, lane: ManifestLane, prepared: Prepared, margins: Margins, reference: dict[str, Answers],
             answers: dict[str, Answers]) -> RecomputedLane:
    resolved = prepared.resolved
    task, how = resolved.spec.require_task(), f"measured on this {host.describe()} in {lane.verified_by}"
    checks = [check for dataset in answers for check in parity_checks(task, dataset, reference[dataset], answers[dataset], margins.parity, how)]
    metrics: list[MetricResult] = []
    if "evaluation" in answers:
        cut, uncut = lane_metrics(task, resolved.datasets["evaluation"], resolved.spec.facts["labels"], reference, answers)
        metrics = uncut or cut
    checks.append(metric_check(metrics, margins.max_drop, how, labelled="evaluation" in answers))
    return RecomputedLane(lane=name, verdict=together(check.verdict for check in checks), checks=tuple(checks), metrics=tuple(metrics))
