"""The step that runs a lane on data sets, in the lane's own runtime, and keeps its answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from edgeexport.artifact import Kind, Spec
from edgeexport.dataset import ROWS_FILE
from edgeexport.inspection.inspect_model import INSPECTION_FILE
from edgeexport.runner.compatibility import require_runnable
from edgeexport.runner.environment import Environment
from edgeexport.runner.local import run_job
from edgeexport.step import Context, Refusal, Step, View


class MeasureAnswers(Step):
    """Answer every row of every data set.

    Attributes:
        variant: which variant of the payload.
        runtime: the runtime's name.
        stand_in: the distribution that stands for the device's runtime here.
        datasets: names of the inputs that are data sets.
        agent: digest of the measuring agent.
        environment: digest of the environment's lock.
        isa: instruction set and extensions of the machine that runs it.
        threads: threads of an operator; integer sums don't depend on it, float sums may.
    """

    name: ClassVar[str] = "measure_answers"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"payload": frozenset({Kind.PAYLOAD}),
                                                                 "inspection": frozenset({Kind.EVIDENCE})}
    seconds_guess: ClassVar[float] = 20.0

    variant: str
    runtime: str
    stand_in: str
    datasets: tuple[str, ...]
    agent: str
    environment: str
    isa: tuple[str, ...]
    threads: int = 1

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """Answers to all rows."""
        payload = inputs["payload"]
        return Spec(kind=Kind.EVIDENCE, task=payload.task, precision=payload.precision)

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Check that the runtime has what the file asks for, and have the agent answer."""
        require_runnable(inputs["inspection"].path / INSPECTION_FILE, self.stand_in)
        run_job(Environment(self.stand_in), {
            "do": "answers", "payload": str(inputs["payload"].path), "variant": self.variant, "runtime": self.runtime,
            "threads": self.threads, "datasets": {name: str(inputs[name].path / ROWS_FILE) for name in self.datasets}}, out, context)
        return self.infer({name: view.spec for name, view in inputs.items()})  # type: ignore[return-value]
