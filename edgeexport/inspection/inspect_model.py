"""The step that looks into a payload's model file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from edgeexport.artifact import Kind, Spec
from edgeexport.inspection import inspect_file, litertlm_file, onnx_file, tflite_file
from edgeexport.session.payload import PAYLOAD_FILE
from edgeexport.step import Context, Refusal, Step, View

# Named here so that their code is part of the key.
READERS = (onnx_file, tflite_file, litertlm_file)

INSPECTION_FILE = "inspection.json"


class InspectModel(Step):
    """Count what is in the file: operators, weights by type, what is still float."""

    name: ClassVar[str] = "inspect_model"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"payload": frozenset({Kind.PAYLOAD})}
    backends: ClassVar[tuple[str, ...]] = ("onnx", "ai-edge-litert", "litert-lm-builder")
    seconds_guess: ClassVar[float] = 1.0

    variant: str

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """A page of facts."""
        return Spec(kind=Kind.EVIDENCE, task=inputs["payload"].task, precision=inputs["payload"].precision)

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Inspect."""
        path, spec = inputs["payload"]
        entry = json.loads((path / PAYLOAD_FILE).read_text(encoding="utf-8"))["variants"][self.variant]
        report = inspect_file(path / entry["model"])
        report = report.model_copy(update={"file": entry["model"]})
        (out / INSPECTION_FILE).write_text(report.model_dump_json(indent=1), encoding="utf-8")
        return self.infer({"payload": spec})  # type: ignore[return-value]
