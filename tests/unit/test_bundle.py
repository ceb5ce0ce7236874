"""A bundle is sealed: whatever is changed, missing or added shows; it takes its place whole, and its archive is the same every time."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import stat
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fake_bundle import ROWS, answers, fill_bundle, make_bundle
from hypothesis import given
from hypothesis import strategies as st

from edgeexport.artifact import Blob, digest_bytes, tree_digest
from edgeexport.bundle import (
    GOLDEN_REFERENCE,
    GOLDEN_ROWS,
    Manifest,
    Margins,
    check_files,
    new_bundle,
    opened,
    payload_digest,
    read_inspections,
    read_manifest,
    write_archive,
)
from edgeexport.errors import BundleError, CheckpointError, OutputError
from edgeexport.session import Bundle
from edgeexport.session.evidence import Answers
from edgeexport.verify.check import Verdict


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """A bundle's directory."""
    make_bundle(tmp_path / "bundle", tmp_path / "scratch")
    return tmp_path / "bundle"


def check(place: Path) -> Manifest:
    manifest = read_manifest(place)
    check_files(place, manifest)
    return manifest


def damaged(place: Path) -> BundleError:
    with pytest.raises(BundleError) as caught:
        check(place)
    return caught.value


def everything(place: Path) -> dict[str, bytes]:
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}


# -- contents


def test_a_bundle_holds_payload_evidence_report_and_the_programs_to_run_it(sealed: Path) -> None:
    manifest = check(sealed)
    assert set(everything(sealed)) == set(manifest.files) | {"manifest.json"} == {
        "manifest.json", "payload.json", "text/tokenizer.json", "text/text.json", "licences/LICENSE", "report.json", "report.html", "sample.py",
        "session.pyz", "inspection/onnx-dynamic-int8.json", "inspection/tflite-dynamic-int8.json",
        "golden/rows.jsonl", "golden/reference.npz", "golden/onnx.npz", "golden/litert.npz",
        "variants/onnx-dynamic-int8/model.onnx", "variants/tflite-dynamic-int8/model.tflite"}
    assert (manifest.name, manifest.target, manifest.verdict, manifest.licence) == ("help-search", "board", Verdict.PASS, "apache-2.0")
    assert set(manifest.variants) == {"onnx-dynamic-int8", "tflite-dynamic-int8"}
    assert manifest.lanes["onnx"].variant == "onnx-dynamic-int8"
    assert manifest.figures["onnx"]["checks"][0]["figure"] == 0.3
    assert Bundle.open(sealed).payload.variants.keys() == manifest.variants.keys()


def test_inspections_are_read_as_sealed_and_only_for_the_files_that_were(sealed: Path) -> None:
    manifest = check(sealed)
    found = read_inspections(sealed, manifest)
    assert {name: report.file for name, report in found.items()} == {
        "onnx-dynamic-int8": "variants/onnx-dynamic-int8/model.onnx", "tflite-dynamic-int8": "variants/tflite-dynamic-int8/model.tflite"}
    (sealed / "variants" / "onnx-dynamic-int8" / "model.onnx").write_bytes(b"another model")
    with pytest.raises(BundleError, match="is damaged"):
        read_inspections(sealed, manifest)


def test_golden_vectors_are_the_chosen_rows_and_what_was_answered_to_them(sealed: Path) -> None:
    rows = [json.loads(line) for line in (sealed / GOLDEN_ROWS).read_text(encoding="utf-8").splitlines()]
    assert rows == [ROWS[0], ROWS[2], ROWS[5]]
    found = Answers.load(sealed / GOLDEN_REFERENCE)
    assert found.tokens == [3, 5, 8]
    assert all((a == b).all() for a, b in zip(found.numbers, answers(0).chosen([0, 2, 5]).numbers, strict=True))


def test_the_digest_of_the_payload_knows_of_no_measurement(sealed: Path) -> None:
    files = check(sealed).files
    measured = {name: blob for name, blob in files.items() if name.startswith(("golden/", "inspection/", "report.", "sample", "session"))}
    assert measured
    other = {name: Blob(digest="other", size=1) for name in measured}
    assert payload_digest(files | other) == payload_digest(files) == check(sealed).payload
    for name in files.keys() - measured.keys():
        assert payload_digest(files | {name: Blob(digest="other", size=1)}) != check(sealed).payload
    assert payload_digest({"payload.json": Blob(digest="d", size=1)}) == tree_digest({"payload.json": "d"})


# -- seals


@pytest.mark.parametrize("edit", [
    lambda data: data["lanes"]["onnx"].update(verdict="fail"), lambda data: data.update(verdict="inconclusive"),
    lambda data: data["files"].pop("payload.json"), lambda data: data.update(seal=""), lambda data: data["lineage"].clear(),
    lambda data: data["lanes"]["onnx"].update(golden_tolerance=100.0)])
def test_an_edited_manifest_is_noticed(sealed: Path, edit: Callable[[dict[str, object]], object]) -> None:
    data = json.loads((sealed / "manifest.json").read_text(encoding="utf-8"))
    edit(data)
    (sealed / "manifest.json").write_text(json.dumps(data), encoding="utf-8")
    error = damaged(sealed)
    assert error.what == f"The manifest of {sealed} was edited."


@pytest.mark.parametrize("text", ["", "{", "[]", "\0\0", "\udcff", '{"schema_version": 1}', '{"figures": NaN}'])
def test_a_damaged_manifest_is_told(sealed: Path, text: str) -> None:
    (sealed / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    assert damaged(sealed).what == f"The manifest of {sealed} is damaged."


def test_no_single_changed_byte_of_a_manifest_passes(sealed: Path) -> None:
    path, random_ = sealed / "manifest.json", random.Random(0)
    whole = path.read_bytes()
    manifest = check(sealed)
    for place in random_.sample(range(len(whole)), 60):
        data = bytearray(whole)
        data[place] ^= random_.choice([1, 2, 4, 8])
        path.write_bytes(data)
        with contextlib.suppress(BundleError):
            assert read_manifest(sealed) == manifest, f"byte {place}"  # a blank for another


def test_a_directory_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    assert damaged(tmp_path).what == f"{tmp_path} is not a bundle."


@pytest.mark.parametrize("name", ["variants/onnx-dynamic-int8/model.onnx", "golden/reference.npz", "report.html", "session.pyz", "licences/LICENSE"])
def test_a_changed_or_missing_file_is_named(sealed: Path, name: str) -> None:
    path = sealed / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert damaged(sealed).why == f"{name} is not what was sealed"
    path.write_bytes(data[:-1])
    assert damaged(sealed).why == f"{name} is not what was sealed"
    path.unlink()
    assert damaged(sealed).why == f"{name} is missing"


@pytest.mark.parametrize("name", ["notes.txt", "variants/onnx-dynamic-int8/extra.onnx", ".hidden", "x__pycache__y"])
def test_a_file_that_was_not_sealed_is_named(sealed: Path, name: str) -> None:
    (sealed / name).write_text("mine", encoding="utf-8")
    assert damaged(sealed).why == name


def test_what_python_leaves_when_the_sample_runs_is_no_change(sealed: Path) -> None:
    (sealed / "__pycache__").mkdir()
    (sealed / "__pycache__" / "sample.cpython-311.pyc").touch()
    check(sealed)
    assert read_manifest(sealed).files


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "variants/../../outside", ".."])
def test_a_manifest_that_names_files_elsewhere_is_refused(sealed: Path, name: str) -> None:
    (sealed.parent / "outside").write_text("x", encoding="utf-8")
    manifest = read_manifest(sealed)
    files = manifest.files | {name: Blob(digest=digest_bytes(b"x"), size=1)}
    (sealed / "manifest.json").write_text(manifest.model_copy(update={"files": files}).sealed().model_dump_json(), encoding="utf-8")
    assert "names a file outside of it" in damaged(sealed).what


@pytest.mark.parametrize("field", ["name", "target"])
@pytest.mark.parametrize("value", ["../evil", "/evil", "a/b", "..", ".hidden", "a\\b", ""])
def test_a_manifest_whose_name_would_be_a_path_is_refused(sealed: Path, field: str, value: str) -> None:
    manifest = read_manifest(sealed).model_copy(update={field: value}).sealed()
    (sealed / "manifest.json").write_text(manifest.model_dump_json(), encoding="utf-8")
    assert "is damaged" in damaged(sealed).what


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text(
    st.characters(codec="utf-8"), max_size=5), max_size=4))
def test_a_seal_survives_writing_and_reading(figures: dict[str, object]) -> None:
    manifest = Manifest(name="n", target="t", isa="x86_64", task="fill-mask", verdict=Verdict.PASS, scope="s", payload="p", licence=None, lanes={},
                        variants={}, text={}, lineage={}, margins=Margins(max_drop=0.02), figures=figures, files={}).sealed()
    again = Manifest.model_validate_json(manifest.model_dump_json(indent=1))
    assert again.seal == again.sealed().seal == manifest.seal
    assert again.model_copy(update={"scope": "other"}).sealed().seal != manifest.seal


# -- taking its place


def test_a_new_bundle_takes_the_place_of_the_old_one_whole(sealed: Path, tmp_path: Path) -> None:
    (sealed / "left-over").touch()
    with new_bundle(sealed) as fresh:
        fill_bundle(fresh, tmp_path / "again", {"litert": Verdict.FAIL})
        assert read_manifest(sealed).verdict is Verdict.PASS  # until the block ends
    assert check(sealed).verdict is Verdict.FAIL
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "bundle", "scratch"]
    assert stat.S_IMODE(sealed.stat().st_mode) == 0o755


@pytest.mark.parametrize("error", [CheckpointError("no"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_bundle_and_nothing_else(sealed: Path, tmp_path: Path, error: BaseException) -> None:
    before = everything(sealed)
    with pytest.raises(type(error)), new_bundle(sealed) as fresh:
        (fresh / "half").touch()
        raise error
    assert everything(sealed) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "scratch"]
    with pytest.raises(type(error)), new_bundle(tmp_path / "deep" / "new"):
        raise error
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_disk_that_is_full_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="Cannot write") as caught, new_bundle(tmp_path / "new"):
        raise OSError(28, "No space left on device")
    assert caught.value.why == "No space left on device"
    assert list(tmp_path.iterdir()) == []


def test_the_old_bundle_comes_back_when_the_new_one_cannot_take_its_place(sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, rename = everything(sealed), Path.rename

    def refuse(source: Path, target: Path) -> Path:
        if target == sealed and sealed.exists() is False and not source.name.endswith("-old"):
            raise OSError(5, "Input/output error")
        return rename(source, target)

    monkeypatch.setattr("edgeexport.take_place.exchange", lambda one, other: False)  # a file system that can't
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OutputError), new_bundle(sealed) as fresh:
        (fresh / "manifest.json").touch()
    assert everything(sealed) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "scratch"]


def test_at_no_moment_is_there_no_bundle(sealed: Path, tmp_path: Path) -> None:
    """Two that replace the same bundle again and again, and one that looks."""
    def replace_it() -> None:
        for _ in range(30):
            with new_bundle(sealed) as fresh:
                (fresh / "manifest.json").touch()

    with ThreadPoolExecutor() as pool:
        working = [pool.submit(replace_it) for _ in range(2)]
        seen = []
        while not all(future.done() for future in working):
            seen.append((sealed / "manifest.json").exists())
        for future in working:
            future.result()
    assert len(seen) > 10
    assert all(seen)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "scratch"]


@pytest.mark.parametrize("make", [
    lambda path: path.mkdir(), lambda path: path.write_text("precious"), lambda path: (path.mkdir(), (path / "a").touch())])
def test_what_is_not_a_bundle_is_never_replaced(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "mine")
    with pytest.raises(OutputError, match="exists and is not a bundle"), new_bundle(tmp_path / "mine"):
        pytest.fail("was begun")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_place_that_cannot_be_written_to_is_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="Cannot write to"), new_bundle(tmp_path / "file" / "bundle"):
        pytest.fail("was begun")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# -- archives


def test_the_archive_of_a_directory_is_the_same_every_time(sealed: Path, tmp_path: Path) -> None:
    write_archive(sealed, tmp_path / "one.zip")
    # The same files, created in another order, at another time, under another umask.
    old, copy = os.umask(0o077), tmp_path / "copy"
    try:
        for name in sorted(everything(sealed), reverse=True):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((sealed / name).read_bytes())
            os.utime(copy / name, (time.time() - 12345, 1_500_000_000))
        write_archive(copy, tmp_path / "two.zip")
    finally:
        os.umask(old)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert stat.S_IMODE((tmp_path / "two.zip").stat().st_mode) == 0o644
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "copy", "one.zip", "scratch", "two.zip"]


def test_an_archive_stores_its_files_as_they_are_and_unpacks_to_a_bundle(sealed: Path, tmp_path: Path) -> None:
    write_archive(sealed, tmp_path / "one.zip")
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.namelist() == sorted(archive.namelist(), key=lambda name: name.split("/"))
    with opened(tmp_path / "one.zip") as place:
        assert everything(place) == everything(sealed)
        check(place)
    assert not place.exists()
    with opened(sealed) as place:
        assert place == sealed


def test_an_archive_that_cannot_be_written_leaves_nothing(sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(OutputError, match="Cannot write") as caught:
        write_archive(sealed, tmp_path / "one.zip")
    assert caught.value.why == "No space left on device"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "scratch"]


@pytest.mark.parametrize("name", ["../../evil.txt", "/tmp/edgeexport-evil.txt", "..\\evil.txt", "a/../../evil.txt"])
def test_an_archive_cannot_write_outside_and_its_stray_file_is_noticed(sealed: Path, tmp_path: Path, name: str) -> None:
    write_archive(sealed, tmp_path / "one.zip")
    with zipfile.ZipFile(tmp_path / "one.zip", "a") as archive:
        archive.writestr(name, "evil")
    with opened(tmp_path / "one.zip") as place:
        assert "evil.txt" in str(damaged(place).why)
        outside = [path for path in (place.parent, tmp_path, Path("/tmp")) if (path / "evil.txt").exists() or (path / "edgeexport-evil.txt").exists()]
    assert outside == []


def test_an_archive_that_is_cut_damaged_or_none_is_told(sealed: Path, tmp_path: Path) -> None:
    archive = tmp_path / "one.zip"
    write_archive(sealed, archive)
    whole = archive.read_bytes()
    changed = bytearray(whole)
    changed[whole.index(b"weights of")] ^= 1
    for data in (whole[:-100], whole[: len(whole) // 2], bytes(changed), b"", b"not a zip"):
        archive.write_bytes(data)
        with pytest.raises(BundleError, match="is not a bundle, or damaged"), opened(archive):
            pytest.fail("was opened")
    with pytest.raises(BundleError, match="There is no bundle at"), opened(tmp_path / "gone.zip"):
        pytest.fail("was opened")


def test_an_error_of_the_user_of_an_opened_archive_stays_what_it_is(sealed: Path, tmp_path: Path) -> None:
    write_archive(sealed, tmp_path / "one.zip")
    with pytest.raises(FileNotFoundError, match="something else"), opened(tmp_path / "one.zip"):
        raise FileNotFoundError("something else")
