"""A language model in PyTorch that is told what it has read: the module that exporters trace, with a cache of its own for every format.

Transformers' attention layers hand queries, new keys and new values to a function of ours, which puts keys and values into the cache and attends over
it. So nothing of Transformers' own caches and masks is traced.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from edgeexport.artifact import Task

from ._task_model import load_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ATTENTION = "edgeexport"


class Attention(NamedTuple):
    """How a layer attends.

    Attributes:
        layer: its number.
        scale: what products of queries and keys are multiplied by.
        window: how many tokens back it sees, its own included; None for all.
        softcap: bound of the scores, by a hyperbolic tangent; None for none.
        slopes: by which scores grow with the position of the key, one for each head; None for none. Source: Press et al. 2021, ALiBi.
    """

    layer: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    slopes: torch.Tensor | None = None


class CacheFormat(Protocol):
    """What an exporter knows of its format: how keys and values are kept, and attended over."""

    def attend(self, how: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Keep new keys and values, and attend over all.

        Args:
            how: of the layer.
            query: float32 [1, heads, tokens, width].
            key: float32 [1, kv_heads, tokens, width].
            value: the same.

        Returns:
            float32 [1, tokens, heads, width].
        """


class Shape(NamedTuple):
    """The shape of a model's cache.

    Attributes:
        layers: how many there are.
        heads: of queries.
        kv_heads: of keys and values.
        width: of a head.
    """

    layers: int
    heads: int
    kv_heads: int
    width: int


def cache_shape(config: Any) -> Shape:
    """The shape of the cache of a model with that configuration; families name these things in their own ways."""
    heads = config.num_attention_heads
    return Shape(config.num_hidden_layers, heads, getattr(config, "num_key_value_heads", None) or heads,
                 getattr(config, "head_dim", None) or config.hidden_size // heads)


def load_decoder(directory: Path, cache: CacheFormat, context: int) -> PreTrainedModel:
    """The checkpoint's language model, which attends by `cache`.

    Args:
        directory: a checkpoint artifact.
        cache: the format's.
        context: the tokens that are held at once; a window as large is none.
    """
    from transformers import AttentionInterface

    def attend(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: object = None, *,
               scaling: float | None = None, softcap: float | None = None, sliding_window: int | None = None,
               **others: object) -> tuple[torch.Tensor, None]:
        """Attention as Transformers' layers call for it."""
        window = sliding_window if sliding_window is not None and sliding_window < context else None
        how = Attention(layer_of(module), scaling if scaling is not None else 1 / math.sqrt(query.shape[-1]), window, softcap)
        return cache.attend(how, query, key, value), None

    AttentionInterface.register(ATTENTION, attend)
    model = load_model(directory, Task.TEXT_GENERATION)
    if model.config.model_type == "bloom":
        attend_with_slopes(model, cache)
    else:
        model.set_attn_implementation(ATTENTION)
    return model


def layer_of(module: torch.nn.Module) -> int:
    """The number of an attention layer."""
    return int(module.layer_idx)  # type: ignore[arg-type]


def attend_with_slopes(model: PreTrainedModel, cache: CacheFormat) -> None:
    """Have BLOOM's layers attend by `cache` too: they have no place where a function could be put."""
    import torch
    from transformers.models.bloom.modeling_bloom import _get_alibi_slopes, dropout_add

    slopes = _get_alibi_slopes(cache_shape(model.config).heads, torch.device("cpu"))

    def forward(self: Any, hidden_states: torch.Tensor, residual: torch.Tensor, *others: object, **more: object) -> tuple[torch.Tensor, None]:
        """What BLOOM's layer does, with the cache's attention in the middle."""
        query, key, value = self._reshape(self.query_key_value(hidden_states))
        how = Attention(self.layer_idx, self.inv_norm_factor, slopes=slopes)
        attended = cache.attend(how, query, key, value)
        merged = attended.reshape(1, -1, self.num_heads * self.head_dim)
        return dropout_add(self.dense(merged), residual, self.hidden_dropout, self.training), None

    for block in model.transformer.h:  # type: ignore[union-attr]
        block.self_attention.forward = forward.__get__(block.self_attention)  # type: ignore[union-attr]


def hidden_states(model: PreTrainedModel, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """What the layers make of tokens, before the head: float32 [1, tokens, hidden], for integers [1, tokens]."""
    return model.base_model(input_ids=tokens, use_cache=False, **place(model, positions)).last_hidden_state  # type: ignore[no-any-return]


def logits(model: PreTrainedModel, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """What comes after the last token: float32 [1, 1, vocabulary], for integers [1, tokens]."""
    return model(input_ids=tokens, use_cache=False, logits_to_keep=1, **place(model, positions)).logits  # type: ignore[no-any-return]


def place(model: PreTrainedModel, positions: torch.Tensor) -> dict[str, torch.Tensor]:
    """The argument that says where tokens are; BLOOM has none, since its slopes say it."""
    return {} if model.config.model_type == "bloom" else {"position_ids": positions}
