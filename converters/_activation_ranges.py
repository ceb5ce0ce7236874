"""The ranges of activations over calibration data: streamed, in a memory that does not grow with the data.

Of each tensor a histogram is kept. When a value lies beyond its ends, neighbouring bins are joined until it reaches so far, as TensorRT and
onnxruntime do. From the histogram the range is read that loses least by one of the known criteria.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgeexport.policy import Ranges

BINS = 2048
LEVELS = 256
# Share of all values that a percentile range covers; the rest is cut at both ends alike. Source: onnxruntime's PercentileCalibrater, 99.999.
COVERED = 0.99999


class Histogram:
    """Counts of values in bins of one width, symmetric about 0."""

    def __init__(self) -> None:
        self._counts = np.zeros(BINS, np.int64)
        self._reach = 0.0
        self.low, self.high = np.inf, -np.inf

    def add(self, values: np.ndarray) -> None:
        """Count more values; those that are no numbers do not count."""
        if not np.isfinite(values).all():
            values = values[np.isfinite(values)]
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        needed = max(abs(self.low), abs(self.high), 1e-9)
        if self._reach == 0.0:
            self._reach = needed
        while self._reach < needed:  # twice as wide: the old counts go to the middle half
            joined = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts = np.concatenate([np.zeros(BINS // 4, np.int64), joined, np.zeros(BINS // 4, np.int64)])
            self._reach *= 2
        places = ((values + self._reach) * (BINS / (2 * self._reach))).astype(np.int32)
        self._counts += np.bincount(np.minimum(places, BINS - 1), minlength=BINS)

    def range(self, method: Ranges) -> tuple[float, float]:
        """The smallest and largest value to be told apart; 0 lies between them."""
        if not self._counts.any():
            return 0.0, 0.0
        low, high = self.low, self.high
        edges = np.linspace(-self._reach, self._reach, BINS + 1)
        if method == "percentile":
            share = np.cumsum(self._counts) / self._counts.sum()
            low = max(low, float(edges[np.searchsorted(share, (1 - COVERED) / 2)]))
            high = min(high, float(edges[np.searchsorted(share, (1 + COVERED) / 2) + 1]))
        elif method == "entropy":
            limit = self._least_divergence(edges)
            low, high = max(low, -limit), min(high, limit)
        return min(low, 0.0), max(high, 0.0)

    def _least_divergence(self, edges: np.ndarray) -> float:
        """The symmetric limit at which the clipped distribution and its quantized form differ least.

        Source: S. Migacz, "8-bit inference with TensorRT" (2017), pages 38 to 41.
        """
        best, limit = np.inf, float(edges[-1])
        counts = self._counts.astype(np.float64)
        for half in range(LEVELS // 2, BINS // 2 + 1, LEVELS // 8):
            inside = counts[BINS // 2 - half:BINS // 2 + half]
            clipped = inside.copy()
            clipped[0] += counts[:BINS // 2 - half].sum()
            clipped[-1] += counts[BINS // 2 + half:].sum()
            groups = np.arange(2 * half) * LEVELS // (2 * half)
            filled = np.bincount(groups, inside > 0, LEVELS)
            means = np.divide(np.bincount(groups, inside, LEVELS), filled, out=np.zeros(LEVELS), where=filled > 0)
            quantized = np.where(inside > 0, means[groups], 0.0)
            where = clipped > 0
            p, q = clipped[where] / clipped.sum(), np.maximum(quantized[where], 1e-9) / max(quantized.sum(), 1e-9)
            divergence = float((p * np.log(p / q)).sum())
            if divergence < best:
                best, limit = divergence, float(edges[BINS // 2 + half])
        return limit


def save_histograms(histograms: Mapping[str, Histogram], path: Path) -> None:
    """Write the histograms of tensors, by their names."""
    names = list(histograms)
    np.savez_compressed(path, names=np.array(names, dtype=np.str_),
                        counts=np.stack([histograms[name]._counts for name in names]) if names else np.zeros((0, BINS), np.int64),
                        ends=np.array([(histograms[name]._reach, histograms[name].low, histograms[name].high) for name in names]).reshape(-1, 3))


def load_histograms(path: Path) -> dict[str, Histogram]:
    """What :func:`save_histograms` wrote."""
    found: dict[str, Histogram] = {}
    with np.load(path, allow_pickle=False) as data:
        for name, counts, (reach, low, high) in zip(data["names"].tolist(), data["counts"], data["ends"].tolist(), strict=True):
            histogram = found[name] = Histogram()
            histogram._counts, histogram._reach, histogram.low, histogram.high = counts, reach, low, high
    return found
