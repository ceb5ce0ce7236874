"""The local runner: a job in the lane's environment, on this machine."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from edgeexport.errors import StepFailed, from_dict
from edgeexport.runner.agent_archive import agent_archive
from edgeexport.runner.environment import Environment
from edgeexport.step import Context


class VerifiedLane(Protocol):
    """What a bundle's manifest says of a lane, as far as running it goes."""

    @property
    def variant(self) -> str:
        """Which variant it runs."""

    @property
    def runtime(self) -> str:
        """The runtime's name."""

    @property
    def verified_by(self) -> str:
        """The stand-in that it was verified in."""


def run_lane(bundle: Path, lane: VerifiedLane, job: dict[str, Any], scratch: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """Run a job on a lane of a bundle, in the environment that verified it, and return its result.

    Args:
        bundle: the bundle's directory.
        lane: the lane.
        job: what to do; the lane, and one thread where it names no number, are added.
        scratch: an empty directory; the agent's files come to be in its ``out``.
        report: gets the progress.

    Raises:
        EdgeExportError: as :func:`run_job`.
    """
    whole = {"payload": str(bundle.absolute()), "variant": lane.variant, "runtime": lane.runtime, "threads": 1} | job
    context = Context(scratch, report=lambda fraction, message: report(message))
    return run_job(Environment(lane.verified_by), whole, scratch / "out", context)


def run_job(environment: Environment, job: dict[str, Any], out: Path, context: Context) -> dict[str, Any]:
    """Run a job of the measuring agent and return its result.

    Args:
        environment: where to run it.
        job: the job, without ``out``.
        out: where the agent writes its files.
        context: gets the progress.

    Raises:
        EdgeExportError: what the agent raised.
        StepFailed: the agent's process died.
    """
    python = environment.ensure(lambda message: context.report(None, message))
    out.mkdir(parents=True, exist_ok=True)
    archive, description = context.scratch / "agent.pyz", context.scratch / "job.json"
    archive.write_bytes(agent_archive())
    description.write_text(json.dumps(job | {"out": str(out.absolute()), "parent": os.getpid()}), encoding="utf-8")
    words = context.scratch / "agent.txt"
    # -I: no user site, no PYTHONPATH: only what the environment holds. A file takes a runtime's own words: a pipe that nobody reads fills up.
    with words.open("wb") as errors, subprocess.Popen([str(python), "-I", str(archive), str(description)], stdout=subprocess.PIPE,
                                                      stderr=errors, text=True, stdin=subprocess.DEVNULL) as process:
        for line in process.stdout or ():
            try:
                event = json.loads(line)
                context.report(event["fraction"], event["message"])
            except (ValueError, KeyError, TypeError):
                continue  # a runtime's own words
    code = process.returncode
    tail = words.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
    result_path = out / "result.json"
    result = json.loads(result_path.read_text(encoding="utf-8")) if result_path.is_file() else {}
    result_path.unlink(missing_ok=True)
    if "error" in result:
        raise from_dict(result["error"])
    if "result" not in result:
        crashed = "the model crashes this runtime: choose another precision for this lane"
        raise StepFailed(f"{environment.stand_in} died with {'signal' if code < 0 else 'exit code'} {abs(code)}.",
                         why=" / ".join(tail) or None, hint=crashed if code < 0 else None)
    found: dict[str, Any] = result["result"]
    return found


