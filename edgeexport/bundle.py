"""A bundle: payload, evidence, report and manifest, sealed together. What an app developer pulls."""

from __future__ import annotations

import contextlib
import importlib.resources
import json
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field

from edgeexport.artifact import Blob, Model, digest_file, digest_json, tree_digest
from edgeexport.errors import BundleError, OutputError
from edgeexport.inspection.model import ModelReport
from edgeexport.payload import merge_payloads, write_payload
from edgeexport.report.model import Report
from edgeexport.runner.agent_archive import EPOCH, agent_archive
from edgeexport.session.bundle import MANIFEST_FILE
from edgeexport.session.evidence import Answers
from edgeexport.session.payload import PAYLOAD_FILE
from edgeexport.take_place import take_place
from edgeexport.verify.check import Verdict

GOLDEN_ROWS = "golden/rows.jsonl"
INSPECTIONS = "inspection"
GOLDEN_REFERENCE = "golden/reference.npz"
# What the payload's digest is made of: no measurement, no report.
PAYLOAD_PARTS = (PAYLOAD_FILE, "text/", "variants/", "licences/")
# What may become a directory of a registry: it leads nowhere else.
PLACE = r"^[^./\\][^/\\]*$"


class ManifestLane(Model):
    """A lane in a bundle: which variant, which runtime, and what is proven of it."""

    format: str
    variant: str
    runtime: str
    runtime_version: str
    verified_by: str
    required: bool
    verdict: Verdict
    scope: str
    golden_tolerance: float


class Margins(Model):
    """The recipe's margins: bounds of parity other than the defaults, and of the task metric's drop."""

    parity: dict[str, float] = {}
    max_drop: float


class Manifest(Model):
    """What a bundle holds, where it is from, and the digest of every file.

    Attributes:
        payload: digest of the payload; two builds of the same inputs give the same.
        lineage: source, revision and digests of the checkpoint's files, and of an adapter's base model; every step with options and
            versions of its tools.
        margins: what the lanes were judged by.
        figures: lane → the figures that were found, with how they were obtained.
        files: name → digest and size, the manifest itself left out.
        seal: digest of the manifest without this field.
    """

    schema_version: Literal[1] = 1
    name: str = Field(pattern=PLACE)
    target: str = Field(pattern=PLACE)
    isa: str
    task: str
    verdict: Verdict
    scope: str
    payload: str
    licence: str | None
    lanes: dict[str, ManifestLane]
    variants: dict[str, dict[str, Any]]
    text: dict[str, Any]
    lineage: dict[str, Any]
    margins: Margins
    figures: dict[str, Any]
    files: dict[str, Blob]
    seal: str = ""

    def sealed(self) -> Manifest:
        """The manifest with its seal."""
        return self.model_copy(update={"seal": digest_json(self.model_dump(mode="json", exclude={"seal"}))})


@contextlib.contextmanager
def new_bundle(destination: Path) -> Iterator[Path]:
    """A directory to fill, which takes the place of `destination` when the block ends well, and vanishes when it does not.

    Raises:
        OutputError: the place can't be written to, or holds something that is not a bundle.
    """
    require_writable(destination)
    try:
        place = Path(tempfile.mkdtemp(dir=destination.parent, prefix=f".{destination.name}-"))
        try:
            yield place
            place.chmod(0o755)
            take_place(place, destination)
        finally:
            shutil.rmtree(place, ignore_errors=True)
    except OSError as exc:
        # What copies trees raises one error with a list of them.
        why = str(exc.args[0][0][2]) if isinstance(exc, shutil.Error) else exc.strerror or str(exc)
        raise OutputError(f"Cannot write {destination}.", why=why, hint="free some space, or choose another place") from exc


def require_writable(destination: Path) -> None:
    """Check, before any work, that a bundle can come to be at a place.

    Raises:
        OutputError: it can't.
    """
    if destination.exists() and not (destination / MANIFEST_FILE).is_file():
        raise OutputError(f"{destination} exists and is not a bundle.", hint="choose another place")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=destination.parent):
            pass
    except OSError as exc:
        raise OutputError(f"Cannot write to {destination.parent}.", why=exc.strerror or str(exc),
                          hint="choose another place") from exc


def lay_out_payload(place: Path, payloads: Sequence[Path]) -> dict[str, Any]:
    """Copy one-variant payloads together; returns their common description."""
    for payload in payloads:
        shutil.copytree(payload, place, dirs_exist_ok=True, copy_function=shutil.copyfile)
    merged = merge_payloads([json.loads((payload / PAYLOAD_FILE).read_text(encoding="utf-8")) for payload in payloads])
    write_payload(place, merged)
    return merged


def add_golden(place: Path, rows: Sequence[Mapping[str, Any]], chosen: Sequence[int], reference: Answers,
               lanes: Mapping[str, Answers]) -> None:
    """Write the golden vectors: some texts, and what the original and each lane answered to them."""
    (place / "golden").mkdir()
    with (place / GOLDEN_ROWS).open("w", encoding="utf-8") as file:
        for i in chosen:
            file.write(json.dumps(rows[i], ensure_ascii=False) + "\n")
    reference.chosen(chosen).save(place / GOLDEN_REFERENCE)
    for name, answers in lanes.items():
        answers.chosen(chosen).save(place / "golden" / f"{name}.npz")


def add_inspections(place: Path, inspections: Mapping[str, Path]) -> None:
    """Copy what was found in each variant's model file: to be read where the format's library is not installed."""
    (place / INSPECTIONS).mkdir()
    for variant, path in inspections.items():
        shutil.copyfile(path, place / INSPECTIONS / f"{variant}.json")


def read_inspections(place: Path, manifest: Manifest) -> dict[str, ModelReport]:
    """What was found in each variant's model file, by variant.

    Raises:
        BundleError: a file is missing or not what was sealed.
    """
    names = {variant: f"{INSPECTIONS}/{variant}.json" for variant in manifest.variants}
    for variant, name in names.items():
        for file in (name, *manifest.variants[variant]["files"]):
            check_file(place, file, manifest)
    return {variant: ModelReport.model_validate_json((place / name).read_text(encoding="utf-8")) for variant, name in names.items()}


def add_programs(place: Path) -> None:
    """Write the sample and the session it uses."""
    (place / "session.pyz").write_bytes(agent_archive())
    sample = importlib.resources.files("edgeexport.data") / "sample.py"
    (place / "sample.py").write_bytes(sample.read_bytes())


def seal(place: Path, report: Report, payload: Mapping[str, Any], lineage: Mapping[str, Any], margins: Margins) -> Manifest:
    """Write the manifest of a directory that is otherwise complete."""
    files = {path.relative_to(place).as_posix(): Blob(digest=digest_file(path), size=path.stat().st_size)
             for path in sorted(place.rglob("*")) if path.is_file()}
    lanes = {
        lane.lane: ManifestLane(format=lane.format, variant=lane.variant, runtime=lane.runtime, runtime_version=lane.runtime_version,
                                verified_by=lane.verified_by, required=lane.required, verdict=lane.verdict or Verdict.INCONCLUSIVE,
                                scope=lane.scope, golden_tolerance=lane.golden_tolerance or 0.0)
        for lane in report.lanes if lane.variant is not None
    }
    figures = {lane.lane: {"checks": [check.model_dump(mode="json") for check in lane.checks],
                           "speed": lane.speed.model_dump(mode="json") if lane.speed else None, "size_bytes": lane.size_bytes}
               for lane in report.lanes if lane.variant is not None}
    manifest = Manifest(
        name=report.name, target=report.target, isa=report.isa, task=payload["task"], verdict=report.verdict, scope=report.scope,
        payload=payload_digest(files), licence=report.model.get("licence"), lanes=lanes, variants=dict(payload["variants"]),
        text=report.text, lineage=dict(lineage), margins=margins, figures=figures, files=files).sealed()
    (place / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    return manifest


def payload_digest(files: Mapping[str, Blob]) -> str:
    """Digest of the payload's files."""
    return tree_digest({name: blob.digest for name, blob in files.items() if name.startswith(PAYLOAD_PARTS)})


def read_manifest(place: Path) -> Manifest:
    """The manifest of a bundle directory.

    Raises:
        BundleError: there is none, or it was edited, or it names files elsewhere.
    """
    path = place / MANIFEST_FILE
    try:
        manifest = Manifest.model_validate_json(path.read_text(encoding="utf-8"))
        whole = manifest.seal == manifest.sealed().seal
    except OSError as exc:
        raise BundleError(f"{place} is not a bundle.", why=f"it has no readable {MANIFEST_FILE}") from exc
    except ValueError as exc:  # not text, not JSON, not a manifest
        raise BundleError(f"The manifest of {place} is damaged.", why=str(exc).splitlines()[0]) from exc
    for name in manifest.files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise BundleError(f"The manifest of {place} names a file outside of it.", why=name, hint="do not trust where it is from")
    if not whole:
        raise BundleError(f"The manifest of {place} was edited.", why="its seal does not fit", hint="get the bundle again")
    return manifest


def check_files(place: Path, manifest: Manifest) -> None:
    """Compare every file with the manifest.

    Raises:
        BundleError: a file is missing, damaged, or not from the bundle; names it.
    """
    for name in manifest.files:
        check_file(place, name, manifest)
    extra = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()} - manifest.files.keys() - {MANIFEST_FILE}
    extra = {name for name in extra if "__pycache__" not in PurePosixPath(name).parts}
    if extra:
        raise BundleError(f"{place} holds files that were not sealed.", why=", ".join(sorted(extra)[:5]), hint="take them out")


def check_file(place: Path, name: str, manifest: Manifest) -> None:
    """Compare a file with the manifest.

    Raises:
        BundleError: it is missing, damaged, or none that was sealed.
    """
    path, blob = place / name, manifest.files.get(name)
    if not path.is_file():
        raise BundleError(f"{place} is not whole.", why=f"{name} is missing", hint="get the bundle again")
    if blob is None or path.stat().st_size != blob.size or digest_file(path) != blob.digest:
        raise BundleError(f"{place} is damaged.", why=f"{name} is not what was sealed", hint="get the bundle again")


def write_archive(place: Path, archive: Path) -> None:
    """The bundle as one file. The same directory gives the same bytes: sorted names, no dates, no compression.

    Stored rather than deflated: INT8 weights hardly shrink, a deflater's version would show in the bytes, and what is stored can be
    mapped into memory straight from the archive.

    Raises:
        OutputError: it can't be written.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(dir=archive.parent, prefix=f".{archive.name}-")
        try:
            with os.fdopen(descriptor, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as out:
                for path in sorted(path for path in place.rglob("*") if path.is_file()):
                    info = zipfile.ZipInfo(path.relative_to(place).as_posix(), EPOCH)
                    info.external_attr = 0o644 << 16
                    with path.open("rb") as source, out.open(info, "w", force_zip64=path.stat().st_size > 2**31) as entry:
                        shutil.copyfileobj(source, entry, 1 << 20)
            Path(temporary).chmod(0o644)
            os.replace(temporary, archive)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as exc:
        raise OutputError(f"Cannot write {archive}.", why=exc.strerror or str(exc),
                          hint="free some space, or choose another place") from exc


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Path]:
    """A bundle's directory; an archive is unpacked to a temporary place.

    Raises:
        BundleError: there is no bundle, or the archive is damaged.
    """
    if path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="edgeexport-") as place:
        try:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(place)
        except FileNotFoundError as exc:
            raise BundleError(f"There is no bundle at {path}.") from exc
        except (zipfile.BadZipFile, zlib.error, ValueError, RuntimeError, EOFError) as exc:  # what zipfile raises over damaged archives
            raise BundleError(f"{path} is not a bundle, or damaged.", why=str(exc), hint="get it again") from exc
        except OSError as exc:
            raise BundleError(f"{path} cannot be unpacked.", why=str(exc)) from exc
        if not (Path(place) / MANIFEST_FILE).is_file():  # cut off, it may end with the archive that is in it
            raise BundleError(f"{path} is not a bundle, or damaged.", why=f"it has no {MANIFEST_FILE}", hint="get it again")
        yield Path(place)
