"""Take in the files of a TensorFlow SavedModel or a Keras file, with the tokenizer beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from edgeexport.artifact import Kind, Spec
from edgeexport.step import Context, Refusal, Step, View

from ._take_files import take_files, write_text


class LoadSavedModel(Step):
    """Copy the files, check their digests, and resolve the text spec.

    Attributes:
        spec: what the model's signature and its config say it is.
        text: the text spec; the id of the mask token is added here.
    """

    name: ClassVar[str] = "load_saved_model"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"source": frozenset({Kind.SOURCE})}
    backends: ClassVar[tuple[str, ...]] = ("tokenizers",)
    seconds_guess: ClassVar[float] = 2.0

    spec: Spec
    text: dict[str, Any]

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """The spec was read from the signature already."""
        return self.spec

    def memory_mb(self, inputs: Mapping[str, Spec]) -> int:
        """Files are copied in pieces."""
        return 300

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Copy and check."""
        take_files(inputs["source"], out, context)
        write_text(out, self.text)
        return self.spec
