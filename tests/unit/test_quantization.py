"""What config.json says of a quantized checkpoint, and what its packed tensors count as."""

from __future__ import annotations

from typing import Any

import pytest

from edgeexport.errors import CheckpointError
from edgeexport.quantization import count_weights, read_quantization

GPTQ = {"quant_method": "gptq", "bits": 4}
AWQ = {"quant_method": "awq", "bits": 4}


@pytest.mark.parametrize(("stated", "words", "zero_offset"), [
    (GPTQ, "GPTQ 4-bit", 1),
    (GPTQ | {"bits": 3, "checkpoint_format": "gptq", "pack_dtype": "int32"}, "GPTQ 3-bit", 1),
    (GPTQ | {"checkpoint_format": "gptq_v2"}, "GPTQ 4-bit", 0),
    (AWQ | {"version": "GEMM"}, "AWQ 4-bit", 0),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes 8-bit", 0),
    ({"load_in_8bit": True, "load_in_4bit": False}, "bitsandbytes 8-bit", 0),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes 4-bit nf4", 0),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes 4-bit fp4", 0),
])
def test_what_config_says(stated: dict[str, Any], words: str, zero_offset: int) -> None:
    found = read_quantization({"quantization_config": stated}, "m")
    assert found is not None
    assert (found.words, found.zero_offset) == (words, zero_offset)


@pytest.mark.parametrize("config", [{}, {"quantization_config": None}, {"quantization_config": {}}])
def test_not_quantized(config: dict[str, Any]) -> None:
    assert read_quantization(config, "m") is None


@pytest.mark.parametrize(("stated", "form"), [
    ({"quant_method": "hqq"}, "hqq"), ({"quant_method": "compressed-tensors"}, "compressed-tensors"), ({"bits": 4}, "None"),
    (GPTQ | {"checkpoint_format": "marlin"}, "GPTQ packed for marlin"), (GPTQ | {"is_marlin_format": True}, "GPTQ packed for marlin"),
    (GPTQ | {"bits": 5}, "GPTQ with 5 bits"), (GPTQ | {"pack_dtype": "int8"}, "GPTQ packed into int8"),
    (AWQ | {"version": "gemv"}, "AWQ packed for gemv"), (AWQ | {"backend": "llm-awq"}, "AWQ packed for llm-awq"),
    (AWQ | {"bits": 8}, "AWQ with 8 bits"),
])
def test_what_can_not_be_undone_is_refused_in_a_sentence(stated: dict[str, Any], form: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_quantization({"quantization_config": stated}, "some/model")
    assert caught.value.what == f"some/model is quantized in a form that is not supported: {form}."
    assert "that it was made from" in str(caught.value.hint)


def tensor(dtype: str, *shape: int, size: int = 0) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [100, 100 + size]}


def test_packed_weights_count_as_what_they_unpack_to() -> None:
    norm = {"norm.weight": tensor("F16", 64)}
    gptq = norm | {"q.qweight": tensor("I32", 12, 128), "q.qzeros": tensor("I32", 4, 12), "q.scales": tensor("F16", 4, 128),
                   "q.bias": tensor("F16", 128)}
    three = read_quantization({"quantization_config": GPTQ | {"bits": 3}}, "m")
    assert count_weights(gptq, three) == {"norm.weight": 64, "q.weight": 128 * 128, "q.bias": 128}
    # Where the groups are listed, they tell how many inputs there are, whatever bits this layer has.
    assert count_weights(gptq | {"q.g_idx": tensor("I32", 96)}, three)["q.weight"] == 96 * 128
    awq = norm | {"q.qweight": tensor("I32", 64, 16), "q.qzeros": tensor("I32", 4, 16), "q.scales": tensor("F16", 4, 128)}
    assert count_weights(awq, read_quantization({"quantization_config": AWQ}, "m")) == {"norm.weight": 64, "q.weight": 64 * 128}
    int8 = norm | {"q.weight": tensor("I8", 8, 64), "q.SCB": tensor("F32", 8), "q.weight_format": tensor("U8")}
    assert count_weights(int8, read_quantization({"quantization_config": {"load_in_8bit": True}}, "m")) == {"norm.weight": 64, "q.weight": 512}
    nf4 = norm | {"q.weight": tensor("F16", 64, 1, size=128), "q.weight.absmax": tensor("U8", 4), "q.weight.quant_map": tensor("F32", 16),
                  "q.weight.nested_absmax": tensor("F32", 1), "q.weight.nested_quant_map": tensor("F32", 256),
                  "q.weight.quant_state.bitsandbytes__nf4": tensor("U8", 100)}
    assert count_weights(nf4, read_quantization({"quantization_config": {"load_in_4bit": True}}, "m")) == {"norm.weight": 64, "q.weight": 256}


def test_names_mean_nothing_where_nothing_is_quantized() -> None:
    assert count_weights({"head.scales": tensor("F32", 7), "ids": tensor("I64", 5)}, None) == {"head.scales": 7}
