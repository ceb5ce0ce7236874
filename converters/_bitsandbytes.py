"""Weights that bitsandbytes packed: INT8 with a scale for each output, and 4-bit numbers by a table.

INT8: ``weight`` int8 [out, in] and ``SCB`` float32 [out], the largest magnitude of each row, which 127 stands for. (``weight_format`` is 0
where rows lie in their order; the tiled forms of older versions are for one sort of GPU each.)

4-bit: ``weight`` holds two numbers to a byte, the first in its upper half; each is a place in ``quant_map``, a table of 16 values from -1 to 1
(``nf4``: quantiles of a normal distribution; ``fp4``: a float of 4 bits). Blocks of so many weights have their largest magnitude in
``absmax``. Where that is quantized too, it is of bytes: places in ``nested_quant_map``, to be multiplied by ``nested_absmax`` of their
block, and ``nested_offset`` added. Sizes and shape are JSON in the bytes of ``quant_state.bitsandbytes__nf4`` (or ``__fp4``).

Source: bitsandbytes 0.50, functional.py (QuantState.as_dict, dequantize_4bit, dequantize_blockwise, int8_vectorwise_dequant); QLoRA
(Dettmers et al. 2023, arXiv 2305.14314); LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

STATE = "quant_state.bitsandbytes__"
ROW_ORDER = 0
LARGEST = 127.0


def int8_weight(weight: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """A weight in INT8 as float32 [out, in].

    Args:
        weight: int8 [out, in].
        largest: ``SCB``, float32 [out].
    """
    import torch

    return weight.to(torch.float32) * (largest.to(torch.float32)[:, None] / LARGEST)


def four_bit_weight(weight: torch.Tensor, parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """A weight in 4 bits as float32, in the shape that it had.

    Args:
        weight: two numbers to a byte, whatever type the bytes are stored as.
        parts: the companions by their names.
    """
    import torch

    state = json.loads(bytes(next(value for name, value in parts.items() if name.startswith(STATE)).tolist()))
    absmax = parts["absmax"]
    if "nested_absmax" in parts:
        scales = parts["nested_quant_map"].to(torch.float32)[absmax.to(torch.int64)]
        absmax = scales * repeated(parts["nested_absmax"], state["nested_blocksize"], len(absmax)) + state["nested_offset"]
    pairs = weight.contiguous().view(torch.uint8).flatten().to(torch.int64)
    places = torch.stack([pairs >> 4, pairs & 15], dim=1).flatten()
    shape = tuple(state["shape"])
    values = parts["quant_map"].to(torch.float32)[places[:torch.Size(shape).numel()]]
    return (values * repeated(absmax, state["blocksize"], len(values))).reshape(shape)


def repeated(values: torch.Tensor, size: int, count: int) -> torch.Tensor:
    """Each block's value once for each of its elements: float32 [count]; the last block may be shorter."""
    import torch

    return values.to(torch.float32).repeat_interleave(size)[:count]
