"""Which layers a model can do without: they are taken out one after the other, each time the one that is missed least."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from edgeexport.artifact import Kind, Spec
from edgeexport.step import Context, Refusal, Step, View

from ._architecture import ARCHITECTURES, Layers, no_description
from ._examples import Example, by_length, evenly, read_examples
from ._objective import Objective
from ._task_model import load_model, read_text

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LAYERS_FILE = "layers.json"
BATCH = 16
# Tokens of a text: what each layer makes of each of them is held in memory.
LONGEST = 128
# Of so many layers each is measured again and again. Of more, a layer counts as missed no less than when it was last measured, since most are
# missed more the fewer there are; so few are measured a second time.
FEW = 12


class MeasureLayers(Step):
    """Take layers out greedily and measure how far the answers move.

    Attributes:
        examples: on how many texts, where each is one example.
        down_to: with how many layers left to stop.

    Source: M. Minoux, "Accelerated greedy algorithms for maximizing submodular set functions" (1978), for what need not be measured again.
    """

    name: ClassVar[str] = "measure_layers"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"checkpoint": frozenset({Kind.CHECKPOINT}), "training": frozenset({Kind.DATASET})}
    backends: ClassVar[tuple[str, ...]] = ("torch", "transformers", "optimum")
    extra: ClassVar[str | None] = "convert"
    seconds_guess: ClassVar[float] = 20.0

    examples: int = 64
    down_to: int = Field(1, ge=1)

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
        examples = evenly(read_examples(checkpoint, inputs["training"].path, LONGEST), objective.enough(self.examples))
        batches = list(by_length(examples, objective.at_once(BATCH)))
        removals = Removals(model, objective, batches)
        count = len(removals.kept)
        gone: list[int] = []
        distances: list[float] = []
        missed = dict.fromkeys(removals.kept if removals.differ else removals.kept[-1:], 0.0)
        while len(removals.kept) > self.down_to:
            context.report(len(gone) / (count - self.down_to), f"{len(removals.kept)} layers left")
            if count <= FEW:
                missed = dict.fromkeys(missed, 0.0)
            known: set[int] = set()
            while (least := min(missed, key=lambda layer: (missed[layer], layer))) not in known:
                missed[least] = removals.distance(least)
                known.add(least)
            removals.remove(least)
            gone.append(least)
            distances.append(missed.pop(least))
            missed = missed or {removals.kept[-1]: 0.0}
        (out / LAYERS_FILE).write_text(json.dumps({"order": gone, "distance": distances}), encoding="utf-8")
        return Spec(kind=Kind.EVIDENCE, task=checkpoint.spec.task)


class Removals:
    """A model of which layers are taken out, one after the other.

    What layers make of the texts is remembered, so that those before the one that is taken out need not run again.

    Attributes:
        kept: numbers of the layers that are left.
        differ: whether it matters which they are.
    """

    def __init__(self, model: PreTrainedModel, objective: Objective, batches: Sequence[Sequence[Example]]) -> None:
        """Of a whole model; what it answers to the batches is what distances are measured from."""
        self._model, self._objective, self._batches = model, objective, batches
        self._layers = Layers(model)
        self.kept, self.differ = list(range(len(self._layers))), self._layers.differ
        self._made: list[dict[int, Any]] = [{} for _ in batches]
        self._wanted = [objective.kept(answers) for answers in self._answers(self.kept, since=0, remember=True)]

    def distance(self, without: int) -> float:
        """How far the answers move when this layer is taken out, too: a mean over all rows of answers."""
        kept = [layer for layer in self.kept if layer != without]
        rows = sum(map(len, self._wanted))
        return sum(len(wanted) / rows * self._objective.distance(answers, wanted).item()
                   for answers, wanted in zip(self._answers(kept, since=without), self._wanted, strict=True))

    def remove(self, layer: int) -> None:
        """Take it out."""
        self.kept = [other for other in self.kept if other != layer]
        for _ in self._answers(self.kept, since=layer, remember=True):
            pass

    def _answers(self, kept: Sequence[int], *, since: int, remember: bool = False) -> Iterator[torch.Tensor]:
        """The answers of the model with these layers to each batch; those before layer `since` say what they remember."""
        import torch

        self._layers.keep(kept)
        for batch, made in zip(self._batches, self._made, strict=True):
            with ExitStack() as stack, torch.inference_mode():
                for number, layer in zip(kept, self._layers.now(), strict=self.differ):
                    if number < since:
                        layer.forward = partial(said, made[number])
                        stack.callback(delattr, layer, "forward")
                    elif remember:
                        stack.enter_context(layer.register_forward_hook(partial(note, made, number)))
                answers = self._objective.run(self._model, batch)[0]
            yield answers


def said(output: Any, *_: Any, **__: Any) -> Any:
    """The output of a layer that does not run."""
    return output


def note(made: dict[int, Any], number: int, _: torch.nn.Module, __: Any, output: Any) -> None:
    """A hook that remembers what a layer makes."""
    made[number] = output
