"""Checkpoints that are quantized already: what config.json says of them, and how many weights their packed tensors stand for.

What they hold is turned back into float32 before anything else sees it. That makes them an ordinary source, but not a good one: what
quantizing them cost is in the reference already, so that no figure here can show it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from edgeexport.artifact import Model
from edgeexport.errors import CheckpointError

# The names that bitsandbytes gives to the companions of a 4-bit weight start with the weight's; this one says which type it is.
FOUR_BIT_STATE = ".quant_state.bitsandbytes__"
FOUR_BIT_KINDS = ("nf4", "fp4")
# Tensors that only say how others are to be read.
COMPANIONS = (".SCB", ".weight_format", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".qzeros", ".scales", ".g_idx")
GPTQ_BITS = (2, 3, 4, 8)
GPTQ_FORMATS = ("gptq", "gptq_v2")
WORD_BITS = 32


class Quantization(Model):
    """How a checkpoint's weights are packed.

    Attributes:
        method: as config.json's ``quant_method`` calls it.
        bits: of a weight; single layers may have others.
        kind: bitsandbytes' type of 4-bit numbers, ``nf4`` or ``fp4``.
        zero_offset: what is to be added to GPTQ's stored zero points.
    """

    method: Literal["bitsandbytes", "gptq", "awq"]
    bits: int
    kind: str | None = None
    zero_offset: int = 0

    @property
    def words(self) -> str:
        """The method for a person, such as ``GPTQ 4-bit``."""
        name = self.method if self.method == "bitsandbytes" else self.method.upper()
        return f"{name} {self.bits}-bit{f' {self.kind}' if self.kind else ''}"


def read_quantization(config: Mapping[str, Any], name: str) -> Quantization | None:
    """How a checkpoint is quantized by its config.json; None where it is not.

    Args:
        config: the config.json.
        name: how messages call the checkpoint.

    Raises:
        CheckpointError: in a way that can't be undone here.
    """
    stated = config.get("quantization_config")
    if not stated:
        return None
    # Before there were others, bitsandbytes did not have to be named. Source: Transformers' AutoHfQuantizer.merge_quantization_configs.
    unnamed = "bitsandbytes" if stated.get("load_in_8bit") or stated.get("load_in_4bit") else None
    method = stated.get("quant_method") or unnamed
    readers = {"bitsandbytes": _bitsandbytes, "gptq": _gptq, "awq": _awq}
    if method not in readers:
        raise _refused(name, str(method), f"config.json: quant_method; what can be undone: {', '.join(readers)}")
    return readers[method](stated, name)


def _refused(name: str, form: str, why: str) -> CheckpointError:
    return CheckpointError(f"{name} is quantized in a form that is not supported: {form}.", why=why,
                           hint="take the checkpoint that it was made from; that one loses nothing besides")


def _bitsandbytes(stated: Mapping[str, Any], name: str) -> Quantization:
    if stated.get("load_in_4bit"):
        return Quantization(method="bitsandbytes", bits=4, kind=stated.get("bnb_4bit_quant_type", "fp4"))
    return Quantization(method="bitsandbytes", bits=8)


def _gptq(stated: Mapping[str, Any], name: str) -> Quantization:
    form = "marlin" if stated.get("is_marlin_format") else stated.get("checkpoint_format") or "gptq"
    if form not in GPTQ_FORMATS:
        raise _refused(name, f"GPTQ packed for {form}", f"checkpoint_format is none of {', '.join(GPTQ_FORMATS)}")
    if stated.get("bits") not in GPTQ_BITS:
        raise _refused(name, f"GPTQ with {stated.get('bits')} bits", f"known are {', '.join(map(str, GPTQ_BITS))}")
    if str(stated.get("pack_dtype", "int32")) not in {"int32", "torch.int32"}:
        raise _refused(name, f"GPTQ packed into {stated['pack_dtype']}", "known is int32")
    return Quantization(method="gptq", bits=stated["bits"], zero_offset=1 if form == "gptq" else 0)


def _awq(stated: Mapping[str, Any], name: str) -> Quantization:
    form = str(stated.get("version") or stated.get("format") or "gemm").lower()
    if form != "gemm" or stated.get("backend") == "llm-awq":
        raise _refused(name, f"AWQ packed for {form if form != 'gemm' else 'llm-awq'}", "known is the version gemm")
    if stated.get("bits", 4) != 4:
        raise _refused(name, f"AWQ with {stated['bits']} bits", "known is 4")
    return Quantization(method="awq", bits=4)


def count_weights(tensors: Mapping[str, Mapping[str, Any]], quantization: Quantization | None) -> dict[str, int]:
    """Name → number of the floating-point weights that stored tensors stand for, packed ones counted as what they unpack to.

    Args:
        tensors: name → entry of a safetensors header: dtype, shape and data_offsets.
        quantization: how they are packed.
    """
    counts = {}
    for name, tensor in tensors.items():
        module, _, last = name.rpartition(".")
        if quantization is not None and last == "qweight":
            counts[f"{module}.weight"] = _unpacked(module, tensor["shape"], tensors, quantization)
        elif quantization is not None and last == "weight" and f"{module}.SCB" in tensors:
            counts[name] = math.prod(tensor["shape"])
        elif quantization is not None and any(f"{name}{FOUR_BIT_STATE}{kind}" in tensors for kind in FOUR_BIT_KINDS):
            start, end = tensor["data_offsets"]
            counts[name] = 2 * (end - start)
        elif tensor["dtype"].startswith(("F", "BF")) and not (quantization is not None and name.endswith(COMPANIONS)):
            counts[name] = math.prod(tensor["shape"])
    return counts


def _unpacked(module: str, shape: list[int], tensors: Mapping[str, Mapping[str, Any]], quantization: Quantization) -> int:
    """How many weights a ``qweight`` of GPTQ (int32 [in × bits / 32, out]) or AWQ (int32 [in, out × bits / 32]) holds."""
    if quantization.method == "gptq" and f"{module}.g_idx" in tensors:
        return int(tensors[f"{module}.g_idx"]["shape"][0] * shape[1])
    return math.prod(shape) * WORD_BITS // quantization.bits
