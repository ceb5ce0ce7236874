"""Checkpoints as GGUF files, as llama.cpp's converter lays them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import transformers
from tiny_decoders import END, START, TEMPLATE, byte_level

# Transformers' model_type → general.architecture, where the two differ.
FORMS = {"gemma3_text": "gemma3"}


def pack(directory: Path, path: Path, kind: Any, more: dict[str, np.ndarray] | None = None, **changed: Any) -> Path:
    """A checkpoint as a GGUF file.

    Args:
        directory: the checkpoint, with the byte-level tokenizer of all tiny ones.
        path: the file to write.
        kind: how matrices are stored.
        more: further tensors.
        changed: metadata that are others, or None for none.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    form = FORMS.get(model.config.model_type, model.config.model_type)
    writer = gguf.GGUFWriter(str(path), form)
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
    for key, value in (shape(model.config, form) | vocabulary() | changed).items():
        if value is not None:
            add[type(value)](key, value)
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(numbers[form], model.config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        values = turned(form, name, tensor.float().numpy(), model.config)
        packed = kind if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        place = next(found for found in (names.get_name(each, (".weight", ".bias")) for each in (name, name.removeprefix("transformer."))) if found)
        writer.add_tensor(place, gguf.quants.quantize(np.ascontiguousarray(values), packed), raw_dtype=packed)
    for place, values in (more or {}).items():
        writer.add_tensor(place, values)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        write()
    return path


def shape(config: Any, form: str) -> dict[str, Any]:
    """What the metadata say of the model."""
    heads = config.num_attention_heads
    rope = getattr(config, "rope_parameters", None) or {}
    found = {
        "context_length": config.n_positions if form == "gpt2" else getattr(config, "max_position_embeddings", None) or 2048,
        "embedding_length": config.hidden_size, "block_count": config.num_hidden_layers,
        "feed_forward_length": getattr(config, "intermediate_size", None) or 4 * config.hidden_size, "attention.head_count": heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", None) or heads,
        "attention.layer_norm_rms_epsilon": getattr(config, "rms_norm_eps", None),
        "attention.layer_norm_epsilon": getattr(config, "layer_norm_epsilon", None),
        "attention.key_length": getattr(config, "head_dim", None), "attention.value_length": getattr(config, "head_dim", None),
        "attention.sliding_window": getattr(config, "sliding_window", None),
        "rope.dimension_count": config.hidden_size // heads if form == "llama" else None,
        "rope.freq_base": float((rope.get("full_attention") or rope)["rope_theta"]) if rope else None}
    return {f"{form}.{key}": value for key, value in found.items()}


def vocabulary() -> dict[str, Any]:
    """What they say of the tokenizer."""
    tokenizer = byte_level()
    tokens = [tokenizer.id_to_token(number) for number in range(tokenizer.get_vocab_size())]
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]],
        "tokenizer.ggml.token_type": [3 if token in {START, END, "<|endoftext|>"} else 1 for token in tokens],
        "tokenizer.ggml.bos_token_id": tokenizer.token_to_id(START), "tokenizer.ggml.eos_token_id": tokenizer.token_to_id(END),
        "tokenizer.ggml.padding_token_id": tokenizer.token_to_id(END),
        "tokenizer.ggml.add_bos_token": False, "tokenizer.chat_template": TEMPLATE}


def turned(form: str, name: str, weight: np.ndarray, config: Any) -> np.ndarray:
    """A tensor as the format's models want it."""
    heads = config.num_attention_heads
    if form == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
        # Neighbours are rotated together, where Transformers rotates halves.
        count = heads if "q_proj" in name else config.num_key_value_heads
        return weight.reshape(count, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
    if form.startswith("gemma") and name.endswith("norm.weight"):
        return weight + 1
    if form == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return weight.T
    if form == "bloom" and "query_key_value" in name:
        # Queries, keys and values of each head side by side become those of all heads.
        return weight.reshape(heads, 3, -1, *weight.shape[1:]).swapaxes(0, 1).reshape(weight.shape)
    return weight
