"""The step that lays out a payload: one variant's model with the tokenizer, labels and text spec it needs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from edgeexport.artifact import Kind, Spec
from edgeexport.session.generation import GENERATION_FILE
from edgeexport.session.payload import PAYLOAD_FILE
from edgeexport.step import Context, Refusal, Step, View

LICENCE_FILES = ("licen", "notice", "copying", "use_policy")


class AssemblePayload(Step):
    """Lay out what a session needs to run one variant.

    Attributes:
        variant: the variant's name.
    """

    name: ClassVar[str] = "assemble_payload"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {
        "checkpoint": frozenset({Kind.CHECKPOINT, Kind.SAVED_MODEL}), "model": frozenset({Kind.ONNX, Kind.TFLITE, Kind.LITERTLM})}
    heavy: ClassVar[bool] = False
    seconds_guess: ClassVar[float] = 0.2

    variant: str

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """The model and a little text."""
        return inputs["model"].model_copy(update={"kind": Kind.PAYLOAD})

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Copy, and describe in `payload.json`."""
        checkpoint, model = inputs["checkpoint"], inputs["model"]
        (out / "text").mkdir()
        for name in ("tokenizer.json", "text.json", GENERATION_FILE):
            if (checkpoint.path / name).is_file():
                shutil.copyfile(checkpoint.path / name, out / "text" / name)
        for path in sorted(checkpoint.path.iterdir()):
            if path.name.lower().startswith(LICENCE_FILES):
                (out / "licences").mkdir(exist_ok=True)
                shutil.copyfile(path, out / "licences" / path.name)
        folder = out / "variants" / self.variant
        folder.mkdir(parents=True)
        files = sorted(path.name for path in model.path.iterdir())
        for name in files:
            shutil.copyfile(model.path / name, folder / name)
        entry = {"format": model.spec.kind.value, "precision": model.spec.precision, "lengths": list(model.spec.lengths),
                 "model": f"variants/{self.variant}/{next(name for name in files if name.startswith('model.'))}",
                 "files": [f"variants/{self.variant}/{name}" for name in files]}
        facts = checkpoint.spec.facts
        write_payload(out, {"schema": 1, "task": checkpoint.spec.require_task().value, "labels": facts["labels"],
                            "problem_type": facts["problem_type"], "variants": {self.variant: entry}})
        return self.infer({name: view.spec for name, view in inputs.items()})  # type: ignore[return-value]


def write_payload(directory: Path, data: dict[str, Any]) -> None:
    """Write a payload's description."""
    (directory / PAYLOAD_FILE).write_text(json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False), encoding="utf-8")


def merge_payloads(descriptions: list[dict[str, Any]]) -> dict[str, Any]:
    """The description of several one-variant payloads of the same checkpoint together."""
    merged = dict(descriptions[0], variants={})
    for description in descriptions:
        merged["variants"] |= description["variants"]
    return merged
