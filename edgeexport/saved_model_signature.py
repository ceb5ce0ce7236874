"""What a SavedModel or a Keras file takes and gives, read without TensorFlow."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeexport.errors import CheckpointError

SAVED_MODEL_FILE = "saved_model.pb"
KERAS_SUFFIX = ".keras"
SERVING = "serving_default"
# TensorFlow adds it to models with an initializer; it is nobody's signature.
INIT_SIGNATURE = "__saved_model_init_op"

# Source: tensorflow/core/framework/types.proto.
DTYPES = {1: "float32", 2: "float64", 3: "int32", 7: "string", 9: "int64", 10: "bool", 19: "float16"}


@dataclass(frozen=True)
class TensorInfo:
    """An input or output.

    Attributes:
        dtype: such as ``int32``; None where the file does not say.
        shape: sizes, None where one is dynamic; None where not even the rank is known.
    """

    dtype: str | None = None
    shape: tuple[int | None, ...] | None = None


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a model.

    Attributes:
        source: the file, and the signature's key where it has several.
        key: the signature's key; None for a Keras file.
        inputs: name → what it must be.
        outputs: name → what it is; a single output has whatever name TensorFlow or Keras gave it.
    """

    source: str
    key: str | None
    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]

    @property
    def fixed_length(self) -> int | None:
        """The one length that the model takes, in tokens; None where it is dynamic."""
        lengths = [info.shape[1] for info in self.inputs.values() if info.shape is not None and len(info.shape) == 2]
        return next((length for length in lengths if length is not None), None)

    def bind_outputs(self, names: tuple[str, ...]) -> dict[str, str]:
        """Which output of the model is meant by each of a task's `names`.

        Raises:
            CheckpointError: one is not there. A model's single output need not have the name.
        """
        if len(names) == 1 and len(self.outputs) == 1:
            return {names[0]: next(iter(self.outputs))}
        missing = [name for name in names if name not in self.outputs]
        if missing:
            raise CheckpointError(f"The model has no output '{missing[0]}'.",
                                  why=f"{self.source} gives {', '.join(sorted(self.outputs))}; the task needs {', '.join(names)}",
                                  hint=f'name the output: keras.Model(inputs, {{"{missing[0]}": …}}), or choose the task it is for')
        return {name: name for name in names}


def read_signature(directory: Path, file: str) -> Signature:
    """The signature of a model file.

    Args:
        directory: where it is.
        file: ``saved_model.pb``, or the name of a Keras file.

    Raises:
        CheckpointError: the file is damaged, or has no signature to call.
    """
    return _saved_model_signature(directory / file) if file == SAVED_MODEL_FILE else _keras_signature(directory / file)


def _saved_model_signature(path: Path) -> Signature:
    """The serving signature of a SavedModel.

    Source: tensorflow/core/protobuf/saved_model.proto and meta_graph.proto, whose field numbers these are.
    """
    found: dict[str, tuple[dict[str, TensorInfo], dict[str, TensorInfo]]] = {}
    try:
        for meta_graph in _messages(memoryview(path.read_bytes()), 2):
            for entry in _messages(meta_graph, 5):
                for definition in _messages(entry, 2):
                    found[_text(entry, 1)] = (_tensors(definition, 1), _tensors(definition, 2))
    except (ValueError, IndexError) as exc:
        raise CheckpointError(f"{path} is damaged.", why=str(exc), hint="save or copy the model again") from exc
    found.pop(INIT_SIGNATURE, None)
    key = SERVING if SERVING in found else next(iter(found), None)
    if key is None or (key != SERVING and len(found) > 1):
        raise CheckpointError(f"{path} has no signature '{SERVING}'.", why=f"its signatures: {', '.join(found) or 'none'}",
                              hint="save it with one: model.export(DIRECTORY), or tf.saved_model.save(module, DIRECTORY, signatures=…)")
    return Signature(f"{path.name}: {key}", key, *found[key])


def _tensors(definition: memoryview, field: int) -> dict[str, TensorInfo]:
    """The inputs (field 1) or outputs (field 2) of a SignatureDef."""
    found = {}
    for entry in _messages(definition, field):
        for info in _messages(entry, 2):
            values = dict(_fields(info))
            shape = values.get(3)
            found[_text(entry, 1)] = TensorInfo(DTYPES.get(values.get(2, 0)), _shape(shape) if shape is not None else ())
    return found


def _shape(shape: memoryview) -> tuple[int | None, ...] | None:
    """A TensorShapeProto: sizes in field 2, ``unknown_rank`` in field 3; -1 is a dynamic size."""
    if dict(_fields(shape)).get(3):
        return None
    sizes = [dict(_fields(dim)).get(1, 0) for dim in _messages(shape, 2)]
    return tuple(None if size >= 2**63 else size for size in sizes)


def _messages(data: memoryview, number: int) -> Iterator[memoryview]:
    return (value for field, value in _fields(data) if field == number)


def _text(data: memoryview, number: int) -> str:
    return next((bytes(value).decode() for value in _messages(data, number)), "")


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a protobuf message; a nested message is a view that is not looked into.

    Source: protobuf.dev, Encoding.

    Raises:
        ValueError: cut off, or not a message.
    """
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        wire = key & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield key >> 3, value
            continue
        if wire == 2:
            size, position = _varint(data, position)
        elif wire in {1, 5}:
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {position}")
        if position + size > len(data):
            raise ValueError(f"it ends {position + size - len(data):,} bytes early")
        yield key >> 3, data[position:position + size]
        position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position


def _keras_signature(path: Path) -> Signature:
    """The inputs and outputs of a Keras file, from the layers in its `config.json`.

    Source: Keras 3, ``keras.src.models.functional`` and ``sequential`` (get_config).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            model = json.loads(archive.read("config.json"))
        name, config = model["class_name"], model["config"]
        if name not in {"Functional", "Sequential"}:
            raise CheckpointError(f"{path.name} holds a model of the class {name}, whose code is not in the file.",
                                  why="only functional and sequential models can be rebuilt from a Keras file",
                                  hint="export it where its code is: model.export(DIRECTORY) writes a SavedModel")
        layers = {layer["config"]["name"]: layer for layer in config["layers"]}
        first, last = next(iter(layers)), list(layers)[-1]
        inputs = _endpoints(config.get("input_layers", [first, 0, 0]))
        outputs = _endpoints(config.get("output_layers", [last, 0, 0]))
        return Signature(path.name, None, {name: _input_info(layers[layer]) for name, layer in inputs.items()},
                         dict.fromkeys(outputs, TensorInfo()))
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, StopIteration) as exc:
        raise CheckpointError(f"{path} is damaged.", why=f"{type(exc).__name__}: {exc}", hint="save or copy the model again") from exc


def _endpoints(structure: Any) -> dict[str, str]:
    """Input or output name → layer. They are a single ``[layer, node, index]``, a list of these, or names of these."""
    if isinstance(structure, dict):
        return {name: layer for name, (layer, _, _) in structure.items()}
    if structure and isinstance(structure[0], str):
        structure = [structure]
    return {layer: layer for layer, _, _ in structure}


def _input_info(layer: dict[str, Any]) -> TensorInfo:
    config = layer["config"]
    dtype, shape = config.get("dtype"), config.get("batch_shape")
    return TensorInfo(dtype if isinstance(dtype, str) else None, tuple(shape) if shape is not None else None)
