"""The reference: what the original checkpoint answers, in float32, through Transformers and its own tokenizer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgeexport.artifact import Kind, Spec, Task
from edgeexport.dataset import Row
from edgeexport.errors import NoRoom
from edgeexport.session import tasks
from edgeexport.session.evidence import Answers
from edgeexport.session.text import Encoded, TextSpec
from edgeexport.step import Context, View

from ._own_code import brings_code
from ._reference import Reference
from ._task_model import load_model, named_outputs, read_text

if TYPE_CHECKING:
    import numpy as np

BATCH = 16


class ComputeReference(Reference):
    """Answer with the original in Transformers.

    Nothing of the way to the lanes is used: the tokens are Transformers', the attention its own, pooling is outside the model.
    """

    name: ClassVar[str] = "compute_reference"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"checkpoint": frozenset({Kind.CHECKPOINT})}
    backends: ClassVar[tuple[str, ...]] = ("torch", "transformers", "tokenizers", "optimum")
    extra: ClassVar[str | None] = "convert"
    seconds_guess: ClassVar[float] = 25.0

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Rows of one length go together: what an original makes of padding is not its answer."""
        import torch

        torch.set_num_threads(context.threads)
        path, spec = inputs["checkpoint"]
        context.report(None, "loading the model")
        return self.answer_all(Original(path, spec), inputs, out, context)


class Original:
    """The checkpoint in Transformers."""

    def __init__(self, path: Path, spec: Spec) -> None:
        """Load model and tokenizer."""
        from transformers import AutoTokenizer

        task = spec.require_task()
        self.text: TextSpec = read_text(path)
        self.head = tasks.Head(task.value, tuple(spec.facts["labels"]), spec.facts["problem_type"])
        self.model = load_model(path, task)
        self.tokenizer = AutoTokenizer.from_pretrained(path, use_fast=True, local_files_only=True,
                                                       trust_remote_code=brings_code(path))

    def encode(self, row: Row, max_length: int) -> tuple[dict[str, list[int]], Encoded]:
        """The tokens of a row by Transformers' tokenizer."""
        import numpy as np

        cut = "only_second" if self.head.task == Task.QUESTION_ANSWERING else "longest_first"
        # A batch of one: of a single pair Transformers 5 drops an empty second text, which its batches, as in training, do not.
        text = self.text.prefixed(row.text, row.role)
        arguments = [[text]] if row.text_pair is None else [[text], [row.text_pair]]
        try:
            found = self.tokenizer(*arguments, truncation=cut, max_length=max_length, return_offsets_mapping=True, padding=False,
                                   return_token_type_ids=True)
        except Exception as exc:  # tokenizers raises bare Exception
            raise NoRoom(f"The text of row {row.id} cannot be cut to {max_length} tokens.", why=str(exc)) from exc
        encoding = found.encodings[0]
        full = self.tokenizer(*arguments, truncation=False, verbose=False)
        features = {name: list(found[name][0]) for name in self.text.inputs if name != "attention_mask"}
        return features, Encoded(np.asarray(encoding.ids, np.int64), np.asarray(encoding.type_ids, np.int64), list(encoding.offsets),
                                 list(encoding.word_ids), list(encoding.sequence_ids), len(full["input_ids"][0]) > len(encoding.ids))

    def answers(self, rows: list[Row], max_length: int, name: str, context: Context) -> Answers:
        """The answers to rows, in their order."""
        encoded: dict[int, tuple[dict[str, list[int]], Encoded]] = {}
        unanswered = Answers([], [], [], [])
        for i, row in enumerate(rows):
            unanswered.add_unanswered()
            with contextlib.suppress(NoRoom):
                encoded[i] = self.encode(row, max_length)
        order: list[int] = []
        found = Answers([], [], [], [])
        for chosen in batches({i: len(each.ids) for i, (_, each) in encoded.items()}):
            for i, outputs in zip(chosen, self.outputs([encoded[i][0] for i in chosen]), strict=True):
                tasks.add_answer(found, self.head, self.text, encoded[i][1], outputs)
            order += chosen
            context.report(len(order) / len(rows), f"{name}: {len(order)} of {len(rows)} texts")
        return unanswered.replaced(order, found)

    def outputs(self, features: list[dict[str, list[int]]]) -> list[dict[str, np.ndarray]]:
        """The outputs for each text of a batch of one length, named and shaped as a lane's."""
        import torch

        batch = {name: torch.tensor([feature[name] for feature in features]) for name in features[0]}
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        with torch.inference_mode():
            named = named_outputs(self.model(**batch), batch["attention_mask"], Task(self.head.task), self.text)
        return [{name: value[i : i + 1].numpy() for name, value in named.items()} for i in range(len(features))]


def batches(lengths: Mapping[int, int]) -> Iterator[list[int]]:
    """The keys of `lengths`, at most BATCH at a time and only equal lengths together, shortest first."""
    for _, equal in groupby(sorted(lengths, key=lambda i: lengths[i]), key=lambda i: lengths[i]):
        while batch := list(islice(equal, BATCH)):
            yield batch
