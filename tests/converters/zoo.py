"""Checkpoints, exports and sessions that several tests use, each made once; and how two sides are compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reference import Original
from tiny import LENGTHS, TEXTS, Case, write_checkpoint

from edgeexport.artifact import Kind, Spec, digest_file
from edgeexport.catalog import find_step
from edgeexport.checkpoint import read_checkpoint
from edgeexport.dataset import ROWS_FILE, Row
from edgeexport.policy import Policy, preset
from edgeexport.recipe import ModelSection
from edgeexport.session import Payload, Session
from edgeexport.step import Context, Step, View

RUNTIMES = {"onnx": "onnxruntime", "tflite": "ai-edge-litert"}


class Zoo:
    """Makes what a test asks for and keeps it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._made: dict[Any, Any] = {}
        self._count = 0

    def place(self, name: str) -> Path:
        """A new empty directory."""
        self._count += 1
        path = self.root / f"{self._count}-{name}"
        path.mkdir()
        return path

    def run(self, step: Step, inputs: dict[str, View]) -> View:
        """The artifact of a step."""
        out = self.place(step.name)
        return View(out, step.run(inputs, out, Context(scratch=self.place("scratch"), threads=1)))

    def directory(self, case: Case) -> Path:
        """The checkpoint as a user has it."""
        return self._once(("directory", case), lambda: write_checkpoint(self.root / str(case), case))

    def original(self, case: Case) -> Original:
        """The checkpoint in Transformers."""
        return self._once(("original", case), lambda: Original(self.directory(case), case.task))

    def loaded(self, case: Case) -> View:
        """The checkpoint as an artifact."""
        return self._once(("loaded", case), lambda: self.load(self.directory(case), ModelSection(source="m", task=case.task)))

    def load(self, directory: Path, section: ModelSection) -> View:
        """A directory as a checkpoint artifact, as a plan does it."""
        checkpoint = read_checkpoint(directory)
        digests = {name: digest_file(directory / name) for name in checkpoint.sizes}
        step = find_step("load_checkpoint")(spec=checkpoint.spec(section), text=checkpoint.text_spec(section).as_dict())
        return self.run(step, {"source": View(directory, Spec(kind=Kind.SOURCE, facts={"digests": digests}))})

    def trimmed(self, case: Case, size: int) -> View:
        """The checkpoint with so many tokens, chosen by the calibration data."""
        return self._once(("trimmed", case, size), lambda: self.run(
            find_step("trim_vocabulary")(size=size, datasets=("texts",)), {"checkpoint": self.loaded(case), "texts": self.calibration()}))

    def exported(self, case: Case, model_format: str) -> View:
        """The float32 model."""
        options = {"lengths": LENGTHS} if model_format == "tflite" else {}
        return self._once(("exported", case, model_format), lambda: self.run(
            find_step(f"export_{model_format}")(**options), {"checkpoint": self.loaded(case)}))

    def quantized(self, case: Case, model_format: str, precision: str, policy: Policy | None = None) -> View:
        """The model by a preset, or by a policy."""
        step = find_step(f"quantize_{model_format}")(precision=precision, policy=policy or preset(model_format, precision))
        inputs = {"model": self.exported(case, model_format)}
        if step.policy.needs_calibration:
            inputs["ranges"] = self.ranges(inputs | {"checkpoint": self.loaded(case), "calibration": self.calibration()}, step.policy)
        return self._once(("quantized", case, model_format, precision, policy), lambda: self.run(step, inputs))

    def ranges(self, inputs: dict[str, View], policy: Policy) -> View:
        """What a static policy needs to know of a model's activations."""
        return self._once(("ranges", *(view.path for view in inputs.values()), policy.measured), lambda: self.run(
            find_step("measure_ranges")(policy=policy.measured), inputs))

    def calibration(self) -> View:
        """Every fourth text, so that three in four are new to a static model."""
        return self._once("calibration", lambda: self.dataset("calibration", as_rows(TEXTS[::4])))

    def dataset(self, name: str, rows: Sequence[Row]) -> View:
        """Rows as an artifact."""
        path = self.place(name)
        (path / ROWS_FILE).write_text("".join(row.model_dump_json(exclude_none=True) + "\n" for row in rows), encoding="utf-8")
        return View(path, Spec(kind=Kind.DATASET))

    def payload(self, checkpoint: View, model: View) -> View:
        """What a session needs; its one variant is called ``v``."""
        return self.run(find_step("assemble_payload")(variant="v"), {"checkpoint": checkpoint, "model": model})

    def session(self, case: Case, model: View | str) -> Session:
        """A session on a model, or on the float32 export of a format."""
        view = self.exported(case, model) if isinstance(model, str) else model
        return self._once(("session", case, view.path), lambda: Session(
            Payload(self.payload(self.loaded(case), view).path), "v", RUNTIMES[view.spec.kind.value]))

    def _once(self, key: Any, make: Any) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def as_rows(texts: Sequence[str]) -> list[Row]:
    """Rows without labels."""
    return [Row(id=str(number), text=text) for number, text in enumerate(texts)]
