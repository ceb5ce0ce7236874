"""A lane of a language model that answers one request after another, in the environment that verified it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from edgeexport.errors import EdgeExportError, StepFailed, from_dict
from edgeexport.runner.agent_archive import agent_archive
from edgeexport.runner.environment import Environment
from edgeexport.runner.local import VerifiedLane


class TalkingLane:
    """The agent as a process that is asked and answers; a context manager."""

    def __init__(self, bundle: Path, lane: VerifiedLane, threads: int, report: Callable[[str], None]) -> None:
        """Use it in a ``with`` statement.

        Args:
            bundle: the bundle's directory.
            lane: the lane.
            threads: threads of an operator.
            report: told what happens before the first answer.
        """
        self._bundle, self._lane, self._threads, self._report = bundle, lane, threads, report

    def __enter__(self) -> TalkingLane:
        """Start the process and load the model.

        Raises:
            RuntimeUnavailable: the environment can't be made.
            EdgeExportError: the model can't be loaded.
        """
        environment = Environment(self._lane.verified_by)
        python = environment.ensure(self._report)
        self._report(f"loading the model in {environment.stand_in}")
        self._scratch = tempfile.TemporaryDirectory(prefix="edgeexport-talk-")
        place = Path(self._scratch.name)
        (place / "agent.pyz").write_bytes(agent_archive())
        (place / "job.json").write_text(json.dumps({
            "do": "talk", "payload": str(self._bundle.absolute()), "variant": self._lane.variant, "runtime": self._lane.runtime,
            "threads": self._threads, "out": str(place), "parent": os.getpid()}), encoding="utf-8")
        with (place / "words.txt").open("wb") as words:
            # A session of its own: Ctrl-C ends the answer, which is this process's to see to, and not the model.
            self._process = subprocess.Popen([str(python), "-I", str(place / "agent.pyz"), str(place / "job.json")], stdin=subprocess.PIPE,
                                             stdout=subprocess.PIPE, stderr=words, text=True, start_new_session=True)
        self._under_way = False
        try:
            next(self._events())
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()
        self._scratch.cleanup()

    def answer(self, request: Mapping[str, Any]) -> Generator[dict[str, Any], None, None]:
        """The events that answer a request; see :func:`edgeexport.session.generation_jobs.talk`. Whoever leaves early ends the answer.

        Raises:
            EdgeExportError: what the agent raised.
            StepFailed: its process died.
        """
        assert self._process.stdin is not None
        self._end_answer()
        self._under_way = True
        try:
            with contextlib.suppress(OSError):  # it died; what follows tells of what
                self._process.stdin.write(json.dumps(dict(request)) + "\n")
                self._process.stdin.flush()
            for event in self._events():
                self._under_way = "end" not in event
                yield event
                if not self._under_way:
                    return
        finally:
            self._end_answer()

    def _end_answer(self) -> None:
        """Interrupt what is still being said, and take its rest out of the pipe."""
        if self._under_way:
            self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(EdgeExportError):
                for event in self._events():
                    if "end" in event:
                        break
            self._under_way = False

    def _events(self) -> Iterator[dict[str, Any]]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # a runtime's own words
            if isinstance(event, dict):
                if "error" in event:
                    self._under_way = False
                    raise from_dict(event["error"])
                yield event
        self._under_way = False
        place = Path(self._scratch.name)
        if (place / "result.json").is_file():
            result = json.loads((place / "result.json").read_text(encoding="utf-8"))
            if "error" in result:
                raise from_dict(result["error"])
        tail = (place / "words.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
        raise StepFailed(f"{self._lane.verified_by} died while it answered.", why=" / ".join(tail) or None)
