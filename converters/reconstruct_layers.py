"""A smaller model whose layers hand on what the original's do, as nearly as the parts that are left can: fitted, not trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from edgeexport.artifact import Kind, Spec
from edgeexport.errors import StepFailed
from edgeexport.step import Context, Refusal, Step, View

from ._architecture import ARCHITECTURES, Layers, linear, no_description
from ._examples import Example, by_length, collate, evenly, read_examples
from ._objective import Objective
from ._pruned_model import pruned_spec, save_model
from ._task_model import load_model, read_text

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel

BATCH = 32
# Of the mean squared activation: what holds the weights as they were where the texts say little about them.
RIDGE = 1e-3


class ReconstructLayers(Step):
    """Fit the linear modules that add to the hidden states, from the first to the last, by least squares: after each addition the hidden states
    are to be the original's, whatever was lost before.

    Attributes:
        tokens: on about so many.

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
            StepFailed: the hidden states are no numbers.
        """
        import numpy as np
        import torch

        torch.set_num_threads(context.threads)
        checkpoint, original = inputs["checkpoint"], inputs["original"]
        context.report(None, "loading both models")
        batches = texts(checkpoint, inputs["training"].path, self.tokens)
        tokens = sum(example.length for batch in batches for example in batch)
        objective = Objective(checkpoint.spec, read_text(checkpoint.path))
        own, wanted = (Additions(load_model(view.path, view.spec.require_task()), objective, batches[0]) for view in (checkpoint, original))
        pairs = counterparts(len(own.order), len(wanted.order), wanted.layers, checkpoint.spec.facts.get("kept_layers"))

        # Of the original everything is needed at once, and of a large one it is more than memory holds.
        targets = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
            context.scratch / "targets.npy", mode="w+", dtype=np.float32, shape=(len(pairs), tokens, wanted.order[0].out_features))
        context.report(None, "reading the texts with the original")
        for rows, found in wanted.record(batches, pairs):
            for number, call in enumerate(pairs):
                targets[number, rows] = found[call].total.numpy()
        before = own.error(batches, targets)
        modules = list(dict.fromkeys(own.order))
        for number, module in enumerate(modules):
            context.report(number / len(modules), f"fitting part {number + 1} of {len(modules)}")
            own.fit(module, batches, targets)
        after = own.error(batches, targets)
        context.report(None, "writing")
        save_model(own.model, checkpoint.path, out)
        return pruned_spec(own.model, checkpoint.spec, out, reconstruction=[before, after])


def texts(checkpoint: View, dataset: Path, tokens: int) -> list[list[Example]]:
    """Examples with about so many tokens, evenly spread over a data set, as batches."""
    examples = read_examples(checkpoint, dataset)
    mean = sum(example.length for example in examples) / len(examples)
    return list(by_length(evenly(examples, max(1, round(tokens / mean))), BATCH))


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


@dataclass(frozen=True)
class Addition:
    """What happens where a module adds to the hidden states, at every token.

    Attributes:
        read: what the module reads, float32 [tokens, channels].
        total: what comes out, float32 [tokens, width].
    """

    read: torch.Tensor
    total: torch.Tensor


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
        architecture = ARCHITECTURES[model.config.model_type]
        self.model, self._objective = model, objective
        self._parts = [(linear(place, channels.read_by), place.get_submodule(channels.added_in))
                       for channels in (architecture.heads, architecture.neurons) if channels is not None for place in channels.places(model)]
        self.order: list[torch.nn.Linear] = []
        self.layers = len(Layers(model))
        with ExitStack() as stack:
            for module, norm in self._parts:
                stack.callback(norm.register_forward_pre_hook(lambda *_, module=module: self.order.append(module)).remove)
            self._objective.run(model, batch)

    def error(self, batches: Iterable[Sequence[Example]], targets: np.ndarray) -> float:
        """Squared distance of the last hidden states from what they are to be, as a share of their squared length."""
        last = len(self.order) - 1
        missed = length = 0.0
        for rows, found in self.record(batches, [last]):
            missed += float(((found[last].total.numpy() - targets[last, rows]) ** 2).sum())
            length += float((targets[last, rows] ** 2).sum())
        return missed / length

    def fit(self, module: torch.nn.Linear, batches: Iterable[Sequence[Example]], targets: np.ndarray) -> None:
        """Give a module the weights with which the hidden states come nearest to what they are to be.

        Args:
            module: the module, all before which is as it stays.
            batches: the texts.
            targets: what the hidden states are to be after each addition, float32 [additions, tokens, width].

        Raises:
            StepFailed: the hidden states are no numbers.
        """
        import torch

        calls = [call for call, other in enumerate(self.order) if other is module]
        gram: torch.Tensor | float = 0.0
        moment: torch.Tensor | float = 0.0
        for rows, found in self.record(batches, calls):
            for call in calls:
                one = found[call]
                read = torch.cat([one.read, torch.ones(len(one.read), 1)], dim=1)
                missing = torch.from_numpy(targets[call, rows]) - one.total
                gram, moment = gram + (read.T @ read).double(), moment + (read.T @ missing).double()
        held = torch.eye(module.in_features + 1, dtype=torch.float64) * RIDGE * torch.as_tensor(gram).diagonal().mean()
        change = torch.linalg.solve(gram + held, torch.as_tensor(moment)).float()
        if not bool(torch.isfinite(change).all()):
            raise StepFailed("The layers cannot be fitted.", why="the hidden states are no numbers",
                             hint="are there infinite numbers in the checkpoint's weights?")
        module.weight.data += change[:-1].T
        module.bias.data += change[-1]

    def record(self, batches: Iterable[Sequence[Example]], calls: Sequence[int]) -> Iterator[tuple[slice, dict[int, Addition]]]:
        """Run batches as far as the last of some additions; for each batch the place of its tokens among all, and the additions by number."""
        import torch

        start = 0
        for batch in batches:
            there = collate(batch, self._objective.text)["attention_mask"].bool()
            rows = slice(start, start + int(there.sum()))
            with torch.inference_mode(), Recorder(self._parts, calls, there) as recorder:
                self._objective.run(self.model, batch)
            yield rows, recorder.found
            start = rows.stop


class Recorder:
    """Keeps some of the additions of a run, while it is open, and ends the run after the last of them."""

    def __init__(self, parts: Iterable[tuple[torch.nn.Linear, torch.nn.Module]], calls: Sequence[int], there: torch.Tensor) -> None:
        """Of a model.

        Args:
            parts: linear modules that add to the hidden states, each with what normalizes the sum.
            calls: the numbers of the additions.
            there: which tokens are no padding, bool [batch, seq].
        """
        self._parts, self._calls, self._there = parts, frozenset(calls), there
        self._seen = 0
        self.found: dict[int, Addition] = {}

    def __enter__(self) -> Recorder:
        self._hooks = ExitStack()
        for module, norm in self._parts:
            self._hooks.callback(module.register_forward_pre_hook(self._note).remove)
            self._hooks.callback(norm.register_forward_pre_hook(self._keep).remove)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> bool:
        self._hooks.close()
        return kind is Reached

    def _note(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._read = inputs[0]

    def _keep(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if self._seen in self._calls:
            self.found[self._seen] = Addition(self._read[self._there], inputs[0][self._there])
            if len(self.found) == len(self._calls):
                raise Reached
        self._seen += 1
