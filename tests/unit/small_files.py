"""Small ONNX and TFLite files, made by hand, and what to ask of their inspection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeexport.inspection import ModelReport
from edgeexport.inspection.model import OperatorUse

RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    """Random float32 numbers."""
    return RANDOM.standard_normal(shape).astype(np.float32)


def bytes8(*shape: int) -> np.ndarray:
    """Random int8 numbers."""
    return RANDOM.integers(-128, 128, shape).astype(np.int8)


def use(report: ModelReport, name: str) -> OperatorUse:
    """The only entry for an operator."""
    (found,) = (entry for entry in report.operators if entry.name == name)
    return found


def group(report: ModelReport, name: str, dtype: str) -> tuple[int, int, int]:
    """Tensors, elements and bytes of a group."""
    (found,) = (entry for entry in report.weight_groups if (entry.group, entry.dtype) == (name, dtype))
    return found.tensors, found.elements, found.bytes


def assert_bytes_add_up(report: ModelReport) -> None:
    """Every byte is a constant's or overhead."""
    assert report.overhead_bytes > 0
    assert sum(entry.bytes for entry in report.weight_groups) + report.overhead_bytes == report.bytes


def onnx_file(path: Path, nodes: list[Any], constants: dict[str, np.ndarray], opset: int = 18, ir: int = 8, **domains: int) -> Path:
    """An ONNX file with input x [batch, 4] and output y."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes, "main", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()])
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(name.replace("_", "."), version) for name, version in domains.items())]
    model = helper.make_model(graph, opset_imports=opsets, producer_name="test", producer_version="1")
    model.ir_version = ir
    onnx.save_model(model, str(path))
    return path


def node(operator: str, inputs: str, outputs: str, name: str = "", **attributes: Any) -> Any:
    """An ONNX node; names are separated by blanks."""
    onnx = pytest.importorskip("onnx")
    return onnx.helper.make_node(operator, inputs.split(), outputs.split(), name=name, **attributes)


class Tflite:
    """Builds a TFLite model. Tensors that are given the same array share a buffer, also between subgraphs."""

    def __init__(self) -> None:
        self.schema = schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
        self.model = schema.ModelT()
        self.model.version, self.model.description = 3, "test"
        self.model.operatorCodes, self.model.subgraphs, self.model.signatureDefs = [], [], []
        self.model.buffers = [schema.BufferT()]
        self._buffers: dict[int, int] = {}

    def graph(self, name: str | None = None) -> None:
        """Start a subgraph, with a signature if it has a name. Tensor 0 will be its input, the last tensor its output."""
        graph = self.schema.SubGraphT()
        graph.tensors, graph.operators, graph.inputs, graph.outputs = [], [], [0], []
        self.model.subgraphs.append(graph)
        if name:
            signature = self.schema.SignatureDefT()
            signature.signatureKey, signature.subgraphIndex = name, len(self.model.subgraphs) - 1
            signature.inputs, signature.outputs = [self.schema.TensorMapT()], []
            signature.inputs[0].name, signature.inputs[0].tensorIndex = "x", 0
            self.model.signatureDefs.append(signature)

    def tensor(self, name: str, dtype: str, shape: tuple[int, ...], array: np.ndarray | None = None, scales: int = 0,
               table: Any = None, signature: tuple[int, ...] | None = None) -> int:
        """A tensor's number."""
        tensor = self.schema.TensorT()
        tensor.name, tensor.type, tensor.shape, tensor.buffer = name, getattr(self.schema.TensorType, dtype), list(shape), 0
        tensor.shapeSignature = signature
        if array is not None:
            if id(array) not in self._buffers:
                buffer = self.schema.BufferT()
                buffer.data = array.view(np.uint8).ravel()
                self._buffers[id(array)] = len(self.model.buffers)
                self.model.buffers.append(buffer)
            tensor.buffer = self._buffers[id(array)]
        if scales:
            tensor.quantization = self.schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [0.1] * scales, [0] * scales
        tensors = self.model.subgraphs[-1].tensors
        tensors.append(tensor)
        return len(tensors) - 1

    def operator(self, name: str, inputs: list[int], output: int, version: int = 1, custom: str | None = None) -> None:
        """An operator of the subgraph."""
        code = self.schema.OperatorCodeT()
        code.builtinCode, code.version, code.customCode = getattr(self.schema.BuiltinOperator, name), version, custom
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        operator = self.schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = len(self.model.operatorCodes), inputs, [output]
        self.model.operatorCodes.append(code)
        self.model.subgraphs[-1].operators.append(operator)
        self.model.subgraphs[-1].outputs = [output]

    def pack(self) -> bytes:
        """The file's content."""
        import flatbuffers

        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def save(self, path: Path) -> Path:
        """Write the file."""
        path.write_bytes(self.pack())
        return path


def fully_connected(model: Tflite, x: str, weight: np.ndarray, bias: np.ndarray | None, scales: int, version: int = 5,
                    module: str = "model/m.Layer_0/m.Intermediate_intermediate/torch.nn.modules.linear.Linear_dense") -> None:
    """A subgraph's only operator: x [1, in] times weight [out, in]."""
    outs, ins = weight.shape
    dtype = {"int8": "INT8", "float32": "FLOAT32"}[weight.dtype.name]
    inputs = [model.tensor("x", x, (1, ins), scales=1 if x == "INT8" else 0),
              model.tensor("arith.constant", dtype, weight.shape, weight, scales)]
    if bias is not None:
        inputs.append(model.tensor(f"{module};", "FLOAT32", (outs,), bias))
    model.operator("FULLY_CONNECTED", inputs, model.tensor(f"{module};1", x, (1, outs), scales=1 if x == "INT8" else 0), version)
