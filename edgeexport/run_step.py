"""Run one step in a fresh, supervised process: :func:`run_step`, and the other side of it, which is this module's `main`.

Plain data goes in and comes out, so that the step could as well run on another machine. The process is the leader of its own group,
dies with its parent, is held to a memory limit, and reports through a pipe. When it crashes or is killed, the error names the step,
the cause and what to try.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from edgeexport.artifact import Blob, Model, Spec
from edgeexport.catalog import step_in
from edgeexport.errors import EdgeExportError, MissingExtra, OutputError, StepFailed, from_dict
from edgeexport.source import Leaf
from edgeexport.step import Context, View
from edgeexport.store import FREE_SPACE, Store

POLL_SECONDS = 0.1
# Read when a library is first imported.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# Importing a framework and tracing a graph make millions of objects that stay. Python's defaults (700, 10, 10) look at them again and
# again: 10 to 15 % of the time of an export, measured on a 22M-parameter encoder.
GC_THRESHOLDS = (100_000, 20, 20)
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
LEAST_FREE = 2**20  # bytes; with less left on the disk, that is what a step failed for


class StoredInput(Model):
    """An input that lies in the store."""

    tree: dict[str, Blob]
    spec: Spec


class StepRequest(Model):
    """What to run, where and within which limits.

    Attributes:
        store: root of the store.
        node: how messages call the step.
        step: the step's name.
        module: the module that defines it.
        options: the step's fields.
        inputs: input name → what it is, in the store or outside.
        key: the action key.
        workplace: an empty directory on the store's file system; the artifact's files come to be in its ``out``.
        threads: threads the step may use.
        memory_mb_max: resident memory of its processes together, in MB of 10^6 bytes.
    """

    store: Path
    node: str
    step: str
    module: str
    options: dict[str, Any]
    inputs: dict[str, StoredInput | Leaf]
    key: str
    workplace: Path
    threads: int
    memory_mb_max: int


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
        try:
            return StepResult(spec=execute(request, report), seconds=time.monotonic() - started, peak_rss_mb=None)
        except EdgeExportError:
            raise
        except Exception as exc:
            raise _in_words(exc, request) from exc
    log = request.workplace / "log.txt"
    try:
        process, read_end = _start(request, log)
    except OSError as exc:
        raise _in_words(exc, request) from exc
    told: dict[str, Any] = {}
    events = threading.Thread(target=_forward_events, args=(read_end, report, told), daemon=True)
    events.start()
    end = _wait(process, request, cancelled)
    events.join(timeout=5)
    if end.stopped == "cancelled":
        raise Cancelled
    if end.stopped is None and end.code == 0 and "spec" in told:
        return StepResult(spec=Spec.model_validate(told["spec"]), seconds=time.monotonic() - started, peak_rss_mb=told["peak_rss_mb"])
    if end.stopped is None and "error" in told:
        error = from_dict(told["error"])
        if told["unforeseen"] and error.hint is None:
            error.hint = _keep_log(request, log)
        raise error
    raise _failure(request, end, log)


def _start(request: StepRequest, log: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start the step's process; returns it and the end of the event pipe to read from."""
    description = request.workplace / "request.json"
    description.write_text(request.model_dump_json(), encoding="utf-8")
    read_end, write_end = os.pipe()
    try:
        # -P: what lies in the working directory is none of the step's modules.
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "edgeexport.run_step", str(description), str(write_end), str(os.getpid())],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=(write_end,), start_new_session=True,
                env=os.environ | dict.fromkeys(THREAD_VARIABLES, str(request.threads)) | {"TOKENIZERS_PARALLELISM": "false"})
    except OSError:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)
    return process, read_end


@dataclass(frozen=True)
class _End:
    """How a step's process ended.

    Attributes:
        stopped: why it was stopped: ``cancelled``, ``memory``; None where it ended itself.
        code: its exit code, or the negative number of the signal that killed it.
        group_mb: highest resident memory of all its processes together that was seen, in MB of 10^6 bytes.
    """

    stopped: str | None
    code: int
    group_mb: float


def _wait(process: subprocess.Popen[bytes], request: StepRequest, cancelled: threading.Event) -> _End:
    """Wait for the process's end, or end it."""
    stopped, group_mb = None, 0.0
    while True:
        pid, status = os.waitpid(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            _kill_group(process.pid)  # whatever it left behind
            return _End(stopped, process.returncode, group_mb)
        if stopped is None:
            group_mb = max(group_mb, _group_rss_mb(process.pid))
            if cancelled.is_set():
                stopped = "cancelled"
            elif group_mb > request.memory_mb_max:
                stopped = "memory"
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


def _forward_events(read_end: int, report: Report, told: dict[str, Any]) -> None:
    """Pass progress on; keep the rest of what the step's process tells: its result, or its error."""
    with os.fdopen(read_end, encoding="utf-8", errors="replace") as pipe:
        for line in pipe:
            with contextlib.suppress(ValueError):  # cut off, where the process died within a line
                event = json.loads(line)
                if "message" in event:
                    report(event["fraction"], event["message"])
                else:
                    told.update(event)


def _failure(request: StepRequest, end: _End, log: Path) -> EdgeExportError:
    """The error that says what happened to a step's process that told nothing itself."""
    what = f"{request.node} was stopped." if end.stopped else f"{request.node} died."
    if end.stopped == "memory":
        limit = f"the {request.memory_mb_max:,} MB of memory it may use"
        return StepFailed(what, why=f"it needed more than {limit} (peak {end.group_mb:,.0f} MB)",
                          hint="free some memory, raise --memory-mb, use --jobs 1, or build fewer or shorter lengths")
    if end.code == -signal.SIGKILL:
        return StepFailed(what, why=f"it was killed from outside, most likely for memory (peak {end.group_mb:,.0f} MB)",
                          hint="free some memory, use --jobs 1, or build fewer or shorter lengths")
    cause = f"signal {signal.Signals(-end.code).name}" if end.code < 0 else f"exit code {end.code}"
    tail = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()][-3:]
    if any(os.strerror(errno.ENOSPC) in line for line in tail):  # as LLVM's last words
        return OutputError(f"{request.node} failed: the disk is full.", why=tail[-1], hint=FREE_SPACE)
    return StepFailed(what, why=f"{cause}; last output: {' / '.join(tail) or 'none'}", hint=_keep_log(request, log))


def _keep_log(request: StepRequest, log: Path) -> str | None:
    """Keep the log beyond the step; returns a hint that says where it is, or None where it can't be kept."""
    kept = request.store / "logs" / f"{request.step}-{request.key[:12]}.txt"
    try:
        kept.parent.mkdir(exist_ok=True)
        shutil.copyfile(log, kept)
    except OSError:
        return None
    return f"the whole output: {kept}"


def _in_words(exc: Exception, request: StepRequest) -> EdgeExportError:
    """The error for something that a step did not foresee."""
    if isinstance(exc, ModuleNotFoundError):
        return MissingExtra(f"{request.node} needs a package that is not installed.", why=str(exc),
                            hint="`edgeexport doctor` says what is missing")
    if isinstance(exc, MemoryError):
        return StepFailed(f"{request.node} ran out of memory.", hint="free some memory, or use --jobs 1")
    # What writes in C tells of a short write, or of an odd position in its file.
    if shutil.disk_usage(request.store).free < LEAST_FREE or (isinstance(exc, OSError) and exc.errno == errno.ENOSPC):
        return OutputError(f"{request.node} failed: the disk is full.", why=str(exc).splitlines()[0], hint=FREE_SPACE)
    if isinstance(exc, OSError):
        return OutputError(f"{request.node} failed.", why=str(exc))
    return StepFailed(f"{request.node} failed.", why=f"{type(exc).__name__}: {exc}")


def execute(request: StepRequest, report: Report) -> Spec:
    """Lay out the inputs and run the step in this process."""
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
    step = step_in(request.module, request.step).model_validate(request.options)
    return step.run(views, out, Context(store.scratch(request.key), request.threads, report=report))


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends, however that happens (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def peak_rss_mb() -> float:
    """Highest resident memory of this process, or of one that it has waited for, in MB of 2^20 bytes.

    Not getrusage's figure for this process, nor wait4's for a child: they keep what the parent had when it forked, across exec.
    Source: proc_pid_status(5), VmHWM; getrusage(2), ru_maxrss.
    """
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    status = Path("/proc/self/status")
    if not status.is_file():
        return max(children, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    own = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
    return max(children, int(own.split()[1]) / 1024)


def main() -> int:
    """The process of a step: request file, file number of the event pipe, process id of the parent."""
    description, pipe, parent = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    die_with_parent(parent)
    gc.set_threshold(*GC_THRESHOLDS)
    request = StepRequest.model_validate_json(description.read_text(encoding="utf-8"))
    events = os.fdopen(pipe, "w", encoding="utf-8")

    def tell(**event: Any) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    try:
        spec = execute(request, lambda fraction, message: tell(fraction=fraction, message=message))
        tell(spec=spec.model_dump(mode="json"), peak_rss_mb=peak_rss_mb())
        return 0
    except EdgeExportError as exc:
        tell(error=exc.as_dict(), unforeseen=False)
    except Exception as exc:
        tell(error=_in_words(exc, request).as_dict(), unforeseen=True)
        with contextlib.suppress(OSError):  # the log's disk may be full
            traceback.print_exc()
    return 1


if __name__ == "__main__":
    sys.exit(main())
