"""An ONNX model in INT8: which operators a policy takes, what their activations are like, and the quantized file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from edgeexport.policy import Policy

from ._activation_ranges import Histogram
from ._chosen_operator import ChosenOperator
from ._onnx_dynamic import quantize_dynamically
from ._onnx_external import MODEL, save_model
from ._overrides import Matcher

WEIGHTED = frozenset({"MatMul", "Gemm", "Gather", "Conv"})
# A static scale for a convolution's windows, which cross tokens, gains nothing over a dynamic one.
STATIC = frozenset({"MatMul", "Gemm", "Gather"})


def chosen_operators(path: Path, policy: Policy) -> Iterator[ChosenOperator]:
    """The operators of a model that a policy does not leave in float.

    Raises:
        RecipeError: an override matches no operator.
    """
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    matcher = Matcher(policy)
    constants = {tensor.name: tensor.dims for tensor in graph.initializer}
    constants |= {node.output[0]: constants[node.input[0]] for node in graph.node if node.op_type == "Transpose" and node.input[0] in constants}
    integers = {value.name for value in graph.input}
    for node in graph.node:
        module = node.name.partition("/")[0]
        weights = [name for name in node.input if name in constants]
        names = {node.name, module, *node.output, *weights, *(name.removeprefix("model.") for name in weights)}
        scheme, _ = matcher.scheme(node.op_type, names)
        if scheme == "float" or node.op_type not in WEIGHTED:
            continue
        if scheme == "static" and node.op_type not in STATIC:
            scheme = "dynamic"
        matrix = next((constants[name] for name in weights if len(constants[name]) > 1), ())
        lookup = node.op_type == "Gather"
        read = [name for name in node.input if name not in constants and name not in integers and not lookup]
        yield ChosenOperator(node.op_type, node.name, scheme, module or node.name, prod(matrix) if matrix and not lookup else 0,
                             tuple(dict.fromkeys([*read, *node.output])))
    matcher.require_used()


def quantize(path: Path, chosen: Iterable[ChosenOperator], ranges: Mapping[str, tuple[float, float]], target: Path) -> None:
    """Write a model with operators computed as chosen.

    Args:
        path: the float32 model.
        chosen: the operators that are not left in float.
        ranges: smallest and largest value of each activation of a static operator.
        target: the file to write.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    schemes = {each.scope: each.scheme for each in chosen}
    model = onnx.load(path)
    names = [node.name for node in model.graph.node]
    if "static" in schemes.values():
        quantize_static(path, [name for name in names if schemes.get(name) != "static"], ranges, target)
        model = onnx.load(target)
    left = [name for name in names if schemes.get(name) != "dynamic"]
    if "dynamic" in schemes.values():
        quantize_dynamically(model, left)
    save_model(model, target)
    if any(node.op_type == "Conv" and schemes.get(node.name) == "dynamic" for node in model.graph.node):
        # No encoder of Transformers has convolutions; code of its own may. Their windows cross tokens, so they get one scale for all.
        quantize_dynamic(target, target, per_channel=True, weight_type=QuantType.QUInt8, op_types_to_quantize=["Conv"], nodes_to_exclude=left)


def quantize_static(path: Path, left: Sequence[str], ranges: Mapping[str, tuple[float, float]], target: Path) -> None:
    """Write a model with static operators.

    Activations and weights are unsigned, whose products are exact on every instruction set.

    Args:
        path: the float32 model.
        left: names of nodes that are not made static.
        ranges: smallest and largest value of each activation of the others.
        target: the file to write.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize
    from onnxruntime.quantization.calibrate import TensorData, TensorsData, save_tensors_data

    given = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()}
    with TemporaryDirectory() as place:
        known = Path(place) / "ranges.json"
        save_tensors_data(TensorsData(CalibrationMethod.MinMax, given), known)
        quantize(path, target, None, quant_format=QuantFormat.QDQ, per_channel=True, nodes_to_exclude=list(left),
                 op_types_to_quantize=sorted(STATIC), calibrate_method=CalibrationMethod.MinMax, activation_type=QuantType.QUInt8,
                 weight_type=QuantType.QUInt8, calibration_cache_path=known)


def histograms(path: Path, chosen: Iterable[ChosenOperator], feeds: Mapping[int, Sequence[Mapping[str, np.ndarray]]], threads: int,
               report: Callable[[float], None]) -> dict[str, Histogram]:
    """What values the activations of static operators take.

    Args:
        path: the float32 model.
        chosen: the operators.
        feeds: length → inputs, int64 [1, length].
        threads: threads of an operator.
        report: told what share is done.
    """
    import onnx
    import onnxruntime

    wanted = sorted({name for each in chosen if each.scheme == "static" for name in each.activations})
    if not wanted:
        return {}
    model = onnx.load(path)
    present = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in wanted if name not in present)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Fused operators would not have all of the values.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with TemporaryDirectory() as place:
        save_model(model, Path(place) / MODEL)
        session = onnxruntime.InferenceSession(Path(place) / MODEL, options, providers=["CPUExecutionProvider"])
    dtypes = {value.name: np.int32 if value.type == "tensor(int32)" else np.int64 for value in session.get_inputs()}
    found: dict[str, Histogram] = {name: Histogram() for name in wanted}
    everything = [given for inputs in feeds.values() for given in inputs]
    for number, given in enumerate(everything):
        values = session.run(wanted, {name: given[name].astype(dtype) for name, dtype in dtypes.items()})
        for name, value in zip(wanted, values, strict=True):
            found[name].add(value.ravel())
        report((number + 1) / len(everything))
    return found

