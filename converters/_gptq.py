"""Weights that GPTQ packed, as AutoGPTQ and its successors write them.

A linear layer of ``in`` inputs and ``out`` outputs is stored as

- ``qweight`` int32 [in × bits / 32, out]: each column is a stream of numbers of so many bits, lowest bits first, which for 3 bits do not end
  where a word ends;
- ``qzeros`` int32 [groups, out × bits / 32]: zero points, packed the same way along the outputs. The first form of the format stores them
  less one, so that 0 wraps around to the largest; the second (``checkpoint_format = "gptq_v2"``) stores them as they are;
- ``scales`` float16 [groups, out];
- ``g_idx`` int32 [in]: the group of each input. Without it groups are of one size and follow each other.

A weight is scale × (number - zero point) of its group and output.

Source: GPTQ (Frantar et al. 2022, arXiv 2210.17323); AutoGPTQ 0.7, nn_modules/qlinear, whose `pack` defines the layout; GPTQModel for the
second form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PARTS = ("qweight", "qzeros", "scales")
WORD = 32


def gptq_weight(parts: dict[str, torch.Tensor], bits: int, zero_offset: int) -> torch.Tensor:
    """The weight of a linear layer, float32 [out, in].

    Args:
        parts: the tensors above by their names; ``g_idx`` may be missing.
        bits: of a number, where the shapes do not tell.
        zero_offset: what is to be added to a stored zero point.

    Raises:
        ValueError: their shapes do not fit each other.
    """
    import torch

    packed, scales = parts["qweight"], parts["scales"].to(torch.float32)
    group = parts.get("g_idx")
    if group is None:
        inputs = packed.shape[0] * WORD // bits
        group = torch.arange(inputs) // -(-inputs // scales.shape[0])
    # Single layers may have other bits than config.json says.
    bits = packed.shape[0] * WORD // len(group)
    zeros = (unpacked(parts["qzeros"].T, bits).T + zero_offset) & ((1 << bits) - 1)
    if zeros.shape != scales.shape or packed.shape[1] != scales.shape[1]:
        raise ValueError("shapes")
    numbers, group = unpacked(packed, bits)[:len(group)], group.to(torch.int64)
    weight = scales[group] * (numbers - zeros[group])
    return weight.T.contiguous()


def unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The numbers in each column's stream: int64 [words × 32 / bits, columns] from int32 [words, columns]."""
    import torch

    stream = torch.cat([words.to(torch.int64) & ((1 << WORD) - 1), torch.zeros_like(words[:1], dtype=torch.int64)])
    start = torch.arange(words.shape[0] * WORD // bits) * bits
    # A number may begin in one word and end in the next.
    both: torch.Tensor = stream[start // WORD] | (stream[start // WORD + 1] << WORD)
    return (both >> (start % WORD)[:, None]) & ((1 << bits) - 1)
