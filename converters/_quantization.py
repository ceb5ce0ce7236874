"""What the formats' quantizers have in common: measuring and quantizing are the same for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgeexport.artifact import Kind
from edgeexport.policy import Policy

from . import _onnx_quantization, _tflite_quantization
from ._activation_ranges import Histogram
from ._chosen_operator import ChosenOperator

# What a float32 model is measured with, in either format, and by what.
MEASURED = {"model": frozenset({Kind.TFLITE, Kind.ONNX}), "checkpoint": frozenset({Kind.CHECKPOINT, Kind.SAVED_MODEL}),
            "calibration": frozenset({Kind.DATASET})}
BACKENDS = ("ai-edge-quantizer", "ai-edge-litert", "flatbuffers", "onnxruntime", "onnx")


class Quantization(NamedTuple):
    """How a format is quantized.

    Attributes:
        file: the model's name.
        chosen_operators: the operators of a file that a policy does not leave in float.
        histograms: of the activations of static operators, from a file, operators, inputs by length, threads and progress.
        quantize: writes a file with operators computed as chosen, from a file, operators, ranges and the target.
    """

    file: str
    chosen_operators: Callable[[Path, Policy], Iterator[ChosenOperator]]
    histograms: Callable[[Path, Iterable[ChosenOperator], Mapping[int, Sequence[Mapping[str, np.ndarray]]], int, Callable[[float], None]],
                         dict[str, Histogram]]
    quantize: Callable[[Path, Iterable[ChosenOperator], Mapping[str, tuple[float, float]], Path], None]


QUANTIZATIONS = {
    Kind.ONNX: Quantization("model.onnx", _onnx_quantization.chosen_operators, _onnx_quantization.histograms, _onnx_quantization.quantize),
    Kind.TFLITE: Quantization("model.tflite", _tflite_quantization.chosen_operators, _tflite_quantization.histograms,
                              _tflite_quantization.quantize),
}
