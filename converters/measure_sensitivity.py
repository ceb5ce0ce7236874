"""Which parts of a model suffer from quantization: each is quantized alone, and the answers are compared with those in float."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from edgeexport.artifact import Kind, Spec
from edgeexport.policy import Policy
from edgeexport.session import tasks
from edgeexport.session.payload import LoadedModel
from edgeexport.session.run_onnxruntime import OnnxModel
from edgeexport.session.run_tflite import TfliteModel
from edgeexport.session.tasks import Head
from edgeexport.step import Context, Refusal, Step, View

from ._chosen_operator import ChosenOperator
from ._examples import Example, evenly, read_examples
from ._quantization import BACKENDS, MEASURED, QUANTIZATIONS
from ._task_model import read_text
from .measure_ranges import read_ranges

SENSITIVITY_FILE = "sensitivity.json"
RUNTIME = "ai_edge_litert.interpreter"


class MeasureSensitivity(Step):
    """Quantize one group of operators at a time: those of a module, or those of a type that have no weights.

    Attributes:
        policy: how the groups are computed; those that it leaves in float are not measured.
        examples: on how many texts.
    """

    name: ClassVar[str] = "measure_sensitivity"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = MEASURED
    backends: ClassVar[tuple[str, ...]] = BACKENDS
    seconds_guess: ClassVar[float] = 120.0

    policy: Policy
    examples: int = 32

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """A number for each group."""
        return Spec(kind=Kind.EVIDENCE, task=inputs["model"].task)

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Write for each group its name, its scheme, its weights, and how far the answers move, most sensitive first."""
        path, spec = inputs["model"]
        quantization = QUANTIZATIONS[spec.kind]
        file = path / quantization.file
        ranges = read_ranges(inputs, self.policy)
        judge = _Judge(inputs, spec.lengths, self.examples, context.threads)
        wanted = judge.numbers(file)
        groups: dict[str, list[ChosenOperator]] = {}
        for each in quantization.chosen_operators(file, self.policy):
            groups.setdefault(each.group, []).append(each)
        found = []
        trial = context.scratch / quantization.file
        for number, (name, members) in enumerate(groups.items()):
            context.report(number / len(groups), name)
            quantization.quantize(file, members, ranges, trial)
            scopes = {each.scope: each.weights for each in members}
            found.append({"match": name, "scheme": members[0].scheme, "distance": judge.distance(wanted, judge.numbers(trial)),
                          "weights": sum(scopes.values()) // max(1, len(spec.lengths))})
            trial.unlink()
        found.sort(key=lambda group: float(str(group["distance"])), reverse=True)
        (out / SENSITIVITY_FILE).write_text(json.dumps(found, indent=1), encoding="utf-8")
        return self.infer({name: view.spec for name, view in inputs.items()})  # type: ignore[return-value]


class _Judge:
    """Answers texts with a file, and compares answers."""

    def __init__(self, inputs: Mapping[str, View], lengths: tuple[int, ...], examples: int, threads: int) -> None:
        checkpoint = inputs["checkpoint"]
        self._text, self._lengths, self._threads = read_text(checkpoint.path), lengths, threads
        self._head = Head(checkpoint.spec.require_task().value, tuple(checkpoint.spec.facts["labels"]), checkpoint.spec.facts["problem_type"])
        longest = lengths[-1] if lengths else None
        self._examples: list[Example] = evenly(read_examples(checkpoint, inputs["calibration"].path, longest), examples)

    def numbers(self, file: Path) -> list[np.ndarray]:
        """The numbers of each text's answer: float32 [positions, values]."""
        model: LoadedModel = TfliteModel(file, self._threads, RUNTIME) if self._lengths else OnnxModel(file, self._threads)
        found = []
        for example in self._examples:
            length = next((length for length in self._lengths if length >= example.length), example.length)
            outputs = model.run(example.encoded.feeds(self._text, length))
            found.append(np.array(tasks.numbers(self._head, self._text, example.encoded, outputs)))
        return found

    @staticmethod
    def distance(wanted: list[np.ndarray], found: list[np.ndarray]) -> float:
        """Euclidean distance relative to the length, a mean over texts; answers that are no numbers count as 1000."""
        distances = [float(np.linalg.norm(a - b) / max(float(np.linalg.norm(a)), 1e-30)) for a, b in zip(wanted, found, strict=True)]
        return float(np.mean([distance if np.isfinite(distance) else 1000.0 for distance in distances]))
