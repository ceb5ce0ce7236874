"""The architectures that tests send through every exporter, and what sets them apart."""

from __future__ import annotations

# Encoders: the offset by which position ids start (RoBERTa counts from pad_token_id + 1), and whether the model takes token_type_ids.
ENCODERS: dict[str, tuple[int, bool]] = {
    "albert": (0, True),
    "bert": (0, True),
    "camembert": (2, False),
    "distilbert": (0, False),
    "electra": (0, True),
    "mobilebert": (0, True),
    "mpnet": (2, False),
    "roberta": (2, False),
    "xlm-roberta": (2, False),
}

# Decoders: the keys of config.json that say how many tokens the model was made for; none where nothing limits them.
DECODERS: dict[str, tuple[str, ...]] = {
    "bloom": (),
    "gemma2": ("max_position_embeddings",),
    "gemma3_text": ("max_position_embeddings",),
    "gpt2": ("n_positions", "n_ctx"),
    "gpt_neox": ("max_position_embeddings",),
    "llama": ("max_position_embeddings",),
    "opt": ("max_position_embeddings",),
    "phi3": ("max_position_embeddings",),
    "qwen2": ("max_position_embeddings",),
    "qwen3": ("max_position_embeddings",),
}
