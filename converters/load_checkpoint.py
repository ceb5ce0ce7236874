"""Take a checkpoint's files in: safetensors, a fast tokenizer and one meaning of text. The start of every graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from edgeexport.artifact import Kind, Spec
from edgeexport.errors import CheckpointError
from edgeexport.step import Context, Refusal, Step, View

from ._take_files import take_files, write_text


class LoadCheckpoint(Step):
    """Copy the files, check their digests, write `tokenizer.json` where there is none, and resolve the text spec.

    Attributes:
        spec: what the checkpoint's config says it is.
        text: the text spec; the id of the mask token is added here.
    """

    name: ClassVar[str] = "load_checkpoint"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"source": frozenset({Kind.SOURCE})}
    backends: ClassVar[tuple[str, ...]] = ("tokenizers",)
    seconds_guess: ClassVar[float] = 2.0

    spec: Spec
    text: dict[str, Any]

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """The spec was read from the config already."""
        return self.spec

    def memory_mb(self, inputs: Mapping[str, Spec]) -> int:
        """Files are copied in pieces."""
        return 300

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Copy and check."""
        take_files(inputs["source"], out, context)
        if not (out / "tokenizer.json").is_file():
            context.report(None, "making tokenizer.json")
            write_fast_tokenizer(out, self.spec.facts.get("vocabulary") or 0)
        write_text(out, self.text)
        return self.spec


def write_fast_tokenizer(directory: Path, vocabulary: int) -> None:
    """Convert the checkpoint's own tokenizer files to `tokenizer.json`.

    Args:
        directory: where they are.
        vocabulary: how many tokens the model knows.

    Raises:
        CheckpointError: Transformers can't load the tokenizer.
    """
    from transformers import AutoTokenizer

    hint = "check the tokenizer files beside config.json"
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, use_fast=True, local_files_only=True)
        tokenizer.backend_tokenizer.save(str(directory / "tokenizer.json"))
    except Exception as exc:
        raise CheckpointError("The tokenizer does not load.", why=str(exc).splitlines()[0] if str(exc) else type(exc).__name__, hint=hint) from exc
    # Where its file is not there, Transformers makes a tokenizer of the special tokens alone.
    if len(tokenizer) < vocabulary // 2:
        raise CheckpointError("The tokenizer does not load.", why=f"it has {len(tokenizer)} tokens, and the model {vocabulary:,}", hint=hint)
