"""Attention relations: how alike the queries, the keys and the values of the tokens of a text are.

They need neither as many heads nor as wide ones in two models that are to have the same.

Source: W. Wang and others, "MiniLMv2: Multi-Head Self-Attention Relation Distillation" (2021), section 3; here with one relation head, since
pruned layers differ in what they could be divided into.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._architecture import ARCHITECTURES, Channels, linear

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Projections:
    """Catches the queries, keys and values of a model's last layer, while it is open."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Of a model whose architecture is described, and has heads of its own in each layer."""
        channels = attention(model)
        last = list(channels.places(model))[-1]
        self._modules = [linear(last, name) for name in channels.made_by]

    def __enter__(self) -> Projections:
        self._caught: dict[int, torch.Tensor] = {}

        def catch(number: int) -> torch.utils.hooks.RemovableHandle:
            return self._modules[number].register_forward_hook(lambda module, inputs, output: self._caught.__setitem__(number, output))

        self._hooks = [catch(number) for number in range(len(self._modules))]
        return self

    def __exit__(self, *exc: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def logits(self, text: int, positions: list[int]) -> torch.Tensor:
        """Of one text of the last batch: float32 [3, positions, positions], the scaled products before the softmax."""
        import torch

        found = []
        for number in range(len(self._modules)):
            vectors = self._caught[number][text, positions]
            found.append(vectors @ vectors.T / vectors.shape[-1] ** 0.5)
        return torch.stack(found)


def attention(model: PreTrainedModel) -> Channels:
    """The attention channels of a model's architecture."""
    channels = ARCHITECTURES[model.config.model_type].heads
    if channels is None:
        raise ValueError(f"the heads of {model.config.model_type} are not described")
    return channels
