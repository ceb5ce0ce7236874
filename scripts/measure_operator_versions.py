"""Measure which opsets, IR versions and operator versions a runtime accepts, and write them to edgeexport/runner/runtimes/NAME.toml.

    python scripts/measure_operator_versions.py tflite-runtime --python ~/.cache/edgeexport/environments/tflite-runtime…/bin/python

This interpreter writes small probe files (it needs onnx and ai-edge-litert); the interpreter named by --python loads them with the
runtime that it has, whatever its version. A runtime resolves operators when it loads a file, before it looks at shapes, so that one
file with one operator code tells whether that operator exists in that version. Some TFLite operators accept INT8 weights with a scale
per channel and then use the first scale for all of them; those are run, and their answers compared. The entry of the version that was
measured is replaced; other entries stay.
"""

from __future__ import annotations

import argparse
import base64
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RUNTIMES = Path(__file__).parents[1] / "edgeexport" / "runner" / "runtimes"
MODULES = {"tflite-runtime": "tflite_runtime.interpreter", "ai-edge-litert": "ai_edge_litert.interpreter"}

# Beyond every version there is; the probes stop where the runtime does.
HIGHEST_OPERATOR_VERSION = 24
HIGHEST_OPSET = 40
HIGHEST_IR = 20

# Custom operators that TFLite's own resolvers have had. Source: tensorflow/lite/core/kernels/register.cc.
TFLITE_CUSTOM = ("NumericVerify", "Mfcc", "AudioSpectrogram", "TFLite_Detection_PostProcess", "aeq.hadamard_rotation")
MADE_UP = "NoSuchOperator"

# Its last version is of opset 13: what refuses it in a newer opset refuses the opset.
UNCHANGED = "Sqrt"

BEHIND = [1.0, 2.0, 3.0, 4.0]


def main() -> None:
    """Write the probes, load them with the other interpreter, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runtime", choices=["onnxruntime", *MODULES])
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environment that holds the runtime")
    parser.add_argument("--packages", help="folder that holds the runtime, where it is not installed there (pip install --target)")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        load = load_onnx if arguments.runtime == "onnxruntime" else load_tflite
        print(json.dumps(load(arguments.runtime, json.loads(arguments.load.read_text()))))
        return
    probes = onnx_probes() if arguments.runtime == "onnxruntime" else tflite_probes()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "probes.json"
        path.write_text(json.dumps(probes))
        command = [arguments.python, __file__, arguments.runtime, "--load", str(path)]
        environment = os.environ | ({"PYTHONPATH": arguments.packages} if arguments.packages else {})
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}")
    found = json.loads(done.stdout.splitlines()[-1])
    write_table(arguments.runtime, found)
    print(f"{arguments.runtime} {found['version']}: " + ", ".join(
        f"{key} {len(value) if isinstance(value, (dict, list)) and key != 'opsets' else value}"
        for key, value in found.items() if key != "version"))


# What follows runs here.

def tflite_probes() -> dict[str, Any]:
    """Files, base64: operator → one for each version; custom operator → one; and one with a constant behind the flatbuffer."""
    from ai_edge_litert import schema_py_generated as schema

    codes = {name: code for name, code in vars(schema.BuiltinOperator).items()
             if isinstance(code, int) and name not in {"CUSTOM", "DELEGATE", "PLACEHOLDER_FOR_GREATER_OP_CODES"}}
    versions = range(1, HIGHEST_OPERATOR_VERSION + 1)
    return {
        "operators": {name: [_text(_tflite_file(code, version)) for version in versions] for name, code in codes.items()},
        "custom": {name: _text(_tflite_file(schema.BuiltinOperator.CUSTOM, 1, name)) for name in (*TFLITE_CUSTOM, MADE_UP)},
        "behind": _text(_file_with_weights_behind()),
        "per_channel": per_channel_probes(),
    }


def _tflite_file(code: int, version: int, custom: str | None = None) -> bytes:
    """A TFLite file with one operator code; where it is custom, also with an operator, since those are resolved later."""
    from ai_edge_litert import schema_py_generated as schema
    from flatbuffers import flexbuffers

    operator_code = schema.OperatorCodeT()
    operator_code.builtinCode, operator_code.version, operator_code.customCode = code, version, custom
    operator_code.deprecatedBuiltinCode = min(code, 127)  # a byte; the schema says 127 for all codes above
    operator = schema.OperatorT()
    operator.inputs, operator.outputs = [], []
    operator.customOptions = list(flexbuffers.Dumps({}))  # some read their options unasked
    return _pack([operator_code], [], [operator] if custom else [], [])


def _file_with_weights_behind() -> bytes:
    """A TFLite file with one constant, float32 [4], whose content lies behind the flatbuffer."""
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    tensor, buffer = schema.TensorT(), schema.BufferT()
    tensor.name, tensor.type, tensor.shape, tensor.buffer = "weight", schema.TensorType.FLOAT32, [len(BEHIND)], 1
    content = np.array(BEHIND, np.float32).tobytes()
    buffer.offset, buffer.size = 2**32, len(content)
    end = -len(_pack([], [tensor], [], [buffer])) % 16
    buffer.offset = len(_pack([], [tensor], [], [buffer])) + end
    return _pack([], [tensor], [], [buffer]) + bytes(end) + content


def _pack(codes: list[Any], tensors: list[Any], operators: list[Any], buffers: list[Any],
          inputs: Sequence[int] = (), outputs: Sequence[int] = ()) -> bytes:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    graph, model = schema.SubGraphT(), schema.ModelT()
    graph.name, graph.inputs, graph.outputs, graph.tensors, graph.operators = "main", list(inputs), list(outputs), tensors, operators
    model.version, model.description, model.operatorCodes, model.subgraphs = 3, "probe", codes, [graph]
    model.buffers = [schema.BufferT(), *buffers]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def per_channel_probes() -> dict[str, dict[str, Any]]:
    """Operator → a file where it meets INT8 weights with one scale per channel, the input, and the right output."""
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    random = np.random.default_rng(0)
    scales = np.array([0.001, 0.01, 0.1, 1.0], np.float32)
    found = {}

    def probe(name: str, version: int, options: Any, given: Any, weight: Any, expected: Any, size: Any, bias: bool = True) -> None:
        tensors, buffers = [], []
        arrays = {"x": given, "weight": weight, "y": expected.astype(np.float32)} | ({"bias": np.zeros(4, np.float32)} if bias else {})
        for index, (label, array) in enumerate(arrays.items(), 1):
            tensor, buffer = schema.TensorT(), schema.BufferT()
            tensor.name, tensor.shape, tensor.buffer = label, list(array.shape), index
            tensor.type = getattr(schema.TensorType, array.dtype.name.upper())
            if label == "weight":
                tensor.quantization = schema.QuantizationParametersT()
                tensor.quantization.scale, tensor.quantization.zeroPoint, tensor.quantization.quantizedDimension = scales, [0] * 4, 0
            if label in {"weight", "bias"}:
                buffer.data = array.view(np.uint8).ravel()
            tensors.append(tensor)
            buffers.append(buffer)
        code, operator = schema.OperatorCodeT(), schema.OperatorT()
        code.builtinCode, code.version = getattr(schema.BuiltinOperator, name), version
        code.deprecatedBuiltinCode = code.builtinCode
        operator.inputs, operator.outputs = [0, 1, 3] if bias else [0, 1], [2]
        if options is not None:
            operator.builtinOptions = options
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        # An activation is rounded to 8 bits, so that the error is relative to the products, which may cancel.
        found[name] = {"file": _text(_pack([code], tensors, [operator], buffers, inputs=[0], outputs=[2])), "dtype": given.dtype.name,
                       "x": given.tolist(), "y": expected.tolist(), "tolerance": (0.02 * size).tolist()}

    x = random.standard_normal((1, 8)).astype(np.float32)
    matrix = random.integers(-127, 128, (4, 8)).astype(np.int8)
    rows = matrix * scales[:, None]
    y, size = x @ rows.T, abs(x) @ abs(rows).T
    probe("FULLY_CONNECTED", 5, schema.FullyConnectedOptionsT(), x, matrix, y, size)
    convolution = schema.Conv2DOptionsT()
    convolution.strideH = convolution.strideW = convolution.dilationHFactor = convolution.dilationWFactor = 1
    probe("CONV_2D", 5, convolution, x.reshape(1, 1, 1, 8), matrix.reshape(4, 1, 1, 8), y.reshape(1, 1, 1, 4), size.reshape(1, 1, 1, 4))
    probe("EMBEDDING_LOOKUP", 1, None, np.arange(4, dtype=np.int32), matrix, rows, abs(rows), bias=False)
    return found


def onnx_probes() -> dict[str, Any]:
    """Files, base64: domain → one for each opset; and one for each IR version."""
    import onnx

    def file(ir: int, opsets: dict[str, int]) -> str:
        value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
        graph = onnx.helper.make_graph([onnx.helper.make_node(UNCHANGED, ["x"], ["y"])], "probe", value[:1], value[1:])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid(*item) for item in opsets.items()])
        model.ir_version = ir
        return _text(model.SerializeToString())

    opsets = range(1, HIGHEST_OPSET + 1)
    return {
        "opsets": {"ai.onnx": [file(8, {"": opset}) for opset in opsets],
                   "ai.onnx.ml": [file(8, {"": 12, "ai.onnx.ml": opset}) for opset in opsets]},
        "ir": [file(ir, {"": 12}) for ir in range(1, HIGHEST_IR + 1)],
    }


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def write_table(runtime: str, found: dict[str, Any]) -> None:
    """Put what was found into the runtime's file; each entry holds what is new since the version before."""
    from packaging.version import Version

    from edgeexport.runner.compatibility import Capability, known

    source = f"measured by scripts/measure_operator_versions.py in {runtime} {found['version']}"
    path = RUNTIMES / f"{runtime}.toml"
    entries: dict[str, Capability] = known(runtime).versions if path.is_file() else {}
    entry = {key: value for key, value in found.items() if key not in {"version", "gone"}}
    entries = entries | {found["version"]: Capability(source=source, **entry)}
    lines = [
        "# Written by scripts/measure_operator_versions.py. `operators` and `custom` of a version hold what is new or raised since the",
        "# version above it. A version that is not here is taken for the highest one at or below it.",
        f'runtime = "{runtime}"', f'format = "{"onnx" if runtime == "onnxruntime" else "tflite"}"']
    operators: dict[str, Any] = {}
    custom: set[str] = set()
    for version in sorted(entries, key=Version):
        has = entries[version]
        gone = sorted((operators.keys() - has.operators.keys()) | (custom - set(has.custom if has.custom is not None else custom)))
        if gone:
            sys.exit(f"{runtime} {version} has lost {', '.join(gone)}: the table has no form for that")
        lines += ["", f'[versions."{version}"]', f"source = {json.dumps(has.source)}"]
        if has.ir is not None:
            lines.append(f"ir = {has.ir}")
            lines.append("opsets = { " + ", ".join(f'"{domain}" = {opset}' for domain, opset in has.opsets.items()) + " }")
        else:
            lines.append(f"weights_behind_flatbuffer = {json.dumps(has.weights_behind_flatbuffer)}")
            lines.append(f"wrong_per_channel = {json.dumps(has.wrong_per_channel)}")
        if has.custom is not None:
            names = ", ".join(f'"{name}"' for name in sorted(set(has.custom) - custom))
            lines += textwrap.wrap(f"custom = [{names}]", 139, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
            custom = set(has.custom)
        changed = {name: value for name, value in has.operators.items() if operators.get(name) != value}
        if changed:
            lines += ["", f'[versions."{version}".operators]']
            lines += [f"{name} = {list(value) if isinstance(value, tuple) else value}" for name, value in sorted(changed.items())]
        operators = dict(has.operators)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


# What follows runs in the other interpreter, which has the runtime, NumPy and the standard library.

def load_tflite(runtime: str, probes: dict[str, Any]) -> dict[str, Any]:
    """What an interpreter of TFLite files accepts."""
    interpreter = importlib.import_module(MODULES[runtime]).Interpreter
    operators: dict[str, int | list[int]] = {}
    for name, files in probes["operators"].items():
        accepted = [version for version, file in enumerate(files, 1) if _error(lambda f=file: interpreter(model_content=_data(f))) is None]
        if accepted:
            if accepted != list(range(accepted[0], accepted[-1] + 1)):
                sys.exit(f"{name} has versions {accepted}: the table has no form for a gap")
            operators[name] = accepted[-1] if accepted[0] == 1 else [accepted[0], accepted[-1]]

    def allocate(file: str) -> Any:
        made = interpreter(model_content=_data(file))
        made.allocate_tensors()
        return made

    unknown = "unresolved custom op"
    custom = [name for name, file in probes["custom"].items() if unknown not in (_error(lambda f=file: allocate(f)) or "")]
    if MADE_UP in custom:
        sys.exit(f"a made-up custom operator is not refused with '{unknown}': {_error(lambda: allocate(probes['custom'][MADE_UP]))}")
    behind = False
    if _error(lambda: allocate(probes["behind"])) is None:
        made = allocate(probes["behind"])
        behind = _error(lambda: made.get_tensor(0)) is None and made.get_tensor(0).tolist() == BEHIND
    wrong = [name for name, probe in probes["per_channel"].items() if not _is_right(allocate, probe)]
    return {"version": importlib.metadata.version(runtime), "operators": operators, "custom": custom, "weights_behind_flatbuffer": behind,
            "wrong_per_channel": wrong}


def _is_right(allocate: Any, probe: dict[str, Any]) -> bool:
    """Whether an operator's output is the right one, but for rounding."""
    import numpy as np

    def run() -> None:
        made = allocate(probe["file"])
        made.set_tensor(made.get_input_details()[0]["index"], np.array(probe["x"], probe["dtype"]))
        made.invoke()
        found = made.get_tensor(made.get_output_details()[0]["index"])
        if (np.abs(found - np.array(probe["y"])) > np.array(probe["tolerance"])).any():
            raise ValueError("wrong answer")

    return _error(run) is None


def load_onnx(runtime: str, probes: dict[str, Any]) -> dict[str, Any]:
    """What onnxruntime accepts, and which operators of its own domain have a CPU kernel."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    onnxruntime.set_default_logger_severity(4)

    def highest(files: list[str]) -> int:
        accepted = [number for number, file in enumerate(files, 1)
                    if _error(lambda f=file: onnxruntime.InferenceSession(_data(f), providers=["CPUExecutionProvider"])) is None]
        return accepted[-1]

    found = {"version": importlib.metadata.version(runtime), "ir": highest(probes["ir"]),
             "opsets": {domain: highest(files) for domain, files in probes["opsets"].items()}}
    if hasattr(state, "get_all_opkernel_def"):  # from 1.16 on
        found["custom"] = sorted({f"{kernel.domain}.{kernel.op_name}" for kernel in state.get_all_opkernel_def()
                                  if kernel.domain == "com.microsoft" and kernel.provider == "CPUExecutionProvider"})
    return found


def _data(file: str) -> bytes:
    return base64.b64decode(file)


def _error(action: Any) -> str | None:
    """The message of the error that `action` raises; None where it raises none."""
    try:
        action()
    except Exception as exc:  # runtimes raise ValueError, RuntimeError and classes of their own
        return str(exc)
    return None


if __name__ == "__main__":
    main()
