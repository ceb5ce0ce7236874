"""What values the activations of static operators take on calibration data. A step of its own: precisions that differ share it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from edgeexport.artifact import Kind, Spec
from edgeexport.policy import Policy
from edgeexport.step import Context, Refusal, Step, View

from ._activation_ranges import load_histograms, save_histograms
from ._calibration import calibration_feeds
from ._quantization import BACKENDS, MEASURED, QUANTIZATIONS

HISTOGRAMS_FILE = "histograms.npz"


class MeasureRanges(Step):
    """Run a float32 model on calibration data, and count the values of its activations.

    Attributes:
        policy: whose static operators are meant.
    """

    name: ClassVar[str] = "measure_ranges"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = MEASURED
    backends: ClassVar[tuple[str, ...]] = BACKENDS
    seconds_guess: ClassVar[float] = 30.0

    policy: Policy

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """A histogram for each activation."""
        return Spec(kind=Kind.EVIDENCE, task=inputs["model"].task)

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Write the histograms."""
        path, spec = inputs["model"]
        quantization = QUANTIZATIONS[spec.kind]
        file = path / quantization.file
        chosen = list(quantization.chosen_operators(file, self.policy))
        found = quantization.histograms(file, chosen, by_length(inputs, spec.lengths), context.threads,
                                        lambda share: context.report(share, "measuring activation ranges"))
        save_histograms(found, out / HISTOGRAMS_FILE)
        return self.infer({name: view.spec for name, view in inputs.items()})  # type: ignore[return-value]


def read_ranges(inputs: Mapping[str, View], policy: Policy) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of each activation, as the policy reads them from what was counted; none where nothing was."""
    if "ranges" not in inputs:
        return {}
    histograms = load_histograms(inputs["ranges"].path / HISTOGRAMS_FILE)
    return {name: histogram.range(policy.ranges) for name, histogram in histograms.items()}


def by_length(inputs: Mapping[str, View], lengths: tuple[int, ...]) -> dict[int, list[dict[str, np.ndarray]]]:
    """The calibration data as inputs, int64 [1, length], by their length.

    Args:
        inputs: the step's.
        lengths: those of the model's signatures; each gets the texts that it will serve, or where there are none all of them, cut to its
            length. None for a model of any length.
    """
    checkpoint, calibration = inputs["checkpoint"], inputs["calibration"].path
    feeds = calibration_feeds(checkpoint, calibration, lengths)
    found: dict[int, list[dict[str, np.ndarray]]] = {}
    for feed in feeds:
        found.setdefault(feed["input_ids"].shape[1], []).append(feed)
    return {length: found.get(length) or calibration_feeds(checkpoint, calibration, (length,)) for length in lengths} if lengths else found
