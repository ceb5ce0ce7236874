"""Outliers of activations moved into weights, before a model is quantized: x · Wᵀ = (x / s) · (W · s)ᵀ for any positive s per input channel.

An activation with one scale for all channels loses the small channels where one is large; weights, which have a scale per row, can bear it.
Source: G. Xiao and others, "SmoothQuant" (2023), equation 4. The division is an operation of its own before the product: a layer
normalization could take it over only where nothing else reads its output, and in an encoder the next sum does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

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
