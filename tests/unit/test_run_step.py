"""A step in its process: what it raises arrives, how it dies is told, and nothing of it outlives its build."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from fake_steps import FILE, Allocate, Die, Raise, RaiseHere, Spawn, Write, WriteApart

from edgeexport.artifact import Kind
from edgeexport.errors import CheckpointError, EdgeExportError, MissingExtra, OutputError, StepFailed
from edgeexport.run_step import Cancelled, StepRequest, StepResult, run_step
from edgeexport.step import Step
from edgeexport.store import Store

NODE = "the_step[a variant]"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def workplace(store: Store) -> Iterator[Path]:
    with store.workplace() as place:
        yield place


class Heard(list[tuple[float | None, str]]):
    """What was reported; waiting for it."""

    def __call__(self, fraction: float | None, message: str) -> None:
        self.append((fraction, message))

    def wait(self) -> str:
        deadline = time.monotonic() + 20
        while not self:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return self[0][1]


def request(store: Store, workplace: Path, step: Step, **limits: float) -> StepRequest:
    return StepRequest.model_validate({
        "store": store.root, "node": NODE, "step": step.name, "module": "fake_steps", "options": step.model_dump(mode="json"), "inputs": {},
        "key": "0123456789abcdef", "workplace": workplace, "threads": 3, "memory_mb_max": 1000, **limits})


def run(store: Store, workplace: Path, step: Step, heard: Heard | None = None, cancelled: threading.Event | None = None,
        **limits: float) -> StepResult:
    wanted = request(store, workplace, step, **limits)
    return run_step(wanted, heard if heard is not None else Heard(), cancelled or threading.Event(), heavy=step.heavy)


def failure(store: Store, workplace: Path, step: Step, **limits: float) -> EdgeExportError:
    with pytest.raises(EdgeExportError) as caught:
        run(store, workplace, step, **limits)
    assert NODE in caught.value.what or isinstance(caught.value, CheckpointError)
    return caught.value


def gone(pid: int) -> bool:
    """Whether a process has ended; waits for it a while."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


# -- all is well


def test_a_steps_files_spec_time_memory_and_progress_arrive(store: Store, workplace: Path) -> None:
    heard = Heard()
    result = run(store, workplace, WriteApart(text="done", seconds=0.05), heard)
    assert (workplace / "out" / FILE).read_text(encoding="utf-8") == "done"
    assert result.spec.kind is Kind.DATASET
    assert 0.05 < result.seconds < 30
    assert result.peak_rss_mb is not None
    assert 10 < result.peak_rss_mb < 500  # a Python process that imports the core, in MB of 2^20 bytes
    assert heard == [(0.5, "half [way]"), (None, "threads 3")]


def test_a_light_step_runs_in_this_process(store: Store, workplace: Path) -> None:
    result = run(store, workplace, Write(text="done"))
    assert (workplace / "out" / FILE).read_text(encoding="utf-8") == "done"
    assert result.peak_rss_mb is None


def test_modules_in_the_working_directory_are_not_the_steps(store: Store, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("psutil", "pydantic", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a stranger was imported')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert run(store, workplace, WriteApart(text="done")).spec.kind is Kind.DATASET


# -- what a step raises


def test_an_error_of_the_product_arrives_as_it_was_raised(store: Store, workplace: Path) -> None:
    error = failure(store, workplace, Raise(kind="CheckpointError"))
    assert type(error) is CheckpointError
    assert (error.what, error.why, error.hint) == ("It is not there.", "nobody put it there", "put it there")


def test_what_a_step_did_not_foresee_is_told_with_its_output(store: Store, workplace: Path) -> None:
    error = failure(store, workplace, Raise(kind="ZeroDivisionError"))
    assert type(error) is StepFailed
    assert error.why == "ZeroDivisionError: something odd"
    kept = Path(str(error.hint).removeprefix("the whole output: "))
    assert "about to raise" in kept.read_text(encoding="utf-8")
    assert "Traceback" in kept.read_text(encoding="utf-8")


@pytest.mark.parametrize(("step", "kind", "words"), [
    (RaiseHere(kind="CheckpointError"), CheckpointError, "nobody put it there"),
    (RaiseHere(kind="ModuleNotFoundError"), MissingExtra, "edgeexport doctor"),
    (RaiseHere(kind="MemoryError"), StepFailed, "ran out of memory"),
    (RaiseHere(kind="OSError", number=errno.ENOSPC), OutputError, "failed: the disk is full"),
    (RaiseHere(kind="OSError", number=errno.EACCES), OutputError, "Permission denied"),
    (RaiseHere(kind="KeyError"), StepFailed, "KeyError"),
])
def test_every_kind_of_failure_becomes_an_error_in_words(store: Store, workplace: Path, step: Step, kind: type[EdgeExportError], words: str) -> None:
    error = failure(store, workplace, step)
    assert type(error) is kind
    assert words in str(error)


def test_errors_need_no_room_on_the_disk(store: Store, workplace: Path) -> None:
    """A step that filled the disk can't write its error to a file; it comes through the pipe, and the log is let go."""
    (store.root / "logs").write_text("not a directory: nothing can be kept here", encoding="utf-8")
    error = failure(store, workplace, Raise(kind="OSError", number=errno.ENOSPC))
    assert type(error) is OutputError
    assert "EDGEEXPORT_CACHE" in str(error.hint)
    assert list(workplace.glob("*.json")) == [workplace / "request.json"]


@pytest.mark.parametrize("kind", ["OSError", "KeyError"])  # NumPy raises the one without a number, other libraries whatever they like
def test_a_full_disk_is_named_however_a_library_words_it(store: Store, workplace: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3_000))
    error = failure(store, workplace, RaiseHere(kind=kind))
    assert type(error) is OutputError
    assert error.what == f"{NODE} failed: the disk is full."
    assert "cache prune" in str(error.hint)


def test_what_a_step_foresaw_keeps_its_words_on_a_full_disk(store: Store, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3_000))
    assert type(failure(store, workplace, RaiseHere(kind="CheckpointError"))) is CheckpointError


def test_a_workplace_that_cannot_be_written_to_is_told(store: Store, workplace: Path) -> None:
    error = failure(store, workplace / "gone", WriteApart(text="x"))
    assert type(error) is OutputError


# -- how a step dies


def test_a_process_that_dies_of_a_full_disk_says_so(store: Store, workplace: Path) -> None:
    error = failure(store, workplace, Die(how=1, words="LLVM ERROR: IO failure on output stream: No space left on device"))
    assert type(error) is OutputError
    assert error.what == f"{NODE} failed: the disk is full." and "LLVM" in str(error.why) and "cache prune" in str(error.hint)


@pytest.mark.parametrize(("how", "cause"), [(-signal.SIGSEGV, "signal SIGSEGV"), (0, "exit code 0")])
def test_a_crash_is_told_with_its_cause_and_last_words(store: Store, workplace: Path, how: int, cause: str) -> None:
    error = failure(store, workplace, Die(how=how))
    assert error.what == f"{NODE} died."
    assert str(error.why).startswith(cause)
    assert "first line / second line / last words" in str(error.why)
    assert Path(str(error.hint).removeprefix("the whole output: ")).is_file()


def test_a_step_killed_from_outside_is_told_as_short_of_memory(store: Store, workplace: Path) -> None:
    error = failure(store, workplace, Die(how=-signal.SIGKILL))
    assert "killed from outside, most likely for memory (peak " in str(error.why)
    assert "--jobs 1" in str(error.hint)


@pytest.mark.parametrize("in_child", [False, True])
def test_a_step_beyond_its_memory_is_stopped_and_told_what_to_try(store: Store, workplace: Path, in_child: bool) -> None:
    started = time.monotonic()
    error = failure(store, workplace, Allocate(megabytes=400, in_child=in_child), memory_mb_max=250)
    assert time.monotonic() - started < 20
    assert error.what == f"{NODE} was stopped."
    assert "more than the 250 MB of memory it may use (peak " in str(error.why)
    assert int(str(error.why).rpartition("peak ")[2].split()[0]) > 250
    assert "--memory-mb" in str(error.hint)


# -- nothing outlives its build


def test_cancelling_ends_the_step_and_what_it_started(store: Store, workplace: Path) -> None:
    heard, cancelled = Heard(), threading.Event()
    caught: list[BaseException] = []

    def build() -> None:
        try:
            run(store, workplace, Spawn(seconds=30), heard, cancelled)
        except BaseException as exc:
            caught.append(exc)

    thread = threading.Thread(target=build)
    thread.start()
    pids = [int(pid) for pid in heard.wait().split()]
    assert not any(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE for pid in pids)
    cancelled.set()
    thread.join(10)
    assert [type(exc) for exc in caught] == [Cancelled]
    assert all(gone(pid) for pid in pids)


def test_what_a_step_leaves_behind_is_ended_with_it(store: Store, workplace: Path) -> None:
    heard = Heard()
    run(store, workplace, Spawn(seconds=0), heard)
    assert gone(int(heard[0][1].split()[1]))


PARENT = """
import sys, threading
from edgeexport.run_step import StepRequest, run_step
request = StepRequest.model_validate_json(open(sys.argv[1], encoding="utf-8").read())
run_step(request, lambda fraction, message: print(message, flush=True), threading.Event())
"""


def test_a_step_dies_with_its_parent_however_that_ends(store: Store, workplace: Path, tmp_path: Path) -> None:
    description = tmp_path / "request.json"
    description.write_text(request(store, workplace, Spawn(seconds=30)).model_dump_json(), encoding="utf-8")
    with subprocess.Popen([sys.executable, "-c", PARENT, str(description)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        step, grandchild = (int(pid) for pid in parent.stdout.readline().split())
        assert psutil.Process(step).ppid() == parent.pid
        parent.kill()
    assert gone(step)
    os.kill(grandchild, signal.SIGKILL)  # not supervised by anyone; the product's own agent asks to die with the step


def test_a_request_is_plain_data(store: Store, workplace: Path) -> None:
    wanted = request(store, workplace, Write(text="ü"))
    assert StepRequest.model_validate_json(wanted.model_dump_json()) == wanted
