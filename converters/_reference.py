"""What the reference steps have in common: which data sets they answer, and how often."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from edgeexport.artifact import Kind, Spec
from edgeexport.dataset import ROWS_FILE, Row, read_rows
from edgeexport.session.evidence import Answers, untruncated
from edgeexport.session.text import TextSpec
from edgeexport.step import Context, Refusal, Step, View


class Original(Protocol):
    """The original model, in float32 and in its own framework."""

    text: TextSpec

    def answers(self, rows: list[Row], max_length: int, name: str, context: Context) -> Answers:
        """The answers to rows, in their order, with texts cut to `max_length` tokens; `name` is what progress calls them."""


class Reference(Step):
    """Answer every row of every data set with the original.

    Attributes:
        datasets: names of the inputs that are data sets.
        untruncated: those of them that are answered a second time, with texts cut only where the original itself must.
    """

    datasets: tuple[str, ...]
    untruncated: tuple[str, ...] = ()

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """Answers to all rows."""
        return Spec(kind=Kind.EVIDENCE, task=inputs["checkpoint"].task, precision="float32")

    def answer_all(self, original: Original, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Answer the data sets, and only what was cut once more."""
        for name in self.datasets:
            rows = read_rows(inputs[name].path / ROWS_FILE)
            found = original.answers(rows, original.text.max_length, name, context)
            found.save(out / f"{name}.npz")
            if name in self.untruncated:
                cut = [i for i, truncated in enumerate(found.truncated) if truncated]
                again = original.answers([rows[i] for i in cut], original.text.own_max_length, f"{name}, uncut", context)
                found.replaced(cut, again).save(out / f"{untruncated(name)}.npz")
        return self.infer({"checkpoint": inputs["checkpoint"].spec})  # type: ignore[return-value]
