"""Run one step in a fresh, supervised process: :func:`run_step`, and the other side of it, which is this module's `main`.

Plain data goes in and comes out, so that the step could as well run on another machine. The process is the leader of its own group,
dies with its parent, is held to a memory limit, and reports through a pipe. When it crashes, is killed or hangs, the error names the
step, the cause and what to try.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from edgeexport.artifact import Blob, Model, Spec
from edgeexport.errors import EdgeExportError, StepFailed, from_dict
from edgeexport.source import Leaf
from edgeexport.step import Context, View
from edgeexport.store import Store

POLL_SECONDS = 0.1
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class StoredInput(Model):
    """An input that lies in the store."""

    tree: dict[str, Blob]
    spec: Spec


class StepRequest(Model):
    """What to run, where and within which limits.

    Attributes:
        store: root of the store.
        node: how messages call the step.
        step: the registered name.
        options: the step's fields.
        inputs: input name → what it is, in the store or outside.
        key: the action key.
        workplace: an empty directory on the store's file system; the artifact's files come to be in its ``out``.
        threads: threads the step may use.
        memory_mb_max: resident memory of its processes together, in MB of 10^6 bytes.
        seconds_max: wall time; None is no limit.
    """

    store: Path
    node: str
    step: str
    options: dict[str, Any]
    inputs: dict[str, StoredInput | Leaf]
    key: str
    workplace: Path
    threads: int
    memory_mb_max: int
    seconds_max: float | None = None


class StepResult(Model):
    """What came out: the spec, wall time in seconds, and peak resident memory in MB of 2^20 bytes (None where not a process)."""

    spec: Spec
    seconds: float
    peak_rss_mb: float | None


class Cancelled(Exception):
    """The build was stopped."""


Report = Callable[[float | None, str], None]


def run_step(request: StepRequest, report: Report, cancelled: threading.Event, *, heavy: bool = True) -> StepResult:
    """Run a step; a heavy one in a process of its own.

    Raises:
        EdgeExportError: what the step raised.
        StepFailed: it crashed, was killed, or ran over a limit.
        Cancelled: `cancelled` was set.
    """
    started = time.monotonic()
    if not heavy:
        return StepResult(spec=execute(request, report), seconds=time.monotonic() - started, peak_rss_mb=None)
    description = request.workplace / "request.json"
    description.write_text(request.model_dump_json(), encoding="utf-8")
    log = request.workplace / "log.txt"
    read_end, write_end = os.pipe()
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "edgeexport.run_step", str(description), str(write_end), str(os.getpid())],
                                   stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=(write_end,), start_new_session=True)
    os.close(write_end)
    events = threading.Thread(target=_forward_events, args=(read_end, report), daemon=True)
    events.start()
    stopped, status, usage = _wait(process, request, cancelled, started)
    events.join(timeout=5)
    code = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss / 1024
    result_path = request.workplace / "result.json"
    if stopped == "cancelled":
        raise Cancelled
    if stopped is None and code == 0 and result_path.is_file():
        return StepResult(spec=Spec.model_validate_json(result_path.read_text(encoding="utf-8")),
                          seconds=time.monotonic() - started, peak_rss_mb=peak)
    raise _failure(request, stopped, code, peak, log)


def _wait(process: subprocess.Popen[bytes], request: StepRequest, cancelled: threading.Event, started: float) -> tuple[str | None, int, Any]:
    """Wait for the process's end, or end it; returns why it was ended, its wait status and its resource usage."""
    stopped = None
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            _kill_group(process.pid)  # whatever it left behind
            return stopped, status, usage
        if stopped is None:
            if cancelled.is_set():
                stopped = "cancelled"
            elif _group_rss_mb(process.pid) > request.memory_mb_max:
                stopped = "memory"
            elif request.seconds_max is not None and time.monotonic() - started > request.seconds_max:
                stopped = "time"
            if stopped:
                _kill_group(process.pid)
        cancelled.wait(POLL_SECONDS) if not stopped else time.sleep(POLL_SECONDS)


def _group_rss_mb(pid: int) -> float:
    total = 0
    with contextlib.suppress(psutil.Error):
        leader = psutil.Process(pid)
        for member in (leader, *leader.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += member.memory_info().rss
    return total / 1e6


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _forward_events(read_end: int, report: Report) -> None:
    with os.fdopen(read_end, encoding="utf-8", errors="replace") as pipe:
        for line in pipe:
            with contextlib.suppress(ValueError, KeyError):
                event = json.loads(line)
                report(event["fraction"], event["message"])


def _failure(request: StepRequest, stopped: str | None, code: int, peak: float, log: Path) -> EdgeExportError:
    """The error that says what happened to a step's process."""
    error_path = request.workplace / "error.json"
    if stopped is None and error_path.is_file():
        data = json.loads(error_path.read_text(encoding="utf-8"))
        if data["kind"] != "unexpected":
            return from_dict(data)
        return StepFailed(f"{request.node} failed.", why=data["what"], hint=f"the whole output: {_keep_log(request, log)}")
    what = f"{request.node} was stopped." if stopped else f"{request.node} died."
    if stopped == "memory":
        return StepFailed(what, why=f"it needed more than the {request.memory_mb_max:,} MB of memory it may use (peak {peak:,.0f} MB)",
                          hint="free some memory, raise --memory-mb, use --jobs 1, or build fewer or shorter lengths")
    if stopped == "time":
        return StepFailed(what, why=f"it took longer than {request.seconds_max:.0f} s", hint="is the machine busy?")
    if code == -signal.SIGKILL:
        return StepFailed(what, why=f"it was killed from outside, most likely for memory (peak {peak:,.0f} MB)",
                          hint="free some memory, use --jobs 1, or build fewer or shorter lengths")
    cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    tail = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()][-3:]
    return StepFailed(what, why=f"{cause}; last output: {' / '.join(tail) or 'none'}", hint=f"the whole output: {_keep_log(request, log)}")


def _keep_log(request: StepRequest, log: Path) -> Path:
    kept = request.store / "logs" / f"{request.step}-{request.key[:12]}.txt"
    kept.parent.mkdir(exist_ok=True)
    kept.write_bytes(log.read_bytes())
    return kept


def execute(request: StepRequest, report: Report) -> Spec:
    """Lay out the inputs and run the step in this process."""
    from edgeexport.catalog import find_step

    store = Store(request.store)
    views = {}
    for name, given in request.inputs.items():
        if isinstance(given, StoredInput):
            views[name] = View(store.view(given.tree, request.workplace / "in" / name), given.spec)
        elif given.where == "store":
            views[name] = View(store.view(given.artifact.tree, request.workplace / "in" / name), given.artifact.spec)
        else:
            report(None, "fetching" if given.where == "hub" else "reading")
            views[name] = View(given.fetch(), given.artifact.spec)
    out = request.workplace / "out"
    out.mkdir()
    step = find_step(request.step).model_validate(request.options)
    return step.run(views, out, Context(store.scratch(request.key), request.threads, report=report))


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends, however that happens (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def main() -> int:
    """The process of a step: request file, file number of the event pipe, process id of the parent."""
    description, pipe, parent = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    die_with_parent(parent)
    request = StepRequest.model_validate_json(description.read_text(encoding="utf-8"))
    events = os.fdopen(pipe, "w", encoding="utf-8")

    def report(fraction: float | None, message: str) -> None:
        events.write(json.dumps({"fraction": fraction, "message": message}) + "\n")
        events.flush()

    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(request.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        spec = execute(request, report)
        (request.workplace / "result.json").write_text(spec.model_dump_json(), encoding="utf-8")
        return 0
    except EdgeExportError as exc:
        error = exc.as_dict()
    except ModuleNotFoundError as exc:
        error = {"kind": "MissingExtra", "what": f"{request.node} needs a package that is not installed.", "why": str(exc),
                 "hint": "`edgeexport doctor` says what is missing"}
    except MemoryError:
        error = {"kind": "StepFailed", "what": f"{request.node} ran out of memory.", "why": None, "hint": "free some memory, or use --jobs 1"}
    except OSError as exc:
        error = {"kind": "OutputError", "what": f"{request.node} failed.", "why": str(exc), "hint": "is the disk full?" if exc.errno == 28 else None}
    except Exception as exc:
        traceback.print_exc()  # for the log
        error = {"kind": "unexpected", "what": f"{type(exc).__name__}: {exc}"}
    (request.workplace / "error.json").write_text(json.dumps(error), encoding="utf-8")
    return 1


if __name__ == "__main__":
    sys.exit(main())
