"""INT8 for TFLite, by a policy: weights signed 8-bit, one scale per output channel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from edgeexport.artifact import Kind, Spec
from edgeexport.policy import Policy
from edgeexport.step import Context, Refusal, Step, View

from ._tflite_quantization import chosen_operators, quantize
from .measure_ranges import read_ranges


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
        """Quantize every operator that the policy does not leave in float."""
        path = inputs["model"].path / "model.tflite"
        context.report(None, f"quantizing ({self.precision})")
        quantize(path, chosen_operators(path, self.policy), read_ranges(inputs, self.policy), out / "model.tflite")
        return self.infer({name: view.spec for name, view in inputs.items()})  # type: ignore[return-value]
