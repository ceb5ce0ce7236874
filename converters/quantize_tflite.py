"""INT8 for TFLite, by a policy: weights signed 8-bit, one scale per output channel."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgeexport.artifact import Kind, Spec
from edgeexport.policy import Policy, Scheme
from edgeexport.session.run_tflite import SIGNATURE_PREFIX
from edgeexport.step import Context, Refusal, Step, View

from ._calibration import calibration_feeds
from ._tflite_file import compact

if TYPE_CHECKING:
    import numpy as np


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
        apply_scheme(tool, ".*", "*", self.policy.default)
        for override in self.policy.overrides:
            if override.match.startswith("op:"):
                apply_scheme(tool, ".*", override.match.removeprefix("op:"), override.scheme)
            else:
                apply_scheme(tool, fnmatch.translate(override.match).removesuffix(r"\Z"), "*", override.scheme)
        ranges = None
        if tool.need_calibration:
            context.report(None, "measuring activation ranges")
            ranges = tool.calibrate(by_signature(inputs, spec.lengths), num_threads=context.threads)
        context.report(None, f"quantizing ({self.precision})")
        model = tool.quantize(ranges).quantized_model
        context.report(None, "sharing tables")
        (out / "model.tflite").write_bytes(compact(bytes(model)))
        return self.infer({name: view.spec for name, view in inputs.items()})  # type: ignore[return-value]


def apply_scheme(tool: Any, regex: str, operator: str, scheme: Scheme) -> None:
    """Tell the quantizer how to compute the operators that match."""
    if scheme == "dynamic":
        tool.add_dynamic_config(regex, operator, num_bits=8)
    elif scheme == "weight-only":
        tool.add_weight_only_config(regex, operator, num_bits=8)
    elif scheme == "static":
        tool.add_static_config(regex, operator, activation_num_bits=8, weight_num_bits=8)
    else:
        from ai_edge_quantizer import algorithm_manager

        tool.update_quantization_recipe(regex, operator, algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE)


def by_signature(inputs: Mapping[str, View], lengths: tuple[int, ...]) -> dict[str, list[dict[str, np.ndarray]]]:
    """The calibration data for each signature: the texts that it will serve, or the shorter ones where there are none.

    Every signature needs some, since its activations are tensors of their own.
    """
    import numpy as np

    found: dict[str, list[dict[str, np.ndarray]]] = {}
    rows: list[dict[str, np.ndarray]] = []
    for index, length in enumerate(lengths):
        feeds = calibration_feeds(inputs["checkpoint"].path, inputs["calibration"].path, lengths[index:])
        fitting = [feed for feed in feeds if feed["input_ids"].shape[1] == length]
        served = [feed for feed in fitting if index == 0 or feed["attention_mask"].sum() > lengths[index - 1]] or fitting
        rows = [{name: value.astype(np.int32) for name, value in feed.items()} for feed in served]
        found[f"{SIGNATURE_PREFIX}{length}"] = rows
    return found
