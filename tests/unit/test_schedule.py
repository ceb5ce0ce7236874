"""The scheduler runs what is missing, once, in a good order and within its limits; what is finished stays, whatever happens to the rest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import fake_build
import psutil
import pytest
from fake_steps import FILE, Needy, RaiseHere, Shout, Slow, Spawn, Write, WriteApart, plan_of
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeexport.errors import CheckpointError, MissingExtra
from edgeexport.evaluation import without_failed
from edgeexport.plan import LanePlan, Plan
from edgeexport.schedule import Event, Limits, Scheduler, pending, similar_runs
from edgeexport.store import Entry, Run, Store
from edgeexport.target import load_target

ONE = Limits(jobs=1, cores=2, memory_mb=4000)
TWO = Limits(jobs=2, cores=2, memory_mb=4000)


@dataclass
class Watch:
    """What a scheduler told, and which nodes ran at the same time."""

    events: list[Event] = field(default_factory=list)
    together: list[frozenset[str]] = field(default_factory=list)
    _running: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, event: Event) -> None:
        with self._lock:
            self.events.append(event)
            if event.what == "started":
                self._running.add(event.node)
                self.together.append(frozenset(self._running))
            elif event.what == "finished":
                self._running.discard(event.node)

    def nodes(self, what: str) -> list[str]:
        return [event.node for event in self.events if event.what == what]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def run(plan: Plan, store: Store, limits: Limits = ONE, wanted: list[str] | None = None) -> tuple[Watch, dict[str, Entry]]:
    watch = Watch()
    entries = Scheduler(plan, store, limits, watch).run(wanted or list(plan.nodes))
    return watch, entries


def text_of(store: Store, entry: Entry) -> str:
    return store.blob_path(entry.artifact.tree[FILE]).read_text(encoding="utf-8")


def record(store: Store, step: str, run_: Run) -> None:
    """An action of a step that was run once."""
    store.put({"step": step}, f"{int(run_.finished):064x}", f"{int(run_.finished):064x}", Entry.model_validate(
        {"key": "k", "parts": {}, "artifact": {"tree": {}, "spec": {"kind": "dataset"}}, "run": run_}).artifact, run_)


# -- what is run


def test_a_step_sees_what_its_inputs_made(store: Store) -> None:
    plan = plan_of({"a": (Write(text="a"), {}), "b": (WriteApart(text="b"), {"given": "a"}), "c": (Write(text="c"), {"x": "b", "y": "a"})})
    watch, entries = run(plan, store)
    assert text_of(store, entries["c"]) == "abac"
    assert watch.nodes("started") == watch.nodes("finished") == ["a", "b", "c"]
    assert [(event.fraction, event.message) for event in watch.events if event.what == "progress"] == [(0.5, "half [way]"), (None, "threads 2")]
    assert entries["b"].run.peak_rss_mb is not None
    assert entries["a"].run.peak_rss_mb is None
    assert list((store.root / "tmp").iterdir()) == []
    assert list((store.root / "scratch").iterdir()) == []


def test_what_is_stored_is_not_run_again(store: Store) -> None:
    plan = plan_of({"a": (Write(text="a"), {}), "b": (Write(text="b"), {"given": "a"})})
    _, first = run(plan, store)
    scheduler = Scheduler(plan, store, ONE, watch := Watch())
    assert scheduler.run(["a", "b"]) == first
    assert sorted(watch.nodes("cached")) == ["a", "b"]
    assert scheduler.ran == frozenset()


def test_the_beginning_of_a_branch_may_be_gone_when_its_end_is_stored(store: Store) -> None:
    plan = plan_of({"a": (Write(text="a"), {}), "b": (Write(text="b"), {"given": "a"})})
    run(plan, store)
    (store.root / "actions" / "write" / f"{plan.nodes['a'].key}.json").unlink()
    assert pending(plan, ["b"], store)[1] == []
    assert pending(plan, ["a", "b"], store)[1] == ["a"]


def test_a_damaged_result_is_run_again_and_its_intact_inputs_are_not(store: Store) -> None:
    plan = plan_of({"a": (Write(text="a"), {}), "b": (Write(text="b"), {"given": "a"}), "c": (Write(text="c"), {"given": "b"})})
    _, entries = run(plan, store)
    path = store.blob_path(entries["b"].artifact.tree[FILE])
    path.chmod(0o644)
    path.write_text("xx", encoding="utf-8")  # of the same size
    assert pending(plan, ["b"], store, verify=False)[1] == []  # a dry run does not read it
    watch, again = run(plan, store, wanted=["b", "c"])
    assert watch.nodes("started") == ["b"]
    assert again["b"].artifact == entries["b"].artifact
    assert text_of(store, again["c"]) == "abc"


def test_an_output_that_did_not_change_stops_the_cascade(store: Store) -> None:
    def plan(text: str) -> Plan:
        return plan_of({"source": (Write(text=text), {}), "shout": (Shout(), {"given": "source"}),
                        "end": (Write(text="!"), {"given": "shout"}), "after": (Write(text="?"), {"given": "end"})})

    run(plan("hello"), store)
    watch, entries = run(plan("Hello"), store)
    assert watch.nodes("started") == ["source", "shout"]
    assert watch.nodes("reused") == ["end", "after"]
    assert text_of(store, entries["after"]) == "HELLO!?"
    assert run(plan("Hello"), store)[0].nodes("cached") == ["after", "end", "shout", "source"]
    assert run(plan("other"), store)[0].nodes("started") == ["source", "shout", "end", "after"]


def test_a_missing_package_is_told_before_any_work(store: Store) -> None:
    plan = plan_of({"a": (Write(text="a"), {}), "b": (Needy(text="b"), {"given": "a"})})
    with pytest.raises(MissingExtra) as caught:
        run(plan, store)
    assert "edgeexport[onnx]" in str(caught.value.hint)
    assert list(store.entries()) == []


# -- order and limits


def test_the_longest_chain_goes_first(store: Store) -> None:
    plan = plan_of({"quick": (Write(text="q"), {}), "first": (Write(text="f"), {}), "slow": (Slow(text="s"), {"given": "first"})})
    assert run(plan, store)[0].nodes("started") == ["first", "slow", "quick"]


def test_how_long_steps_took_before_decides_the_order(store: Store) -> None:
    record(store, "slow", Run(seconds=0.1, peak_rss_mb=None, finished=1))
    record(store, "write", Run(seconds=0.1, peak_rss_mb=None, finished=2))
    record(store, "write", Run(seconds=9.0, peak_rss_mb=None, finished=3))
    plan = plan_of({"slow": (Slow(text="s"), {}), "quick": (Write(text="q"), {})})
    assert similar_runs(plan, store) == {"quick": Run(seconds=9.0, peak_rss_mb=None, finished=3),
                                         "slow": Run(seconds=0.1, peak_rss_mb=None, finished=1)}
    assert run(plan, store)[0].nodes("started") == ["quick", "slow"]


def test_independent_steps_run_side_by_side(store: Store) -> None:
    plan = plan_of({name: (Write(text=name, seconds=0.2), {}) for name in "ab"})
    assert frozenset("ab") in run(plan, store, TWO)[0].together


def test_steps_that_took_much_memory_before_run_one_by_one(store: Store) -> None:
    record(store, "write", Run(seconds=1.0, peak_rss_mb=2000, finished=1))
    plan = plan_of({name: (Write(text=name, seconds=0.1), {}) for name in "ab"})
    assert max(map(len, run(plan, store, TWO)[0].together)) == 1


def test_a_run_on_inputs_of_another_size_says_nothing(store: Store) -> None:
    record(store, "write", Run(seconds=1.0, peak_rss_mb=2000, finished=1, input_bytes=10**9))
    plan = plan_of({name: (Write(text=name, seconds=0.2), {}) for name in "ab"})
    assert similar_runs(plan, store) == {}
    assert frozenset("ab") in run(plan, store, TWO)[0].together


def test_a_step_that_needs_more_than_there_is_still_runs_alone(store: Store) -> None:
    plan = plan_of({"big": (Write(text="b", megabytes=9999), {}), "small": (Write(text="s"), {})})
    watch, _ = run(plan, store, TWO)
    assert sorted(watch.nodes("finished")) == ["big", "small"]
    assert max(map(len, watch.together)) == 1


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[str, tuple[int, list[int]]], frozenset[str]]:
    """Nodes with their memory and the earlier nodes that they need; and which run alone."""
    count = draw(st.integers(1, 7))
    nodes = {f"n{i}": (draw(st.integers(1, 6)) * 100, sorted(draw(st.sets(st.integers(0, i - 1), max_size=3))) if i else []) for i in range(count)}
    return nodes, draw(st.frozensets(st.sampled_from(sorted(nodes)), max_size=2))


@settings(max_examples=25)
@given(graphs(), st.integers(1, 4))
def test_any_graph_runs_once_in_order_and_within_the_limits(graph: tuple[dict[str, tuple[int, list[int]]], frozenset[str]], jobs: int) -> None:
    nodes, alone = graph
    plan = plan_of({name: (Write(text=name, seconds=0.004, megabytes=memory), {f"i{j}": f"n{j}" for j in needs})
                    for name, (memory, needs) in nodes.items()}, alone)
    limits = Limits(jobs=jobs, cores=2, memory_mb=800)
    with tempfile.TemporaryDirectory() as root:
        store = Store(Path(root))
        watch, entries = run(plan, store, limits)
        assert sorted(watch.nodes("started")) == sorted(watch.nodes("finished")) == sorted(entries) == sorted(nodes)
        order = [(event.node, event.what) for event in watch.events]
        assert all(order.index((f"n{j}", "finished")) < order.index((name, "started")) for name, (_, needs) in nodes.items() for j in needs)
        for running in watch.together:
            assert len(running) <= jobs
            assert len(running) == 1 or not running & alone
            assert len(running) == 1 or sum(nodes[name][0] for name in running) <= 800
        assert run(plan, store, limits)[0].nodes("started") == []


def test_two_builds_at_once_run_each_step_once(store: Store) -> None:
    plan = plan_of({"a": (Write(text="a", seconds=0.1), {}), "b": (Write(text="b", seconds=0.1), {"given": "a"}),
                    "c": (Write(text="c", seconds=0.1), {"given": "a"}), "d": (Write(text="d"), {"x": "b", "y": "c"})})
    watches, results = [Watch(), Watch()], {}

    def build(number: int) -> None:
        results[number] = Scheduler(plan, Store(store.root), TWO, watches[number]).run(["d"])

    threads = [threading.Thread(target=build, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted([*watches[0].nodes("started"), *watches[1].nodes("started")]) == ["a", "b", "c", "d"]
    assert results[0]["d"] == results[1]["d"]
    assert text_of(store, results[0]["d"]) == "abacd"


# -- failure, interruption, death


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def test_a_failure_stops_the_others_and_what_is_finished_stays(store: Store, tmp_path: Path) -> None:
    sign = tmp_path / "the other one has begun"
    plan = plan_of({"good": (Write(text="g"), {}), "hanging": (Spawn(seconds=60), {}),
                    "bad": (RaiseHere(kind="CheckpointError", after=sign), {"given": "good"}), "after": (Write(text="a"), {"given": "bad"})})
    watch = Watch()

    def tell(event: Event) -> None:
        watch(event)
        if event.what == "progress":
            sign.touch()

    started = time.monotonic()
    with pytest.raises(CheckpointError, match="It is not there"):
        Scheduler(plan, store, TWO, tell).run(list(plan.nodes))
    assert time.monotonic() - started < 30
    pids = [int(pid) for event in watch.events if event.what == "progress" for pid in event.message.split()]
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)
    assert watch.nodes("finished") == ["good"]
    assert pending(plan, list(plan.nodes), store)[1] == ["hanging", "bad", "after"]
    assert list((store.root / "tmp").iterdir()) == []


def test_a_failure_that_only_an_optional_lane_needs_costs_that_lane_alone(store: Store, tmp_path: Path) -> None:
    sign = tmp_path / "at once"
    sign.touch()
    board = load_target("raspberrypi5")
    plan = replace(plan_of({
        "first": (Write(text="f"), {}), "good": (Write(text="g"), {"given": "first"}),
        "bad": (RaiseHere(kind="CheckpointError", after=sign), {"given": "first"}), "after": (Write(text="a"), {"given": "bad"}),
        "last": (Write(text="l"), {"given": "good"})}), lanes=(
            LanePlan(board, board.lane("litert"), "v", answers="last"), LanePlan(board, board.lane("tflite-runtime"), "w", answers="after")))
    watch = Watch()
    scheduler = Scheduler(plan, store, ONE, watch)
    assert set(scheduler.run(["last", "after"])) == {"first", "good", "last"}
    assert set(scheduler.failed) == {"bad", "after"}
    assert all("It is not there" in str(error) for error in scheduler.failed.values())
    assert watch.nodes("failed") == ["bad"]
    assert [lane.refusal is not None for lane in (without_failed(lane, scheduler.failed) for lane in plan.lanes)] == [False, True]
    # The same step, now needed by a lane that is required, stops the build.
    needed = replace(plan, lanes=(*plan.lanes, LanePlan(board, board.lane("onnx"), "x", answers="after")))
    with pytest.raises(CheckpointError):
        Scheduler(needed, store, ONE, Watch()).run(["last", "after"])


@contextmanager
def build_that_hangs(store: Store) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A real `edgeexport build` in a session of its own; and the process id of its third step, which hangs."""
    with subprocess.Popen([sys.executable, str(Path(fake_build.__file__)), "build", str(store.root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, start_new_session=True,
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                node, what, message = json.loads(line)
                if (node, what) == ("hang", "progress"):
                    yield process, int(message)
                    break
            else:
                pytest.fail(f"never came to hang: {process.stderr.read() if process.stderr else ''}")
        finally:
            process.kill()


def test_an_interrupted_build_exits_with_130_and_leaves_no_process(store: Store) -> None:
    with build_that_hangs(store) as (process, step):
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does
        _, said = process.communicate(timeout=20)
        assert process.returncode == 130
        assert said.strip() == "interrupted; what was finished stays stored"
        assert gone(step)
    found, missing = pending(fake_build.plan(), ["last"], store)
    assert (set(found), missing) == ({"second"}, ["hang", "last"])
    assert list((store.root / "tmp").iterdir()) == []


def test_a_build_that_was_killed_goes_on_where_it_was(store: Store) -> None:
    with build_that_hangs(store) as (process, step):
        process.kill()
        process.wait(10)
        assert gone(step)
    watch, entries = run(fake_build.plan(), store, fake_build.LIMITS, ["last"])
    assert watch.nodes("cached") == ["second"]
    assert watch.nodes("started") == ["hang", "last"]  # hang finds what its first attempt left in scratch
    assert text_of(store, entries["last"]) == "resumed3"
    assert store.prune(10**9)[0] == 0  # nobody holds the store any more
