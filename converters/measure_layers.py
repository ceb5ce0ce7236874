"""Which layers a model can do without: they are taken out one after the other, each time the one that is missed least."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from edgeexport.artifact import Kind, Spec
from edgeexport.step import Context, Refusal, Step, View

from ._architecture import ARCHITECTURES, Layers, no_description
from ._examples import by_length, evenly, read_examples
from ._objective import Objective
from ._task_model import load_model, read_text

LAYERS_FILE = "layers.json"
BATCH = 16
# Of so many layers each is measured again and again. Of more, a layer counts as missed no less than when it was last measured, since most are
# missed more the fewer there are; so few are measured a second time.
FEW = 12


class MeasureLayers(Step):
    """Take layers out greedily and measure how far the answers move.

    Attributes:
        examples: on how many texts, where each is one example.

    Source: M. Minoux, "Accelerated greedy algorithms for maximizing submodular set functions" (1978), for what need not be measured again.
    """

    name: ClassVar[str] = "measure_layers"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"checkpoint": frozenset({Kind.CHECKPOINT}), "training": frozenset({Kind.DATASET})}
    backends: ClassVar[tuple[str, ...]] = ("torch", "transformers", "optimum")
    extra: ClassVar[str | None] = "convert"
    seconds_guess: ClassVar[float] = 20.0

    examples: int = 64

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """The order in which layers go; refuses an architecture that is not described."""
        checkpoint = inputs["checkpoint"]
        if checkpoint.architecture not in ARCHITECTURES:
            return no_description(checkpoint)
        return Spec(kind=Kind.EVIDENCE, task=checkpoint.task)

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Write the layers' numbers in the order in which they go, with the distance of the answers after each."""
        import torch

        torch.set_num_threads(context.threads)
        checkpoint = inputs["checkpoint"]
        context.report(None, "loading the model")
        model = load_model(checkpoint.path, checkpoint.spec.require_task())
        objective = Objective(checkpoint.spec, read_text(checkpoint.path))
        examples = evenly(read_examples(checkpoint, inputs["training"].path), objective.enough(self.examples))
        batches = list(by_length(examples, objective.at_once(BATCH)))
        layers = Layers(model)
        kept = list(range(len(layers)))
        gone: list[int] = []
        distances: list[float] = []
        with torch.inference_mode():
            wanted = [objective.kept(objective.run(model, batch)[0]) for batch in batches]

            rows = sum(len(answers) for answers in wanted)

            def distance(without: int) -> float:
                layers.keep(layer for layer in kept if layer != without)
                return sum(len(answers) / rows * objective.distance(objective.run(model, batch)[0], answers).item()
                           for batch, answers in zip(batches, wanted, strict=True))

            missed = dict.fromkeys(kept if layers.differ else kept[-1:], 0.0)
            while len(kept) > 1:
                context.report(len(gone) / (len(layers) - 1), f"{len(kept)} layers left")
                if len(layers) <= FEW:
                    missed = dict.fromkeys(missed, 0.0)
                known: set[int] = set()
                while (least := min(missed, key=lambda layer: (missed[layer], layer))) not in known:
                    missed[least] = distance(least)
                    known.add(least)
                kept.remove(least)
                gone.append(least)
                distances.append(missed.pop(least))
                missed = missed or {kept[-1]: 0.0}
        (out / LAYERS_FILE).write_text(json.dumps({"order": gone, "distance": distances}), encoding="utf-8")
        return Spec(kind=Kind.EVIDENCE, task=checkpoint.spec.task)
