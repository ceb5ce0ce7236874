"""INT8 for ONNX, by a policy.

Dynamic: activations get a scale per token while the model runs (:mod:`._onnx_dynamic`). Activations are unsigned and weights signed, which
is the fastest product of bytes there is, with weights that keep it exact on every instruction set (:func:`._int8_weights.quantize_columns`).

Static: onnxruntime's quantizer, with ranges from calibration data. Both may be mixed in one file.

Blockwise: weights alone are made small, in 8 or 4 bits (:mod:`._onnx_blockwise`), for language models, whose speed is that of reading them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from edgeexport.artifact import Kind, Spec, Task
from edgeexport.policy import Policy, Scheme
from edgeexport.step import Context, Refusal, Step, View

from ._onnx_blockwise import BITS, quantize_blockwise
from ._onnx_quantization import chosen_operators, quantize
from .measure_ranges import read_ranges

# What lies beside a language model's graph, and is true of it in any precision.
BESIDE = ("genai_config.json",)


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

    @property
    def _schemes(self) -> set[Scheme]:
        """How operators are computed that are not left in float."""
        return {self.policy.default, *(override.scheme for override in self.policy.overrides)} - {"float"}

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """A quarter of the bytes; refuses what onnxruntime has no operators for."""
        model, schemes = inputs["model"], self._schemes
        if not schemes:
            return Refusal(reason="the policy leaves everything in float", hint="use the preset float32 without overrides")
        if "weight-only" in schemes:
            return Refusal(reason="ONNX has no preset for weight-only INT8", hint="use dynamic-int8")
        if schemes & BITS.keys() and schemes - BITS.keys():
            return Refusal(reason=f"{' and '.join(sorted(schemes))} can't be mixed in one file",
                           hint="leave operators in float, or in blocks of 8 or 4 bits")
        if model.task is Task.TEXT_GENERATION and schemes - BITS.keys():
            return Refusal(reason="a language model's weights are quantized in blocks", hint="use blockwise-int8 or blockwise-int4")
        return model.model_copy(update={"precision": self.precision, "bytes": (model.bytes or 0) // 4, "facts": {}})

    def memory_mb(self, inputs: Mapping[str, Spec]) -> int:
        """Blocks are made of one matrix at a time."""
        return 1500 if self._schemes & BITS.keys() else super().memory_mb(inputs)

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Quantize every operator that the policy does not leave in float."""
        folder = inputs["model"].path
        path = folder / "model.onnx"
        context.report(None, f"quantizing ({self.precision})")
        if self._schemes & BITS.keys():
            quantize_blockwise(folder, chosen_operators(path, self.policy), out)
            for name in BESIDE:
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, out / name)
        else:
            quantize(path, chosen_operators(path, self.policy), read_ranges(inputs, self.policy), out / "model.onnx")
        return self.infer({name: view.spec for name, view in inputs.items()})  # type: ignore[return-value]
