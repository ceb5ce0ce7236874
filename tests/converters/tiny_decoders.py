"""Tiny seeded language models of every family, as the hub has them, with a byte-level tokenizer and a chat template."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from tiny import TEXTS, randomize

CONTEXT = 128
START, END = "<|im_start|>", "<|im_end|>"
SPECIAL = ("<|endoftext|>", START, END)
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system\nYou are a tiny model<|im_end|>\n' }}"
    "{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 96, "max_position_embeddings": CONTEXT}
GROUPED = {**SIZES, "num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**GROUPED, "tie_word_embeddings": True},
    "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": CONTEXT},
    "qwen2": {**GROUPED, "tie_word_embeddings": True},
    "qwen3": {**GROUPED, "head_dim": 16},
    "gemma2": {**GROUPED, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 32},
    "gemma3_text": {**GROUPED, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 32},
    "phi3": {**GROUPED, "original_max_position_embeddings": CONTEXT, "sliding_window": None},
    "gpt_neox": SIZES,
    "opt": {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "ffn_dim": 96, "max_position_embeddings": CONTEXT,
            "word_embed_proj_dim": 64},
    "bloom": {"hidden_size": 64, "n_head": 4, "n_layer": 2},
}


def write_decoder(directory: Path, family: str, *, chat: bool = True, **config: Any) -> Path:
    """A checkpoint with seeded random weights.

    Args:
        directory: to be made.
        family: a key of FAMILIES.
        chat: whether it has a chat template.
        config: keys of config.json that differ.
    """
    import transformers

    directory.mkdir(parents=True)
    tokenizer = byte_level()
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL}
    special = {"bos_token_id": ids[START], "eos_token_id": ids[END], "pad_token_id": ids[END]}
    settings = transformers.AutoConfig.for_model(family, **{"vocab_size": tokenizer.get_vocab_size(), **special, **FAMILIES[family], **config})
    model = transformers.AutoModelForCausalLM.from_config(settings).eval()
    randomize(model, 1.3)
    model.save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": START, "eos_token": END, "unk_token": SPECIAL[0], "pad_token": END,
        **({"chat_template": TEMPLATE} if chat else {})}))
    return directory


@cache
def byte_level() -> Any:
    """A tokenizer as SmolLM2's: byte-level BPE that cuts numbers into digits, and puts nothing before a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=512, special_tokens=list(SPECIAL), show_progress=False,
                                                             initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer
