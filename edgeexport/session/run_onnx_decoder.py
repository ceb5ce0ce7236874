"""A language model in onnxruntime: what it has read lies in buffers, which it writes on in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

PAST, PRESENT = "past_key_values.", "present."
# The buffers hold so many tokens at first, and twice as many each time they are full: a short talk needs no long memory.
FIRST_ROOM = 256


class OnnxDecoder:
    """An ONNX file whose attention is GroupQueryAttention.

    Inputs ``input_ids`` and ``attention_mask``, int64 [1, tokens], perhaps ``position_ids``, and for each layer ``past_key_values.N.key`` and
    ``.value``, float32 [1, kv_heads, room, head]; outputs ``logits``, float32 [1, 1, vocabulary], and ``present.N.key`` and ``.value``. Past and
    present are one buffer: the operator then writes new tokens behind the old ones and copies nothing.

    Source: the operator's documentation in ONNX Runtime's ContribOperators.md; the names are those of onnxruntime-genai.
    """

    def __init__(self, path: Path, threads: int, context: int) -> None:
        """Load the model with a fixed number of threads."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._value = onnxruntime.OrtValue.ortvalue_from_numpy
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.context, self.position = context, 0
        inputs = {value.name: value for value in self._session.get_inputs()}
        self._shapes = {name: (value.shape[1], value.shape[3]) for name, value in inputs.items() if name.startswith(PAST)}
        self._has_positions = "position_ids" in inputs
        self._logits = self._session.get_outputs()[0].name
        self._binding = self._session.io_binding()
        self._buffers: dict[str, Any] = {}
        self._room = 0

    def read(self, ids: np.ndarray) -> np.ndarray:
        """Read on, int64 [length]; the logits of what comes next, float32 [vocabulary]."""
        start, end = self.position, self.position + len(ids)
        self._make_room(end)
        self._binding.bind_cpu_input("input_ids", np.ascontiguousarray(ids[None], np.int64))
        self._binding.bind_cpu_input("attention_mask", np.ones((1, end), np.int64))
        if self._has_positions:
            self._binding.bind_cpu_input("position_ids", np.arange(start, end, dtype=np.int64)[None])
        self._binding.bind_output(self._logits)
        self._session.run_with_iobinding(self._binding)
        self.position = end
        # Outputs are numbered in the order in which they were bound.
        logits: np.ndarray = self._binding.get_outputs()[-1].numpy()[0, -1]
        return logits

    def rewind(self, position: int) -> None:
        """Forget what was read from a position on: it is overwritten, and nothing looks at it before."""
        self.position = min(self.position, position)

    def _make_room(self, tokens: int) -> None:
        """Buffers for so many tokens, with what was read already."""
        if tokens <= self._room:
            return
        room = max(FIRST_ROOM, self._room)
        while room < tokens:
            room *= 2
        room = min(room, self.context)
        # What is there stays whole till all of the new is, whatever interrupts.
        binding, buffers = self._session.io_binding(), {}
        for name, (heads, width) in self._shapes.items():
            larger = np.zeros((1, heads, room, width), np.float32)
            if name in self._buffers:
                larger[:, :, :self.position] = self._buffers[name].numpy()[:, :, :self.position]
            buffer = buffers[name] = self._value(larger)
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(name.replace(PAST, PRESENT), buffer)
        self._binding, self._buffers, self._room = binding, buffers, room
