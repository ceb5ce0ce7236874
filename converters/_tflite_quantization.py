"""A TFLite model in INT8: which operators a policy takes, what their activations are like, and the quantized file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeexport.errors import RecipeError
from edgeexport.policy import Policy, Scheme
from edgeexport.session.run_tflite import SIGNATURE_PREFIX

from ._activation_ranges import Histogram
from ._chosen_operator import ChosenOperator
from ._overrides import Matcher
from ._tflite_file import mapped, read_model, write_compactly

# What is computed with weights: this a scheme takes, and what is missing stays float. Of static operators the same: a layer normalization
# or a softmax of 8-bit numbers destroys the answer (MiniLM, cosine to float32: 0.32 with all operators static, 0.953 so), and costs little.
# An override ``op:NAME`` takes operators of any type.
WEIGHTED = frozenset({"FULLY_CONNECTED", "BATCH_MATMUL", "CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D_TRANSPOSE", "EMBEDDING_LOOKUP"})
# Rows are looked up, not multiplied: there is no activation whose range could be static.
LOOKUP = "EMBEDDING_LOOKUP"


def chosen_operators(path: Path, policy: Policy) -> Iterator[ChosenOperator]:
    """The operators of a model that a policy does not leave in float, signature by signature.

    Raises:
        RecipeError: an override matches no operator.

    Source: ai-edge-quantizer's recipe_manager and get_op_scope.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils as names

    model = read_model(mapped(path))
    matcher = Matcher(policy)
    for number, graph in enumerate(model.subgraphs):
        for operator in graph.operators:
            known = names.TFL_OP_CODE_TO_NAME.get(model.operatorCodes[operator.opcodeIndex].builtinCode)
            if known is None:
                continue  # nothing that can be quantized
            constants = [graph.tensors[i] for i in operator.inputs if i >= 0 and model.buffers[graph.tensors[i].buffer].data is not None]
            tensors = [*constants, *(graph.tensors[i] for i in operator.outputs)]
            scheme, by_type = matcher.scheme(known.value, {name for tensor in tensors for name in spellings(tensor.name.decode())})
            if scheme == "static" and known.value == LOOKUP:
                scheme = "dynamic"
            if scheme != "float" and (by_type or known.value in WEIGHTED):
                matrix = next((tensor for tensor in constants if len(tensor.shape) > 1), None)
                module = module_of(matrix.name.decode()) if matrix is not None and known.value in WEIGHTED else None
                multiplied = int(np.prod(matrix.shape)) if matrix is not None and module and known.value != LOOKUP else 0
                around = [graph.tensors[i] for i in (*operator.inputs, *operator.outputs) if i >= 0]
                activations = tuple(tensor.name.decode() for tensor in around
                                    if tensor.type == schema.TensorType.FLOAT32 and model.buffers[tensor.buffer].data is None)
                yield ChosenOperator(known.value, names.get_op_scope(operator, graph.tensors), scheme, module or f"op:{known.value}", multiplied,
                                     activations, number)
    matcher.require_used()


def quantize(path: Path, chosen: Iterable[ChosenOperator], ranges: Mapping[str, tuple[float, float]], target: Path) -> None:
    """Write a model with operators computed as chosen.

    Args:
        path: the float32 model.
        chosen: the operators that are not left in float.
        ranges: smallest and largest value of each activation of a static operator.
        target: the file to write.

    Raises:
        RecipeError: the quantizer has no such form of an operator.
    """
    chosen = list(chosen)
    if not chosen:
        write_compactly(target, read_model(mapped(path)))
        return
    given = {name: {"min": np.array([[low]], np.float32), "max": np.array([[high]], np.float32)} for name, (low, high) in ranges.items()}
    write_compactly(target, read_model(_told(path, chosen).quantize(given or None).quantized_model))


def histograms(path: Path, chosen: Iterable[ChosenOperator], feeds: Mapping[int, Sequence[Mapping[str, np.ndarray]]], threads: int,
               report: Callable[[float], None]) -> dict[str, Histogram]:
    """What values the activations of static operators take.

    Args:
        path: the float32 model.
        chosen: the operators.
        feeds: length → inputs, int64 [1, length]; every signature needs some, since its activations are tensors of their own.
        threads: threads of an operator.
        report: told what share is done.
    """
    from ai_edge_litert.interpreter import Interpreter

    wanted: dict[int, set[str]] = {}
    for each in chosen:
        if each.scheme == "static":
            wanted.setdefault(each.graph, set()).update(each.activations)
    # Only so does the runtime keep what lies between operators; its other kernels would overwrite it.
    interpreter = Interpreter(str(path), num_threads=threads, experimental_preserve_all_tensors=True)
    found: dict[str, Histogram] = {}
    total, done = sum(map(len, feeds.values())), 0
    for length, inputs in feeds.items():
        runner = interpreter.get_signature_runner(f"{SIGNATURE_PREFIX}{length}")
        graph = runner._subgraph_index
        places = {detail["name"]: detail["index"] for detail in interpreter.get_tensor_details(graph) if detail["name"] in wanted.get(graph, ())}
        for given in inputs:
            runner(**{name: value.astype(np.int32) for name, value in given.items()})
            for name, place in places.items():
                found.setdefault(name, Histogram()).add(interpreter.get_tensor(place, graph).ravel())
            done += 1
            report(done / total)
    return found


def _told(path: Path, chosen: Iterable[ChosenOperator]) -> Any:
    """A quantizer that knows how each operator is computed."""
    from ai_edge_quantizer import quantizer

    tool = quantizer.Quantizer(str(path))
    scopes: dict[tuple[Scheme, str], list[str]] = {}
    for each in chosen:
        scopes.setdefault((each.scheme, each.operator), []).append(each.scope)
    for (scheme, operator), names in scopes.items():
        apply_scheme(tool, f"^(?:{'|'.join(map(re.escape, dict.fromkeys(names)))})$", operator, scheme)
    return tool


def module_of(name: str) -> str | None:
    """The path of the module that holds a tensor of weights; None of a tensor that is not a module's."""
    plain = re.sub(r"[;#][0-9;#]*$", "", name)
    return plain.removesuffix(".weight") if plain.endswith(".weight") else None


def spellings(name: str) -> set[str]:
    """What an override may call a tensor: its name as it stands, its module, and the name without the numbers that keep names apart."""
    plain = re.sub(r"[;#][0-9;#]*$", "", name)
    return {name, plain, plain.removesuffix(".weight")}


def apply_scheme(tool: Any, regex: str, operator: str, scheme: Scheme) -> None:
    """Tell the quantizer how to compute the operators that match.

    Raises:
        RecipeError: it has no such form of the operator.
    """
    try:
        if scheme == "dynamic":
            tool.add_dynamic_config(regex, operator, num_bits=8)
        elif scheme == "weight-only":
            tool.add_weight_only_config(regex, operator, num_bits=8)
        else:
            tool.add_static_config(regex, operator, activation_num_bits=8, weight_num_bits=8)
    except ValueError as exc:
        raise RecipeError(f"TFLite's quantizer cannot make {operator} {scheme}.", why=str(exc).splitlines()[0][:200],
                          hint=f"take op:{operator} out of the overrides") from exc
