"""Checkpoints quantized as GPTQ, AWQ and bitsandbytes store them, written in NumPy from what the formats define, with what they stand for.

Each packer takes a linear layer's weight, float32 [out, in], and gives the tensors that are stored in its place, and the weight, float32
[out, in], that they mean.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

Packed = tuple[dict[str, np.ndarray], np.ndarray]


def words_of(numbers: np.ndarray, bits: int) -> np.ndarray:
    """A list of numbers as int32 words: written one after the other as bits, lowest first, and cut every 32."""
    stream = "".join(format(int(number), f"0{bits}b")[::-1] for number in numbers)
    assert len(stream) % 32 == 0
    return np.array([int(stream[start:start + 32][::-1], 2) for start in range(0, len(stream), 32)], np.uint32).view(np.int32)


def rounded(weight: np.ndarray, group: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers [in, out], zero points [groups, out] and float16 scales [groups, out] of a weight by its inputs' groups."""
    columns, largest = weight.T, 2**bits - 1
    scales = np.stack([np.ptp(columns[group == g], axis=0) / largest for g in range(group.max() + 1)]).astype(np.float16)
    lowest = np.stack([columns[group == g].min(axis=0) for g in range(group.max() + 1)])
    zeros = np.clip(np.round(-lowest / scales), 0, largest).astype(int)
    zeros[0, 0] = 0
    return np.clip(np.round(columns / scales[group] + zeros[group]), 0, largest).astype(int), zeros, scales


def meant(numbers: np.ndarray, zeros: np.ndarray, scales: np.ndarray, group: np.ndarray) -> np.ndarray:
    # safetensors writes an array's memory as it lies.
    return np.ascontiguousarray((scales.astype(np.float32)[group] * (numbers - zeros[group]).astype(np.float32)).T)


def gptq(bits: int, *, size: int = 16, shuffled: bool = False, indexed: bool = True, second_form: bool = False) -> Callable[[np.ndarray], Packed]:
    """A packer for GPTQ.

    Args:
        bits: of a number.
        size: inputs in a group; -1 is one group for all.
        shuffled: whether an input's group is any (``desc_act``).
        indexed: whether ``g_idx`` is stored.
        second_form: whether zero points are stored as they are.
    """

    def pack(weight: np.ndarray) -> Packed:
        inputs = weight.shape[1]
        group = np.arange(inputs) // (inputs if size == -1 else size)
        if shuffled:
            group = np.random.default_rng(0).permutation(group)
        numbers, zeros, scales = rounded(weight, group, bits)
        stored_zeros = zeros if second_form else (zeros - 1) % 2**bits
        tensors = {"qweight": np.stack([words_of(column, bits) for column in numbers.T], axis=1),
                   "qzeros": np.stack([words_of(row, bits) for row in stored_zeros]), "scales": scales}
        if indexed:
            tensors["g_idx"] = group.astype(np.int32)
        return tensors, meant(numbers, zeros, scales, group)

    return pack


def awq(size: int = 16) -> Callable[[np.ndarray], Packed]:
    """A packer for AWQ: of eight outputs the even ones first, then the odd ones."""

    def interleaved(rows: np.ndarray) -> np.ndarray:
        eights = rows.reshape(len(rows), -1, 8)
        return np.stack([words_of(np.concatenate([eights[i, :, 0::2], eights[i, :, 1::2]], axis=1).ravel(), 4) for i in range(len(rows))])

    def pack(weight: np.ndarray) -> Packed:
        group = np.arange(weight.shape[1]) // size
        numbers, zeros, scales = rounded(weight, group, 4)
        return ({"qweight": interleaved(numbers), "qzeros": interleaved(zeros), "scales": scales}, meant(numbers, zeros, scales, group))

    return pack


def int8(weight: np.ndarray) -> Packed:
    """bitsandbytes' INT8: each row by its largest magnitude."""
    largest = np.abs(weight).max(axis=1)
    numbers = np.round(weight / largest[:, None] * 127).astype(np.int8)
    return ({"weight": numbers, "SCB": largest, "weight_format": np.array(0, np.uint8)},
            numbers.astype(np.float32) * largest[:, None] / np.float32(127))


def nf4_table() -> np.ndarray:
    """The 16 values of NF4: quantiles of the normal distribution, eight above zero, seven below, and zero, scaled to ±1 (QLoRA, appendix E)."""
    offset, normal = 0.9677083, NormalDist()
    above = [normal.inv_cdf(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    below = [-normal.inv_cdf(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    values = np.sort(np.array([*above, 0.0, *below]))
    return (values / values.max()).astype(np.float32)


FP4_TABLE = np.array([0, 0.0052083333, 0.6666667, 1, 0.33333333, 0.5, 0.16666667, 0.25], np.float32)


def four_bit(kind: str, *, size: int = 64, nested: bool = False, storage: Any = np.uint8) -> Callable[[np.ndarray], Packed]:
    """A packer for bitsandbytes' 4-bit types.

    Args:
        kind: nf4 or fp4.
        size: weights in a block.
        nested: whether the blocks' magnitudes are quantized too.
        storage: the type that the bytes are stored as.
    """
    table = nf4_table() if kind == "nf4" else np.concatenate([FP4_TABLE, -FP4_TABLE])

    def pack(weight: np.ndarray) -> Packed:
        flat = weight.ravel()
        block = np.arange(len(flat)) // size
        absmax = np.array([np.abs(flat[block == b]).max() for b in range(block.max() + 1)], np.float32)
        state: dict[str, Any] = {"quant_type": kind, "blocksize": size, "dtype": "float32", "shape": list(weight.shape)}
        tensors: dict[str, np.ndarray] = {"weight.quant_map": table}
        if nested:
            code = np.linspace(-1, 1, 256, dtype=np.float32)
            offset, outer = absmax.mean(), np.arange(len(absmax)) // 4
            spread = np.array([np.abs(absmax[outer == o] - offset).max() for o in range(outer.max() + 1)], np.float32)
            places = np.abs((absmax - offset)[:, None] / spread[outer][:, None] - code).argmin(axis=1).astype(np.uint8)
            absmax = code[places] * spread[outer] + offset
            tensors |= {"weight.absmax": places, "weight.nested_absmax": spread, "weight.nested_quant_map": code}
            state |= {"nested_blocksize": 4, "nested_dtype": "float32", "nested_offset": float(offset)}
        else:
            tensors["weight.absmax"] = absmax
        chosen = np.abs(flat[:, None] / absmax[block][:, None] - table).argmin(axis=1).astype(np.uint8)
        pairs = chosen.reshape(-1, 2)
        tensors["weight"] = (pairs[:, 0] * 16 + pairs[:, 1]).astype(np.uint8).view(storage)[:, None]
        tensors[f"weight.quant_state.bitsandbytes__{kind}"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
        return tensors, (table[chosen] * absmax[block]).astype(np.float32).reshape(weight.shape)

    return pack


def write_quantized(directory: Path, source: Path, config: dict[str, Any], pack: Callable[[np.ndarray], Packed]) -> dict[str, np.ndarray]:
    """Write a checkpoint whose encoder's linear layers are quantized; returns what all its weights mean, by the names of the source's.

    Args:
        directory: gets it.
        source: the checkpoint in float32.
        config: the ``quantization_config``.
        pack: the packer.
    """
    from safetensors.numpy import load_file, save_file

    shutil.copytree(source, directory)
    stored, whole = {}, {}
    for name, value in load_file(source / "model.safetensors").items():
        if ".layer." in name and name.endswith(".weight") and value.ndim == 2:
            tensors, whole[name] = pack(value)
            stored |= {f"{name.removesuffix('weight')}{part}": np.ascontiguousarray(tensor) for part, tensor in tensors.items()}
        else:
            stored[name] = value.astype(np.float16)
            whole[name] = stored[name].astype(np.float32)
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    data = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(json.dumps(data | {"quantization_config": config, "dtype": "float16"}), encoding="utf-8")
    return whole
