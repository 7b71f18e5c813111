"""The statistics, held against scipy and against what they promise: coverage, on simulated runs."""

import math

import numpy as np
import pytest
from scipy import stats

from modules import statistics
from modules.statistics import AnalysisError, Estimate

RNG = np.random.default_rng(0)
A, B = RNG.normal(0.7, 0.02, 5), RNG.normal(0.71, 0.05, 8)


def test_a_difference_is_welchs():
    found = statistics.difference(A, B)
    expected = stats.ttest_ind(A, B, equal_var=False)
    assert found.interval() == pytest.approx(tuple(expected.confidence_interval()))


def test_a_pooled_difference_over_the_same_two_arms_is_students():
    found = statistics.difference(A, B, statistics.pooled_sd([A, B]))
    assert found.interval() == pytest.approx(tuple(stats.ttest_ind(A, B).confidence_interval()))


def test_a_third_arm_lends_the_pooled_variance_its_degrees_of_freedom():
    assert statistics.difference(A, B, statistics.pooled_sd([A, B, A])).df == len(A) * 2 + len(B) - 3


def test_pairs_are_a_one_sample_test_of_their_differences():
    found = statistics.paired_difference(A, B[:5])
    assert found.interval() == pytest.approx(tuple(stats.ttest_rel(A, B[:5]).confidence_interval()))
    with pytest.raises(AnalysisError, match="5 and 8 runs"):
        statistics.paired_difference(A, B)


def test_blocks_take_what_a_fold_costs_out_of_the_noise():
    folds = np.arange(40) % 5
    cost = np.array([0, 0.05, -0.05, 0.1, -0.1])[folds]
    a, b = RNG.normal(0.9, 0.005, 40) + cost, RNG.normal(0.88, 0.005, 40) + cost
    blocked, plain = statistics.blocked_difference(a, folds, b, folds), statistics.difference(a, b)
    assert blocked.value == pytest.approx(plain.value)
    assert blocked.error < plain.error / 5
    assert blocked.df == 80 - 6


def test_folds_are_all_images_so_their_differences_are_no_noise_of_a_mean():
    folds = np.arange(40) % 5
    cost, rng = np.array([0, 0.05, -0.05, 0.1, -0.1])[folds], np.random.default_rng(8)

    def interval():
        return statistics.blocked_mean(rng.normal(0.9, 0.01, 40) + cost, folds).interval()

    assert covered(interval, 0.9) == pytest.approx(0.95, abs=0.02)
    assert statistics.blocked_mean(np.full(40, 0.9) + cost, folds) == pytest.approx((0.9, 0, 35))
    # Blocks of other sizes count the same; one block is a plain mean; one run a block leaves no noise to see.
    assert statistics.blocked_mean([1, 1, 1, 4], [0, 0, 0, 1]).value == 2.5
    assert statistics.blocked_mean(A, [3] * 5) == pytest.approx(statistics.mean(A))
    assert statistics.blocked_mean(A, range(5)).df == 0
    with pytest.raises(AnalysisError, match="a block for each run"):
        statistics.blocked_mean(A, [1])


def test_with_one_block_the_difference_is_students():
    found = statistics.blocked_difference(A, [0] * 5, B, [0] * 8)
    assert found.interval() == pytest.approx(tuple(stats.ttest_ind(A, B).confidence_interval()))


def test_arms_without_a_common_block_are_refused():
    with pytest.raises(AnalysisError, match="share no block"):
        statistics.blocked_difference(A, [0] * 5, B, [1] * 8)


def covered(interval, truth, tries=2000):
    return np.mean([low <= truth <= high for low, high in (interval() for _ in range(tries))])


def test_a_prediction_interval_holds_the_next_run_19_times_in_20():
    rng = np.random.default_rng(1)

    def miss():
        low, high = statistics.prediction(rng.normal(0, 1, 3)).interval()
        return low <= rng.normal() <= high

    assert np.mean([miss() for _ in range(2000)]) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [
        *[(0.0, 0.1, "equivalent"), (1.0, 0.1, "differs"), (0.0, 1.0, "not resolved"), (0.3, 0.1, "equivalent")],
        (0.0, math.nan, "not resolved"),  # without an interval
    ],
)
def test_each_verdict_can_come_out(value, error, expected):
    assert statistics.verdict(Estimate(value, error, 30 if error > 0 else 0), 0.5) == expected


def test_as_many_runs_as_it_says_find_equal_arms_equivalent():
    runs = statistics.runs_to_resolve(0.3, 0.3, 0.5)
    rng = np.random.default_rng(4)

    def found(count):
        pair = rng.normal(0, 0.3, count), rng.normal(0, 0.3, count)
        return statistics.verdict(statistics.difference(*pair), 0.5) == "equivalent"

    assert np.mean([found(runs) for _ in range(1000)]) > 0.77
    assert np.mean([found(runs - 1) for _ in range(1000)]) < 0.83


def test_five_runs_have_126_resamples_whose_probabilities_sum_to_one():
    found = statistics.resamples(5)
    assert found.counts.shape == (126, 5)
    assert (found.counts.sum(axis=1) == 5).all()
    assert found.weights.sum() == pytest.approx(1)


def test_exact_resamples_are_what_draws_come_near():
    values = RNG.normal(size=5)
    exact = statistics.resamples(5)
    drawn = values[np.random.default_rng(5).integers(5, size=(200_000, 5))].mean(axis=1)
    found = statistics.quantiles(exact.means(values), exact.weights)
    assert found == pytest.approx(tuple(np.quantile(drawn, (0.025, 0.975))), abs=0.02)


def test_of_many_runs_resamples_are_drawn_and_always_the_same():
    first, again = statistics.resamples(40), statistics.resamples(40)
    assert (first.counts == again.counts).all()
    assert (first.counts.sum(axis=1) == 40).all()


def test_runs_with_folds_are_resampled_within_them():
    folds = np.arange(20) % 5
    found = statistics.resamples(20, folds)
    assert all((found.counts[:, folds == fold].sum(axis=1) == 4).all() for fold in range(5))
    assert found.counts.std(axis=0).min() > 0.5


def test_quantiles_count_what_never_came_and_end_at_values():
    values, weights = np.array([3.0, np.inf, 1.0, 2.0]), np.full(4, 0.25)
    assert statistics.quantiles(values, weights) == (1.0, math.inf)
    assert statistics.shares(np.array([1.0, 2.0, 1.0]), np.full(3, 1 / 3)) == pytest.approx({1.0: 2 / 3, 2.0: 1 / 3})


def test_values_that_are_not_numbers_are_refused():
    with pytest.raises(AnalysisError, match="finite"):
        statistics.mean([1.0, math.nan])


def test_a_difference_of_estimates_is_welchs_when_they_are_means():
    found = statistics.difference_of_estimates(statistics.mean(A), statistics.mean(B))
    assert found == pytest.approx(statistics.difference(A, B))
    assert statistics.difference_of_estimates(statistics.mean(A), statistics.mean(B[:1])).df == 0


@pytest.mark.parametrize("pooled", [False, True])
def test_the_difference_of_two_further_runs_is_covered(pooled):
    rng, covered = np.random.default_rng(3), 0
    for _ in range(2000):
        a, b = rng.normal(0.5, 0.01, 4), rng.normal(0.6, 0.01, 4)
        sd = statistics.pooled_sd([a, b]) if pooled else None
        low, high = statistics.prediction_of_difference(a, b, sd).interval()
        covered += low <= rng.normal(0.5, 0.01) - rng.normal(0.6, 0.01) <= high
    assert covered / 2000 == pytest.approx(0.95, abs=0.02)
