"""Verify a bundle that was built elsewhere: its files, and its golden vectors in the runtimes that are here."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from edgeexport.artifact import Model
from edgeexport.bundle import GOLDEN_REFERENCE, GOLDEN_ROWS, ManifestLane, check_files, read_manifest
from edgeexport.errors import EdgeExportError, UnknownName
from edgeexport.runner import host
from edgeexport.runner.environment import Environment
from edgeexport.runner.local import run_job
from edgeexport.session.evidence import Answers
from edgeexport.step import Context
from edgeexport.verify.check import Verdict, together
from edgeexport.verify.judge import relative_distances


class GoldenResult(Model):
    """What became of a lane's golden vectors here.

    Attributes:
        verdict: None where the runtime can't run here.
        distance: largest relative distance to what the lane answered when it was built.
        tolerance: how far it may be.
        reference_distance: largest relative distance to the original's recorded answers.
        same_decisions: how many decisions are the same, of `texts`.
        where: the machine and runtime.
        problem: why it could not run.
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
        context = Context(Path(scratch), report=lambda fraction, message: report(f"{name}: {message}"))
        try:
            run_job(Environment(lane.verified_by), {
                "do": "answers", "payload": str(place.absolute()), "variant": lane.variant, "runtime": lane.runtime, "threads": 1,
                "datasets": {"golden": str((place / GOLDEN_ROWS).absolute())}}, Path(scratch) / "out", context)
        except EdgeExportError as exc:
            return GoldenResult(lane=name, verdict=None, problem=f"{exc.what} {exc.why or ''}".strip())
        here = Answers.load(Path(scratch) / "out" / "golden.npz")
    then, original = Answers.load(place / "golden" / f"{name}.npz"), Answers.load(place / GOLDEN_REFERENCE)
    distances = relative_distances(then, here)
    worst = max(distances, default=0.0)
    same = sum(a == b for a, b in zip(then.decisions, here.decisions, strict=True))
    return GoldenResult(
        lane=name, verdict=Verdict.PASS if worst <= lane.golden_tolerance else Verdict.FAIL, distance=worst, tolerance=lane.golden_tolerance,
        reference_distance=max(relative_distances(original, here), default=0.0), same_decisions=same, texts=len(then.tokens),
        where=f"{host.describe()}, {lane.verified_by}")

