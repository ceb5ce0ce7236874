"""Intervals: how far a figure could be off, given that the examples are a sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgeexport.artifact import Model

LEVEL = 0.95
RESAMPLES = 4000
SEED = 20240229


class Estimate(Model):
    """A figure with its interval.

    Attributes:
        value: the figure on the whole sample.
        low: lower end of the two-sided 95 % interval.
        high: its upper end.
        n: number of examples.
        method: how the interval was made.
    """

    value: float
    low: float
    high: float
    n: int
    method: str


def proportion(hits: int, n: int) -> Estimate:
    """A share of successes, with the exact interval.

    Source: C. J. Clopper, E. S. Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial" (1934).
    """
    from scipy.stats import binomtest

    interval = binomtest(hits, n).proportion_ci(LEVEL, method="exact")
    return Estimate(value=hits / n, low=float(interval.low), high=float(interval.high), n=n, method="Clopper-Pearson")


def quantile(values: np.ndarray, q: float) -> Estimate:
    """A quantile of a sample, with the interval between two of its order statistics, free of any distribution.

    The ranks are those whose binomial probability of having the quantile between them is at least 95 %; where the sample is too small
    for that, an end is the sample's own.

    Source: H. A. David, H. N. Nagaraja, "Order Statistics", section 7.1.
    """
    from scipy.stats import binom

    ordered = np.sort(values)
    n = len(ordered)
    lower = int(binom.ppf((1 - LEVEL) / 2, n, q)) - 1
    upper = int(binom.ppf((1 + LEVEL) / 2, n, q))
    return Estimate(value=float(np.quantile(ordered, q)), low=float(ordered[max(lower, 0)]), high=float(ordered[min(upper, n - 1)]), n=n,
                    method="order statistics")


def bootstrap(statistic: Callable[[np.ndarray], float], clusters: Sequence[object], n: int) -> Estimate:
    """A statistic of weighted examples, with a percentile bootstrap interval that resamples whole clusters.

    Examples that share something (questions with the same answer) go up and down together; resampling them one by one would make the
    interval too narrow.

    Args:
        statistic: the figure, as a function of the examples' weights, float64 [n].
        clusters: the cluster of each example.
        n: number of examples.

    Source: A. C. Davison, D. V. Hinkley, "Bootstrap Methods and their Application", sections 3.8 and 5.3.
    """
    _, member = np.unique(np.array([str(cluster) for cluster in clusters]), return_inverse=True)
    count = int(member.max()) + 1
    draws = np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    values = np.array([statistic(draw[member].astype(np.float64)) for draw in draws])
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    how = "paired bootstrap" if count == n else f"paired bootstrap over {count} clusters"
    return Estimate(value=float(statistic(np.ones(n))), low=float(low), high=float(high), n=n, method=how)


def weighted_mean(values: np.ndarray) -> Callable[[np.ndarray], float]:
    """The mean of per-example values, as a statistic for :func:`bootstrap`."""
    return lambda weights: float(values @ weights / weights.sum())
