"""A model in a TFLite runtime: LiteRT, or the older tflite-runtime, which has the same interface."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from edgeexport.errors import BundleError

SIGNATURE_PREFIX = "seq_"


class TfliteModel:
    """A TFLite file, ready to run. It has one signature for each length, named ``seq_LENGTH``."""

    def __init__(self, path: Path, threads: int, module: str) -> None:
        """Load the model with a fixed number of threads.

        Args:
            path: the .tflite file.
            threads: how many threads an operator may use.
            module: the runtime's module that has ``Interpreter``.
        """
        self._interpreter = importlib.import_module(module).Interpreter(str(path), num_threads=threads)
        # tflite-runtime hands the graph to XNNPACK here and nowhere else: with signature runners alone, which need no such call, it runs
        # its own kernels, three times slower (2.14.0, all-MiniLM-L6-v2 with INT8 weights: 89 and 30 ms for 128 tokens).
        self._interpreter.allocate_tensors()
        names = [name for name in self._interpreter.get_signature_list() if name.startswith(SIGNATURE_PREFIX)]
        self.lengths = tuple(sorted(int(name.removeprefix(SIGNATURE_PREFIX)) for name in names))
        if not self.lengths:
            raise BundleError(f"{path.name} has no signature named {SIGNATURE_PREFIX}LENGTH.")
        self._runners: dict[int, Callable[..., dict[str, np.ndarray]]] = {}

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name, for inputs int64 [1, one of the lengths]."""
        length = feeds["input_ids"].shape[1]
        if length not in self._runners:
            self._runners[length] = self._interpreter.get_signature_runner(f"{SIGNATURE_PREFIX}{length}")
        # Bound by name: the order of a signature's inputs is not the order they were declared in.
        return self._runners[length](**{name: value.astype(np.int32) for name, value in feeds.items()})
