"""A language model in LiteRT: what it has read lies in buffers that every signature reads from and writes to."""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgeexport.errors import BundleError

PREFILL, DECODE, MASK = "prefill_", "decode", "mask"
# The axis of an input that counts tokens which are kept.
KEPT_AXES = {"kv_cache_k_": 2, "kv_cache_v_": 3, MASK: 3}
# What a score is made of that must not count: below all that a model comes to (biases of keys make scores of -20,000), and finite when doubled.
HIDDEN = -1e9
# Buffers grow by so many tokens: each token of an answer takes the longer, the more they hold.
STEP = 256
# XNNPACK's name for a place in memory where it keeps weights as it wants them: once for all signatures, which otherwise have a copy each.
SHARED_WEIGHTS = ":memory"


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep off the terminal what LiteRT writes while it looks for accelerators: some thirty lines, of which no option is known to take any away.
    Errors come as exceptions as well."""
    try:
        terminal = os.dup(2)
    except OSError:  # a service may have none
        yield
        return
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        silence()
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def silence() -> None:
    """Send standard error nowhere: at the end of the process for good, as LiteRT announces the end of what all models shared."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def close(model: Any) -> None:
    """Give back what a model holds."""
    environment = model.environment
    with quietly():
        model.close()
        environment.close()


class TfliteDecoder:
    """A TFLite file with the signatures ``prefill_LENGTH`` and ``decode``; see the converter export_decoder_tflite.

    Prompts are read in pieces of the signatures' lengths, the last token by ``decode``, which alone gives logits. Attention goes over all of the
    buffers, filled or not; so where the file says that their length is up to the runtime, they grow with what has been read.

    Attributes:
        room: the tokens that they hold now.
    """

    def __init__(self, path: Path, threads: int, context: int) -> None:
        """Load the model with a fixed number of threads."""
        from ai_edge_litert.compiled_model import CompiledModel, CpuOptions, HardwareAccelerator, Options

        options = Options(hardware_accelerators=HardwareAccelerator.CPU,
                          cpu_options=CpuOptions(num_threads=threads, xnnpack_weight_cache_path=SHARED_WEIGHTS))
        with quietly():
            self._model = CompiledModel.from_file(str(path), options=options)
        weakref.finalize(self, close, self._model)
        atexit.unregister(silence)
        atexit.register(silence)
        self._signatures: dict[str, Any] = self._model.get_signature_list()
        if DECODE not in self._signatures:
            raise BundleError(f"{path.name} is no language model.", why=f"it has no signature named {DECODE}")
        self.lengths = sorted(int(name.removeprefix(PREFILL)) for name in self._signatures if name.startswith(PREFILL))
        self._held = self._model.get_input_tensor_details(DECODE)[MASK]["shape"][KEPT_AXES[MASK]]
        self.context, self.position, self.room = min(context, self._held), 0, 0
        self._vocabulary = self._model.get_output_tensor_details(DECODE)["logits"]["shape"][-1]
        self._is_elastic = self._may_resize()
        self._caches: dict[str, Any] = {}
        self._calls: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}

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
        self._make_room(self.position + length)
        inputs, outputs = self._calls[name]
        tokens = np.zeros((1, length), np.int32)
        tokens[0, :len(ids)] = ids
        places = np.arange(self.position, self.position + length, dtype=np.int32)
        seen = np.arange(self.room, dtype=np.int32)[None] <= places[:, None]
        inputs["tokens"].write(tokens)
        inputs["input_pos"].write(places)
        inputs[MASK].write(np.where(seen, np.float32(0), np.float32(HIDDEN))[None, None])
        self._model.run_by_name(name, inputs, outputs)
        self.position += len(ids)

    def _make_room(self, tokens: int) -> None:
        """Make buffers longer where they are too short for so many tokens."""
        if tokens <= self.room:
            return
        with quietly():
            self._grow(tokens)

    def _grow(self, tokens: int) -> None:
        """Buffers for so many tokens, with what was read already."""
        kept, position = {name: self._kept(name) for name in self._caches}, self.position
        # The runtime is told of new lengths one by one: whatever interrupts that leaves a model that has read nothing.
        self._caches, self._calls, self.position, self.room = {}, {}, 0, 0
        room = min(STEP * math.ceil(tokens / STEP), self._held) if self._is_elastic else self._held
        if self._is_elastic:
            self._resize(room)
        caches = {name: self._model.create_input_buffer_by_name(DECODE, name) for name in self._signatures[DECODE]["inputs"]
                  if name.startswith("kv_cache_")}
        for name, buffer in caches.items():
            larger = np.zeros(self._shape(DECODE, name, room), np.float32)
            if name in kept:
                larger[tuple(slice(size) for size in kept[name].shape)] = kept[name]
            buffer.write(larger)
        calls: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        for name in self._signatures:
            inputs = {each: self._model.create_input_buffer_by_name(name, each) for each in ("tokens", "input_pos", MASK)}
            outputs = {"logits": self._model.create_output_buffer_by_name(name, "logits")} if name == DECODE else {}
            calls[name] = {**inputs, **caches}, {**outputs, **caches}
        self._caches, self._calls, self.position, self.room = caches, calls, position, room

    def _may_resize(self) -> bool:
        """Whether the file lets buffers have other lengths; the runtime refuses it where not."""
        shape = list(self._model.get_input_tensor_details(DECODE)[MASK]["shape"])
        shape[KEPT_AXES[MASK]] -= 1
        try:
            self._model.resize_input_tensor_by_name(DECODE, MASK, shape)
        except RuntimeError:
            return False
        return True

    def _resize(self, room: int) -> None:
        """Tell the runtime how long the buffers are."""
        for signature, names in self._signatures.items():
            for name in names["inputs"]:
                if name.startswith(tuple(KEPT_AXES)):
                    self._model.resize_input_tensor_by_name(signature, name, self._shape(signature, name, room))

    def _shape(self, signature: str, name: str, room: int) -> list[int]:
        """The shape of a cache or mask that holds so many tokens."""
        shape: list[int] = list(self._model.get_input_tensor_details(signature)[name]["shape"])
        shape[next(axis for prefix, axis in KEPT_AXES.items() if name.startswith(prefix))] = room
        return shape

    def _kept(self, name: str) -> np.ndarray:
        """What lies in a cache."""
        shape = self._shape(DECODE, name, self.room)
        found: np.ndarray = self._caches[name].read(math.prod(shape), np.float32).reshape(shape)
        return found
