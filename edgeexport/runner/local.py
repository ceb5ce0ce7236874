"""The local runner: a job in the lane's environment, on this machine."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from edgeexport.errors import StepFailed, from_dict
from edgeexport.runner.agent_archive import agent_archive
from edgeexport.runner.environment import Environment
from edgeexport.step import Context


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


