"""Publishing and pulling: whole or not at all, nothing damaged, and nothing unproven without being asked."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import signal
from pathlib import Path

import pytest
from fake_bundle import make_bundle

from edgeexport.bundle import check_files, read_manifest
from edgeexport.distribute.directory import publish, pull
from edgeexport.errors import BundleError, OutputError, UnknownName, VerdictRefused
from edgeexport.session import Bundle
from edgeexport.verify.check import Verdict

PASS, FAIL, INCONCLUSIVE = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """A registry with one bundle, help-search for board."""
    make_bundle(tmp_path / "bundle", tmp_path / "scratch")
    publish(tmp_path / "bundle", tmp_path / "registry")
    return tmp_path / "registry"


def names(place: Path) -> list[str]:
    return sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())


def test_what_was_published_is_pulled_byte_for_byte(registry: Path, tmp_path: Path) -> None:
    manifest = pull(registry / "help-search", "board", tmp_path / "mine")
    assert manifest == read_manifest(tmp_path / "bundle")
    assert names(tmp_path / "mine") == names(tmp_path / "bundle") == names(registry / "help-search" / "board")
    assert all((tmp_path / "mine" / name).read_bytes() == (tmp_path / "bundle" / name).read_bytes() for name in names(tmp_path / "mine"))


def test_one_lane_is_a_bundle_of_its_own(registry: Path, tmp_path: Path) -> None:
    whole = read_manifest(tmp_path / "bundle")
    manifest = pull(registry / "help-search", "board", tmp_path / "mine", lane="litert")
    assert names(tmp_path / "mine") == [
        "golden/litert.npz", "golden/reference.npz", "golden/rows.jsonl", "inspection/tflite-dynamic-int8.json", "licences/LICENSE",
        "manifest.json", "payload.json", "sample.py", "session.pyz", "text/text.json", "text/tokenizer.json",
        "variants/tflite-dynamic-int8/model.tflite"]
    check_files(tmp_path / "mine", read_manifest(tmp_path / "mine"))
    assert set(manifest.lanes) == set(manifest.figures) == {"litert"}
    assert set(manifest.variants) == set(json.loads((tmp_path / "mine" / "payload.json").read_text(encoding="utf-8"))["variants"]) == {
        "tflite-dynamic-int8"}
    assert manifest.lineage["pulled_from"] == whole.seal
    assert manifest.payload != whole.payload
    assert Bundle.open(tmp_path / "mine").lanes.keys() == {"litert"}


def test_a_pulled_lane_can_be_published_and_pulled_again(registry: Path, tmp_path: Path) -> None:
    pull(registry / "help-search", "board", tmp_path / "mine", lane="litert")
    publish(tmp_path / "mine", tmp_path / "second")
    assert pull(tmp_path / "second" / "help-search", "board", tmp_path / "third").lanes.keys() == {"litert"}


def test_a_bundle_published_again_replaces_the_old_one(registry: Path, tmp_path: Path) -> None:
    make_bundle(tmp_path / "newer", tmp_path / "more", {"litert": PASS})
    publish(tmp_path / "newer", registry)
    assert pull(registry / "help-search", "board", tmp_path / "mine").lanes.keys() == {"litert"}
    assert [path.name for path in (registry / "help-search").iterdir()] == ["board"]


@pytest.mark.parametrize("verdict", [FAIL, INCONCLUSIVE])
def test_what_is_not_proven_is_refused_until_asked_for(tmp_path: Path, verdict: Verdict) -> None:
    make_bundle(tmp_path / "bundle", tmp_path / "scratch", {"onnx": verdict, "litert": PASS})
    with pytest.raises(VerdictRefused, match=f"The verdict of help-search for board is {verdict.value}") as caught:
        publish(tmp_path / "bundle", tmp_path / "registry")
    assert "--allow-failed" in str(caught.value.hint)
    assert not (tmp_path / "registry").exists()
    publish(tmp_path / "bundle", tmp_path / "registry", allow_failed=True)
    source = tmp_path / "registry" / "help-search"
    with pytest.raises(VerdictRefused):
        pull(source, "board", tmp_path / "mine")
    with pytest.raises(VerdictRefused, match="lane onnx"):
        pull(source, "board", tmp_path / "mine", lane="onnx")
    assert not (tmp_path / "mine").exists()
    assert pull(source, "board", tmp_path / "good", lane="litert").verdict is PASS  # its own verdict counts
    assert pull(source, "board", tmp_path / "mine", allow_failed=True).verdict is verdict


def test_a_failed_optional_lane_does_not_stop_the_bundle_but_its_own_pull(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", tmp_path / "scratch", {"onnx": PASS, "litert": FAIL})
    publish(tmp_path / "bundle", tmp_path / "registry")
    with pytest.raises(VerdictRefused):
        pull(tmp_path / "registry" / "help-search", "board", tmp_path / "mine", lane="litert")


@pytest.mark.parametrize("lane", [None, "litert"])
def test_a_damaged_published_bundle_is_refused_and_nothing_appears(registry: Path, tmp_path: Path, lane: str | None) -> None:
    path = registry / "help-search" / "board" / "variants" / "tflite-dynamic-int8" / "model.tflite"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="is damaged"):
        pull(registry / "help-search", "board", tmp_path / "mine", lane=lane)
    assert not (tmp_path / "mine").exists()
    assert not list(tmp_path.glob(".mine*"))


def test_a_damaged_bundle_is_not_published(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", tmp_path / "scratch")
    (tmp_path / "bundle" / "sample.py").write_text("evil", encoding="utf-8")
    with pytest.raises(BundleError):
        publish(tmp_path / "bundle", tmp_path / "registry", allow_failed=True)
    assert not (tmp_path / "registry").exists()


def test_a_file_that_changes_while_it_is_copied_is_noticed(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copyfile

    def worse(source: Path, target: Path) -> None:
        copy(source, target)
        if Path(target).name == "sample.py":
            Path(target).write_text("evil", encoding="utf-8")

    monkeypatch.setattr(shutil, "copyfile", worse)
    with pytest.raises(BundleError, match="is damaged"):
        pull(registry / "help-search", "board", tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_a_registry_that_is_full_shows_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bundle(tmp_path / "bundle", tmp_path / "scratch")
    copy = shutil.copyfile

    def full(source: Path, target: Path) -> None:
        if Path(target).name == "manifest.json":
            raise OSError(28, "No space left on device")
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OutputError, match="Cannot write"):
        publish(tmp_path / "bundle", tmp_path / "registry")
    assert list((tmp_path / "registry" / "help-search").iterdir()) == []


def _publish_and_die(bundle: Path, registry: Path, at: str) -> None:
    copy = shutil.copyfile

    def die(source: Path, target: Path) -> None:
        copy(source, target)
        if Path(target).name == at:
            signal.raise_signal(signal.SIGKILL)

    shutil.copyfile = die  # type: ignore[assignment]
    publish(bundle, registry)


@pytest.mark.parametrize("at", ["reference.npz", "manifest.json"])
def test_a_publisher_that_was_killed_leaves_nothing_to_be_seen(tmp_path: Path, at: str) -> None:
    make_bundle(tmp_path / "bundle", tmp_path / "scratch")
    process = multiprocessing.get_context("fork").Process(target=_publish_and_die, args=(tmp_path / "bundle", tmp_path / "registry", at))
    process.start()
    process.join(20)
    assert process.exitcode == -9
    assert list((tmp_path / "registry" / "help-search").iterdir())  # it was there, under a hidden name
    with pytest.raises(BundleError, match="There is no bundle at"):
        pull(tmp_path / "registry" / "help-search", "board", tmp_path / "mine")
    publish(tmp_path / "bundle", tmp_path / "registry")
    with pytest.raises(UnknownName) as caught:
        pull(tmp_path / "registry" / "help-search", "bord", tmp_path / "mine")
    assert caught.value.why == "known: board"


def test_unknown_targets_and_lanes_suggest_the_nearest(registry: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownName) as caught:
        pull(registry / "help-search", "bord", tmp_path / "mine")
    assert caught.value.hint == "did you mean 'board'?"
    with pytest.raises(UnknownName) as caught:
        pull(registry / "help-search", "board", tmp_path / "mine", lane="litrt")
    assert caught.value.hint == "did you mean 'litert'?"


def test_a_place_without_bundles_says_what_to_give(registry: Path, tmp_path: Path) -> None:
    for place in (registry, tmp_path / "gone"):
        with pytest.raises(BundleError, match="There is no bundle at") as caught:
            pull(place, "board", tmp_path / "mine")
        assert "REGISTRY/NAME" in str(caught.value.hint)


def test_pulling_never_replaces_what_is_not_a_bundle(registry: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious", encoding="utf-8")
    with pytest.raises(OutputError, match="exists and is not a bundle"):
        pull(registry / "help-search", "board", tmp_path / "mine")
    assert names(tmp_path / "mine") == ["thesis.txt"]
