"""The first registry: a directory, such as a CI's artifact folder.

Layout: ``NAME/TARGET/manifest.json`` and the bundle's other files beside it, each put there whole by one rename.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from edgeexport.artifact import Blob, digest_file
from edgeexport.bundle import GOLDEN_REFERENCE, GOLDEN_ROWS, INSPECTIONS, Manifest, check_files, new_bundle, payload_digest, read_manifest
from edgeexport.errors import BundleError, UnknownName, VerdictRefused
from edgeexport.payload import write_payload
from edgeexport.session.bundle import MANIFEST_FILE
from edgeexport.session.payload import PAYLOAD_FILE
from edgeexport.verify.check import Verdict


def publish(bundle: Path, registry: Path, *, allow_failed: bool = False) -> Path:
    """Put a bundle into a registry; a bundle of the same name and target is replaced.

    Args:
        bundle: the bundle's directory.
        registry: the registry's directory.
        allow_failed: take a bundle whose verdict is not pass.

    Raises:
        BundleError: the bundle is damaged.
        VerdictRefused: its verdict is not pass.
        OutputError: the registry can't be written to.
    """
    manifest = read_manifest(bundle)
    check_files(bundle, manifest)
    _require_pass(manifest.verdict, f"{manifest.name} for {manifest.target}", allow_failed)
    destination = registry / manifest.name / manifest.target
    with new_bundle(destination) as place:
        _copy(bundle, place, manifest)
        check_files(place, read_manifest(place))
    return destination


def pull(place: Path, target: str, destination: Path, *, lane: str | None = None, allow_failed: bool = False) -> Manifest:
    """Get a bundle, or one lane of it, out of a registry; nothing is visible before every digest was checked.

    Args:
        place: ``REGISTRY/NAME``.
        target: which target.
        destination: the directory that the bundle becomes.
        lane: only this lane: its variant, its golden vectors, and what all lanes share.
        allow_failed: take a bundle, or a lane, whose verdict is not pass.

    Raises:
        UnknownName: no such target or lane.
        BundleError: the published bundle is damaged.
        VerdictRefused: the verdict is not pass.
    """
    # A name with a dot in front is what a publisher that was killed left behind.
    targets = sorted(path.parent.name for path in place.glob(f"[!.]*/{MANIFEST_FILE}"))
    if not targets:
        raise BundleError(f"There is no bundle at {place}.", hint="give REGISTRY/NAME")
    if target not in targets:
        raise UnknownName.among(f"target of {place.name}", target, targets)
    source = place / target
    manifest = read_manifest(source)
    check_files(source, manifest)
    if lane is not None and lane not in manifest.lanes:
        raise UnknownName.among(f"lane of {place.name} for {target}", lane, manifest.lanes)
    verdict = manifest.lanes[lane].verdict if lane is not None else manifest.verdict
    _require_pass(verdict, f"{manifest.name} for {target}" + (f", lane {lane}" if lane else ""), allow_failed)
    with new_bundle(destination) as fresh:
        if lane is None:
            _copy(source, fresh, manifest)
        else:
            manifest = only_lane(source, fresh, manifest, lane)
        check_files(fresh, read_manifest(fresh))
    return manifest


def only_lane(source: Path, fresh: Path, manifest: Manifest, lane: str) -> Manifest:
    """Copy what one lane needs, and seal it anew with its own verdict."""
    entry = manifest.lanes[lane]
    keep = [name for name in manifest.files
            if not name.startswith(("variants/", "golden/", f"{INSPECTIONS}/", "report.")) or name.startswith(f"variants/{entry.variant}/")
            or name in {GOLDEN_ROWS, GOLDEN_REFERENCE, f"golden/{lane}.npz", f"{INSPECTIONS}/{entry.variant}.json"}]
    for name in keep:
        (fresh / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, fresh / name)
    payload = json.loads((fresh / PAYLOAD_FILE).read_text(encoding="utf-8"))
    payload["variants"] = {entry.variant: payload["variants"][entry.variant]}
    write_payload(fresh, payload)
    files = {name: Blob(digest=digest_file(fresh / name), size=(fresh / name).stat().st_size) for name in keep}
    narrowed = manifest.model_copy(update={
        "lanes": {lane: entry}, "variants": payload["variants"], "figures": {lane: manifest.figures[lane]}, "files": files,
        "payload": payload_digest(files), "verdict": entry.verdict, "scope": entry.scope,
        "lineage": {**manifest.lineage, "pulled_from": manifest.seal}}).sealed()
    (fresh / MANIFEST_FILE).write_text(narrowed.model_dump_json(indent=1), encoding="utf-8")
    return narrowed


def _copy(source: Path, fresh: Path, manifest: Manifest) -> None:
    for name in (*manifest.files, MANIFEST_FILE):
        (fresh / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, fresh / name)


def _require_pass(verdict: Verdict, what: str, allow_failed: bool) -> None:
    if verdict is not Verdict.PASS and not allow_failed:
        raise VerdictRefused(f"The verdict of {what} is {verdict.value}.", hint="--allow-failed takes it nevertheless")
