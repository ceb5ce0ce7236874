"""A language model in LiteRT: what it has read lies in buffers that every signature reads from and writes to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgeexport.errors import BundleError

PREFILL, DECODE = "prefill_", "decode"
# What a score is made of that must not count: below all that a model comes to (biases of keys make scores of -20,000), and finite when doubled.
HIDDEN = -1e9


class TfliteDecoder:
    """A TFLite file with the signatures ``prefill_LENGTH`` and ``decode``; see the converter export_decoder_tflite.

    Prompts are read in pieces of the signatures' lengths, the last token by ``decode``, which alone gives logits.
    """

    def __init__(self, path: Path, threads: int, context: int) -> None:
        """Load the model with a fixed number of threads."""
        from ai_edge_litert.compiled_model import CompiledModel, CpuOptions, HardwareAccelerator, Options

        self._model = CompiledModel.from_file(str(path), options=Options(
            hardware_accelerators=HardwareAccelerator.CPU, cpu_options=CpuOptions(num_threads=threads)))
        signatures = self._model.get_signature_list()
        if DECODE not in signatures:
            raise BundleError(f"{path.name} is no language model.", why=f"it has no signature named {DECODE}")
        self.lengths = sorted(int(name.removeprefix(PREFILL)) for name in signatures if name.startswith(PREFILL))
        held = self._model.get_input_tensor_details(DECODE)["mask"]["shape"][-1]
        self.context, self.position, self._held = min(context, held), 0, held
        self._vocabulary = self._model.get_output_tensor_details(DECODE)["logits"]["shape"][-1]
        caches = {name: self._model.create_input_buffer_by_name(DECODE, name) for name in signatures[DECODE]["inputs"]
                  if name.startswith("kv_cache_")}
        details = self._model.get_input_tensor_details(DECODE)
        for name, buffer in caches.items():
            buffer.write(np.zeros(details[name]["shape"], np.float32))
        self._calls: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        for name in signatures:
            inputs = {each: self._model.create_input_buffer_by_name(name, each) for each in ("tokens", "input_pos", "mask")}
            outputs = {"logits": self._model.create_output_buffer_by_name(name, "logits")} if name == DECODE else {}
            self._calls[name] = {**inputs, **caches}, {**outputs, **caches}

    def read(self, ids: np.ndarray) -> np.ndarray:
        """Read on, int64 [length]; the logits of what comes next, float32 [vocabulary]."""
        end = self.position + len(ids)
        while end - self.position > 1:
            left = end - self.position - 1
            # The longest piece that is full, or the shortest that holds the rest; near the end of the context none may reach beyond it.
            length = next((each for each in reversed(self.lengths) if each <= left), None) or next(
                (each for each in self.lengths if self.position + each <= self._held), None)
            if length is None:
                self._run(DECODE, ids[len(ids) - left - 1:len(ids) - left], 1)
            else:
                self._run(f"{PREFILL}{length}", ids[len(ids) - left - 1:len(ids) - 1][:length], length)
        self._run(DECODE, ids[-1:], 1)
        logits: np.ndarray = self._calls[DECODE][1]["logits"].read(self._vocabulary, np.float32)
        return logits

    def rewind(self, position: int) -> None:
        """Forget what was read from a position on: the mask hides it until it is overwritten."""
        self.position = min(self.position, position)

    def _run(self, name: str, ids: np.ndarray, length: int) -> None:
        """Run a signature on a piece, which is filled up to its length; what fills it up is overwritten, and hidden till then."""
        inputs, outputs = self._calls[name]
        tokens = np.zeros((1, length), np.int32)
        tokens[0, :len(ids)] = ids
        places = np.arange(self.position, self.position + length, dtype=np.int32)
        seen = np.arange(self._held, dtype=np.int32)[None] <= places[:, None]
        inputs["tokens"].write(tokens)
        inputs["input_pos"].write(places)
        inputs["mask"].write(np.where(seen, np.float32(0), np.float32(HIDDEN))[None, None])
        self._model.run_by_name(name, inputs, outputs)
        self.position += len(ids)
