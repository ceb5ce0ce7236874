"""Training that knows of quantization: linear layers take, compute with and give numbers rounded to 8 bits, as in a static INT8 file.

What a layer gives matters most: of all-MiniLM-L6-v2 the mean cosine to its own answers falls by 0.006 where weights and inputs are rounded, and by
0.047 where outputs are too; files fall by that much (their mean distance of 0.30 and 0.32 stands for 0.045 and 0.052).

The gradient passes the rounding as if it were not there, and stops where a value is cut. Source: B. Jacob and others, "Quantization and
training of neural networks for efficient integer-arithmetic-only inference" (2018), section 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@contextmanager
def rounded(model: torch.nn.Module) -> Iterator[None]:
    """Let the linear layers of a model round while this lasts; the weights themselves stay as exact as they are."""
    import torch

    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    for linear in linears:
        linear.forward = partial(_forward, linear)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for linear in linears:
            del linear.forward


def _forward(linear: torch.nn.Linear, values: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional

    return rounded_activations(functional.linear(rounded_activations(values), rounded_weights(linear.weight), linear.bias))


def rounded_weights(weights: torch.Tensor) -> torch.Tensor:
    """Weights as signed 8 bits with a scale per row; float32 [rows, columns]."""
    import torch

    scale = (weights.detach().abs().amax(dim=1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.fake_quantize_per_channel_affine(weights, scale, torch.zeros_like(scale, dtype=torch.int32), 0, -127, 127)


def rounded_activations(values: torch.Tensor) -> torch.Tensor:
    """Activations as 8 bits with one scale and zero point for all of the batch: a static range, measured anew at each step."""
    import torch

    low, high = values.detach().amin().clamp_max(0), values.detach().amax().clamp_min(0)
    scale = ((high - low) / 255).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.fake_quantize_per_tensor_affine(values, scale, torch.round(-low / scale).to(torch.int32), 0, 255)
