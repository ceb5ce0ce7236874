"""The reference for text generation: what the original says of every text, in float32, through Transformers and its own tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from edgeexport.artifact import Kind, Spec, Task
from edgeexport.dataset import ROWS_FILE, Row, read_rows
from edgeexport.errors import DataError
from edgeexport.session.evidence import Answers
from edgeexport.session.scoring import CONTINUED, NOTHING, Expectation, add_expectation, ends_of, expectation, scored
from edgeexport.step import Context, Refusal, Step, View

from ._day_of_proof import day_of_proof
from ._task_model import load_model, read_text


class ComputeGenerationReference(Step):
    """Read every row of every data set with the original in Transformers.

    Nothing of the way to the lanes is used: tokens and conversations are Transformers', a text is read at once and without a cache.

    Attributes:
        datasets: names of the inputs that are data sets.
    """

    name: ClassVar[str] = "compute_generation_reference"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"checkpoint": frozenset({Kind.CHECKPOINT})}
    backends: ClassVar[tuple[str, ...]] = ("torch", "transformers", "tokenizers", "optimum")
    extra: ClassVar[str | None] = "convert"
    seconds_guess: ClassVar[float] = 90.0

    datasets: tuple[str, ...]

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """What is said of all rows."""
        return Spec(kind=Kind.EVIDENCE, task=inputs["checkpoint"].task, precision="float32")

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """One row after another."""
        import torch

        torch.set_num_threads(context.threads)
        path, spec = inputs["checkpoint"]
        context.report(None, "loading the model")
        original = Original(path)
        for name in self.datasets:
            rows = read_rows(inputs[name].path / ROWS_FILE)
            found = Answers([], [], [], [])
            for number, row in enumerate(rows):
                original.add(found, row)
                context.report((number + 1) / len(rows), f"{name}: {number + 1} of {len(rows)} texts")
            found.save(out / f"{name}.npz")
        return self.infer({"checkpoint": spec})  # type: ignore[return-value]


class Original:
    """The checkpoint in Transformers."""

    def __init__(self, path: Path) -> None:
        """Load model and tokenizer."""
        from transformers import AutoTokenizer

        self.context = read_text(path).max_length
        self.model = load_model(path, Task.TEXT_GENERATION)
        self.tokenizer = AutoTokenizer.from_pretrained(path, use_fast=True, local_files_only=True)

    def add(self, found: Answers, row: Row) -> None:
        """Add what the original says of a row."""
        whole, ends, continued = self.encode(row)
        ids = whole[:self.context]
        said = self.continue_text(ids) if continued else self.read_text(ids)
        add_expectation(found, ids, ends, said or NOTHING, len(whole) > self.context, continued=continued)

    def encode(self, row: Row) -> tuple[np.ndarray, np.ndarray, bool]:
        """The tokens of a row, int64 [length]; up to which character of its text each reaches; and whether it is to be continued."""
        if row.messages is None:
            return *self._tokens(row.text), row.role == "prompt"
        open_end = row.messages[-1].role != "assistant"
        messages = [message.model_dump() for message in row.messages]
        try:
            with day_of_proof():
                text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_end)
        except Exception as exc:  # whatever a template raises
            raise DataError(f"The chat template refuses the conversation of row {row.id}.", why=str(exc)) from exc
        return *self._tokens(str(text), add_special_tokens=False), open_end

    def _tokens(self, text: str, **options: bool) -> tuple[np.ndarray, np.ndarray]:
        found = self.tokenizer(text, verbose=False, return_offsets_mapping=True, **options)
        return np.asarray(found["input_ids"], np.int64), ends_of(found["offset_mapping"])

    def read_text(self, ids: np.ndarray) -> Expectation | None:
        """What is expected at the scored positions of a text."""
        import torch

        positions = scored(len(ids))
        if not positions:
            return None
        with torch.inference_mode():
            logits = self.model(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0, positions]
        return expectation(logits.numpy(), ids[np.add(positions, 1)])

    def continue_text(self, ids: np.ndarray) -> Expectation | None:
        """What comes after a text, the likeliest token each time."""
        import torch

        logits: list[np.ndarray] = []
        given, cache, read = torch.from_numpy(ids)[None], None, 0
        with torch.inference_mode():
            while given.numel() and len(logits) < CONTINUED and read + given.shape[1] <= self.context:
                read += given.shape[1]
                said = self.model(input_ids=given, past_key_values=cache, use_cache=True)
                logits.append(said.logits[0, -1].numpy())
                given, cache = said.logits[:, -1:].argmax(dim=-1), said.past_key_values
        return expectation(logits, [int(each.argmax()) for each in logits]) if logits else None
