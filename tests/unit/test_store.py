"""The store gives back what was put, whole or not at all, whatever happens to its files, its disk and its writers."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeexport.artifact import Artifact, Blob, Kind, Spec, digest_bytes
from edgeexport.errors import StoreError
from edgeexport.store import Entry, Run, Store, action_key, artifact_of, default_root, describe_change

FORK = multiprocessing.get_context("fork")
RUN = Run(seconds=1.5, peak_rss_mb=100.25, finished=1000.0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def parts_of(number: int, step: str = "make") -> dict[str, object]:
    return {"step": step, "code": "c", "options": {"number": number}, "backends": {}, "inputs": {}}


def put(store: Store, number: int, files: dict[str, bytes] | None = None, finished: float = 1000.0) -> Entry:
    """Put an action whose files tell its number."""
    parts = parts_of(number)
    with store.workplace() as place:
        for name, data in (files or {"file": b"%d" % number, "more/file": b"content " * 1000 + b"%d" % number}).items():
            (place / "out" / name).parent.mkdir(parents=True, exist_ok=True)
            (place / "out" / name).write_bytes(data)
        (place / "out").mkdir(exist_ok=True)
        tree = store.put_tree(place / "out")
    spec = Spec(kind=Kind.DATASET, facts={"number": number, "ratio": 0.1})
    return store.put(parts, key_of(number), content_key_of(number), artifact_of(tree, spec), RUN.model_copy(update={"finished": finished}))


def key_of(number: int) -> str:
    return action_key(parts_of(number), {})


def content_key_of(number: int) -> str:
    return digest_bytes(b"content %d" % number)


def find(store: Store, number: int) -> Entry | None:
    """What a build would be served."""
    entry = store.find("make", key_of(number))
    return entry if entry is not None and store.verify(entry) else None


def action_file(store: Store, number: int) -> Path:
    return store.root / "actions" / "make" / f"{key_of(number)}.json"


def blobs(store: Store) -> set[str]:
    return {path.name for path in (store.root / "blobs").glob("*/*")}


# -- giving back


def test_what_was_put_is_found_by_a_later_store(store: Store) -> None:
    entry = put(store, 1)
    found = find(Store(store.root), 1)
    assert found == entry
    assert found is not None
    assert found.artifact.tree["more/file"].size == len(b"content " * 1000 + b"1")
    assert found.artifact.spec.bytes == found.artifact.size
    assert store.blob_path(found.artifact.tree["file"]).read_bytes() == b"1"
    assert find(store, 2) is None
    assert store.find("other", key_of(1)) is None


@given(st.dictionaries(st.from_regex(r"[a-z]{1,3}(/[a-z]{1,3}){0,2}", fullmatch=True), st.binary(max_size=20), max_size=5))
@settings(max_examples=15)
def test_any_tree_comes_back_byte_for_byte(files: dict[str, bytes]) -> None:
    files = {name: data for name, data in files.items() if not any(other.startswith(f"{name}/") for other in files)} or {"file": b"x"}
    with tempfile.TemporaryDirectory() as root:
        store = Store(Path(root))
        put(store, 1, files)
        entry = find(store, 1)
        assert entry is not None
        view = store.view(entry.artifact.tree, Path(root) / "view")
        assert {path.relative_to(view).as_posix(): path.read_bytes() for path in view.rglob("*") if path.is_file()} == files


def test_equal_files_are_stored_once_and_nobody_may_write_to_them(store: Store) -> None:
    put(store, 1, {"a": b"same", "b": b"same", "c": b"other"})
    put(store, 2, {"d": b"same"})
    assert len(blobs(store)) == 2
    assert all(path.stat().st_mode & 0o777 == 0o444 for path in (store.root / "blobs").glob("*/*"))


def test_a_link_in_a_steps_output_is_refused(store: Store) -> None:
    with store.workplace() as place:
        (place / "link").symlink_to("/etc/passwd")
        with pytest.raises(StoreError, match="left a link in its output: link"):
            store.put_tree(place)


def test_another_action_with_the_same_input_contents_is_found(store: Store) -> None:
    entry = put(store, 1)
    assert store.find_by_content("make", content_key_of(1)) == entry
    assert store.find_by_content("make", content_key_of(2)) is None
    assert store.find_by_content("other", content_key_of(1)) is None


def test_a_workplace_is_gone_afterwards(store: Store) -> None:
    with contextlib.suppress(RuntimeError), store.workplace() as place:
        (place / "file").touch()
        raise RuntimeError
    assert not place.exists()
    assert list((store.root / "tmp").iterdir()) == []


def test_scratch_stays_until_it_is_dropped(store: Store) -> None:
    (store.scratch("key") / "checkpoint").write_text("half", encoding="utf-8")
    assert (Store(store.root).scratch("key") / "checkpoint").read_text(encoding="utf-8") == "half"
    store.drop_scratch("key")
    assert list(store.scratch("key").iterdir()) == []


def test_the_root_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEEXPORT_CACHE", str(tmp_path))
    assert default_root() == tmp_path
    monkeypatch.delenv("EDGEEXPORT_CACHE")
    assert default_root().name == "edgeexport"


# -- damage


def flip_last_byte(path: Path) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut_half(path: Path) -> None:
    path.chmod(0o644)
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [flip_last_byte, cut_half, Path.unlink])
def test_a_damaged_blob_is_never_served_and_can_be_made_anew(store: Store, damage: Callable[[Path], None]) -> None:
    entry = put(store, 1)
    damage(store.blob_path(entry.artifact.tree["more/file"]))
    assert find(store, 1) is None
    assert not action_file(store, 1).exists()
    assert put(store, 1) == entry
    assert find(store, 1) == entry


def test_a_quick_look_sees_a_blob_of_another_size(store: Store) -> None:
    entry = put(store, 1)
    assert store.find("make", key_of(1)) == entry
    cut_half(store.blob_path(entry.artifact.tree["more/file"]))
    assert store.find("make", key_of(1)) is None


def test_a_flipped_byte_also_ends_other_actions_with_that_blob(store: Store) -> None:
    first, second = put(store, 1, {"a": b"shared"}), put(store, 2, {"b": b"shared"})
    flip_last_byte(store.blob_path(first.artifact.tree["a"]))
    assert not store.verify(first)
    assert find(store, 2) is None
    assert second.artifact.tree["b"].digest not in blobs(store)
    assert len(list((store.root / "damaged").iterdir())) == 3  # the blob and two actions are set aside, not deleted


@pytest.mark.parametrize("text", [
    "", "\0" * 100, "{", "null", "[]", "not json", "\udcff", '{"key": "k"}', '{"key": "k", "parts": {}, "artifact": 3, "run": null}'],
    ids=["empty", "zeros", "cut", "null", "list", "text", "not-utf8", "missing-fields", "wrong-types"])
def test_garbage_in_an_action_is_set_aside(store: Store, text: str) -> None:
    entry = put(store, 1)
    action_file(store, 1).write_bytes(text.encode(errors="surrogateescape"))
    assert find(store, 1) is None
    assert list(store.entries()) == []
    assert [path.name.partition(".")[0] for path in (store.root / "damaged").iterdir()] == [key_of(1)]
    assert put(store, 1) == entry
    assert find(store, 1) == entry


def test_an_action_with_a_field_that_nobody_knows_is_set_aside(store: Store) -> None:
    put(store, 1)
    data = json.loads(action_file(store, 1).read_text(encoding="utf-8"))
    action_file(store, 1).write_text(json.dumps(data | {"colour": "red"}), encoding="utf-8")
    assert find(store, 1) is None


def test_no_single_changed_byte_of_an_action_is_served(store: Store) -> None:
    entry = put(store, 1, {"file": b"1"})
    path, random_ = action_file(store, 1), random.Random(0)
    whole = path.read_bytes()
    for place in random_.sample(range(len(whole)), 120):
        data = bytearray(whole)
        data[place] ^= random_.choice([1, 2, 4, 8, 16])
        path.write_bytes(data)
        assert find(store, 1) in (None, entry), f"byte {place}"
    path.write_bytes(whole)
    assert find(store, 1) == entry


def test_an_action_under_another_name_is_not_served(store: Store) -> None:
    put(store, 1)
    action_file(store, 1).rename(action_file(store, 2))
    assert find(store, 2) is None


@pytest.mark.parametrize("data", [b"", b"\0" * 64, b"\xff\xfe", b"../../../etc/passwd", b"f" * 64],
                         ids=["empty", "zeros", "not-text", "path", "nothing-there"])
def test_a_damaged_pointer_by_content_finds_nothing(store: Store, data: bytes) -> None:
    put(store, 1)
    (store.root / "contents" / content_key_of(1)).write_bytes(data)
    assert store.find_by_content("make", content_key_of(1)) is None
    assert store.prune(10**9)[0] == 0
    assert put(store, 1) == store.find_by_content("make", content_key_of(1))


def test_what_a_dead_writer_left_half_written_is_not_seen(store: Store) -> None:
    (store.root / "tmp" / "tmpabc").mkdir()
    (store.root / "tmp" / "tmpabc" / f"{key_of(1)}.json").write_text('{"key": "', encoding="utf-8")
    (store.root / "actions" / "make").mkdir()
    assert find(store, 1) is None
    assert list(store.entries()) == []
    store.prune(10**9)
    assert list((store.root / "tmp").iterdir()) == []


# -- several writers, and writers that die


def _put_many(root: Path, numbers: list[int]) -> None:
    store = Store(root)
    for number in numbers:
        put(store, number)


def test_processes_that_put_the_same_and_other_entries_at_once_leave_all_whole(tmp_path: Path) -> None:
    root = tmp_path / "store"
    orders = [list(range(12)), list(range(11, -1, -1)), [5] * 12, list(range(12, 24))]
    processes = [FORK.Process(target=_put_many, args=(root, order)) for order in orders]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 4
    store = Store(root)
    for number in range(24):
        found = find(store, number)
        assert found is not None
        assert found.artifact.spec.facts["number"] == number
    assert not (root / "damaged").exists()


def _put_until_killed(root: Path, first: int) -> None:
    store = Store(root)
    for number in range(first, first + 10_000):
        put(store, number % 40)


def test_a_writer_may_be_killed_at_any_moment(tmp_path: Path) -> None:
    root, random_ = tmp_path / "store", random.Random(1)
    for attempt in range(20):
        process = FORK.Process(target=_put_until_killed, args=(root, attempt))
        process.start()
        time.sleep(random_.uniform(0.005, 0.06))
        process.kill()
        process.join()
        assert process.exitcode == -9
        store = Store(root)
        served = [entry for number in range(40) if (entry := find(store, number)) is not None]
        assert all(store.blob_path(blob).stat().st_size == blob.size for entry in served for blob in entry.artifact.tree.values())
    assert served  # they did write something between the kills
    assert not (root / "damaged").exists()  # what a killed writer leaves is nothing or whole, not damage
    _put_many(root, list(range(40)))
    assert all(find(store, number) is not None for number in range(40))
    store.prune(0)
    assert blobs(store) == set()
    assert list((root / "tmp").iterdir()) == []


# -- a disk that refuses


def test_a_root_that_cannot_be_written_to_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()  # below a file not even root can write
    with pytest.raises(StoreError, match="Cannot write to the store") as caught:
        Store(tmp_path / "file" / "store")
    assert "EDGEEXPORT_CACHE" in str(caught.value.hint)


@pytest.mark.parametrize("fails_at", ["blobs", "actions", "contents"])
def test_a_disk_that_is_full_at_a_rename_is_told_and_leaves_nothing_half(store: Store, monkeypatch: pytest.MonkeyPatch, fails_at: str) -> None:
    replace = os.replace

    def refuse(source: Path, target: Path) -> None:
        if f"/{fails_at}/" in str(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StoreError, match="Cannot write to the store") as caught:
        put(store, 1)
    assert caught.value.why == "No space left on device"
    assert "cache prune" in str(caught.value.hint)
    monkeypatch.undo()
    assert list((store.root / "tmp").iterdir()) == []
    assert put(store, 1) == find(store, 1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(place)], capture_output=True).returncode:
        pytest.skip("a file system can't be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_is_really_full_is_told_and_the_store_goes_on_when_there_is_room(small_disk: Path) -> None:
    store = Store(small_disk / "store")
    whole = put(store, 1)
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    with pytest.raises((StoreError, OSError), match=r"Cannot write to the store|No space left"):
        put(store, 2)
    assert find(store, 1) == whole
    assert find(store, 2) is None
    filler.unlink()
    assert put(store, 2) == find(store, 2)


# -- pruning


def test_pruning_keeps_the_newest_that_fit_and_frees_the_rest(store: Store) -> None:
    for number in range(5):
        put(store, number, {"file": b"%d" % number * 1000}, finished=number)
    removed, freed = store.prune(2500)
    assert (removed, freed) == (3, 3000)
    assert [find(store, number) is not None for number in range(5)] == [False, False, False, True, True]
    assert len(blobs(store)) == 2
    assert {path.name for path in (store.root / "contents").iterdir()} == {content_key_of(3), content_key_of(4)}


def test_a_blob_that_a_kept_entry_needs_is_kept(store: Store) -> None:
    put(store, 1, {"shared": b"s" * 1000, "own": b"1" * 1000}, finished=1)
    put(store, 2, {"shared": b"s" * 1000}, finished=2)
    assert store.prune(1500) == (1, 1000)
    assert find(store, 2) is not None


def test_pruning_removes_what_no_entry_needs(store: Store) -> None:
    put(store, 1, {"file": b"x" * 10})
    with store.workplace() as place:
        (place / "orphan").write_bytes(b"nobody's")
        store.put_tree(place)
    (store.scratch("dead") / "file").touch()
    action_file(store, 9).write_text("damaged", encoding="utf-8")
    assert find(store, 9) is None
    assert store.prune(10**9) == (0, len(b"nobody's"))
    assert find(store, 1) is not None
    assert list((store.root / "scratch").iterdir()) == []
    assert list((store.root / "damaged").iterdir()) == []


def test_nothing_is_pruned_while_a_build_uses_the_store(store: Store) -> None:
    put(store, 1)
    (store.scratch("training") / "checkpoint").touch()
    with store.in_use(), store.in_use(), pytest.raises(StoreError, match="The store is in use"):
        Store(store.root).prune(0)
    assert find(store, 1) is not None
    assert (store.scratch("training") / "checkpoint").exists()
    assert store.prune(0)[0] == 1


def _use(root: Path, ready: object) -> None:
    with Store(root).in_use():
        ready.set()  # type: ignore[attr-defined]
        time.sleep(30)


def test_a_user_of_the_store_that_was_killed_no_longer_holds_it(store: Store) -> None:
    ready = FORK.Event()
    process = FORK.Process(target=_use, args=(store.root, ready))
    process.start()
    assert ready.wait(10)
    with pytest.raises(StoreError):
        store.prune(0)
    process.kill()
    process.join()
    assert store.prune(0) == (0, 0)


# -- digests of files outside


LATER = 2**62  # nanoseconds: long after any file was changed


def test_the_digest_of_an_unchanged_file_is_remembered(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    monkeypatch.setattr("edgeexport.store.time.time_ns", lambda: LATER)
    first = store.file_digest(path)
    assert first == Blob(digest=digest_bytes(b"old"), size=3)
    monkeypatch.setattr("edgeexport.store.digest_file", lambda path: pytest.fail("was read again"))
    assert Store(store.root).file_digest(path) == first


def test_a_change_of_the_same_size_within_the_same_tick_is_noticed(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    stamp = path.stat().st_mtime_ns
    store.file_digest(path)
    path.write_bytes(b"new")
    os.utime(path, ns=(stamp, stamp))  # as if both were written within one tick of the clock
    assert store.file_digest(path).digest == digest_bytes(b"new")


@pytest.mark.parametrize("change", ["touched", "replaced", "longer", "copied over with its dates"])
def test_a_change_of_an_old_file_is_noticed(store: Store, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeexport.store.time.time_ns", lambda: LATER)
    path, old = tmp_path / "weights", 1_000_000_000
    path.write_bytes(b"old")
    os.utime(path, ns=(old, old))
    store.file_digest(path)
    new = b"newer" if change == "longer" else b"new"
    if change == "replaced":
        (tmp_path / "fresh").write_bytes(new)
        (tmp_path / "fresh").rename(path)
    else:
        path.write_bytes(new)
    os.utime(path, ns=(old, old + (change == "touched")))
    assert store.file_digest(path) == Blob(digest=digest_bytes(new), size=len(new))


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b'"x"', b"\xff", b'{"stamp": 1}'])
def test_a_damaged_note_is_as_none(store: Store, tmp_path: Path, note: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    monkeypatch.setattr("edgeexport.store.time.time_ns", lambda: LATER)
    store.file_digest(path)
    (found,) = (store.root / "sources").iterdir()
    found.write_bytes(note)
    assert store.file_digest(path).digest == digest_bytes(b"old")


# -- keys


json_leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=4)


@given(st.dictionaries(st.text(max_size=4), json_leaves, max_size=4), st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=3))
def test_a_key_depends_on_parts_and_inputs_and_nothing_else(options: dict[str, object], inputs: dict[str, str]) -> None:
    parts = {"step": "make", "options": options}
    key = action_key(parts, inputs)
    assert key == action_key(dict(reversed(parts.items())), dict(reversed(inputs.items())))
    assert key != action_key({**parts, "step": "other"}, inputs)
    assert key != action_key({**parts, "options": {**options, "another": 1}}, inputs)
    assert key != action_key(parts, {**inputs, "another": "1"})


@pytest.mark.parametrize(("change", "told"), [
    ({}, []),
    ({"code": "d"}, ["code"]),
    ({"options": {"opset": 20}}, ["options.opset: 18 → 20"]),
    ({"options": {"opset": 18, "new": None}}, []),  # None is what a missing one is
    ({"options": {"opset": 18, "lengths": [16, 32]}}, ["options.lengths: null → [16,32]"]),
    ({"backends": {"torch": "2.13.1"}}, ["backends.torch: 2.13.0 → 2.13.1"]),
    ({"backends": {"torch": None}}, ["backends.torch: 2.13.0 → null"]),
    ({"inputs": {"model": "k2"}}, ["inputs.model"]),
    ({"inputs": {}}, ["inputs.model"]),
    ({"code": "d", "inputs": {"model": "k2"}}, ["code", "inputs.model"]),
    ({"options": {"opset": "x" * 30}}, [f"options.opset: 18 → {'x' * 21}…"]),
])
def test_what_changed_in_a_key_is_told_in_short(change: dict[str, object], told: list[str]) -> None:
    stored = {"step": "make", "code": "c", "options": {"opset": 18}, "backends": {"torch": "2.13.0"}, "inputs": {"model": "k1"}}
    assert describe_change(stored | change, stored) == told


def test_an_artifact_says_its_real_size() -> None:
    tree = {"a": Blob(digest="1", size=3), "b": Blob(digest="2", size=4)}
    assert artifact_of(tree, Spec(kind=Kind.ONNX, bytes=99)) == Artifact(tree=tree, spec=Spec(kind=Kind.ONNX, bytes=7))
