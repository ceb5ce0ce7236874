"""The reference for a SavedModel or Keras file: what the original answers, in float32, through TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgeexport.artifact import Kind, Spec, Task
from edgeexport.dataset import Row
from edgeexport.errors import NoRoom
from edgeexport.session import tasks
from edgeexport.session.evidence import Answers
from edgeexport.session.text import Encoded, Tokenizer, read_text_spec
from edgeexport.step import Context, View

from ._reference import Reference
from ._tensorflow_model import TensorflowModel, import_tensorflow

if TYPE_CHECKING:
    import numpy as np

REPORT_EVERY = 25


class ComputeSavedModelReference(Reference):
    """Answer with the original in TensorFlow.

    Each text goes through alone and without padding, so that a model that does not hide its padding shows it in the lanes' parity.
    """

    name: ClassVar[str] = "compute_saved_model_reference"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"checkpoint": frozenset({Kind.SAVED_MODEL})}
    backends: ClassVar[tuple[str, ...]] = ("tensorflow-cpu", "keras", "tokenizers")
    extra: ClassVar[str | None] = "tensorflow"
    seconds_guess: ClassVar[float] = 25.0

    def memory_mb(self, inputs: Mapping[str, Spec]) -> int:
        """TensorFlow alone takes 700 MB (1.1 GB with 90 MB of weights)."""
        return 900 + 4 * (inputs["checkpoint"].bytes or 0) // 1_000_000

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Answer, one text after the other."""
        tf = import_tensorflow(context.threads)
        path, spec = inputs["checkpoint"]
        context.report(None, "loading the model")
        return self.answer_all(Original(path, spec, tf), inputs, out, context)


class Original:
    """The model in TensorFlow, with its own tokenizer.json."""

    def __init__(self, path: Path, spec: Spec, tf: Any) -> None:
        """Load the model."""
        self.task = spec.require_task()
        self.text = read_text_spec(path / "text.json")
        self.head = tasks.Head(self.task.value, tuple(spec.facts["labels"]), spec.facts["problem_type"])
        self._tokenizer_file = path / "tokenizer.json"
        self.model = TensorflowModel(path, spec, self.text, tf)
        # One trace for all lengths; a Keras model would else run operator by operator.
        shapes = {name: tf.TensorSpec((1, self.model.signature.fixed_length), tf.int64, name=name) for name in self.text.inputs}
        self._run = tf.function(self.model, input_signature=[shapes], autograph=False)

    def tokenizer(self, max_length: int) -> Tokenizer:
        """The tokenizer that cuts texts to a length."""
        return Tokenizer(self._tokenizer_file, replace(self.text, max_length=max_length),
                         "only_second" if self.task is Task.QUESTION_ANSWERING else "longest_first")

    def outputs(self, encoded: Encoded) -> dict[str, np.ndarray]:
        """The outputs for a text, named and shaped as a lane's; filled up only where the model has one length."""
        feeds = encoded.feeds(self.text, self.model.signature.fixed_length or len(encoded.ids))
        return {name: value.numpy() for name, value in self._run(feeds).items()}

    def answers(self, rows: list[Row], max_length: int, name: str, context: Context) -> Answers:
        """The answers to rows, in their order, one text after the other."""

        tokenizer, found = self.tokenizer(max_length), Answers([], [], [], [])
        for number, row in enumerate(rows, 1):
            try:
                encoded = tokenizer.encode(self.text.prefixed(row.text, row.role), row.text_pair)
            except NoRoom:
                found.add_unanswered()
                continue
            tasks.add_answer(found, self.head, self.text, encoded, self.outputs(encoded))
            if number % REPORT_EVERY == 0:
                context.report(number / len(rows), f"{name}: {number} of {len(rows)} texts")
        return found
