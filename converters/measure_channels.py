"""How much each attention head and each neuron of a model counts.

Two questions have two answers. How many channels a place needs, gradients say: what the loss would change if one were taken out. Which ones it
needs is another matter, since those that stay will be fitted to what all did: of ten that say the same, nine can go. So there is an order, too,
in which the channels of a place go: first what the rest can best stand in for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from edgeexport.artifact import Kind, Spec
from edgeexport.errors import StepFailed
from edgeexport.step import Context, Refusal, Step, View

from ._architecture import ARCHITECTURES, Channels, head_size, linear, matrix, no_description
from ._examples import evenly, read_examples
from ._objective import Objective
from ._task_model import load_model, read_text

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel

CHANNELS_FILE = "channels.npz"
# Of the mean: what keeps a matrix of few texts invertible, and counts changes that the loss does not see.
DAMPING_OF_INPUTS = 1e-3
DAMPING_OF_GRADIENTS = 1.0
# In which all neurons of a place go; what those of one round lose together is known when they are gone.
ROUNDS = 96
# Whose activations are held at once.
TOKENS_AT_ONCE = 1024


class MeasureChannels(Step):
    """Measure the importance of heads and neurons.

    Attributes:
        method: ``gradient``: the mean square of what the loss would change, to first order, if the channel were taken out; the loss is that of the
            labels where there are any, and else of answers drawn from the model's own distribution, which makes it the Fisher information.
            ``magnitude``: the size of the channel's weights, which needs no data.
        examples: on how many texts, where each is one example.

    Source: P. Molchanov and others, "Importance Estimation for Neural Network Pruning" (2019), method 1 (Taylor); P. Michel, O. Levy,
    G. Neubig, "Are Sixteen Heads Really Better than One?" (2019), section 4; for the order, see :func:`elimination`.
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
        """Write ``heads-N`` and ``neurons-N``: float32 [channels or heads] for each of the N places; with gradients also ``heads-N-order`` and
        ``neurons-N-order``: int64 of the same shape, the number of what goes first, second and so on."""
        import numpy as np
        import torch

        torch.set_num_threads(context.threads)
        checkpoint = inputs["checkpoint"]
        context.report(None, "loading the model")
        model = load_model(checkpoint.path, checkpoint.spec.require_task())
        architecture = ARCHITECTURES[str(checkpoint.spec.architecture)]
        groups = {"neurons": (architecture.neurons, 1)} | ({"heads": (architecture.heads, head_size(model))} if architecture.heads else {})
        arrays: dict[str, Any]
        if self.method == "magnitude":
            arrays = {f"{name}-{number}": values for name, (channels, width) in groups.items()
                      for number, values in enumerate(magnitudes(model, channels, width))}
        else:
            arrays = self._gradients(model, inputs, groups, context)
        np.savez(out / CHANNELS_FILE, **arrays)
        return Spec(kind=Kind.EVIDENCE, task=checkpoint.spec.task)

    def _gradients(self, model: PreTrainedModel, inputs: Mapping[str, View], groups: Mapping[str, tuple[Channels, int]],
                   context: Context) -> dict[str, np.ndarray]:
        """The mean squared gradient of a factor at each channel, over the examples, and the order of elimination."""
        import torch

        checkpoint = inputs["checkpoint"]
        objective = Objective(checkpoint.spec, read_text(checkpoint.path))
        examples = evenly(read_examples(checkpoint, inputs["training"].path), objective.enough(self.examples))
        model.requires_grad_(False)  # of the weights nobody asks
        generator = torch.Generator().manual_seed(context.seed)
        with ExitStack() as stack:
            readers = {f"{name}-{number}": stack.enter_context(Reader(linear(place, channels.read_by), width))
                       for name, (channels, width) in groups.items() for number, place in enumerate(channels.places(model))}
            for number, example in enumerate(examples):
                context.report(0.7 * number / len(examples), f"gradients of text {number + 1} of {len(examples)}")
                answers, _ = objective.run(model, [example])
                loss = objective.error(answers, [example])
                loss = objective.sampled_error(answers, generator) if loss is None else loss
                outputs = [output for reader in readers.values() for output in reader.outputs]
                gradients = iter(torch.autograd.grad(loss, outputs))
                for reader in readers.values():
                    reader.add([next(gradients) for _ in reader.outputs])
        found = {}
        for number, (name, reader) in enumerate(readers.items()):
            context.report(0.7 + 0.3 * number / len(readers), f"what others can stand in for: {number + 1} of {len(readers)}")
            found[name], found[f"{name}-order"] = reader.importance(), reader.order()
        return found


class Reader:
    """What a linear module reads from channels, and what the loss makes of what it adds, gathered while it is open.

    Attributes:
        outputs: of the present text, a zero of the shape of each output, whose gradient is that of the output.
    """

    def __init__(self, module: torch.nn.Linear, width: int) -> None:
        """Channels that lie side by side, `width` of them, count as one."""
        import torch

        self._module, self._width = module, width
        outputs, channels = matrix(module).shape
        self._squares = torch.zeros(channels // width)
        self._inputs_gram, self._gradients_gram = torch.zeros(channels, channels), torch.zeros(outputs, outputs)
        self._inputs_sum = torch.zeros(channels)
        self._held: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._texts = self._tokens = 0
        self._read: list[torch.Tensor] = []
        self.outputs: list[torch.Tensor] = []

    def __enter__(self) -> Reader:
        self._hook = self._module.register_forward_hook(self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        self._hook.remove()

    def _note(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        import torch

        self._read.append(inputs[0].detach().flatten(0, -2))
        self.outputs.append(torch.zeros_like(output, requires_grad=True))
        return output + self.outputs[-1]

    def add(self, gradients: Sequence[torch.Tensor]) -> None:
        """Count a text, by the gradients of its outputs."""
        import torch

        read, gradient = torch.cat(self._read), torch.cat([each.flatten(0, -2) for each in gradients])
        # The gradient of a factor of 1 at each channel.
        self._squares += (read * (gradient @ matrix(self._module))).sum(dim=0).reshape(-1, self._width).sum(dim=1) ** 2
        self._held.append((read, gradient))
        self._texts += 1
        self._read, self.outputs = [], []
        if sum(len(read) for read, _ in self._held) >= TOKENS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        import torch

        if self._held:
            read, gradient = (torch.cat(each) for each in zip(*self._held, strict=True))
            self._inputs_gram += read.T @ read
            self._inputs_sum += read.sum(dim=0)
            self._gradients_gram += gradient.T @ gradient
            self._tokens += len(read)
            self._held = []

    def importance(self) -> np.ndarray:
        """The mean squared gradient of a factor at each channel, or each `width` of them: float32 [channels / width]."""
        return (self._squares / self._texts).numpy()

    def order(self) -> np.ndarray:
        """The order in which they go: int64 [channels / width].

        Raises:
            StepFailed: the activations are no numbers.
        """
        import torch

        self._flush()
        if not all(bool(torch.isfinite(gram).all()) for gram in (self._inputs_gram, self._gradients_gram)):
            raise StepFailed("The importance of heads and neurons cannot be measured.", why="the activations are no numbers",
                             hint="are there infinite numbers in the checkpoint's weights?")
        # What does not change from token to token, the bias can stand in for.
        varying = self._inputs_gram - torch.outer(self._inputs_sum, self._inputs_sum) / self._tokens
        return elimination(matrix(self._module).detach().numpy().T, varying.numpy(), self._gradients_gram.numpy(), self._width)


def elimination(weights: np.ndarray, inputs: np.ndarray, gradients: np.ndarray, width: int) -> np.ndarray:
    """In which order the channels that a linear module reads go, when the rest is fitted each time to what all together gave.

    The loss of what a channel gives is, to second order and with tokens taken for independent, the square of its weights, measured by the
    gradients, over the diagonal of the inverse of the inputs' matrix.

    Args:
        weights: of the module, float32 [channels, outputs].
        inputs: sum over tokens of the products of the inputs, less their means, float32 [channels, channels].
        gradients: that of the products of the loss's gradients to the outputs, float32 [outputs, outputs].
        width: channels that lie side by side, so many of which go together.

    Returns:
        int64 [channels / width], the first to go first.

    Source: B. Hassibi, D. Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon" (1992), in the form for groups of
    E. Kurtic and others, "ZipLM" (2023), section 3.1; the gradients' matrix beside the inputs' one is that of J. Martens, R. Grosse,
    "Optimizing Neural Networks with Kronecker-factored Approximate Curvature" (2015).
    """
    import numpy as np

    def damped(matrix: np.ndarray, share: float) -> np.ndarray:
        # Channels that are always 0 leave nothing to invert.
        return matrix.astype(np.float64) + max(share * float(np.diag(matrix).mean()), 1e-30) * np.eye(len(matrix))

    curvature, axes = np.linalg.eigh(damped(gradients, DAMPING_OF_GRADIENTS))
    left = (weights @ (axes * np.sqrt(curvature))).reshape(-1, width, len(curvature))
    inverse = np.linalg.inv(damped(inputs, DAMPING_OF_INPUTS))
    channels = np.arange(len(left))
    at_once = max(1, len(channels) // ROUNDS)
    order: list[int] = []
    while len(channels):
        blocks = inverse.reshape(len(channels), width, len(channels), width)
        own = blocks[np.arange(len(channels)), :, np.arange(len(channels))]  # [channels, width, width]
        costs = (left * np.linalg.solve(own, left)).sum(axis=(1, 2))
        ranked = np.argsort(costs, kind="stable")
        going, staying = ranked[:at_once], np.sort(ranked[at_once:])
        order += channels[going].tolist()
        # What goes is taken over by what stays.
        flat = [(each[:, None] * width + np.arange(width)).ravel() for each in (going, staying)]
        share = inverse[np.ix_(flat[1], flat[0])] @ np.linalg.inv(inverse[np.ix_(flat[0], flat[0])])
        left = left[staying] - (share @ left[going].reshape(-1, left.shape[-1])).reshape(len(staying), width, left.shape[-1])
        inverse = inverse[np.ix_(flat[1], flat[1])] - share @ inverse[np.ix_(flat[0], flat[1])]
        channels = channels[staying]
    return np.array(order)


def magnitudes(model: PreTrainedModel, channels: Channels, width: int) -> list[np.ndarray]:
    """Euclidean length of the weights that make and read each channel, or each `width` of those read: float32 [channels / width] a place."""
    import torch

    found = []
    with torch.inference_mode():
        for place in channels.places(model):
            read = (matrix(linear(place, channels.read_by)) ** 2).sum(dim=0).reshape(-1, width).sum(dim=1)
            made = [(matrix(linear(place, name)) ** 2).sum(dim=1).reshape(channels.stacks, len(read), -1).sum(dim=(0, 2))
                    for name in channels.made_by]
            found.append(torch.stack([*made, read]).sum(dim=0).sqrt().numpy())
    return found
