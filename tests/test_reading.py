"""Bounds and rates read off curves that are known: their knees, their noise, and what is refused."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
from toys import every

from modules.range_test import best_rate, suggest_bounds
from modules.range_test.reading import after_divergence
from modules.rate_finders.rules import RULES
from modules.statistics import AnalysisError

LR = np.linspace(0.001, 0.04, 40)
STEP = LR[1] - LR[0]
RISE, KNEE = LR[5], LR[14]
AFTER = {"slows": 0.1, "falls": -0.4, "stays": 0.0}


def curve(after, points=LR, rise=RISE, knee=KNEE):
    """Flat at 0.1, straight up to 0.6 at the knee, then slower, level, or down; ends are exact."""
    return np.interp(points, [points[0], rise, knee, points[-1]], [0.1, 0.1, 0.6, 0.6 + AFTER[after]])


@pytest.mark.parametrize("after", AFTER)
def test_known_knees_are_found_exactly_without_noise(after):
    found = suggest_bounds(LR, curve(after))
    assert (found.base_lr, found.max_lr) == pytest.approx((RISE, KNEE))


def test_the_spacing_of_the_rates_says_whether_the_ramp_was_exponential():
    rates = np.append(np.geomspace(1e-4, 1, 50), 1.05)  # the last row may come early
    curve_over_log = curve("stays", np.log(rates), np.log(rates[12]), np.log(rates[30]))
    found = suggest_bounds(rates, curve_over_log)
    assert (found.base_lr, found.max_lr) == pytest.approx((rates[12], rates[30]), rel=0.2)
    given = suggest_bounds(rates, curve_over_log, log=True)
    assert (found.base_lr, found.max_lr) == (given.base_lr, given.max_lr)
    assert suggest_bounds(LR, curve("slows")).max_lr == suggest_bounds(LR, curve("slows"), log=False).max_lr
    with pytest.raises(AnalysisError, match="give range_test a validation"):
        suggest_bounds(LR, np.full(40, np.nan))


@every("after", AFTER)
@every("seed", range(5))
def test_known_knees_are_found_in_noise_of_five_runs(after, seed):
    """Noise of two points a run is what the CIFAR-10 range tests show."""
    rng = np.random.default_rng(seed)
    found = suggest_bounds(LR, curve(after)[:, None] + rng.normal(0, 0.02, (40, 5)))
    assert found.base_lr == pytest.approx(RISE, abs=1.5 * STEP)
    assert found.max_lr == pytest.approx(KNEE, abs=1.5 * STEP)
    assert found.base_low <= found.base_lr <= found.base_high
    assert found.max_low <= found.max_lr <= found.max_high


@pytest.mark.parametrize("seed", range(5))
def test_ragged_after_the_knee(seed):
    rng = np.random.default_rng(seed)
    ragged = rng.normal(0, 0.06, (40, 5)) * (LR > KNEE)[:, None] + rng.normal(0, 0.01, (40, 5))
    found = suggest_bounds(LR, curve("stays")[:, None] + ragged)
    assert found.base_lr == pytest.approx(RISE, abs=2 * STEP)
    assert found.max_lr == pytest.approx(KNEE, abs=3 * STEP)


@pytest.mark.parametrize("points", [60, 400])
def test_many_points_are_averaged(points):
    lr = np.geomspace(1e-5, 1, points)
    rise, knee = lr[points // 3], lr[3 * points // 5]
    accuracy = np.interp(np.log(lr), np.log([lr[0], rise, knee, lr[-1]]), [0.1, 0.1, 0.8, 0.2])
    found = suggest_bounds(lr, accuracy + np.random.default_rng(0).normal(0, 0.02, points), log=True)
    step = (lr[-1] / lr[0]) ** (1 / 50)
    assert (found.base_lr / rise, found.max_lr / knee) == pytest.approx((1, 1), rel=1.5 * (step - 1))


def every_resample(read, values):
    """What `read` gives of the mean of every one of the 5^5 draws of five runs, by the multiset drawn."""
    draws = Counter(tuple(sorted(drawn)) for drawn in product(range(5), repeat=5))
    return np.repeat([read(values[:, drawn].mean(axis=1)) for drawn in draws], list(draws.values()), axis=0)


def percentiles(values):
    return np.quantile(values, (0.025, 0.975), axis=0, method="inverted_cdf").T.ravel().tolist()


def test_intervals_are_the_percentiles_of_all_resamples():
    """Both ends of the bounds come from one and the same resample: the fit of its mean curve."""
    rng = np.random.default_rng(3)
    lr = LR[::2]
    accuracy = curve("falls")[::2, None] + rng.normal(0, 0.03, (20, 5))
    found = suggest_bounds(lr, accuracy)

    def bounds(mean):
        one = suggest_bounds(lr, mean)
        return one.base_lr, one.max_lr

    expected = percentiles(every_resample(bounds, accuracy))
    assert expected[0] < expected[1]
    assert [found.base_low, found.base_high, found.max_low, found.max_high] == expected
    loss = np.interp(np.arange(20), [0, 8, 13, 15, 19], [3, 3, 1, 1, 3])[:, None] + 0.2 * rng.normal(0, 1, (20, 5))
    loss[16:, 0] = np.nan
    found = best_rate(lr, loss)
    expected = percentiles(every_resample(lambda mean: [best_rate(lr, mean).lr], loss))
    assert expected[0] < expected[1]
    assert [found.low, found.high] == expected


def test_more_noise_gives_wider_intervals():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, (40, 5))
    widths = []
    for scale in (0.005, 0.05):
        found = suggest_bounds(LR, np.clip(curve("slows")[:, None] + scale * noise, 0, 1))
        widths.append(found.max_high - found.max_low)
    assert widths[0] < widths[1]


@every("seed", range(10))
def test_noise_alone_has_no_bounds(seed):
    rng = np.random.default_rng(seed)
    with pytest.raises(AnalysisError, match="does not rise"):
        suggest_bounds(LR, 0.1 + rng.normal(0, 0.01, (40, 5)))


@pytest.mark.parametrize("accuracy", [np.full(40, 0.1), np.linspace(0.6, 0.1, 40)])
def test_flat_and_falling_curves_have_no_bounds(accuracy):
    with pytest.raises(AnalysisError, match="does not rise"):
        suggest_bounds(LR, accuracy)


def test_unusable_curves_are_refused():
    with pytest.raises(AnalysisError, match="at least 12 evaluations, this one has 5"):
        suggest_bounds(LR[:5], LR[:5])


def test_points_where_accuracy_was_not_measured_are_left_out():
    """A row an iteration and an evaluation every eighth, as by default; up to the end, or until the run diverges."""
    lr = np.geomspace(1e-5, 1, 400)
    measured = np.arange(7, 400, 8)
    accuracy = np.interp(np.log(lr), np.log([1e-5, 1e-3, 0.1, 1]), [0.1, 0.1, 0.8, 0.2])
    accuracy += np.random.default_rng(0).normal(0, 0.01, 400)
    for end in (50, 42):
        few = np.where(np.arange(50) < end, accuracy[measured], np.nan)
        rows = np.full(400, np.nan)
        rows[measured] = few
        assert suggest_bounds(lr, rows) == suggest_bounds(lr[measured], few)
        for name in ("accuracy peak", "suggest_bounds, max_lr"):
            assert RULES[name](lr, rows) == RULES[name](lr[measured], few)
    holed = curve("falls")
    holed[20] = np.nan
    assert suggest_bounds(LR, holed) == suggest_bounds(np.delete(LR, 20), np.delete(holed, 20))


def test_what_comes_behind_a_loss_of_1e25_is_still_seen():
    """A ramp may come down again from where it diverged; a running sum has forgotten all small losses by then."""
    x = np.linspace(-6, 1, 50)
    loss = 2.3 - 2 * np.exp(-((x + 1.5) ** 2)) + 0.01 * np.random.default_rng(0).normal(size=50)
    spiked = loss.copy()
    spiked[-8] = 1e25
    assert best_rate(10**x, spiked).lr == best_rate(10**x, loss).lr
    assert np.allclose(best_rate(10**x, spiked).smoothed[-5:], best_rate(10**x, loss).smoothed[-5:])


@pytest.mark.parametrize("noise", [0, 0.01])
@pytest.mark.parametrize("rise", [0, 10])
def test_a_curve_that_rises_to_the_end_says_so(noise, rise):
    rising = np.interp(LR, [LR[rise], LR[-1]], [0.1, 0.7])
    with pytest.raises(AnalysisError, match="no knee that is clear of its noise: let the ramp end higher if"):
        suggest_bounds(LR, rising + np.random.default_rng(0).normal(0, noise, 40))


@pytest.mark.parametrize("points", [50, 100, 400])
def test_rows_that_end_where_a_run_diverged_are_no_ramp_that_was_too_short(points):
    """A run of the study has no rows from there on; so its lowest loss may be its last."""
    lr = np.geomspace(1e-4, 1, points)
    falling = 2 - np.exp(np.linspace(-9, 0, points))
    with pytest.raises(AnalysisError, match="does not rise again"):
        best_rate(lr, falling)
    longer, ended = after_divergence(lr, falling)
    assert best_rate(longer, ended, window=1).lr == lr[-1]
    assert np.diff(np.log(longer)) == pytest.approx(np.log(lr[1] / lr[0]))
    assert after_divergence(lr, np.stack([falling] * 3, axis=1))[1].shape == (len(longer), 3)


def test_a_loss_or_per_cent_is_no_accuracy():
    rising = np.interp(LR, [RISE, KNEE], [0.1, 0.6])
    for wrong in (100 * rising, 3 - rising, rising - 0.2):
        with pytest.raises(AnalysisError, match="must lie between 0 and 1"):
            suggest_bounds(LR, wrong)


def test_a_run_that_diverges_falls_to_chance():
    """So a curve that rises until its runs diverge has an upper bound there."""
    rising = np.interp(LR, [RISE, KNEE], [0.1, 0.6])
    ended = np.where(LR > KNEE, np.nan, rising)
    found = suggest_bounds(LR, np.stack([ended] * 5, axis=1))
    assert (found.base_lr, found.max_lr) == pytest.approx((RISE, KNEE), abs=1.01 * STEP)
    assert found == suggest_bounds(LR, np.stack([np.where(LR > KNEE, 0.1, rising)] * 5, axis=1))


@pytest.mark.parametrize("read", [suggest_bounds, best_rate])
def test_points_at_both_ends_can_be_skipped(read):
    rng = np.random.default_rng(0)
    values = curve("falls") if read is suggest_bounds else 1 - curve("falls", rise=LR[18], knee=LR[26])
    values = values + rng.normal(0, 0.005, 40)
    wild = np.concatenate([[5, -3], values, [np.inf]])
    lr = np.concatenate([[1e-5, 1e-4], LR, [1.0]])
    expected, found = read(LR, values), read(lr, wild, skip_start=2, skip_end=1)
    assert found == expected
    line = found.fitted if read is suggest_bounds else found.smoothed
    assert len(line) == 43
    assert np.isnan(line[[0, 1, -1]]).all()
    with pytest.raises(AnalysisError, match="skip_start=40, skip_end=3: no point is left of 43"):
        read(lr, wild, skip_start=40, skip_end=3)
    for side, skip in product(("skip_start", "skip_end"), (-1, 2.5, "1")):
        with pytest.raises(AnalysisError, match=f"{side}={skip!r}: a whole number of points is needed, 0 or more"):
            read(lr, wild, **{side: skip})


def test_four_runs_have_bounds_and_no_intervals():
    rng = np.random.default_rng(0)
    found = suggest_bounds(LR, curve("slows")[:, None] + rng.normal(0, 0.01, (40, 4)))
    assert found.base_lr == pytest.approx(RISE, abs=1.5 * STEP)
    assert np.isnan([found.base_low, found.base_high, found.max_low, found.max_high]).all()


def test_runs_that_never_leave_chance():
    """A resample of such runs alone has no rise, so no bounds: few are left out, of many there is no interval."""
    learned = curve("falls")[:, None] + np.random.default_rng(0).normal(0, 0.01, (40, 5))
    one, three = learned.copy(), learned.copy()
    one[:, 0], three[:, :3] = 0.1, 0.1
    whole, found = suggest_bounds(LR, learned), suggest_bounds(LR, one)
    assert abs(found.base_low - whole.base_low) <= 2 * STEP
    assert abs(found.max_high - whole.max_high) <= 2 * STEP
    found = suggest_bounds(LR, three)
    assert found.base_lr < found.max_lr
    assert np.isnan([found.base_low, found.base_high, found.max_low, found.max_high]).all()
