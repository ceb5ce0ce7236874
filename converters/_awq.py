"""Weights that AWQ packed, as AutoAWQ writes them for its ``gemm`` kernels.

A linear layer of ``in`` inputs and ``out`` outputs is stored as

- ``qweight`` int32 [in, out / 8]: eight outputs' 4-bit numbers to a word, lowest bits first, in the order 0, 2, 4, 6, 1, 3, 5, 7, by which
  the kernel gets even and odd ones apart;
- ``qzeros`` int32 [groups, out / 8]: zero points in the same order;
- ``scales`` float16 [groups, out]; groups are of one size and follow each other along the inputs.

A weight is scale × (number - zero point) of its group and output.

Source: AWQ (Lin et al. 2023, arXiv 2306.00978); AutoAWQ 0.2, awq/modules/linear/gemm.py and awq/utils/packing_utils.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PARTS = ("qweight", "qzeros", "scales")
# Which of a word's eight outputs its first, second … four bits hold.
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
BITS = 4


def awq_weight(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """The weight of a linear layer, float32 [out, in], of the tensors above by their names.

    Raises:
        ValueError: their shapes do not fit each other.
    """
    import torch

    numbers, zeros = unpacked(parts["qweight"]), unpacked(parts["qzeros"])
    scales = parts["scales"].to(torch.float32)
    size, rest = divmod(len(numbers), len(scales))
    if rest or not size or zeros.shape != scales.shape or numbers.shape[1] != scales.shape[1]:
        raise ValueError("shapes")
    return (scales.repeat_interleave(size, dim=0) * (numbers - zeros.repeat_interleave(size, dim=0))).T.contiguous()


def unpacked(words: torch.Tensor) -> torch.Tensor:
    """The numbers in each row's words: int32 [rows, words × 8] from int32 [rows, words]."""
    import torch

    numbers = torch.empty(*words.shape, len(ORDER), dtype=torch.int32)
    for place, output in enumerate(ORDER):
        numbers[..., output] = (words >> (BITS * place)) & ((1 << BITS) - 1)
    return numbers.flatten(1)
