"""A language model in onnxruntime-genai, which keeps what it has read itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


class GenaiDecoder:
    """The folder of an ONNX file with a ``genai_config.json``."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        """Load the model with a fixed number of threads."""
        import onnxruntime_genai as genai

        settings = genai.Config(str(path.parent))
        settings.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self._model = genai.Model(settings)
        options = genai.GeneratorParams(self._model)
        options.set_search_options(max_length=context)
        self._generator = genai.Generator(self._model, options)
        self.context = context

    @property
    def position(self) -> int:
        """How many tokens are held."""
        return int(self._generator.token_count())

    def read(self, ids: np.ndarray) -> np.ndarray:
        """Read on, int64 [length]; the logits of what comes next, float32 [vocabulary]."""
        self._generator.append_tokens(ids.astype(np.int32))
        logits: np.ndarray = np.array(self._generator.get_logits()[0, -1])  # the generator's own memory is written to again
        return logits

    def rewind(self, position: int) -> None:
        """Forget what was read from a position on."""
        if position < self.position:
            self._generator.rewind_to(position)
