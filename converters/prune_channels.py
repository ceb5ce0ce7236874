"""A checkpoint with fewer attention heads and neurons: the least important ones of the whole model, so that layers differ in width; of a language
model the least important ones of each layer, as its tools know one width for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from edgeexport.architectures import DECODERS
from edgeexport.artifact import Kind, Spec
from edgeexport.step import Context, Refusal, Step, View

from ._architecture import ARCHITECTURES, Channels, linear, matrix, narrow, no_description
from ._pruned_model import pruned_spec, save_model
from ._task_model import load_model
from .measure_channels import CHANNELS_FILE

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PretrainedConfig

# Kernels work on so many numbers at once; a width between costs the time of the next. Source: 512-bit registers hold 16 float32.
NEURON_STEP = 16


class PruneChannels(Step):
    """Take out heads and neurons.

    Attributes:
        heads: share of all attention heads to keep; each layer keeps one.
        neurons: share of all neurons to keep; each network keeps NEURON_STEP, and widths are multiples of it.
    """

    name: ClassVar[str] = "prune_channels"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"checkpoint": frozenset({Kind.CHECKPOINT}), "importance": frozenset({Kind.EVIDENCE})}
    backends: ClassVar[tuple[str, ...]] = ("torch", "transformers", "optimum")
    extra: ClassVar[str | None] = "convert"
    seconds_guess: ClassVar[float] = 10.0

    heads: float = Field(1.0, gt=0, le=1)
    neurons: float = Field(1.0, gt=0, le=1)

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """A checkpoint of the same kind with fewer weights; refuses heads that share more than channels."""
        checkpoint = inputs["checkpoint"]
        architecture = ARCHITECTURES.get(checkpoint.architecture or "")
        if architecture is None:
            return no_description(checkpoint)
        if self.heads < 1 and architecture.heads is None:
            why = ("are as many as its configuration makes of the hidden states, or lie in one matrix" if checkpoint.architecture in DECODERS
                   else "share a table of positions")
            return Refusal(reason=f"the heads of {checkpoint.architecture} {why}", hint="prune its neurons and layers")
        return checkpoint

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Write the model without what counts least."""
        import numpy as np

        path, spec = inputs["checkpoint"]
        context.report(None, "loading the model")
        model = load_model(path, spec.require_task())
        architecture = ARCHITECTURES[str(spec.architecture)]
        kept = {}
        with np.load(inputs["importance"].path / CHANNELS_FILE) as importance:
            for name, channels, share, step in (("heads", architecture.heads, self.heads, 1),
                                                ("neurons", architecture.neurons, self.neurons, NEURON_STEP)):
                if share < 1 and channels is not None:
                    places = list(channels.places(model))
                    values = [importance[f"{name}-{number}"] for number in range(len(places))]
                    orders = [importance.get(f"{name}-{number}-order", np.argsort(own, kind="stable")) for number, own in enumerate(values)]
                    chosen = choose(values, orders, share, step, alike=architecture.neurons_key is not None)
                    for place, own, numbers in zip(places, values, chosen, strict=True):
                        keep_channels(place, channels, numbers, len(own))
                    kept[name] = [len(numbers) for numbers in chosen]
        if architecture.neurons_key is not None:
            set_widths(model.config, architecture.neurons_key, {name: counts[0] for name, counts in kept.items()})
        context.report(None, "writing")
        save_model(model, path, out)
        return pruned_spec(model, spec, out, **kept)


def set_widths(config: PretrainedConfig, neurons_key: str, widths: Mapping[str, int]) -> None:
    """Have the configuration of a model say how many heads and neurons each layer has now."""
    if "heads" in widths:
        shared = config.num_attention_heads // config.num_key_value_heads
        config.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        config.num_attention_heads, config.num_key_value_heads = widths["heads"] * shared, widths["heads"]
    if "neurons" in widths:
        setattr(config, neurons_key, widths["neurons"])


def choose(importance: Sequence[np.ndarray], orders: Sequence[np.ndarray], share: float, step: int, *, alike: bool = False) -> list[np.ndarray]:
    """Which channels of each place to keep: as many as are among the most important ones of all places together, those that would go last.

    Args:
        importance: for each place float32 [channels].
        orders: for each place int64 [channels], the number of the channel that goes first, second and so on.
        share: of all channels, how many to keep.
        step: each place keeps a multiple of it, as near as can be, and at least one.
        alike: whether each place keeps the same share instead.

    Returns:
        For each place int64 [kept], rising.
    """
    import numpy as np

    if alike:
        counts = np.array([round(share * len(values)) for values in importance])
    else:
        ranked = np.argsort(-np.concatenate(importance), kind="stable")
        counted = np.concatenate([np.full(len(values), place) for place, values in enumerate(importance)])
        counts = np.bincount(counted[ranked[:round(share * len(ranked))]], minlength=len(importance))
    found = []
    for order, count in zip(orders, counts.tolist(), strict=True):
        width = min(max(round(count / step), 1) * step, len(order))
        found.append(np.sort(order[len(order) - width:]))
    return found


def keep_channels(place: torch.nn.Module, channels: Channels, kept: np.ndarray, count: int) -> None:
    """Take all other channels out of the modules that make and read them, in place.

    Args:
        place: a module of the channels' scope.
        channels: the channels.
        kept: numbers of neurons or heads, int64 [kept].
        count: how many there are.
    """
    import numpy as np
    import torch

    def index(size: int, stacks: int) -> torch.Tensor:
        """Of so many numbers, those of what is kept."""
        numbers: np.ndarray = np.arange(size).reshape(stacks, count, -1)[:, kept]
        return torch.from_numpy(numbers.ravel())

    for name in channels.made_by:
        module = linear(place, name)
        narrow(module, 0, index(len(matrix(module)), channels.stacks))
    module = linear(place, channels.read_by)
    narrow(module, 1, index(matrix(module).shape[1], 1))
