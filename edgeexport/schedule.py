"""Places the steps of a plan: what is stored is not run, what is independent runs side by side, within memory and jobs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Literal

from filelock import Timeout

from edgeexport.errors import EdgeExportError, MissingExtra
from edgeexport.graph import Node
from edgeexport.plan import Plan
from edgeexport.run_step import Cancelled, StepRequest, StoredInput, run_step
from edgeexport.source import Leaf
from edgeexport.step import version_of
from edgeexport.store import Entry, Run, Store, action_key, artifact_of

# Runs on inputs whose sizes differ by no more than this factor take about the same memory.
SIMILAR = 1.25


@dataclass(frozen=True)
class Event:
    """What the scheduler tells while it works.

    Attributes:
        node: the node's id.
        what: ``cached`` (found in the store), ``reused`` (its inputs' contents did not change), ``started``, ``progress``, ``finished``,
            ``failed`` (and can be done without).
        fraction: of a step in progress, where known.
        message: what it is doing.
        entry: of a step that has ended.
    """

    node: str
    what: Literal["cached", "reused", "started", "progress", "finished", "failed"]
    fraction: float | None = None
    message: str = ""
    entry: Entry | None = None


@dataclass(frozen=True)
class Limits:
    """What a build may use.

    Attributes:
        jobs: steps at once.
        cores: cores that they share.
        memory_mb: resident memory of all of them together, in MB of 10^6 bytes.
    """

    jobs: int
    cores: int
    memory_mb: int


def pending(plan: Plan, wanted: Iterable[str], store: Store, *, verify: bool = True) -> tuple[dict[str, Entry], list[str]]:
    """Which nodes are stored and used, and which must run, in the plan's order.

    A node that no missing one needs is not looked at: when the end of a branch is stored, its beginning may be gone.

    Args:
        plan: the plan.
        wanted: ids of the nodes whose artifacts are wanted.
        store: the store.
        verify: read the stored blobs and set damaged ones aside; a dry run does without.
    """
    found: dict[str, Entry] = {}
    missing: set[str] = set()
    open_ids = list(wanted)
    while open_ids:
        node = plan.nodes[open_ids.pop()]
        if node.id in found or node.id in missing:
            continue
        entry = store.find(node.step.name, node.key)
        if entry is not None and (not verify or store.verify(entry)):
            found[node.id] = entry
            continue
        missing.add(node.id)
        open_ids += [reference for reference in node.inputs.values() if not reference.startswith("@")]
    return found, [node_id for node_id in plan.nodes if node_id in missing]


def require_backends(plan: Plan, missing: Iterable[str]) -> None:
    """Check that what the missing nodes need is installed.

    Raises:
        MissingExtra: names the extra to install.
    """
    for node_id in missing:
        step = plan.nodes[node_id].step
        for backend in step.backends:
            if version_of(backend) is None and step.extra is not None:
                raise MissingExtra.named(step.extra, backend)


def similar_runs(plan: Plan, store: Store) -> dict[str, Run]:
    """For each node the most recent recorded run of its step on inputs of about the same size; nothing where there is none."""
    recorded = {name: sorted((entry.run for entry in store.entries(name)), key=lambda run: run.finished, reverse=True)
                for name in {node.step.name for node in plan.nodes.values()}}
    runs: dict[str, Run] = {}
    for node in plan.nodes.values():
        size = input_bytes(plan, node)
        found = next((run for run in recorded[node.step.name] if size / SIMILAR <= run.input_bytes <= size * SIMILAR), None)
        if found is not None:
            runs[node.id] = found
    return runs


def input_bytes(plan: Plan, node: Node) -> int:
    """Size of a node's inputs, as far as their specs say."""
    return sum(plan.spec_of(reference).bytes or 0 for reference in node.inputs.values())


class Scheduler:
    """Runs what is missing of a plan."""

    def __init__(self, plan: Plan, store: Store, limits: Limits, tell: Callable[[Event], None]) -> None:
        """Prepare; `tell` is called from several threads."""
        self._plan, self._store, self._limits, self._tell = plan, store, limits, tell
        self._cancelled = threading.Event()
        self._done: dict[str, Entry] = {}
        self._ran: set[str] = set()
        self._failed: dict[str, EdgeExportError] = {}
        self._runs = similar_runs(plan, store)

    @property
    def ran(self) -> frozenset[str]:
        """The nodes that were run, not found."""
        return frozenset(self._ran)

    @property
    def failed(self) -> Mapping[str, EdgeExportError]:
        """The nodes that could be done without and failed, or needed one that did, with its error."""
        return self._failed

    def run(self, wanted: Iterable[str]) -> dict[str, Entry]:
        """Make the wanted nodes' artifacts; returns the entries of all nodes that were used.

        Raises:
            EdgeExportError: a step failed that can't be done without; the others are stopped, and what is finished stays in the store.
        """
        wanted = list(wanted)
        found, missing = pending(self._plan, wanted, self._store)
        require_backends(self._plan, missing)
        self._done = dict(found)
        for node_id, entry in found.items():
            self._tell(Event(node_id, "cached", entry=entry))
        with ThreadPoolExecutor(max_workers=self._limits.jobs) as pool:
            try:
                self._loop(pool, missing)
            except BaseException:
                self._cancelled.set()
                raise
        return self._done

    def _loop(self, pool: ThreadPoolExecutor, missing: list[str]) -> None:
        waiting = sorted(missing, key=self._remaining_seconds, reverse=True)
        running: dict[Future[Entry], Node] = {}
        while waiting or running:
            for node_id in list(waiting):
                node = self._plan.nodes[node_id]
                if self._ready(node) and self._fits(node, list(running.values())):
                    waiting.remove(node_id)
                    running[pool.submit(self._make, node)] = node
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                node = running.pop(future)
                try:
                    self._done[node.id] = future.result()
                except EdgeExportError as exc:
                    if node.id not in self._plan.dispensable:
                        raise
                    self._give_up(node, exc)
                    waiting = [node_id for node_id in waiting if node_id not in self._failed]

    def _give_up(self, node: Node, error: EdgeExportError) -> None:
        """Do without a node and all that need it."""
        self._tell(Event(node.id, "failed", message=error.reason))
        open_nodes = [node]
        while open_nodes:
            given_up = open_nodes.pop()
            self._failed[given_up.id] = error
            open_nodes += self._plan.users_of(given_up.id)

    def _ready(self, node: Node) -> bool:
        return all(reference.startswith("@") or reference in self._done for reference in node.inputs.values())

    def _fits(self, node: Node, running: list[Node]) -> bool:
        """Whether a node may start beside those that run; a node alone always may."""
        if not running:
            return True
        if node.alone or any(other.alone for other in running) or len(running) >= self._limits.jobs:
            return False
        return sum(self._memory_mb(each) for each in (node, *running)) <= self._limits.memory_mb

    def _memory_mb(self, node: Node) -> float:
        run = self._runs.get(node.id)
        if run is not None and run.peak_rss_mb is not None:
            return run.peak_rss_mb * 1.05
        return node.step.memory_mb({name: self._plan.spec_of(reference) for name, reference in node.inputs.items()})

    def _remaining_seconds(self, node_id: str) -> float:
        """Seconds from the start of a node to the end of the longest chain after it: the longest chain goes first."""
        node = self._plan.nodes[node_id]
        run = self._runs.get(node.id)
        own = run.seconds if run is not None else node.step.seconds_guess
        return own + max((self._remaining_seconds(user.id) for user in self._plan.users_of(node_id)), default=0.0)

    def _make(self, node: Node) -> Entry:
        """Run a node, unless another build just did, or an action with the same input contents is stored."""
        with self._locked(node):
            entry = self._store.find(node.step.name, node.key)
            if entry is not None and self._store.verify(entry):
                self._tell(Event(node.id, "cached", entry=entry))
                return entry
            parts = {name: value for name, value in node.parts.items() if name != "inputs"}
            content_key = action_key(parts, {name: self._content(reference) for name, reference in node.inputs.items()})
            same = self._store.find_by_content(node.step.name, content_key)
            if same is not None and self._store.verify(same):
                entry = self._store.put(node.parts, node.key, content_key, same.artifact, same.run)
                self._tell(Event(node.id, "reused", entry=entry))
                return entry
            return self._run(node, content_key)

    def _run(self, node: Node, content_key: str) -> Entry:
        self._tell(Event(node.id, "started"))
        with self._store.workplace() as place:
            request = StepRequest(
                store=self._store.root, node=node.id, step=node.step.name, module=type(node.step).__module__,
                options=node.step.model_dump(mode="json"),
                inputs={name: self._input(reference) for name, reference in node.inputs.items()}, key=node.key, workplace=place,
                threads=self._limits.cores if node.alone else max(1, self._limits.cores // self._limits.jobs),
                memory_mb_max=self._limits.memory_mb)
            result = run_step(request, lambda fraction, message: self._tell(Event(node.id, "progress", fraction, message)),
                              self._cancelled, heavy=node.step.heavy)
            tree = self._store.put_tree(place / "out")
        entry = self._store.put(node.parts, node.key, content_key, artifact_of(tree, result.spec),
                                Run(seconds=result.seconds, peak_rss_mb=result.peak_rss_mb, finished=time.time(),
                                    input_bytes=input_bytes(self._plan, node)))
        self._store.drop_scratch(node.key)
        self._ran.add(node.id)
        self._tell(Event(node.id, "finished", entry=entry))
        return entry

    def _input(self, reference: str) -> StoredInput | Leaf:
        if reference.startswith("@"):
            return self._plan.leaves[reference[1:]]
        artifact = self._done[reference].artifact
        return StoredInput(tree=artifact.tree, spec=artifact.spec)

    def _content(self, reference: str) -> str:
        if reference.startswith("@"):
            return self._plan.leaves[reference[1:]].artifact.digest
        artifact = self._done[reference].artifact
        # A step sees the spec too: an output with the same files and another meaning is not the same input.
        return action_key({"files": artifact.digest}, {"spec": artifact.spec.model_dump_json()})

    def _locked(self, node: Node) -> _WaitingLock:
        return _WaitingLock(self._store, node.key, self._cancelled)


class _WaitingLock:
    """The lock of an action; waiting for it ends when the build is cancelled."""

    def __init__(self, store: Store, key: str, cancelled: threading.Event) -> None:
        self._lock, self._cancelled = store.lock(key), cancelled

    def __enter__(self) -> None:
        while True:
            if self._cancelled.is_set():
                raise Cancelled
            try:
                self._lock.acquire(timeout=0.5)
                return
            except Timeout:
                continue

    def __exit__(self, *exc: object) -> None:
        self._lock.release()


