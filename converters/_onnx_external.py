"""ONNX models whose weights lie in a file beside the graph, read and written a tensor at a time: of a large model, no more is in memory.

A file of its own holds at most 2 GB, which is as long as a message of Protocol Buffers may be.

Source: onnx/docs/ExternalData.md.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

LARGEST = 2**31
MODEL, DATA = "model.onnx", "model.onnx.data"
# What a graph takes without its weights.
GRAPH_ROOM = 50_000_000
# Smaller tensors stay in the graph, where shape inference can see them.
INLINE_BYTES = 1024
# A cache line, which vector instructions want; the file is mapped into memory as a whole.
ALIGNMENT = 64


class ExternalReader:
    """The tensors of a model, wherever they lie."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, mmap.mmap] = {}

    def array(self, tensor: onnx.TensorProto) -> np.ndarray:
        """A tensor's values; of one that lies outside, a view of the file."""
        import onnx
        from onnx.numpy_helper import to_array

        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return to_array(tensor)
        entries = {entry.key: entry.value for entry in tensor.external_data}
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return np.frombuffer(self._map(entries["location"]), dtype, int(np.prod(tensor.dims, dtype=np.int64)),
                             int(entries.get("offset", 0))).reshape(tensor.dims)

    def _map(self, location: str) -> mmap.mmap:
        if location not in self._files:
            with (self._folder / location).open("rb") as file:
                self._files[location] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._files[location]


class ExternalWriter:
    """A model in the making: weights go to the file beside it as they come.

    Used as a context; :meth:`save` writes the graph.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> ExternalWriter:
        self._file = (self._folder / DATA).open("wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def tensor(self, name: str, values: np.ndarray) -> onnx.TensorProto:
        """A constant of the graph; its values are written where they are large."""
        import onnx
        from onnx.numpy_helper import from_array

        if values.nbytes < INLINE_BYTES:
            return from_array(np.asarray(values, order="C"), name)  # a scalar stays one
        self._file.write(bytes(-self._file.tell() % ALIGNMENT))
        tensor = onnx.TensorProto(name=name, dims=values.shape, data_type=onnx.helper.np_dtype_to_tensor_dtype(values.dtype),
                                  data_location=onnx.TensorProto.EXTERNAL)
        for key, value in {"location": DATA, "offset": self._file.tell(), "length": values.nbytes}.items():
            tensor.external_data.add(key=key, value=str(value))
        np.ascontiguousarray(values).tofile(self._file)
        return tensor

    def save(self, model: onnx.ModelProto) -> None:
        """Write the graph, whose constants were made by :meth:`tensor`."""
        (self._folder / MODEL).write_bytes(model.SerializeToString(deterministic=True))


def copy_constants(model: onnx.ModelProto, reader: ExternalReader, writer: ExternalWriter, replaced: Mapping[str, Any] | None = None) -> None:
    """Give a graph its constants anew: those of `replaced` as they are there (tensors, any number), the others as they were."""
    kept = []
    for tensor in model.graph.initializer:
        if replaced is not None and tensor.name in replaced:
            kept += replaced[tensor.name]
        else:
            kept.append(writer.tensor(tensor.name, reader.array(tensor)))
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write a model whose weights are in memory: as one file where that holds them, and else with the weights beside the graph.

    Args:
        model: is used up.
        path: the file, called :data:`MODEL` where weights may lie beside it.
    """
    import onnx

    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) + GRAPH_ROOM < LARGEST:
        onnx.save_model(model, path)
        return
    with ExternalWriter(path.parent) as writer:
        copy_constants(model, ExternalReader(path.parent), writer)
        writer.save(model)
