"""Outliers of activations moved into weights, before a model is quantized: x · Wᵀ = (x / s) · (W · s)ᵀ for any positive s per input channel.

An activation with one scale for all channels loses the small channels where one is large; weights, which have a scale per row, can bear it.
Source: G. Xiao and others, "SmoothQuant" (2023), equation 4. In an encoder the division is an operation of its own before the product, since
the next sum reads what a layer normalization gives, too. In a decoder nothing else does, and whoever makes the channels divides them for free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from ._architecture import ARCHITECTURES, matrix

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel

LEAST = 1e-5  # of a channel's largest value, so that one that is never used changes nothing


def smooth(model: torch.nn.Module, largest: Mapping[str, np.ndarray], strength: float) -> None:
    """Divide the inputs of linear layers, and multiply their weights, in place.

    Args:
        model: in float.
        largest: path of a linear layer → largest absolute value of each input channel, float32 [inputs]; layers without it stay as they are.
        strength: 0 leaves all of the outliers to the activations, 1 moves them all into the weights.
    """
    import torch

    shared = Counter(id(module.weight) for module in model.modules() if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)))
    for name, linear in model.named_modules():
        # A matrix that tokens are looked up in too stays as it is.
        if name not in largest or not isinstance(linear, torch.nn.Linear) or shared[id(linear.weight)] > 1:
            continue
        inputs = torch.from_numpy(largest[name]).clamp_min(LEAST)
        with torch.no_grad():
            scale = inputs**strength / linear.weight.abs().amax(dim=0).clamp_min(LEAST) ** (1 - strength)
            linear.weight *= scale
        linear.register_buffer("divided", 1 / scale, persistent=False)
        linear.__class__ = _smoothed_linear()


def hand_over(model: PreTrainedModel, largest: Mapping[str, np.ndarray], strength: float) -> None:
    """Divide channels where a decoder makes them, and multiply the weights that read them, in place.

    Args:
        model: in float.
        largest: as for :func:`smooth`; of readers that share their inputs, the first one's count.
        strength: as for :func:`smooth`.
    """
    import torch

    architecture, config = ARCHITECTURES[model.config.model_type], model.config
    if not getattr(config, "do_layer_norm_before", True) or getattr(config, "apply_residual_connection_post_layernorm", False):
        return  # the hidden states are what a normalization gives, and are read by the next sum
    names = {module: name for name, module in model.named_modules()}
    with torch.no_grad():
        for handover in architecture.handovers:
            for maker, readers in handover.places(model):
                weight = cast("torch.Tensor | None", maker.weight)
                if names[readers[0]] not in largest or weight is None:
                    continue
                weights = [matrix(reader) for reader in readers]
                inputs = torch.from_numpy(largest[names[readers[0]]]).clamp_min(LEAST)
                scale = inputs**strength / torch.stack([each.abs().amax(dim=0) for each in weights]).amax(dim=0).clamp_min(LEAST) ** (1 - strength)
                for each in weights:
                    each *= scale
                bias = cast("torch.Tensor | None", getattr(maker, "bias", None))
                if weight.dim() == 1:
                    weight.copy_((architecture.scale_of_norms + weight) / scale - architecture.scale_of_norms)
                else:
                    matrix(cast("torch.nn.Linear", maker))[-len(scale):] /= scale[:, None]
                if bias is not None:
                    bias[-len(scale):] /= scale


@cache
def _smoothed_linear() -> Any:
    """The class of a linear layer with divided inputs. The module stays the same one, so that it keeps its name."""
    import torch

    class SmoothedLinear(torch.nn.Linear):
        divided: torch.Tensor

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            """The product of the divided inputs."""
            return super().forward(values * self.divided)

    return SmoothedLinear
