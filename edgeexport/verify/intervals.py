"""Intervals: how far a figure could be off, given that the examples are a sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from edgeexport.artifact import Model

LEVEL = 0.95
TAIL = (1 - LEVEL) / 2
RESAMPLES = 4000
SEED = 20240229
CHUNK_ELEMENTS = 1_000_000  # of weights at once: 8 MB
# From so many on, the upper end of a resampled count (10 for 5) is near the exact one (11.7); of one it is 3, not 5.6, and of none 0, not 3.7.
FEW = 5
# With fewer clusters, all resamples being one and the same is likelier than a tail of the interval: it would end at the worst of what was seen.
LEAST_CLUSTERS = 5


class Estimate(Model):
    """A figure with its interval.

    Attributes:
        value: the figure on the whole sample.
        low: lower end of the two-sided 95 % interval.
        high: its upper end.
        n: number of examples.
        method: how the interval was made.
        clusters: number of independent examples that were resampled; None where it was made in another way.
    """

    value: float
    low: float
    high: float
    n: int
    method: str
    clusters: int | None = None

    @property
    def proves(self) -> bool:
        """Whether the examples are enough for an interval."""
        return self.clusters is None or self.clusters >= LEAST_CLUSTERS


def proportion(hits: int, n: int) -> Estimate:
    """A share of successes, with the exact interval.

    Source: C. J. Clopper, E. S. Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial" (1934); the
    limits are quantiles of beta distributions.
    """
    from scipy.special import betaincinv

    low = float(betaincinv(hits, n - hits + 1, TAIL)) if hits else 0.0
    high = float(betaincinv(hits + 1, n - hits, 1 - TAIL)) if hits < n else 1.0
    return Estimate(value=hits / n, low=low, high=high, n=n, method="Clopper-Pearson")


def quantile(values: np.ndarray, q: float, least: float, most: float) -> Estimate:
    """A quantile of a sample, with the interval between two of its order statistics, free of any distribution.

    The ranks are those whose binomial probability of having the quantile between them is at least 95 %; where the sample is too small
    for that, an end is that of what the values can be at all, `least` or `most`.

    Source: H. A. David, H. N. Nagaraja, "Order Statistics", section 7.1.
    """
    from scipy.special import bdtr

    ordered = np.sort(values)
    n = len(ordered)
    below = bdtr(np.arange(n + 1), n, q)  # probability that at most k of n values lie below the quantile
    lower = int(np.searchsorted(below, TAIL)) - 1
    upper = int(np.searchsorted(below, 1 - TAIL))
    return Estimate(value=float(np.quantile(ordered, q)), low=float(ordered[lower]) if lower >= 0 else least,
                    high=float(ordered[upper]) if upper < n else most, n=n, method="order statistics")


def unseen(exceptions: np.ndarray, clusters: Sequence[object]) -> float:
    """The share of exceptions that stays possible where hardly any was seen; 0 where there are enough for a bootstrap to tell.

    Resampling examples of which none is an exception gives an interval of no width, be they five or five thousand. So where fewer than
    `FEW` clusters hold one, an interval that is to prove that there are few reaches as far as the exact one of clusters, of which each counts by its
    share of exceptions. (Of all shares with the same mean, none and all vary most, which the exact interval is of.)

    Args:
        exceptions: whether each example is one, bool [n].
        clusters: the cluster of each example.
    """
    from scipy.special import betaincinv

    _, member = np.unique(np.array([str(cluster) for cluster in clusters]), return_inverse=True)
    shares = np.bincount(member, exceptions) / np.bincount(member)
    if np.count_nonzero(shares) >= FEW:
        return 0.0
    seen = float(shares.sum())
    return float(betaincinv(seen + 1, len(shares) - seen, 1 - TAIL)) if seen < len(shares) else 1.0


def enough(share: float) -> int:
    """How many examples without an exception it takes to leave no more than a `share` of exceptions possible."""
    return math.ceil(math.log(TAIL) / math.log1p(-share))


# A figure of weighted examples: weights float64 [resamples, n] → values float64 [resamples].
Statistic = Callable[[np.ndarray], np.ndarray]


def bootstrap(statistics: Sequence[Statistic], clusters: Sequence[object]) -> list[Estimate]:
    """Statistics of the same examples, with percentile bootstrap intervals that resample whole clusters.

    Examples that share something (questions with the same answer) go up and down together; resampling them one by one would make the
    interval too narrow. So would a few clusters, whose spread is taken for that of all: the percentiles lie as much farther out as Student's
    distribution is wider than the normal one.

    Args:
        statistics: the figures; all see the same resamples, so that a difference of two is paired.
        clusters: the cluster of each example.

    Source: A. C. Davison, D. V. Hinkley, "Bootstrap Methods and their Application", sections 3.8 and 5.3; for the percentiles, T. C. Hesterberg,
    "What Teachers Should Know About the Bootstrap" (2015).
    """
    _, member = np.unique(np.array([str(cluster) for cluster in clusters]), return_inverse=True)
    n, count = len(member), int(member.max()) + 1
    draws = np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    rows = max(1, CHUNK_ELEMENTS // n)
    found = []
    for start in range(0, RESAMPLES, rows):
        weights = draws[start:start + rows, member].astype(np.float64)
        found.append([statistic(weights) for statistic in statistics])
    how = "paired bootstrap" if count == n else f"paired bootstrap over {count} clusters"
    tail = expanded_tail(count)
    once = np.ones((1, n))
    estimates = []
    for index, statistic in enumerate(statistics):
        low, high = np.quantile(np.concatenate([chunk[index] for chunk in found]), [tail, 1 - tail])
        estimates.append(Estimate(value=float(statistic(once)[0]), low=float(low), high=float(high), n=n, method=how, clusters=count))
    return estimates


def expanded_tail(count: int) -> float:
    """The share of resamples of so many clusters that lies beyond each end of an interval."""
    from scipy.special import ndtr, stdtrit

    return float(ndtr(math.sqrt(count / (count - 1)) * stdtrit(count - 1, TAIL))) if count > 1 else 0.0


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> Statistic:
    """The sum of per-example numerators by that of denominators, as a statistic for :func:`bootstrap`."""
    return lambda weights: (weights @ numerators) / (weights @ denominators)


def weighted_mean(values: np.ndarray) -> Statistic:
    """The mean of per-example values, as a statistic for :func:`bootstrap`."""
    numbers = values.astype(np.float64)
    return lambda weights: (weights @ numbers) / weights.sum(axis=1)
