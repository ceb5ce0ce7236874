"""TFLite files as they are shipped: every table and buffer once, weights inside, tensors named by their modules.

Each signature is a subgraph of its own, and its tensors repeat the quantization tables of the weights they share: 0.6 MB per
signature for a 22M-parameter encoder. A flatbuffer may refer to one table from many places, so they are written once. The quantizer
puts weights behind the flatbuffer; they are moved inside, so that every tool that reads TFLite finds them. What is larger than a flatbuffer
may be has its weights behind it.

The converter names a tensor by the Python classes around it, some 350 characters each: another 0.6 MB, and nothing one would write into
a policy. They are named by their modules instead, such as ``encoder.layer.0.attention.self.query;2``. Of a product or a look-up, which the
converter may have fused with what lies before it, the module is the one that holds the weights: these are called ``….query.weight``.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

# A module in litert-torch's names: its class with its Python module, and the attribute that holds it.
MODULE = re.compile(r"(?:[\w<>]+\.)*[A-Za-z0-9]+_(\w+)")
# What it puts between the parts of a fused operator's name.
FUSED = ";;"
# A flatbuffer's offsets have 31 bits.
LARGEST = 2**31
# What a file has besides weights: 3.5 MB where 44 layers are read in three signatures. A builder that grows doubles its memory and copies it.
BUILDER_ROOM = 16_000_000
# Of weights behind the flatbuffer: a cache line, which vector instructions want.
ALIGNMENT = 64
# Buffers that are smaller stay inside.
INSIDE_BYTES = 1024
# Operators with weights: place of the weights and of the bias among their inputs.
WEIGHTED = {"FULLY_CONNECTED": (1, 2), "CONV_2D": (1, 2), "DEPTHWISE_CONV_2D": (1, 2), "EMBEDDING_LOOKUP": (1, None), "GATHER": (0, None)}


def write_compactly(target: Path, model: Any, modules: Mapping[str, Module] | None = None, dynamic: Mapping[str, int] | None = None, *,
                    fixed: bool = False) -> None:
    """Write a model with equal buffers and equal quantization tables stored once, all inside the flatbuffer where there is room.

    Holds the weights once besides the model's: nothing else that large may be copied, or it would be the peak of the step's memory.

    Args:
        target: the file to write.
        model: the schema's ``ModelT``, as :func:`read_model` gives it; it is used up.
        modules: the exported module's parts, from :func:`module_paths`; tensors are named by them.
        dynamic: how names of the signatures' inputs and outputs begin → the axis of such a tensor that a runtime may make shorter or longer.
        fixed: no axis is any more.

    Source: TFLite's schema.fbs (Buffer.offset, QuantizationParameters, Tensor.shape_signature); FlatBuffers' internals, "offsets may be shared".
    """
    kept: dict[bytes, int] = {}
    first: list[int] = []  # of each buffer, the first with the same content
    for index, buffer in enumerate(model.buffers):
        filled = buffer.data is not None and len(buffer.data)
        first.append(kept.setdefault(hashlib.sha256(buffer.data).digest(), index) if filled else index)
    written: dict[Any, int] = {}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.buffer = first[tensor.buffer]
            if fixed:
                tensor.shapeSignature = None
            if tensor.quantization is not None:
                tensor.quantization = _SharedQuantization(tensor.quantization, written)
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors} | {entry.buffer for entry in model.metadata or []}
    for index, buffer in enumerate(model.buffers):
        if index not in used:
            buffer.data = None
    if modules is not None:
        name_tensors(model, modules)
    mark_dynamic(model, dynamic or {})
    size = sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None) + BUILDER_ROOM
    behind = _taken_out(model) if size >= LARGEST else []
    flatbuffer = _flatbuffer(model, written, BUILDER_ROOM if behind else size)
    if behind:  # how long the flatbuffer is does not depend on the numbers in it
        _place(behind, len(flatbuffer))
        flatbuffer = _flatbuffer(model, written, BUILDER_ROOM)
    with target.open("wb") as file:
        file.write(flatbuffer)
        for buffer, values in behind:
            file.write(bytes(buffer.offset - file.tell()))
            values.tofile(file)


def read_model(data: bytes | bytearray | mmap.mmap) -> Any:
    """The model of a file's content, with its weights, wherever they lie, as views of it."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(data, 0)
    for buffer in model.buffers:
        if buffer.offset > 1:  # 0 and 1 say: no data behind the flatbuffer
            buffer.data = np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return model


def _taken_out(model: Any) -> list[tuple[Any, np.ndarray]]:
    """Take the weights out of a model's buffers; returns each buffer with its content."""
    found = [(buffer, buffer.data) for buffer in model.buffers if buffer.data is not None and len(buffer.data) >= INSIDE_BYTES]
    for buffer, _ in found:
        buffer.data, buffer.offset, buffer.size = None, 1, 1
    return found


def _place(behind: Sequence[tuple[Any, np.ndarray]], end: int) -> None:
    """Have each buffer say where its content lies, one after the other, behind a flatbuffer of that length."""
    for buffer, values in behind:
        buffer.offset = end + -end % ALIGNMENT
        buffer.size = len(values)
        end = buffer.offset + buffer.size


def _flatbuffer(model: Any, written: dict[Any, int], room: int) -> memoryview:
    import flatbuffers

    written.clear()
    builder = flatbuffers.Builder(room)
    builder.Finish(model.Pack(builder), b"TFL3")
    return memoryview(builder.Bytes)[builder.Head():]


def mapped(path: Path) -> mmap.mmap:
    """A file's content without a copy of it in memory; it stays open as long as something looks into it."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class Module(NamedTuple):
    """A part of the exported module: its dotted path, and whether it holds a matrix of weights."""

    path: str
    weighted: bool


def module_paths(module: torch.nn.Module) -> dict[str, Module]:
    """Every part of a module, by its dotted path without lists of modules, which litert-torch's names leave out."""
    import torch

    parts = dict(module.named_modules())
    found = {}
    for path, part in parts.items():
        names = path.split(".")
        prefixes = (".".join(names[: i + 1]) for i in range(len(names)))
        shown = [name for name, prefix in zip(names, prefixes, strict=True) if not isinstance(parts[prefix], torch.nn.ModuleList)]
        weight = getattr(part, "weight", None)
        found[".".join(shown)] = Module(path.removeprefix("model."), isinstance(weight, torch.Tensor) and weight.dim() > 1)
    return found


def mark_dynamic(model: Any, dynamic: Mapping[str, int]) -> None:
    """Say of which axes the length is up to the runtime; the one that they were traced with stays what it is at first."""
    for signature in model.signatureDefs or []:
        tensors = model.subgraphs[signature.subgraphIndex].tensors
        for entry in (*signature.inputs, *signature.outputs):
            for prefix, axis in dynamic.items():
                if entry.name.decode().startswith(prefix):
                    tensor = tensors[entry.tensorIndex]
                    tensor.shapeSignature = np.array(tensor.shape, np.int32)
                    tensor.shapeSignature[axis] = -1


def name_tensors(model: Any, modules: Mapping[str, Module]) -> None:
    """Name every tensor by its module. Different names stay different, and equal ones equal: tools tell tensors apart by them."""
    wanted = _names_of_weighted(model, modules)
    taken: set[str] = set()
    short: dict[bytes, str] = {}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            if tensor.name not in short:
                parts = [_short_part(part, modules) for part in tensor.name.decode().split(FUSED)]
                base = name = wanted.get(tensor.name, FUSED.join(dict.fromkeys(parts)))
                number = 2
                while name in taken:
                    name, number = f"{base}#{number}", number + 1
                taken.add(name)
                short[tensor.name] = name
            tensor.name = short[tensor.name].encode()


def _names_of_weighted(model: Any, modules: Mapping[str, Module]) -> dict[bytes, str]:
    """Tensor name → better name, for the weights, the bias and the output of each operator with weights."""
    from ai_edge_litert import schema_py_generated as schema

    codes = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    found: dict[bytes, str] = {}
    for graph in model.subgraphs:
        ends = set(graph.outputs)
        for operator in graph.operators:
            places = WEIGHTED.get(codes.get(model.operatorCodes[operator.opcodeIndex].builtinCode, ""))
            if places is None:
                continue
            weights, output = graph.tensors[operator.inputs[places[0]]], graph.tensors[operator.outputs[0]]
            parts = [part for tensor in (weights, output) for part in tensor.name.decode().split(FUSED)]
            owner = next((module.path for part in parts if (module := modules.get(_path(part))) is not None and module.weighted), None)
            if owner is None:
                continue
            found.setdefault(weights.name, f"{owner}.weight")
            if places[1] is not None and len(operator.inputs) > places[1] and operator.inputs[places[1]] >= 0:
                found.setdefault(graph.tensors[operator.inputs[places[1]]].name, f"{owner}.bias")
            if operator.outputs[0] not in ends:
                found.setdefault(output.name, owner)
    return found


def _short_part(part: str, modules: Mapping[str, Module]) -> str:
    path = _path(part)
    _, semicolon, number = part.partition(";")
    return f"{modules[path].path if path in modules else path}{semicolon}{number}" if path else part


def _path(part: str) -> str:
    """``bert.embeddings.word_embeddings`` of a part of a name that litert-torch gave; empty for any other."""
    pieces = [MODULE.fullmatch(piece) for piece in part.partition(";")[0].split("/")[1:]]
    return ".".join(piece[1] for piece in pieces if piece) if all(pieces) else ""


class _SharedQuantization:
    """Packs a tensor's quantization parameters, or refers to an equal table that was packed before."""

    def __init__(self, table: Any, written: dict[Any, int]) -> None:
        self._table, self._written = table, written

    def Pack(self, builder: Any) -> int:  # the name that the generated code calls
        """Write the table, or find it written; returns its offset."""
        from ai_edge_litert import schema_py_generated as schema

        table = self._table
        if table.details is not None or table.min is not None or table.max is not None:
            return int(table.Pack(builder))
        scale = self._vector(builder, table.scale, np.float32)
        zero_point = self._vector(builder, table.zeroPoint, np.int64)
        key = (scale, zero_point, table.quantizedDimension)
        if key not in self._written:
            schema.QuantizationParametersStart(builder)
            if scale is not None:
                schema.QuantizationParametersAddScale(builder, scale)
            if zero_point is not None:
                schema.QuantizationParametersAddZeroPoint(builder, zero_point)
            schema.QuantizationParametersAddQuantizedDimension(builder, table.quantizedDimension)
            self._written[key] = schema.QuantizationParametersEnd(builder)
        return self._written[key]

    def _vector(self, builder: Any, values: Any, dtype: Any) -> int | None:
        if values is None:
            return None
        array = np.asarray(values, dtype)
        key = (array.dtype.str, array.tobytes())
        if key not in self._written:
            self._written[key] = builder.CreateNumpyVector(array)
        return self._written[key]
