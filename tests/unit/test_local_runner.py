"""Jobs in another interpreter: progress, words of a runtime, crashes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeexport.errors import StepFailed, UnknownName
from edgeexport.runner.environment import Environment
from edgeexport.runner.local import run_job
from edgeexport.step import Context

RESULT = 'open(job["out"] + "/result.json", "w").write(json.dumps({"result": {"answer": 42}}))'


class Interpreter(Environment):
    """Stands for a lane's environment: a program that is given the job instead of the agent."""

    def __init__(self, directory: Path, code: str) -> None:
        self.stand_in = "runtime==1"
        self._program = directory / "program"
        self._program.write_text(f"#!{sys.executable}\nimport json, os, sys\njob = json.load(open(sys.argv[-1]))\n{code}\n", encoding="utf-8")
        self._program.chmod(0o755)

    def ensure(self, report: Any = None) -> Path:
        return self._program


def run(directory: Path, code: str, told: list[str] | None = None) -> dict[str, Any]:
    context = Context(directory, report=lambda fraction, message: told.append(message) if told is not None else None)
    return run_job(Interpreter(directory, code), {"do": "answers"}, directory / "out", context)


def test_a_result_and_its_progress_arrive(tmp_path: Path) -> None:
    told: list[str] = []
    code = 'print(json.dumps({"fraction": 0.5, "message": "half"})); print("not JSON"); print("[1]")'
    assert run(tmp_path, f"{code}\n{RESULT}", told) == {"answer": 42}
    assert told == ["half"]


def test_a_runtime_may_talk_as_much_as_it_likes(tmp_path: Path) -> None:
    assert run(tmp_path, f'sys.stderr.write("words " * 100_000)\n{RESULT}') == {"answer": 42}


def test_an_error_of_the_agent_is_raised_here(tmp_path: Path) -> None:
    error = {"error": {"kind": "UnknownName", "what": "no such lane", "why": None, "hint": "look"}}
    with pytest.raises(UnknownName, match="no such lane"):
        run(tmp_path, f'open(job["out"] + "/result.json", "w").write({json.dumps(error)!r}); sys.exit(1)')


@pytest.mark.parametrize(("code", "said", "blames_the_model"), [
    ('sys.stderr.write("a\\nlast words"); sys.stderr.flush(); os.kill(os.getpid(), 11)', "died with signal 11", True),
    ('sys.stderr.write("a\\nlast words"); sys.exit(3)', "died with exit code 3", False)])
def test_a_crash_is_told_with_its_last_words(tmp_path: Path, code: str, said: str, blames_the_model: bool) -> None:
    with pytest.raises(StepFailed) as caught:
        run(tmp_path, code)
    assert said in caught.value.what
    assert "last words" in str(caught.value.why)
    assert (caught.value.hint is not None) == blames_the_model
