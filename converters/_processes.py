"""Training in several processes of this machine: one for each GPU, or as many as the user's Accelerate configuration says.

The processes find each other by the variables that torchrun sets too, so Accelerate needs no other launcher. `accelerate launch` itself starts
no second process on a CPU without MPI, and torchrun's are in sessions of their own, where they would outlive a step that is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from edgeexport.errors import EdgeExportError, StepFailed, from_dict

POLL_SECONDS = 0.1
GRACE_SECONDS = 5.0
LAST_LINES = 3


def process_count() -> int:
    """How many processes a training is to have.

    Raises:
        StepFailed: the user's Accelerate configuration can't be read.
    """
    import torch
    import yaml
    from accelerate.commands.config import config_args

    path, gpus = Path(config_args.default_config_file), torch.cuda.device_count()
    if not path.is_file():
        return max(1, gpus)
    try:
        count = int(yaml.safe_load(path.read_text(encoding="utf-8")).get("num_processes", 1))
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as exc:
        raise StepFailed("Accelerate's configuration cannot be read.", why=f"{path}: {str(exc).splitlines()[0]}",
                         hint="`accelerate config` writes a new one") from exc
    return max(1, min(count, gpus) if gpus else count)


def run_processes(module: str, job: Path, count: int, threads: int, log: Path, report: Callable[[float | None, str], None]) -> dict[str, Any]:
    """Run a module in several processes, each with `job` as its argument; returns what the first one told at its end.

    Args:
        module: whose `__main__` tells the first process's progress and result by :func:`tell`.
        job: a file that says what to do.
        count: how many.
        threads: of all processes together.
        log: gets what they write.
        report: told the progress.

    Raises:
        EdgeExportError: what the first process raised.
        StepFailed: one of them died.
    """
    import torch

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
              "OMP_NUM_THREADS": max(1, threads // count), "ACCELERATE_USE_CPU": not torch.cuda.is_available()}
    processes: list[subprocess.Popen[str]] = []
    told: dict[str, Any] = {}
    try:
        with log.open("w", encoding="utf-8") as output:
            for rank in range(count):
                environment = {name: str(value) for name, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}
                # -P: what lies in the working directory is none of the step's modules.
                processes.append(subprocess.Popen([sys.executable, "-P", "-m", module, str(job)], env=os.environ | environment, text=True,
                                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if rank == 0 else output, stderr=output))
        assert processes[0].stdout is not None
        reader = threading.Thread(target=_read, args=(processes[0].stdout, told, report), daemon=True)
        reader.start()
        while None in (codes := [process.poll() for process in processes]) and not any(codes):
            time.sleep(POLL_SECONDS)
        with contextlib.suppress(subprocess.TimeoutExpired):  # what all of them raise, the first one may be about to tell
            processes[0].wait(GRACE_SECONDS)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    reader.join(timeout=5)
    if "error" in told:
        raise from_dict(told["error"])
    if any(codes) or "result" not in told:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        rank, code = next(((rank, code) for rank, code in enumerate(codes) if code), (0, 0))
        raise StepFailed(f"Process {rank + 1} of {count} died.", why=f"exit code {code}; last output: {' / '.join(lines[-LAST_LINES:]) or 'none'}",
                         hint="`accelerate config` says how many processes there are; with one, training is in the step itself")
    result: dict[str, Any] = told["result"]
    return result


def tell(**event: Any) -> None:
    """Tell the process that waits, if this is the first one."""
    if os.environ.get("RANK") == "0":
        print(json.dumps(event), flush=True)


def serve(work: Callable[[Path], dict[str, Any]], arguments: Iterable[str]) -> int:
    """The other side of :func:`run_processes`: do the work that the job file describes, and tell how it ended; returns the exit code."""
    import torch.distributed

    (job,) = arguments
    try:
        result = work(Path(job))
        tell(result=result)
    except EdgeExportError as exc:
        tell(error=exc.as_dict())
        return 1
    torch.distributed.destroy_process_group()
    return 0


def _read(pipe: IO[str], told: dict[str, Any], report: Callable[[float | None, str], None]) -> None:
    for line in pipe:
        with contextlib.suppress(ValueError):  # a library's own words
            event = json.loads(line)
            if "message" in event:
                report(event["fraction"], event["message"])
            else:
                told.update(event)
