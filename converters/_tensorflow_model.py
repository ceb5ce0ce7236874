"""A SavedModel or a Keras file as one function with named inputs and outputs: what is converted, and what the reference runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeexport.artifact import Spec
from edgeexport.errors import CheckpointError
from edgeexport.saved_model import choose_file
from edgeexport.saved_model_signature import SAVED_MODEL_FILE, Signature, read_signature
from edgeexport.session.tasks import output_names
from edgeexport.session.text import TextSpec

# Read by TensorFlow and Keras when they are imported. oneDNN's kernels sum in another order on each machine, and a reference should
# not; a Keras that the user set to another backend could not read the model.
ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0", "KERAS_BACKEND": "tensorflow"}


def import_tensorflow(threads: int) -> Any:
    """TensorFlow, quiet and on the CPU, with as many threads as a step may use."""
    os.environ.update(ENVIRONMENT)
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")
    with contextlib.suppress(RuntimeError):  # it has run already in this process, and keeps the number it has
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    return tf


class TensorflowModel:
    """The original model.

    Attributes:
        signature: what it takes and gives.
        variables: its variables, each once.
    """

    def __init__(self, directory: Path, spec: Spec, text: TextSpec, tf: Any) -> None:
        """Load the model of an artifact.

        Args:
            directory: the artifact.
            spec: its spec, for the task.
            text: its text spec, for the outputs' names.
            tf: what :func:`import_tensorflow` gave.

        Raises:
            CheckpointError: TensorFlow or Keras can't load it, or it lacks an output of the task.
        """
        file = choose_file(str(directory), directory)
        self.signature: Signature = read_signature(directory, file)
        self._bound = self.signature.bind_outputs(output_names(spec.require_task().value, text.pooling))
        self._tf = tf
        try:
            if file == SAVED_MODEL_FILE:
                self._loaded = tf.saved_model.load(str(directory))
                self._function = self._loaded.signatures[self.signature.key]
                self.variables = list(self._function.variables)
            else:
                # Safe mode: a Lambda layer is code in the file, and is not run.
                self._loaded = tf.keras.models.load_model(directory / file, compile=False, safe_mode=True)
                self._function = self._call_keras
                # TensorFlow's own variables: Keras's wrappers are not found by those who look for variables.
                self.variables = [variable.value for variable in self._loaded.variables]
        except Exception as exc:  # both raise nearly anything for a file they can't read
            raise CheckpointError(f"{'TensorFlow' if file == SAVED_MODEL_FILE else 'Keras'} cannot load {file}.",
                                  why=str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__,
                                  hint="save or copy it again, whole" if file == SAVED_MODEL_FILE else
                                  "a model with code of its own goes through as a SavedModel: model.export(DIRECTORY)") from exc

    @property
    def parameters(self) -> int | None:
        """Number of floating-point weights; None where the graph holds them as constants."""
        return sum(variable.shape.num_elements() for variable in self.variables if variable.dtype.is_floating) or None

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs float32 by the task's names, for integer inputs [batch, seq] of any type; inputs that the model has not are left out."""
        cast = {name: self._tf.cast(feeds[name], info.dtype or "int32") for name, info in self.signature.inputs.items()}
        found = self._function(**cast)
        return {ours: self._tf.cast(found[theirs], self._tf.float32) for ours, theirs in self._bound.items()}

    def _call_keras(self, **feeds: Any) -> dict[str, Any]:
        # Keras puts named inputs in their place; only a sequential model wants its one input bare.
        found = self._loaded(feeds if len(feeds) > 1 else next(iter(feeds.values())), training=False)
        if isinstance(found, dict):
            return found
        return dict(zip(self.signature.outputs, found if isinstance(found, list | tuple) else [found], strict=True))
