"""INT8 for TFLite, by a policy: weights signed 8-bit, one scale per output channel."""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgeexport.artifact import Kind, Spec
from edgeexport.errors import RecipeError
from edgeexport.policy import Policy, Scheme
from edgeexport.session.run_tflite import SIGNATURE_PREFIX
from edgeexport.step import Context, Refusal, Step, View

from ._calibration import calibration_feeds
from ._overrides import Matcher
from ._tflite_file import compact, mapped

if TYPE_CHECKING:
    import numpy as np

# What is computed with weights: this a scheme takes, and what is missing stays float. Of static operators the same: a layer normalization
# or a softmax of 8-bit numbers destroys the answer (MiniLM, cosine to float32: 0.32 with all operators static, 0.953 so), and costs little.
# An override ``op:NAME`` takes operators of any type.
WEIGHTED = frozenset({"FULLY_CONNECTED", "BATCH_MATMUL", "CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D_TRANSPOSE", "EMBEDDING_LOOKUP"})
# Rows are looked up, not multiplied: there is no activation whose range could be static.
LOOKUP = "EMBEDDING_LOOKUP"


class QuantizeTflite(Step):
    """Quantize a float32 model with ai-edge-quantizer, then write it compactly.

    Attributes:
        precision: the policy's name.
        policy: how operators are computed.
    """

    name: ClassVar[str] = "quantize_tflite"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"model": frozenset({Kind.TFLITE})}
    backends: ClassVar[tuple[str, ...]] = ("ai-edge-quantizer", "ai-edge-litert", "flatbuffers")
    extra: ClassVar[str | None] = "tflite"
    seconds_guess: ClassVar[float] = 6.0

    precision: str
    policy: Policy

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """A quarter of the bytes, and some for each signature."""
        model = inputs["model"]
        size = int((model.bytes or 0) * (0.26 + 0.01 * (len(model.lengths) - 1)))
        return model.model_copy(update={"precision": self.precision, "bytes": size, "facts": {}})

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Quantize, then share what signatures have in common."""
        from ai_edge_quantizer import quantizer

        path, spec = inputs["model"]
        tool = quantizer.Quantizer(str(path / "model.tflite"))
        for scheme, places in chosen_schemes(mapped(path / "model.tflite"), self.policy).items():
            for operator, scopes in places.items():
                apply_scheme(tool, f"^(?:{'|'.join(map(re.escape, scopes))})$", operator, scheme)
        ranges = None
        if tool.need_calibration:
            context.report(None, "measuring activation ranges")
            ranges = tool.calibrate(by_signature(inputs, spec.lengths), num_threads=context.threads)
        context.report(None, f"quantizing ({self.precision})")
        model = tool.quantize(ranges).quantized_model
        del tool  # it holds the float weights
        context.report(None, "sharing tables")
        (out / "model.tflite").write_bytes(compact(model))
        return self.infer({name: view.spec for name, view in inputs.items()})  # type: ignore[return-value]


def chosen_schemes(data: bytes | mmap.mmap, policy: Policy) -> dict[Scheme, dict[str, list[str]]]:
    """How a policy computes the operators of a model: scheme → operator → the names by which the quantizer knows them.

    Raises:
        RecipeError: an override matches no operator.

    Source: ai-edge-quantizer's recipe_manager and get_op_scope.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils as names

    model = schema.ModelT.InitFromPackedBuf(data, 0)
    matcher = Matcher(policy)
    found: dict[Scheme, dict[str, list[str]]] = {}
    for graph in model.subgraphs:
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
                scopes = found.setdefault(scheme, {}).setdefault(known.value, [])
                scopes.append(names.get_op_scope(operator, graph.tensors))
    matcher.require_used()
    return found


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


def by_signature(inputs: Mapping[str, View], lengths: tuple[int, ...]) -> dict[str, list[dict[str, np.ndarray]]]:
    """The calibration data for each signature: the texts that it will serve, or where there are none all of them, cut to its length.

    Every signature needs some, since its activations are tensors of their own.
    """
    import numpy as np

    feeds = calibration_feeds(inputs["checkpoint"], inputs["calibration"].path, lengths)
    found: dict[str, list[dict[str, np.ndarray]]] = {}
    for length in lengths:
        served = [feed for feed in feeds if feed["input_ids"].shape[1] == length]
        chosen = served or calibration_feeds(inputs["checkpoint"], inputs["calibration"].path, (length,))
        found[f"{SIGNATURE_PREFIX}{length}"] = [{name: value.astype(np.int32) for name, value in feed.items()} for feed in chosen]
    return found
