"""Intervals against published values, other libraries and simulation."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from edgeexport.verify.intervals import FEW, TAIL, bootstrap, enough, proportion, quantile, unseen, weighted_mean

# -- Clopper-Pearson


@pytest.mark.parametrize(("hits", "n", "low", "high"), [
    (0, 10, 0.0, 0.3085),  # Clopper and Pearson's charts; exact values as in many tables of binomial limits
    (1, 10, 0.0025, 0.4450),
    (5, 10, 0.1871, 0.8129),
    (10, 10, 0.6915, 1.0),
    (0, 100, 0.0, 0.0362),
    (15, 148, 0.0578, 0.1617),  # R. G. Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I
    (81, 263, 0.2527, 0.3676),  # the same
    (29, 29, 0.8806, 1.0),  # the same, 0 of 29 seen from the other side
])
def test_the_interval_of_a_share_is_the_published_one(hits: int, n: int, low: float, high: float) -> None:
    found = proportion(hits, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    assert found.value == hits / n
    assert found.n == n


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_of_any_share_is_scipys(counts: tuple[int, int]) -> None:
    hits, n = counts
    interval = scipy.stats.binomtest(hits, n).proportion_ci(0.95, method="exact")
    found = proportion(hits, n)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_what_no_example_showed_is_bounded_by_their_number() -> None:
    for n in (1, 5, 72, 920):
        assert unseen(none(n), range(n)) == pytest.approx(proportion(0, n).high, abs=1e-12)
    assert unseen(none(1000), range(1000)) == pytest.approx(3.689 / 1000, rel=0.01)  # the two-sided "rule of three": -ln(0.025)/n
    assert unseen(none(200), ["a", "b"] * 100) == unseen(none(2), range(2))
    for share in (0.02, 0.05, 0.15):
        assert unseen(none(enough(share)), range(enough(share))) <= share < unseen(none(enough(share) - 1), range(enough(share) - 1))
    assert enough(0.05) == 72


def test_where_several_clusters_hold_exceptions_the_bootstrap_tells() -> None:
    exceptions = none(100)
    exceptions[:20] = True
    assert unseen(exceptions, range(100)) == 0.0
    assert unseen(exceptions, [i // 20 for i in range(100)]) == pytest.approx(proportion(1, 5).high)  # all twenty are in one cluster
    assert unseen(exceptions, [i // 4 for i in range(100)]) == 0.0  # they are in five


def test_a_cluster_counts_by_its_share_of_exceptions() -> None:
    exceptions = none(1200)
    clusters = [i // 12 for i in range(1200)]
    assert unseen(exceptions, clusters) == pytest.approx(proportion(0, 100).high)
    exceptions[5] = True
    one_of_twelve = unseen(exceptions, clusters)
    assert scipy.stats.beta.cdf(one_of_twelve, 1 + 1 / 12, 100 - 1 / 12) == pytest.approx(1 - TAIL)
    exceptions[:12] = True
    assert proportion(0, 100).high < one_of_twelve < unseen(exceptions, clusters) == pytest.approx(proportion(1, 100).high)


@pytest.mark.parametrize("seen", range(FEW))
@pytest.mark.parametrize("n", [185, 300])
def test_a_bound_that_holds_is_missed_no_more_often_than_promised(n: int, seen: int) -> None:
    """At the largest share that stays possible, seeing so few exceptions is as rare as the interval says."""
    exceptions = none(n)
    exceptions[:seen] = True
    assert scipy.stats.binom.cdf(seen, n, unseen(exceptions, range(n))) == pytest.approx(TAIL)


def none(n: int) -> np.ndarray:
    return np.zeros(n, np.bool_)


# -- quantiles


def test_the_ranks_of_a_median_are_the_published_ones() -> None:
    # W. J. Conover, "Practical Nonparametric Statistics": n = 16, ranks 4 and 13; n = 100: ranks 40 and 61 (normal tables give the same).
    assert (quantile(np.arange(1, 17), 0.5, 0, 99).low, quantile(np.arange(1, 17), 0.5, 0, 99).high) == (4, 13)
    assert (quantile(np.arange(1, 101), 0.5, 0, 999).low, quantile(np.arange(1, 101), 0.5, 0, 999).high) == (40, 61)


@pytest.mark.parametrize(("q", "n"), [(0.05, 600), (0.05, 80), (0.05, 20), (0.95, 200), (0.95, 10), (0.5, 25)])
def test_the_interval_of_a_quantile_covers_it_in_95_of_100_samples(q: float, n: int) -> None:
    rng = np.random.default_rng(5)
    truth, hits, samples = float(scipy.stats.beta(9, 1).ppf(q)), 0, 2000
    for values in rng.beta(9, 1, (samples, n)):
        found = quantile(values, q, 0.0, 1.0)
        hits += found.low <= truth <= found.high
    assert hits / samples > 0.94


@pytest.mark.parametrize(("n", "bounded"), [(20, False), (71, False), (72, True), (600, True)])
def test_a_small_sample_leaves_the_end_of_a_far_quantile_open(n: int, bounded: bool) -> None:
    found = quantile(np.full(n, 0.99), 0.05, -1.0, 1.0)
    assert found.low == (0.99 if bounded else -1.0)
    assert found.value == 0.99
    assert quantile(np.full(n, 0.1), 0.95, 0.0, 7.0).high == (0.1 if bounded else 7.0)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=300), st.sampled_from([0.05, 0.5, 0.95]))
def test_the_interval_of_a_quantile_holds_it_and_does_not_depend_on_the_order(values: list[float], q: float) -> None:
    found = quantile(np.array(values), q, -1.0, 1.0)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found == quantile(np.array(values[::-1]), q, -1.0, 1.0)


# -- bootstrap


def test_the_bootstrap_of_a_mean_is_scipys() -> None:
    values = np.random.default_rng(1).beta(3, 1, 150)
    found = bootstrap([weighted_mean(values)], range(150))[0]
    other = scipy.stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2)).confidence_interval
    width = other.high - other.low
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(other.low, abs=0.06 * width)
    assert found.high == pytest.approx(other.high, abs=0.06 * width)
    assert found.method == "paired bootstrap"


def test_the_bootstrap_of_a_mean_has_the_width_that_theory_gives() -> None:
    values = np.random.default_rng(3).normal(size=500)
    found = bootstrap([weighted_mean(values)], range(500))[0]
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(500), rel=0.06)


@pytest.mark.parametrize("count", [5, 10, 40])
def test_a_few_clusters_have_an_interval_as_wide_as_students(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeexport.verify.intervals.RESAMPLES", 2000)
    rng, samples = np.random.default_rng(8), 300
    hits = 0
    for values in rng.normal(size=(samples, count)):
        found = bootstrap([weighted_mean(values)], range(count))[0]
        hits += found.low <= 0 <= found.high
    assert hits / samples > 0.92  # the plain percentiles of five have 0.87
    assert found.proves and not bootstrap([weighted_mean(values[:4])], range(4))[0].proves


def test_a_difference_is_paired() -> None:
    rng = np.random.default_rng(4)
    a = rng.random(300)
    first, second = weighted_mean(a), weighted_mean(a + 0.01)
    of_a, of_b, of_difference = bootstrap([first, second, lambda weights: first(weights) - second(weights)], range(300))
    assert of_difference.value == pytest.approx(-0.01)
    assert of_difference.high - of_difference.low < 1e-9  # though each of the two is uncertain
    assert of_a.high - of_a.low > 0.04
    assert of_b.high - of_b.low > 0.04


def test_clusters_widen_the_interval_by_what_they_share() -> None:
    rng = np.random.default_rng(6)
    values = np.repeat(rng.random(60), 5)  # five copies each: 60 facts, not 300
    alone = bootstrap([weighted_mean(values)], range(300))[0]
    together = bootstrap([weighted_mean(values)], np.repeat(np.arange(60), 5))[0]
    assert (together.high - together.low) / (alone.high - alone.low) == pytest.approx(np.sqrt(5), rel=0.1)
    assert together.value == alone.value
    assert together.n == 300
    assert together.method == "paired bootstrap over 60 clusters"


def test_the_bootstrap_gives_the_same_every_time_and_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(7).random(50)
    first = bootstrap([weighted_mean(values)], range(50))
    monkeypatch.setattr("edgeexport.verify.intervals.CHUNK_ELEMENTS", 170)
    again = bootstrap([weighted_mean(values)], range(50))
    assert [again[0].value, again[0].low, again[0].high] == pytest.approx([first[0].value, first[0].low, first[0].high], abs=1e-12)
