"""A checkpoint as a float32 TFLite file: one signature for each length bucket, all sharing their weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from edgeexport.artifact import Kind, Spec
from edgeexport.policy import Policy
from edgeexport.session.run_tflite import SIGNATURE_PREFIX
from edgeexport.step import Context, Step, View

from ._litert_export import Traced, float_model, write_model
from ._task_model import read_text, task_module
from .measure_outliers import read_outliers


class ExportTflite(Step):
    """Export through litert-torch.

    Attributes:
        lengths: length buckets in tokens, rising; the last is the longest text.
        smoothed: the policy by which measured outliers move into the weights; see :mod:`._smoothing`.
    """

    name: ClassVar[str] = "export_tflite"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"checkpoint": frozenset({Kind.CHECKPOINT})}
    backends: ClassVar[tuple[str, ...]] = ("torch", "transformers", "litert-torch", "litert-converter", "flatbuffers")
    extra: ClassVar[str | None] = "tflite"
    seconds_guess: ClassVar[float] = 40.0

    lengths: tuple[int, ...]
    smoothed: Policy = Policy(default="float")

    def infer(self, inputs: Mapping[str, Spec]) -> Spec:
        """A float32 model of about the size of the weights."""
        return float_model(inputs["checkpoint"], self.lengths)

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Trace the module once per length and convert all traces together."""
        write_model(lambda: self._trace(inputs, context), out / "model.tflite", context)
        return self.infer({"checkpoint": inputs["checkpoint"].spec})

    def _trace(self, inputs: Mapping[str, View], context: Context) -> Traced:
        import litert_torch
        import torch

        torch.set_num_threads(context.threads)
        path, spec = inputs["checkpoint"]
        context.report(None, "loading the model")
        text = read_text(path)
        module = task_module(path, spec.require_task(), read_outliers(inputs, self.smoothed), self.smoothed.smoothing or 0.0)
        converter: Any = litert_torch
        for length in self.lengths:
            sample = {name: torch.ones(1, length, dtype=torch.int32) for name in text.inputs}
            converter = converter.signature(f"{SIGNATURE_PREFIX}{length}", module, sample_kwargs=sample)
        context.report(None, f"converting {len(self.lengths)} lengths")
        return Traced(converter, module)
