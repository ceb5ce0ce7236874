"""A smaller model whose layers hand on what the original's do, as nearly as the parts that are left can: fitted, not trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from edgeexport.artifact import Kind, Spec
from edgeexport.errors import CheckpointError, StepFailed
from edgeexport.step import Context, Refusal, Step, View

from ._architecture import ARCHITECTURES, Layers, no_description
from ._examples import Example, collate, evenly, read_examples
from ._objective import Objective
from ._own_code import brings_model
from ._pruned_model import pruned_spec, save_model
from ._task_model import load_model, read_text

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel

TOKENS_AT_ONCE = 2048
# One text of so many says whether a fit holds for texts that it was not made on.
HELD_OUT = 8
# Of the mean squared activation: what holds the weights as they were where the texts say little about them.
RIDGE = 1e-3


class ReconstructLayers(Step):
    """Fit the linear modules that add to the hidden states, from the first to the last, by least squares: after each addition the hidden states
    are to be the original's, whatever was lost before. A fit that does not hold for other texts is not made.

    Attributes:
        tokens: how many tokens of the texts it reads, about.

    Source: Y. He, X. Zhang, J. Sun, "Channel Pruning for Accelerating Very Deep Neural Networks" (2017), sections 3.1 and 3.2, for convolutions;
    W. Kwon and others, "A Fast Post-Training Pruning Framework for Transformers" (2022), section 4.3, for single factors of heads and neurons.
    """

    name: ClassVar[str] = "reconstruct_layers"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {
        "checkpoint": frozenset({Kind.CHECKPOINT}), "original": frozenset({Kind.CHECKPOINT}), "training": frozenset({Kind.DATASET})}
    backends: ClassVar[tuple[str, ...]] = ("torch", "transformers", "optimum")
    extra: ClassVar[str | None] = "convert"
    seconds_guess: ClassVar[float] = 40.0

    tokens: int = Field(16_384, gt=0)

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """The checkpoint with other weights; refuses an architecture that is not described."""
        checkpoint = inputs["checkpoint"]
        return checkpoint if checkpoint.architecture in ARCHITECTURES else no_description(checkpoint)

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Fit one module after another, and write the model.

        Raises:
            CheckpointError: the model's code is its own, so that nobody knows where it adds.
            StepFailed: the hidden states are no numbers.
        """
        import torch

        torch.set_num_threads(context.threads)
        checkpoint, original = inputs["checkpoint"], inputs["original"]
        if brings_model(checkpoint.path):
            raise CheckpointError("The layers of a checkpoint that brings its own model code cannot be fitted.",
                                  why="what its code does with them is not known", hint="set reconstruct = false in [compress]")
        context.report(None, "loading both models")
        texts = read_texts(checkpoint, inputs["training"].path, self.tokens)
        objective = Objective(checkpoint.spec, read_text(checkpoint.path))
        own, wanted = (Additions(load_model(view.path, view.spec.require_task()), objective, texts[0][0]) for view in (checkpoint, original))
        pairs = counterparts(len(own.order), len(wanted.order), wanted.layers, checkpoint.spec.facts.get("kept_layers"))
        context.report(None, "reading the texts with the original")
        fitting, judging = (Targets(context.scratch / name, wanted, pairs, batches)
                            for name, batches in zip(("fitting", "judging"), texts, strict=True))

        before = own.error(judging, len(pairs) - 1)
        modules = list(dict.fromkeys(own.order))
        for number, module in enumerate(modules):
            context.report(number / len(modules), f"fitting part {number + 1} of {len(modules)}")
            own.fit(module, fitting, judging)
        after = own.error(judging, len(pairs) - 1)
        context.report(None, "writing")
        save_model(own.model, checkpoint.path, out)
        return pruned_spec(own.model, checkpoint.spec, out, reconstruction=[before, after])


def read_texts(checkpoint: View, dataset: Path, tokens: int) -> tuple[list[list[Example]], list[list[Example]]]:
    """Examples with about so many tokens, evenly spread over a data set, as batches: those to fit on, and those to judge by, which of a single
    text are the same."""
    examples = read_examples(checkpoint, dataset)
    mean = sum(example.length for example in examples) / len(examples)
    chosen = evenly(examples, max(1, round(tokens / mean)))
    judging = chosen[::HELD_OUT]
    fitting = [example for number, example in enumerate(chosen) if number % HELD_OUT] or judging
    return batches(fitting), batches(judging)


def batches(examples: Iterable[Example]) -> list[list[Example]]:
    """Batches of about equally long texts, none with more tokens than are held at once."""
    found: list[list[Example]] = [[]]
    for example in sorted(examples, key=lambda example: example.length):
        if found[-1] and (len(found[-1]) + 1) * example.length > TOKENS_AT_ONCE:
            found.append([])
        found[-1].append(example)
    return found


def counterparts(own: int, wanted: int, layers: int, kept: Sequence[int] | None) -> list[int]:
    """For each addition of a smaller model that of the original which it is to come to.

    The last one of a layer stands for the layers that were taken out after it, too.

    Args:
        own: additions of the smaller model.
        wanted: additions of the original.
        layers: of the original.
        kept: which of them the smaller model has; None for all.
    """
    each = wanted // layers
    first = [*(kept if kept is not None else range(layers)), layers]
    return [first[layer + 1] * each - 1 if part == each - 1 else first[layer] * each + part for layer, part in (divmod(i, each) for i in range(own))]


class Targets:
    """What hidden states are to be, and the texts that have them; on disk, since of a large model it is more than memory holds.

    Attributes:
        batches: the texts.
    """

    def __init__(self, directory: Path, model: Additions, calls: Sequence[int], batches: Sequence[Sequence[Example]]) -> None:
        """Run a model over texts, and keep its hidden states after each of some additions."""
        self.batches, self._directory = batches, directory
        self._widths = [model.order[call].out_features for call in calls]
        directory.mkdir(exist_ok=True)
        with ExitStack() as stack:
            files = [stack.enter_context(self._path(number).open("wb")) for number in range(len(calls))]
            for batch in batches:
                found = model.record(batch, calls)
                for file, call in zip(files, calls, strict=True):
                    found[call].numpy().tofile(file)

    def read(self, number: int) -> np.ndarray:
        """The hidden states after an addition: float32 [tokens of all texts, width]."""
        import numpy as np

        return np.fromfile(self._path(number), np.float32).reshape(-1, self._widths[number])

    def _path(self, number: int) -> Path:
        return self._directory / f"{number}.bin"


class Reached(Exception):
    """The rest of a model need not run."""


class Additions:
    """Where a model adds to its hidden states.

    Attributes:
        model: the model.
        order: the linear module of each addition of a run, in their order; where layers share weights, a module comes again.
        layers: how many of the model's layers it goes through.
    """

    def __init__(self, model: PreTrainedModel, objective: Objective, batch: Sequence[Example]) -> None:
        """Find the order by running a batch."""
        import torch

        self.model, self._objective = model, objective
        self._parts = [part for addition in ARCHITECTURES[model.config.model_type].additions for part in addition.places(model)]
        self.order: list[torch.nn.Linear] = []
        self.layers = len(Layers(model))
        with ExitStack() as stack, torch.inference_mode():
            for module, norm in self._parts:
                stack.callback(norm.register_forward_pre_hook(lambda *_, module=module: self.order.append(module)).remove)
            self._objective.run(model, batch)

    def error(self, targets: Targets, call: int) -> float:
        """Squared distance of the hidden states from what they are to be after an addition, as a share of their squared length."""
        import numpy as np

        wanted = targets.read(call)
        found = np.concatenate([self.record(batch, [call])[call].numpy() for batch in targets.batches])
        return float(((found - wanted) ** 2).sum() / (wanted**2).sum())

    def fit(self, module: torch.nn.Linear, fitting: Targets, judging: Targets) -> None:
        """Give a module the weights with which the hidden states come nearest to what they are to be, if they do so in other texts too.

        Args:
            module: the module; those before it have been fitted.
            fitting: to fit on.
            judging: the other texts.

        Raises:
            StepFailed: the hidden states are no numbers.
        """
        import torch

        calls = [call for call, other in enumerate(self.order) if other is module]
        wanted = {call: torch.from_numpy(fitting.read(call)) for call in calls}
        size = module.in_features + 1
        gram = torch.zeros(size, size, dtype=torch.float64)
        moment = torch.zeros(size, module.out_features, dtype=torch.float64)
        start = 0
        for batch in fitting.batches:
            reads: dict[int, torch.Tensor] = {}
            totals = self.record(batch, calls, reads)
            for call in calls:
                read = torch.cat([reads[call], torch.ones(len(reads[call]), 1)], dim=1)
                gram += read.T @ read
                moment += read.T @ (wanted[call][start:start + len(read)] - totals[call])
            start += sum(example.length for example in batch)
        held = RIDGE * gram.diagonal().mean() * torch.eye(size, dtype=torch.float64)
        change = torch.linalg.solve(gram + held, moment).float()
        if not bool(torch.isfinite(change).all()):
            raise StepFailed("The layers cannot be fitted.", why="the hidden states are no numbers",
                             hint="are there infinite numbers in the checkpoint's weights?")
        # Where layers share the module, each changes what the next one reads, which the fit does not know of.
        before, weight, bias = self.error(judging, calls[-1]), module.weight.data, module.bias.data
        module.weight.data, module.bias.data = weight + change[:-1].T, bias + change[-1]
        if not self.error(judging, calls[-1]) < before:
            module.weight.data, module.bias.data = weight, bias

    def record(self, batch: Sequence[Example], calls: Sequence[int], reads: dict[int, torch.Tensor] | None = None) -> dict[int, torch.Tensor]:
        """Run a batch as far as the last of some additions: the hidden states after each, float32 [tokens, width], padding left out.

        Args:
            batch: texts.
            calls: the numbers of the additions.
            reads: gets what the linear modules of the additions read, float32 [tokens, channels].
        """
        import torch

        there = collate(batch, self._objective.text)["attention_mask"].bool()
        found: dict[int, torch.Tensor] = {}
        wanted, last = frozenset(calls), max(calls)
        seen = 0
        read: torch.Tensor

        def note(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            """What a linear module reads, before it is known whether its addition is wanted."""
            nonlocal read
            read = inputs[0]

        def keep(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            """The sum, where it is wanted; after the last the run ends."""
            nonlocal seen
            if seen in wanted:
                found[seen] = inputs[0][there]
                if reads is not None:
                    reads[seen] = read[there]
            if seen == last:
                raise Reached
            seen += 1

        with ExitStack() as stack, torch.inference_mode():
            for module, norm in self._parts:
                stack.callback(module.register_forward_pre_hook(note).remove)
                stack.callback(norm.register_forward_pre_hook(keep).remove)
            with suppress(Reached):
                self._objective.run(self.model, batch)
        return found
