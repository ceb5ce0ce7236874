"""A checkpoint with fewer layers: those that are missed least are taken out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from edgeexport.artifact import Kind, Spec
from edgeexport.step import Context, Refusal, Step, View

from ._architecture import ARCHITECTURES, Layers, no_description
from ._pruned_model import pruned_spec, save_model
from ._task_model import load_model
from .measure_layers import LAYERS_FILE


class DropLayers(Step):
    """Keep the layers that count most.

    Attributes:
        layers: how many to keep.
    """

    name: ClassVar[str] = "drop_layers"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"checkpoint": frozenset({Kind.CHECKPOINT}), "order": frozenset({Kind.EVIDENCE})}
    backends: ClassVar[tuple[str, ...]] = ("torch", "transformers", "optimum")
    extra: ClassVar[str | None] = "convert"
    seconds_guess: ClassVar[float] = 10.0

    layers: int

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """A checkpoint of the same kind with fewer weights; refuses to keep more layers than there are."""
        checkpoint = inputs["checkpoint"]
        if checkpoint.architecture not in ARCHITECTURES:
            return no_description(checkpoint)
        there = checkpoint.facts.get("layers")
        if there is not None and self.layers >= there:
            return Refusal(reason=f"the model has {there} layers, and {self.layers} are to be kept",
                           hint="lower compress.prune.layers, or take it out")
        return checkpoint.model_copy(update={"facts": checkpoint.facts | {"layers": self.layers}})

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Write the model without the layers that go first."""
        path, spec = inputs["checkpoint"]
        context.report(None, "loading the model")
        model = load_model(path, spec.require_task())
        order = json.loads((inputs["order"].path / LAYERS_FILE).read_text(encoding="utf-8"))["order"]
        layers = Layers(model)
        gone = order[:len(layers) - self.layers]
        kept = [number for number in range(len(layers)) if number not in gone]
        layers.keep(kept)
        context.report(None, "writing")
        save_model(model, path, out)
        return pruned_spec(model, spec, out, layers=self.layers, kept_layers=kept)
