"""A language model's attention in ONNX: GroupQueryAttention, which keeps keys and values in the buffers it reads, traced from PyTorch.

Source: ONNX Runtime's ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ._cached_decoder import Attention, Shape, cache_shape, logits

if TYPE_CHECKING:
    import onnx
    import torch


class OnnxCache:
    """Keys and values by ``LAYER.key`` and ``LAYER.value``, in the inputs and outputs that onnxruntime-genai names."""

    def begin(self, kept: Mapping[str, torch.Tensor], attention_mask: torch.Tensor) -> None:
        """Take up what was kept, and how many tokens there are: int64 [1, total]."""
        import torch

        self._kept = dict(kept)
        self.grown: dict[str, torch.Tensor] = {}
        count = attention_mask.shape[1]
        self._last = (attention_mask.sum(dim=1) - 1).to(torch.int32)
        self._total = torch.scalar_tensor(count, dtype=torch.int32)
        self._places = torch.arange(count, dtype=torch.float32)

    def attend(self, how: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """One operator for the whole of it."""
        import torch

        _, heads, tokens, width = query.shape
        kv_heads = key.shape[1]
        bias = None
        if how.slopes is not None:
            bias = (how.slopes[None, :, None, None] * self._places).expand(1, heads, tokens, -1)
        flat = [each.transpose(1, 2).reshape(1, tokens, -1) for each in (query, key, value)]
        pasts = [self._kept[f"{how.layer}.{name}"] for name in ("key", "value")]
        kept = (1, kv_heads, pasts[0].shape[2] + tokens, width)
        # The inputs that are left out are tables of rotations, which the model does itself, and places for them.
        out, *grown = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention", (*flat, *pasts, self._last, self._total, None, None, None, bias),
            {"num_heads": heads, "kv_num_heads": kv_heads, "scale": how.scale, "softcap": how.softcap or 0.0, "local_window_size": how.window or -1},
            dtypes=[torch.float32] * 3, shapes=[(1, tokens, heads * width), kept, kept], version=1)
        for name, each in zip(("key", "value"), grown, strict=True):
            self.grown[f"{how.layer}.{name}"] = each
        return torch.reshape(out, (1, tokens, heads, width))


def trace(model: Any, kept: OnnxCache, opset: int) -> onnx.ModelProto:
    """The graph of a model that was loaded with that cache."""
    import torch

    shape = cache_shape(model.config)
    names = [f"{layer}.{part}" for layer in range(shape.layers) for part in ("key", "value")]

    class Signature(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor,
                    pasts: list[torch.Tensor]) -> list[torch.Tensor]:
            """The logits of the last token, and what is kept."""
            kept.begin(dict(zip(names, pasts, strict=True)), attention_mask)
            return [logits(self.model, input_ids, position_ids), *(kept.grown[name] for name in names)]

    sample, dynamic = inputs_of(shape)
    program = torch.onnx.export(
        Signature().eval(), kwargs=sample, dynamo=True, opset_version=opset, verbose=False, dynamic_shapes=dynamic,
        input_names=["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in names)],
        output_names=["logits", *(f"present.{name}" for name in names)])
    if program is None:
        raise RuntimeError("the exporter returned nothing")
    return program.model_proto


def inputs_of(shape: Shape) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs to trace with, and which of their axes are dynamic."""
    import torch

    tokens, past, total = (torch.export.Dim(name) for name in ("sequence_length", "past_sequence_length", "total_sequence_length"))
    sample = {"input_ids": torch.ones(1, 3, dtype=torch.int64), "attention_mask": torch.ones(1, 8, dtype=torch.int64),
              "position_ids": torch.arange(5, 8)[None],
              "pasts": [torch.zeros(1, shape.kv_heads, 5, shape.width) for _ in range(2 * shape.layers)]}
    dynamic = {"input_ids": {1: tokens}, "attention_mask": {1: total}, "position_ids": {1: tokens}, "pasts": [{2: past}] * (2 * shape.layers)}
    return sample, dynamic
