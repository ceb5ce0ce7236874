"""The store: action key → artifact, blobs by digest.

Layout below the root::

    blobs/ab/abcd…         one file each, named by its SHA-256, read-only
    actions/STEP/KEY.json  the artifact of an action, the parts of its key, and how the run went
    contents/KEY           a second way in: the same step on the same input *contents* → its action
    scratch/KEY/           a step's own directory, which survives a crash
    sources/…              notes on what lies outside: digests of files, by path, size, times and inode; the files of a hub's commit
    damaged/               what was found damaged, set aside

Everything is written to a temporary place and renamed, so that a reader sees a whole entry or none, whenever a writer dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from edgeexport.artifact import Artifact, Blob, Model, Spec, canonical_json, digest_bytes, digest_file, digest_json
from edgeexport.errors import StoreError

FREE_SPACE = "free some space (`edgeexport cache prune --keep 1GB`) or set EDGEEXPORT_CACHE"


class Run(Model):
    """How a step's run went.

    Attributes:
        seconds: wall time.
        peak_rss_mb: highest resident memory of its process, in MB of 2^20 bytes; None where it shared a process.
        finished: Unix time in seconds.
        input_bytes: size of its inputs, as far as the plan knew; time and memory of a run tell nothing of one on other sizes.
    """

    seconds: float
    peak_rss_mb: float | None
    finished: float
    input_bytes: int = 0


class Entry(Model):
    """A stored action.

    Attributes:
        key: the action key.
        parts: what the key is made of.
        artifact: what came out.
        run: how it went.
        seal: digest of the entry without this field.
    """

    key: str
    parts: dict[str, Any]
    artifact: Artifact
    run: Run
    seal: str = ""

    def sealed(self) -> Entry:
        """The entry with its seal."""
        return self.model_copy(update={"seal": digest_json(self.model_dump(mode="json", exclude={"seal"}))})


def default_root() -> Path:
    """$EDGEEXPORT_CACHE, or the user's cache directory."""
    given = os.environ.get("EDGEEXPORT_CACHE")
    return Path(given) if given else Path(platformdirs.user_cache_dir("edgeexport", appauthor=False))


class Store:
    """A store below a root directory, safe for several processes at once and for being killed at any moment."""

    def __init__(self, root: Path | None = None) -> None:
        """Open the store, making its directories.

        Raises:
            StoreError: the root can't be written to.
        """
        self.root = (root or default_root()).absolute()
        try:
            for name in ("blobs", "actions", "contents", "scratch", "sources", "tmp", "locks"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise StoreError(f"Cannot write to the store at {self.root}.", why=exc.strerror,
                             hint="set EDGEEXPORT_CACHE to a directory of yours") from exc

    # -- looking up

    def find(self, step: str, key: str) -> Entry | None:
        """The entry of an action, if it is whole: readable, with every blob there in full size."""
        path = self._action_path(step, key)
        entry = self._read(path)
        if entry is None:
            return None
        for blob in entry.artifact.tree.values():
            try:
                whole = self.blob_path(blob).stat().st_size == blob.size
            except FileNotFoundError:
                whole = False
            if not whole:
                self._set_aside(path)
                return None
        return entry

    def find_by_content(self, step: str, content_key: str) -> Entry | None:
        """The entry of another action of the same step whose inputs had the same contents."""
        key = self._pointer(self.root / "contents" / content_key)
        return self.find(step, key) if key else None

    def entries(self, step: str | None = None) -> Iterator[Entry]:
        """All readable entries, or those of one step, in no particular order."""
        for path in (self.root / "actions").glob(f"{step or '*'}/*.json"):
            entry = self._read(path)
            if entry is not None:
                yield entry

    def verify(self, entry: Entry) -> bool:
        """Whether every blob has the content that its name promises; a damaged one is set aside, and with it the entry."""
        whole = True
        for blob in entry.artifact.tree.values():
            path = self.blob_path(blob)
            if not path.is_file() or digest_file(path) != blob.digest:
                self._set_aside(path)
                whole = False
        if not whole:
            self._set_aside(self._action_path(entry.parts["step"], entry.key))
        return whole

    def blob_path(self, blob: Blob) -> Path:
        """Where a blob lies."""
        return self.root / "blobs" / blob.digest[:2] / blob.digest

    # -- writing

    def put_tree(self, directory: Path) -> dict[str, Blob]:
        """Move every file below a directory into the store; the directory is empty of files afterwards."""
        tree = {}
        for path in sorted(directory.rglob("*")):
            if path.is_symlink():
                raise StoreError(f"A step left a link in its output: {path.name}.")
            if path.is_file():
                tree[path.relative_to(directory).as_posix()] = self._put_file(path)
        return tree

    def put(self, parts: Mapping[str, Any], key: str, content_key: str, artifact: Artifact, run: Run) -> Entry:
        """Record an action; its blobs must be there already."""
        entry = Entry(key=key, parts=dict(parts), artifact=artifact, run=run).sealed()
        path = self._action_path(parts["step"], key)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write(path, entry.model_dump_json())
        self._write(self.root / "contents" / content_key, key)
        return entry

    def view(self, tree: Mapping[str, Blob], directory: Path) -> Path:
        """Lay the blobs of a tree out below a directory, as links. What sees it must not write to it.

        Hard links where they are possible: onnxruntime takes no weights from a file beside the model that turns out to lie elsewhere.
        """
        for name, blob in tree.items():
            link = directory / name
            link.parent.mkdir(parents=True, exist_ok=True)
            try:
                link.hardlink_to(self.blob_path(blob))
            except OSError:
                link.symlink_to(self.blob_path(blob))
        return directory

    @contextlib.contextmanager
    def workplace(self) -> Iterator[Path]:
        """A temporary directory on the store's own file system."""
        with self._writing():
            path = Path(tempfile.mkdtemp(dir=self.root / "tmp"))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def scratch(self, key: str) -> Path:
        """The scratch directory of an action."""
        path = self.root / "scratch" / key
        path.mkdir(exist_ok=True)
        return path

    def drop_scratch(self, key: str) -> None:
        """Remove the scratch directory of an action that succeeded."""
        shutil.rmtree(self.root / "scratch" / key, ignore_errors=True)

    # -- sharing

    def lock(self, key: str) -> FileLock:
        """The lock of an action: who holds it may run it; who waits finds the result."""
        return FileLock(self.root / "locks" / f"{key}.lock")

    @contextlib.contextmanager
    def in_use(self, *, alone: bool = False) -> Iterator[bool]:
        """Keep the store from being pruned while in the block; with `alone`, yields whether nobody else uses it."""
        with (self.root / "locks" / "in-use").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
            except BlockingIOError:
                yield False
                return
            yield True

    # -- files outside

    def file_digest(self, path: Path) -> Blob:
        """Digest of a file outside the store, remembered while its size, times and inode stay the same.

        The time of change counts too: unpacking another archive over a file, or copying with its dates, can keep all the rest.
        """
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        name = str(path.resolve())
        with contextlib.suppress(KeyError, TypeError):
            known = self.recall(name)
            if known["stamp"] == stamp:
                return Blob(digest=known["digest"], size=status.st_size)
        digest = digest_file(path)
        # A file that was changed a moment ago could be changed again within the same tick of the clock.
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > 2_000_000_000:
            self.remember(name, {"stamp": stamp, "digest": digest})
        return Blob(digest=digest, size=status.st_size)

    def remember(self, name: str, value: Any) -> None:
        """Keep a note about a source: plain data, by any name."""
        self._write(self._note(name), json.dumps({"name": name, "value": value}))

    def recall(self, name: str) -> Any:
        """The note of that name; None where there is none, or it is damaged."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return json.loads(self._note(name).read_text(encoding="utf-8"))["value"]
        return None

    def _note(self, name: str) -> Path:
        return self.root / "sources" / digest_bytes(name.encode())

    # -- keeping small

    def prune(self, keep_bytes: int) -> tuple[int, int]:
        """Keep the entries that finished last, as far as their blobs fit; remove the others, and what no entry needs.

        Returns:
            Number of entries removed and bytes freed.

        Raises:
            StoreError: a build is running.
        """
        with self.in_use(alone=True) as alone:
            if not alone:
                raise StoreError("The store is in use.", why="a build is running", hint="try again when it has ended")
            entries = sorted(self.entries(), key=lambda entry: entry.run.finished, reverse=True)
            kept: dict[str, int] = {}
            removed = 0
            for entry in entries:
                with_it = kept | {blob.digest: blob.size for blob in entry.artifact.tree.values()}
                if sum(with_it.values()) <= keep_bytes:
                    kept = with_it
                else:
                    self._action_path(entry.parts["step"], entry.key).unlink(missing_ok=True)
                    removed += 1
            left = {path.stem for path in (self.root / "actions").glob("*/*.json")}
            freed = 0
            for path in (self.root / "blobs").glob("*/*"):
                if path.name not in kept:
                    freed += path.stat().st_size
                    path.unlink()
            for path in (self.root / "contents").iterdir():
                if self._pointer(path) not in left:
                    path.unlink()
            for name in ("tmp", "scratch", "damaged"):
                for path in (self.root / name).glob("*"):
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
            return removed, freed

    # -- inside

    def _action_path(self, step: str, key: str) -> Path:
        return self.root / "actions" / step / f"{key}.json"

    def _read(self, path: Path) -> Entry | None:
        try:
            entry = Entry.model_validate_json(path.read_text(encoding="utf-8"))
            if entry.key == path.stem and entry.seal == entry.sealed().seal:
                return entry
        except FileNotFoundError:
            return None
        except ValueError:  # not text, not JSON, not an entry
            pass
        self._set_aside(path)
        return None

    def _pointer(self, path: Path) -> str | None:
        """The action key in a file of `contents`, where it is one."""
        try:
            text = path.read_text(encoding="ascii")
        except (FileNotFoundError, UnicodeDecodeError):
            return None
        return text if re.fullmatch("[0-9a-f]{64}", text) else None

    def _set_aside(self, path: Path) -> None:
        place = self.root / "damaged"
        place.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, place / f"{path.name}-{time.time_ns()}")

    def _put_file(self, path: Path) -> Blob:
        blob = Blob(digest=digest_file(path), size=path.stat().st_size)
        place = self.blob_path(blob)
        with self._writing():
            place.parent.mkdir(exist_ok=True)
            path.chmod(0o444)
            os.replace(path, place)
        return blob

    def _write(self, path: Path, text: str) -> None:
        with self._writing(), tempfile.TemporaryDirectory(dir=self.root / "tmp") as place:
            fresh = Path(place) / path.name
            fresh.write_text(text, encoding="utf-8")
            os.replace(fresh, path)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise StoreError(f"Cannot write to the store at {self.root}.", why=exc.strerror,
                             hint=FREE_SPACE) from exc


def action_key(parts: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Digest of a step's key parts and of its inputs: their action keys, or for the second look-up their content digests."""
    return digest_json({**parts, "inputs": dict(inputs)})


def describe_change(parts: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """Which parts of a key differ from those of a stored action, as short texts such as ``options.opset: 18 → 20``."""
    changes = []
    for name in ("code", "options", "backends", "inputs"):
        new, old = parts.get(name), stored.get(name)
        if isinstance(new, dict) and isinstance(old, dict):
            for key in sorted(new.keys() | old.keys()):
                if new.get(key) != old.get(key):
                    told = name != "inputs" and not isinstance(new.get(key), dict)
                    values = f": {_short(old.get(key))} → {_short(new.get(key))}" if told else ""
                    changes.append(f"{name}.{key}{values}")
        elif new != old:
            changes.append(name)
    return changes


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else canonical_json(value)
    return text if len(text) <= 24 else f"{text[:21]}…"


def artifact_of(tree: dict[str, Blob], spec: Spec) -> Artifact:
    """An artifact whose spec says its real size."""
    return Artifact(tree=tree, spec=spec.model_copy(update={"bytes": sum(blob.size for blob in tree.values())}))
