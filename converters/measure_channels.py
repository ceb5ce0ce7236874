"""How much each attention head and each neuron of a model counts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from edgeexport.artifact import Kind, Spec
from edgeexport.step import Context, Refusal, Step, View

from ._architecture import ARCHITECTURES, Channels, head_size, linear, no_description
from ._examples import evenly, read_examples
from ._objective import Objective
from ._task_model import load_model, read_text

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel

CHANNELS_FILE = "channels.npz"


class MeasureChannels(Step):
    """Measure the importance of heads and neurons.

    Attributes:
        method: ``gradient``: the mean square of what the loss would change, to first order, if the channel were taken out; the loss is that of the
            labels where there are any, and else of answers drawn from the model's own distribution, which makes it the Fisher information.
            ``magnitude``: the size of the channel's weights, which needs no data.
        examples: on how many texts.

    Source: P. Molchanov and others, "Importance Estimation for Neural Network Pruning" (2019), method 1 (Taylor); P. Michel, O. Levy,
    G. Neubig, "Are Sixteen Heads Really Better than One?" (2019), section 4.
    """

    name: ClassVar[str] = "measure_channels"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"checkpoint": frozenset({Kind.CHECKPOINT})}
    backends: ClassVar[tuple[str, ...]] = ("torch", "transformers", "optimum")
    extra: ClassVar[str | None] = "convert"
    seconds_guess: ClassVar[float] = 20.0

    method: Literal["gradient", "magnitude"] = "gradient"
    examples: int = 256

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """A number for each head and neuron; refuses an architecture that is not described, and gradients without data."""
        checkpoint = inputs["checkpoint"]
        if checkpoint.architecture not in ARCHITECTURES:
            return no_description(checkpoint)
        if self.method == "gradient" and "training" not in inputs:
            return Refusal(reason="importance by gradients is measured on texts",
                           hint='add [data.training], or set compress.prune.importance = "magnitude"')
        return Spec(kind=Kind.EVIDENCE, task=checkpoint.task)

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Write ``heads-N`` and ``neurons-N``: float32 [channels or heads] for each of the N places."""
        import numpy as np
        import torch

        torch.set_num_threads(context.threads)
        checkpoint = inputs["checkpoint"]
        context.report(None, "loading the model")
        model = load_model(checkpoint.path, checkpoint.spec.require_task())
        architecture = ARCHITECTURES[str(checkpoint.spec.architecture)]
        groups = {"neurons": (architecture.neurons, 1)} | ({"heads": (architecture.heads, head_size(model))} if architecture.heads else {})
        if self.method == "magnitude":
            found = {name: magnitudes(model, channels, width) for name, (channels, width) in groups.items()}
        else:
            found = self._gradients(model, inputs, groups, context)
        arrays: dict[str, Any] = {f"{name}-{number}": values for name, places in found.items() for number, values in enumerate(places)}
        np.savez(out / CHANNELS_FILE, **arrays)
        return Spec(kind=Kind.EVIDENCE, task=checkpoint.spec.task)

    def _gradients(self, model: PreTrainedModel, inputs: Mapping[str, View], groups: Mapping[str, tuple[Channels, int]],
                   context: Context) -> dict[str, list[np.ndarray]]:
        """The mean squared gradient of a factor at each channel, over the examples."""
        import torch

        checkpoint = inputs["checkpoint"]
        objective = Objective(checkpoint.spec, read_text(checkpoint.path))
        examples = evenly(read_examples(checkpoint, inputs["training"].path), self.examples)
        model.requires_grad_(False)  # of the weights nobody asks
        generator = torch.Generator().manual_seed(context.seed)
        with ExitStack() as stack:
            factors = {name: [stack.enter_context(Factor(linear(place, channels.read_by), width)) for place in channels.places(model)]
                       for name, (channels, width) in groups.items()}
            flat = [factor.values for places in factors.values() for factor in places]
            totals = [torch.zeros_like(values) for values in flat]
            for number, example in enumerate(examples):
                context.report(number / len(examples), f"gradients of text {number + 1} of {len(examples)}")
                answers, _ = objective.run(model, [example])
                loss = objective.error(answers, [example])
                loss = objective.sampled_error(answers, generator) if loss is None else loss
                for total, gradient in zip(totals, torch.autograd.grad(loss, flat), strict=True):
                    total += gradient**2
        means = iter(total / len(examples) for total in totals)
        return {name: [next(means).numpy() for _ in places] for name, places in factors.items()}


class Factor:
    """A factor of 1 at each channel that a linear module reads, while it is open: its gradient is what the channel is worth."""

    def __init__(self, reader: torch.nn.Linear, width: int) -> None:
        """Channels that lie side by side, `width` of them, share a factor."""
        import torch

        self._reader, self._width = reader, width
        self.values = torch.ones(reader.weight.shape[1] // width, requires_grad=True)

    def __enter__(self) -> Factor:
        self._hook = self._reader.register_forward_pre_hook(lambda module, inputs: (inputs[0] * self.values.repeat_interleave(self._width),))
        return self

    def __exit__(self, *exc: object) -> None:
        self._hook.remove()


def magnitudes(model: PreTrainedModel, channels: Channels, width: int) -> list[np.ndarray]:
    """Euclidean length of the weights that make and read each channel, or each `width` of them: float32 [channels / width] a place."""
    import torch

    found = []
    with torch.inference_mode():
        for place in channels.places(model):
            squares = [(linear(place, name).weight ** 2).sum(dim=1) for name in channels.made_by]
            squares.append((linear(place, channels.read_by).weight ** 2).sum(dim=0))
            found.append(torch.stack(squares).sum(dim=0).reshape(-1, width).sum(dim=1).sqrt().numpy())
    return found
