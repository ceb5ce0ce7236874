"""INT8 for ONNX, by a policy.

Dynamic: activations get a scale per token while the model runs (:mod:`._onnx_dynamic`). Activations are unsigned and weights signed, which
is the fastest product of bytes there is, with weights that keep it exact on every instruction set (:func:`._int8_weights.quantize_columns`).

Static: onnxruntime's quantizer. Activations and weights are unsigned; that is exact on every instruction set too, and slower.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgeexport.artifact import Kind, Spec
from edgeexport.policy import Policy, Scheme
from edgeexport.step import Context, Refusal, Step, View

from ._calibration import calibration_feeds
from ._onnx_dynamic import quantize_dynamically
from ._overrides import Matcher

if TYPE_CHECKING:
    import numpy as np
    import onnx


class QuantizeOnnx(Step):
    """Quantize a float32 graph.

    Attributes:
        precision: the policy's name.
        policy: how operators are computed.
    """

    name: ClassVar[str] = "quantize_onnx"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"model": frozenset({Kind.ONNX})}
    backends: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")
    extra: ClassVar[str | None] = "onnx"
    seconds_guess: ClassVar[float] = 6.0

    precision: str
    policy: Policy

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """A quarter of the bytes; refuses what one file can't hold."""
        model, schemes = inputs["model"], self.schemes
        if len(schemes) > 1:
            return Refusal(reason=f"one ONNX file can't hold {' and '.join(schemes)} operators",
                           hint="override with scheme 'float'")
        if not schemes:
            return Refusal(reason="the policy leaves everything in float", hint="use the preset float32 without overrides")
        if schemes == ["weight-only"]:
            return Refusal(reason="ONNX has no preset for weight-only INT8", hint="use dynamic-int8")
        return model.model_copy(update={"precision": self.precision, "bytes": (model.bytes or 0) // 4, "facts": {}})

    @property
    def schemes(self) -> list[Scheme]:
        """What the policy asks for, besides float."""
        return sorted({self.policy.default, *(override.scheme for override in self.policy.overrides)} - {"float"})

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Quantize every operator that the policy does not leave in float."""
        import onnx
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static

        path = inputs["model"].path / "model.onnx"
        target = out / "model.onnx"
        model = onnx.load(path)
        left = left_in_float(model, self.policy)
        context.report(None, f"quantizing ({self.precision})")
        if self.schemes == ["dynamic"]:
            quantize_dynamically(model, left)
            onnx.save_model(model, target)
            if any(node.op_type == "Conv" and node.name not in left for node in model.graph.node):
                # No encoder of Transformers has convolutions; code of its own may. Their windows cross tokens, so they get one scale for all.
                quantize_dynamic(target, target, per_channel=True, weight_type=QuantType.QUInt8, op_types_to_quantize=["Conv"],
                                 nodes_to_exclude=left)
        else:
            feeds = calibration_feeds(inputs["checkpoint"], inputs["calibration"].path)
            quantize_static(
                path, target, _Reader(feeds, context), quant_format=QuantFormat.QDQ, per_channel=True, nodes_to_exclude=left,
                op_types_to_quantize=["MatMul", "Gemm", "Gather"], calibrate_method=CalibrationMethod.MinMax,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QUInt8)
        return self.infer({name: view.spec for name, view in inputs.items()})  # type: ignore[return-value]


class _Reader:
    """The calibration data in the form that onnxruntime reads it; counts for the progress."""

    def __init__(self, feeds: list[dict[str, np.ndarray]], context: Context) -> None:
        self._feeds, self._context, self._done = feeds, context, 0
        self._next = iter(feeds)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return iter(self.get_next, None)

    def get_next(self) -> dict[str, np.ndarray] | None:
        self._context.report(self._done / len(self._feeds), "measuring activation ranges")
        self._done += 1
        return next(self._next, None)


def left_in_float(model: onnx.ModelProto, policy: Policy) -> list[str]:
    """Names of the nodes that the policy leaves in float; the last override that matches decides.

    Raises:
        RecipeError: an override matches no operator.
    """
    matcher = Matcher(policy)
    constants = {tensor.name for tensor in model.graph.initializer}
    left = []
    for node in model.graph.node:
        weights = [name for name in node.input if name in constants]
        names = {node.name, node.name.partition("/")[0], *node.output, *weights, *(name.removeprefix("model.") for name in weights)}
        if matcher.scheme(node.op_type, names)[0] == "float":
            # The second name is what onnxruntime calls the product that it makes of a Gemm before it looks at this list.
            left += [node.name, *([f"{node.name}_MatMul"] if node.op_type == "Gemm" else [])]
    matcher.require_used()
    return left
