"""The step that times a lane and takes its memory, on this host."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from edgeexport.artifact import Kind, Spec
from edgeexport.inspection.inspect_model import INSPECTION_FILE
from edgeexport.runner.compatibility import require_runnable
from edgeexport.runner.environment import Environment
from edgeexport.runner.local import run_job
from edgeexport.step import Context, Refusal, Step, View

SPEED_FILE = "speed.json"


class MeasureSpeed(Step):
    """Load time, latency by length, peak memory. Runs alone: what runs beside it would be measured too.

    Attributes:
        variant: which variant of the payload.
        runtime: the runtime's name.
        stand_in: the distribution that stands for the device's runtime here.
        lengths: lengths to time, in tokens.
        agent: digest of the measuring agent.
        environment: digest of the environment's lock.
        host: fingerprint of the machine.
        threads: threads of an operator.
        rounds: how often each length is timed.
        original: which variant of the input ``original`` is timed beside it, in turn; None for none.
    """

    name: ClassVar[str] = "measure_speed"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"payload": frozenset({Kind.PAYLOAD}),
                                                                 "inspection": frozenset({Kind.EVIDENCE})}
    seconds_guess: ClassVar[float] = 8.0

    variant: str
    runtime: str
    stand_in: str
    lengths: tuple[int, ...]
    agent: str
    environment: str
    host: str
    threads: int = 1
    rounds: int = 15
    original: str | None = None

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """A few figures."""
        payload = inputs["payload"]
        return Spec(kind=Kind.EVIDENCE, task=payload.task, precision=payload.precision)

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Check that the runtime has what the file asks for, and have the agent measure."""
        require_runnable(inputs["inspection"].path / INSPECTION_FILE, self.stand_in)
        beside = {"original": {"payload": str(inputs["original"].path), "variant": self.original}} if self.original else {}
        found = run_job(Environment(self.stand_in), {
            "do": "speed", "payload": str(inputs["payload"].path), "variant": self.variant, "runtime": self.runtime,
            "threads": self.threads, "lengths": list(self.lengths), "rounds": self.rounds, **beside}, out, context)
        (out / SPEED_FILE).write_text(json.dumps(found, sort_keys=True), encoding="utf-8")
        return self.infer({name: view.spec for name, view in inputs.items()})  # type: ignore[return-value]
