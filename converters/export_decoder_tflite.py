"""A language model as a float32 TFLite file with a KV cache: a signature for each length of a prompt's piece, and one for a token of the answer.

What the signatures are called, take and give is what LiteRT-LM asks for, so that one file serves it and a plain interpreter:
``prefill_LENGTH`` and ``decode`` take ``tokens`` int32 [1, length], ``input_pos`` int32 [length], ``mask`` float32 [1, 1, length, context] (0, or a
large negative number where a token does not look), and ``kv_cache_k_N`` and ``kv_cache_v_N``; they give the caches as they are then, and ``decode``
gives ``logits`` float32 [1, 1, vocabulary]. Keys are kept as [1, kv_heads, context, width], values as [1, kv_heads, width, context], so that neither
is turned around for a product. What a runtime may make shorter, to save time and memory, has no fixed length in the file's shape signatures.

Source: the signatures that litert_torch.generative writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgeexport.artifact import Kind, Spec
from edgeexport.policy import Policy
from edgeexport.session.run_tflite_decoder import HIDDEN, KEPT_AXES
from edgeexport.step import Context, Step, View

from ._cached_decoder import Attention, Shape, cache_shape, hidden_states, load_decoder, logits
from ._litert_export import Traced, float_model, write_model
from ._smoothing import hand_over
from ._task_model import read_text
from .measure_outliers import read_outliers

if TYPE_CHECKING:
    import numpy as np
    import torch


class ExportDecoderTflite(Step):
    """Export through litert-torch.

    Attributes:
        lengths: lengths of the pieces in which prompts are read, rising.
        smoothing: how much of the outliers of activations moves into the weights, from 0 to 1, where they were measured; see :mod:`._smoothing`.
    """

    name: ClassVar[str] = "export_decoder_tflite"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"checkpoint": frozenset({Kind.CHECKPOINT})}
    backends: ClassVar[tuple[str, ...]] = ("torch", "transformers", "litert-torch", "litert-converter", "flatbuffers")
    extra: ClassVar[str | None] = "tflite"
    seconds_guess: ClassVar[float] = 120.0

    lengths: tuple[int, ...]
    smoothing: float = 0.0

    def infer(self, inputs: Mapping[str, Spec]) -> Spec:
        """A float32 model of about the size of the weights."""
        return float_model(inputs["checkpoint"], self.lengths)

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Trace a module for each signature and convert all traces together."""
        path, spec = inputs["checkpoint"]
        outliers = read_outliers(inputs, Policy(default="static"))
        write_model(lambda: self._trace(path, outliers, context), out / "model.tflite", context)
        return self.infer({"checkpoint": spec})

    def _trace(self, path: Path, outliers: Mapping[str, np.ndarray], context: Context) -> Traced:
        import litert_torch
        import torch

        torch.set_num_threads(context.threads)
        context.report(None, "loading the model")
        held = read_text(path).max_length
        cache = TfliteCache(held)
        model = load_decoder(path, cache, held)
        hand_over(model, outliers, self.smoothing)
        shape = cache_shape(model.config)
        converter: Any = litert_torch
        for length in self.lengths:
            reader = signature_module(model, cache, answers=False)
            converter = converter.signature(f"prefill_{length}", reader, sample_kwargs=sample(shape, length, held))
        converter = converter.signature("decode", signature_module(model, cache, answers=True), sample_kwargs=sample(shape, 1, held))
        context.report(None, f"converting {len(self.lengths) + 1} signatures")
        return Traced(converter, model, lambda: KEPT_AXES if cache.is_elastic else {})


class TfliteCache:
    """Keys and values in tensors of fixed size, which are written to at the tokens' place.

    Attributes:
        context: the tokens that they hold.
        is_elastic: whether what was traced holds for fewer as well: where no layer counts how far back a token lies, which no constant can say for
            every length.
    """

    def __init__(self, context: int) -> None:
        self.context, self.is_elastic = context, True
        self._kept: dict[str, torch.Tensor] = {}

    def begin(self, kept: Mapping[str, torch.Tensor], positions: torch.Tensor, mask: torch.Tensor) -> None:
        """Take up the caches, and where the tokens are: int32 [tokens]."""
        self._kept, self._positions, self._mask = dict(kept), positions, mask

    def end(self) -> dict[str, torch.Tensor]:
        """The caches as they are now."""
        return self._kept

    def attend(self, how: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Queries of one group of heads lie one behind the other, so that products are of four axes."""
        import torch
        from litert_torch.generative.custom_ops.bmm_4d import bmm_4d

        _, heads, tokens, width = query.shape
        kv_heads = key.shape[1]
        keys = self._keep(f"kv_cache_k_{how.layer}", key, axis=2)
        values = self._keep(f"kv_cache_v_{how.layer}", value.transpose(2, 3), axis=3)
        group = heads // kv_heads
        scores = bmm_4d((query * how.scale).reshape(1, kv_heads, group * tokens, width), keys)
        if how.softcap is not None:
            scores = torch.tanh(scores / how.softcap) * how.softcap
        bias = self._bias(how)
        if how.slopes is not None:  # a head of its own for each key: no groups
            self.is_elastic = False
            bias = bias + how.slopes[None, :, None, None] * torch.arange(self.context, dtype=torch.float32)
        weights = torch.softmax(scores + torch.cat([bias] * group, dim=2), dim=-1)
        attended: torch.Tensor = bmm_4d(weights, values)
        return attended.reshape(1, heads, tokens, width).transpose(1, 2)

    def _keep(self, name: str, new: torch.Tensor, axis: int) -> torch.Tensor:
        """Write new entries behind those that are kept."""
        import torch
        from litert_torch.generative.custom_ops.dynamic_update_slice import dynamic_update_slice

        start = torch.zeros(1, dtype=torch.int32)
        place = torch.cat([self._positions[:1] if each == axis else start for each in range(4)])
        self._kept[name] = dynamic_update_slice(self._kept[name], new, list(place))
        return self._kept[name]

    def _bias(self, how: Attention) -> torch.Tensor:
        """What is added to scores, float32 [1, 1, tokens, context]: the mask, and what lies before a window."""
        import torch

        if how.window is None:
            return self._mask
        self.is_elastic = False
        places = torch.arange(self.context, dtype=torch.int32)
        far = places[None, :] <= self._positions[:, None] - how.window
        return self._mask + far[None, None].to(torch.float32) * HIDDEN


def signature_module(model: Any, cache: TfliteCache, *, answers: bool) -> torch.nn.Module:
    """The module of a signature; `answers` says whether it gives logits."""
    import torch

    class Signature(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: torch.Tensor, input_pos: torch.Tensor, mask: torch.Tensor, **caches: torch.Tensor) -> dict[str, torch.Tensor]:
            """The caches, and the logits."""
            cache.begin(caches, input_pos, mask)
            # LiteRT-LM scores texts from a position before the first one, which a table of positions does not have.
            places = input_pos[None].clamp(min=0)
            found = {"logits": logits(self.model, tokens, places)} if answers else {}
            if not answers:
                hidden_states(self.model, tokens, places)
            return {**cache.end(), **found}

    return Signature().eval()


def sample(shape: Shape, length: int, context: int) -> dict[str, torch.Tensor]:
    """Inputs of a signature to trace it with."""
    import torch

    caches = {}
    for layer in range(shape.layers):
        caches[f"kv_cache_k_{layer}"] = torch.zeros(1, shape.kv_heads, context, shape.width)
        caches[f"kv_cache_v_{layer}"] = torch.zeros(1, shape.kv_heads, shape.width, context)
    return {"tokens": torch.zeros(1, length, dtype=torch.int32), "input_pos": torch.arange(length, dtype=torch.int32),
            "mask": torch.zeros(1, 1, length, context), **caches}
