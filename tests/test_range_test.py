"""The rule that reads bounds off a curve, on curves whose knees are known; the test itself, on a real model."""

import functools
import math
import random
import subprocess
import sys
import warnings
from collections import Counter, OrderedDict, deque, namedtuple
from copy import deepcopy
from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import every

from modules import snapshot
from modules.data.batches import Data, batches
from modules.data.datasets import load
from modules.data.splits import split
from modules.range_test import (
    after_divergence,
    apply_rate,
    best_rate,
    climbed,
    ignored_by,
    range_test,
    suggest_bounds,
    validate,
)
from modules.rate_finders.rules import RULES, suggest_rate
from modules.runs import training
from modules.statistics import AnalysisError
from tests.toys import small

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


def test_what_was_exchanged_or_left_out_is_said():
    model, data = torch.nn.Linear(2, 2), [(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))] * 2
    optimizer, loss = torch.optim.SGD(model.parameters(), lr=0.1), torch.nn.CrossEntropyLoss()
    with pytest.raises(ValueError, match="the order is loss_fn, then batches"):
        range_test(model, optimizer, data, loss)
    with pytest.raises(ValueError, match=r"CrossEntropyLoss\(\) is a loss"):
        range_test(model, optimizer, torch.nn.CrossEntropyLoss, data)
    with pytest.raises(ValueError, match="batches must be e.g. a DataLoader, not int"):
        range_test(model, optimizer, loss, 3)
    with pytest.raises(ValueError, match="trains none of the model's parameters"):
        range_test(torch.nn.Linear(2, 2), optimizer, loss, data)
    optimizer.param_groups.clear()
    with pytest.raises(ValueError, match="trains none of the model's parameters"):
        range_test(model, optimizer, loss, data)


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


def test_exponential_ramp_is_read_on_a_logarithmic_axis():
    lr = np.geomspace(1e-5, 1, 60)
    x = np.log(lr)
    accuracy = np.interp(x, [x[0], x[20], x[35], x[-1]], [0.1, 0.1, 0.8, 0.2])
    found = suggest_bounds(lr, accuracy, log=True)
    assert found.base_lr == pytest.approx(lr[20], rel=0.3)
    assert found.max_lr == pytest.approx(lr[35], rel=0.3)


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


def test_importing_the_range_test_loads_no_machinery():
    """It is what users import: torch, numpy and pandas, not what the study runs on."""
    heavy = {"pydantic", "scipy.stats", "dask", "distributed", "filelock", "matplotlib", "IPython"}
    code = f"import sys, modules.range_test; print(sorted({heavy} & sys.modules.keys()))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


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


def test_frozen_modules_stay_frozen_and_modes_are_put_back():
    frozen = torch.nn.BatchNorm1d(4)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), frozen, torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    frozen.eval()
    before = frozen.running_mean.clone()
    modes = {module: module.training for module in model.modules()}
    seen = []

    def evaluate(model):
        seen.append((model[1].training, model[2].training))
        model.eval()
        return 0.5

    batches = [(torch.randn(8, 3), torch.zeros(8, dtype=torch.long))]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    range_test(model, optimizer, torch.nn.CrossEntropyLoss(), batches, evaluate, 0.01, 0.1, 4, 2)
    assert seen == [(False, True)] * 2
    assert {module: module.training for module in model.modules()} == modes
    assert torch.equal(frozen.running_mean, before)


def test_unusable_curves_are_refused():
    with pytest.raises(AnalysisError, match="at least 12 evaluations, this one has 5"):
        suggest_bounds(LR[:5], LR[:5])
    with pytest.raises(AnalysisError, match="increasing"):
        suggest_bounds(LR[::-1], curve("falls"))
    with pytest.raises(AnalysisError, match="no finite accuracy"):
        suggest_bounds(LR, np.full(40, np.nan))


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


@given(
    losses=st.lists(st.integers(-100, -1), min_size=1, max_size=30),
    constant=st.integers(-1000, 0),
    factor=st.sampled_from([1.5, 4.0, 50.0]),
    scale=st.sampled_from([0.25, 8.0]),
)
def test_below_zero_a_constant_or_a_factor_changes_no_stop(losses, constant, factor, scale):
    def stops(values):
        return [climbed(values[:end], factor) for end in range(1, len(values) + 1)]

    assert stops(losses) == stops([scale * (loss + constant) for loss in losses])


def test_a_loss_below_zero_stops_where_it_diverges_and_not_in_its_noise():
    noise = np.random.default_rng(0).normal(0, 0.02, (100, 60))
    fall = np.interp(np.arange(60), [0, 20, 40, 59], [0, 0, -1.5, -1.5])
    climb = np.where(np.arange(60) > 50, 10.0 ** (np.arange(60) - 50), 0)
    for zero in (-2.3, -0.5, -50.0):
        for rows in noise + zero + fall + climb:
            assert 50 < next(end for end in range(1, 61) if climbed(list(rows[:end]), 4)) <= 53
    for rows in np.random.default_rng(1).normal(-1, 0.02, (300, 12)):
        assert not any(climbed(list(rows[:end]), 4) for end in range(1, 13))


@pytest.mark.parametrize("read", [suggest_bounds, best_rate])
def test_arrays_that_do_not_fit_together_are_refused(read):
    """Runs by points would be read as other curves, each made of pieces of all."""
    runs = np.stack([curve("falls")] * 4)
    for lr, values in ((LR, runs), (LR, runs.ravel()), (LR[:0], runs[0, :0]), (LR, runs.T[..., None])):
        with pytest.raises(AnalysisError, match=r"\[points, runs\] are needed"):
            read(lr, values)


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


def problem():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 10, generator=generator)
    labels = (inputs @ torch.randn(10, 4, generator=generator)).argmax(1)
    torch.manual_seed(0)
    model = torch.nn.Linear(10, 4)
    batches = [(inputs[i : i + 50], labels[i : i + 50]) for i in range(0, 400, 50)]

    def accuracy(model):
        return (model(inputs).argmax(1) == labels).float().mean().item()

    return model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), batches, accuracy


def test_range_test_climbs_measures_and_puts_everything_back():
    model, optimizer, batches, accuracy = problem()
    before = [parameter.clone() for parameter in model.parameters()]
    table = range_test(
        model, optimizer, torch.nn.functional.cross_entropy, batches, accuracy, 1e-4, 1.0, 200, 5, "exponential"
    )
    assert len(table) == 40
    assert table.lr.iloc[-1] == pytest.approx(1.0, rel=0.1)
    assert table.accuracy.iloc[-1] > table.accuracy.iloc[0] + 0.2
    assert table.train_loss.iloc[-1] < table.train_loss.iloc[0] - 0.2
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert not optimizer.state_dict()["state"]


def test_rates_are_those_before_any_multiplier():
    model, _, batches, accuracy = problem()
    optimizer = torch.optim.SGD([{"params": [model.weight], "lr_mult": 2}, {"params": [model.bias]}], lr=0.5)
    used = []
    optimizer.register_step_pre_hook(lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"]))
    table = range_test(
        model, optimizer, torch.nn.functional.cross_entropy, batches, accuracy, 0.1, 1.0, 20, 5, "linear"
    )
    assert [2 * lr for lr in table.lr] == pytest.approx(used[4::5])


def test_the_training_loss_alone_gives_a_rate():
    model, optimizer, batches, _ = problem()
    loss = torch.nn.functional.cross_entropy
    table = range_test(model, optimizer, loss, batches, None, 1e-4, 1e4, 400, 5, "exponential")
    assert table.accuracy.isna().all()
    expected = table.lr[table.train_loss.rolling(5, center=True, min_periods=1).mean().idxmin()]
    assert best_rate(table.lr, table.train_loss).lr == expected
    assert 1e-3 < expected < 1e3


def test_the_end_of_the_ramp_has_a_row():
    model, optimizer, batches, accuracy = problem()
    table = range_test(
        model, optimizer, torch.nn.functional.cross_entropy, batches, accuracy, 0.1, 1.0, 39, 20, "linear"
    )
    assert len(table) == 2
    assert table.lr.iloc[-1] == pytest.approx(0.1 + 0.9 * 38 / 39)


def test_range_test_stops_when_the_loss_is_not_finite():
    model, optimizer, batches, accuracy = problem()

    def explodes(logits, labels):
        return torch.nn.functional.cross_entropy(logits, labels) * (
            float("nan") if optimizer.param_groups[0]["lr"] > 0.5 else 1
        )

    table = range_test(model, optimizer, explodes, batches, accuracy, 0.1, 1.0, 100, 5, "linear")
    assert len(table) == 20
    assert table.lr.iloc[-1] == pytest.approx(0.1 + 0.9 * 99 / 100)
    measured = table.train_loss.notna()
    assert 0 < measured.sum() < 20
    assert (measured == table.accuracy.notna()).all()
    assert table.lr[measured].max() < 0.5 < table.lr[~measured].min() + 0.05


def test_range_test_stops_when_the_loss_has_climbed():
    model, optimizer, batches, accuracy = problem()
    loss = torch.nn.functional.cross_entropy
    options = (model, optimizer, loss, batches, accuracy, 1e-3, 1e4, 400, 5, "exponential")
    whole, stopped = range_test(*options), range_test(*options, stop_factor=4)
    measured = stopped.train_loss.notna()
    assert whole.train_loss.notna().sum() > measured.sum() > 10
    assert (whole.train_loss[measured] == stopped.train_loss[measured]).all()
    means = stopped.train_loss[measured].rolling(3).mean()
    assert means.iloc[-1] > 4 * means.min() > means.iloc[-2]


def test_range_test_refuses_what_makes_no_sense():
    model, optimizer, batches, accuracy = problem()
    loss = torch.nn.functional.cross_entropy
    with pytest.raises(ValueError, match="evaluate_every"):
        range_test(model, optimizer, loss, batches, accuracy, 0.1, 1.0, 10, 20)
    with pytest.raises(ValueError, match="min_lr=1.0, max_lr=0.1"):
        range_test(model, optimizer, loss, batches, accuracy, 1.0, 0.1, 10, 5)
    with pytest.raises(ValueError, match="stop_factor must be above 1, or None, not 1"):
        range_test(model, optimizer, loss, batches, accuracy, 0.1, 1.0, 10, 5, stop_factor=1)
    with pytest.raises(ValueError, match="batches is empty"):
        range_test(model, optimizer, loss, [], accuracy, 0.1, 1.0, 10, 5)


CROSS_ENTROPY = torch.nn.functional.cross_entropy


def test_two_arguments_and_the_loss_are_enough():
    model, optimizer, batches, _ = problem()
    table = range_test(model, optimizer, CROSS_ENTROPY, batches)
    assert list(table) == ["iteration", "lr", "train_loss", "val_loss", "accuracy"]
    assert table.iteration.tolist() == list(range(1, 401))
    assert table.lr.iloc[7] == pytest.approx(1e-6 * 1e7 ** (7 / 400))
    assert 1e-3 < best_rate(table.lr, table.train_loss).lr < 10
    assert 1e-3 < suggest_rate(table.lr, table.train_loss, "linear") < 10


@pytest.mark.parametrize("how", ["evaluate", "validation"])
def test_by_default_there_is_a_row_an_iteration_and_fifty_evaluations(how):
    model, optimizer, batches, accuracy = problem()
    given = {how: accuracy if how == "evaluate" else batches}
    table = range_test(model, optimizer, CROSS_ENTROPY, batches, iterations=200, **given)
    assert len(table) == 200
    assert table.iteration[table.accuracy.notna()].tolist() == list(range(4, 201, 4))
    model, optimizer, batches, accuracy = problem()
    alone = range_test(model, optimizer, CROSS_ENTROPY, batches, iterations=200)
    assert table.train_loss.tolist() == alone.train_loss.tolist()
    model, optimizer, batches, accuracy = problem()
    given = {how: accuracy if how == "evaluate" else batches}
    rows = range_test(model, optimizer, CROSS_ENTROPY, batches, iterations=200, evaluate_every=4, **given)
    assert rows.accuracy.tolist() == table.accuracy[3::4].tolist()
    assert rows.train_loss.tolist() == pytest.approx(table.train_loss.groupby(table.index // 4).mean().tolist())


@pytest.mark.parametrize("zero", [0.0, -3.0, -100.0])
def test_a_ramp_whose_loss_is_below_zero_gives_the_same_rate_and_ends_where_it_diverges(zero):
    model, optimizer, batches, _ = problem()
    alone = range_test(model, optimizer, CROSS_ENTROPY, batches, max_lr=1e4)

    def moved(outputs, labels):
        return CROSS_ENTROPY(outputs, labels) + zero

    model, optimizer, batches, _ = problem()
    table = range_test(model, optimizer, moved, batches, max_lr=1e4, stop_factor=4)
    for read in (lambda *of: best_rate(*of).lr, lambda *of: suggest_rate(*of, "linear")):
        assert read(table.lr, table.train_loss) == pytest.approx(read(alone.lr, alone.train_loss), rel=1e-3)
    assert best_rate(alone.lr, alone.train_loss).lr < table.lr[table.train_loss.notna()].max() < 1e4


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("ramp", ["linear", "exponential"])
def test_the_study_s_range_test_gives_the_same_numbers(tmp_path, optimizer, ramp):
    """The function that users call, and the policy whose runs are published; both until they diverge."""
    policy = dict(name="range_test", min_lr=1e-3, max_lr=1e4, ramp=ramp, stop_factor=50)
    wanted = small(policy, seed=3, iterations=60, evaluate_every=5, optimizer=optimizer)
    trained = pd.read_csv(training.train(wanted, tmp_path))
    dataset = load("digits")
    with training.one_thread():
        state = training._State(wanted, dataset, torch.device("cpu"))
        data = Data(split(dataset, wanted.split, wanted.seed), torch.device("cpu"), wanted.pixels)
        order = batches(len(data.split.train), wanted.batch_size, wanted.seed)

        def evaluate(model):
            loss, correct = training.evaluate(model, data, "test")
            return correct.double().mean().item() if np.isfinite(loss) else np.nan

        table = range_test(
            state.model,
            state.optimizer,
            CROSS_ENTROPY,
            ((data.pixels(images), labels) for images, labels in map(data.batch, order)),
            evaluate,
            **wanted.policy.model_dump(exclude={"name", "anneal", "warm_up"}),
            iterations=wanted.iterations,
            evaluate_every=wanted.evaluate_every,
        )
    assert 0 < len(trained) < 12 or optimizer == "adam"
    measured = table[table.train_loss.notna()]
    assert measured.iteration.tolist() == trained.iteration.tolist()
    for own, study in (("lr", "lr"), ("train_loss", "train_loss"), ("accuracy", "val_acc")):
        assert measured[own].tolist() == trained[study].tolist()


class Odd(torch.nn.Module):
    """What is easily forgotten: dropout, a BatchNorm, a buffer that is not saved, state that is not a tensor."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = torch.nn.Linear(10, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 4)
        self.register_buffer("seen", torch.zeros(1), persistent=False)
        self.register_buffer("late", None)
        self.calls = 0

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]

    def forward(self, inputs):
        self.seen += 1
        self.calls += 1
        self.late = self.seen + random.random() + np.random.rand()
        return self.last(torch.nn.functional.dropout(self.norm(self.first(inputs)).relu()))


@pytest.mark.parametrize("fails", [None, RuntimeError, KeyboardInterrupt])
def test_afterwards_everything_is_as_it_was(fails):
    _, _, batches, _ = problem()
    generator = torch.Generator().manual_seed(1)
    loader = torch.utils.data.DataLoader(
        [(x, y) for inputs, labels in batches for x, y in zip(inputs, labels, strict=True)],
        batch_size=20,
        shuffle=True,
        generator=generator,
    )
    model, rate = Odd(), torch.tensor(0.01)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1)
    CROSS_ENTROPY(model(batches[0][0]), batches[0][1]).backward()
    optimizer.step()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
    moments = dict(optimizer.state[model.last.bias])
    model.norm.eval()

    def everything():
        tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
        state = [value for values in optimizer.state.values() for value in values.values()]
        return deepcopy(
            (
                [tensor.tolist() for tensor in tensors + state],
                {key: value for key, value in optimizer.param_groups[0].items() if key != "params"},
                [module.training for module in model.modules()],
                (model.calls, scaler.state_dict(), random.getstate(), np.random.get_state()[1].tolist()),
                (torch.get_rng_state().tolist(), generator.get_state().tolist()),
            )
        )

    def loss_fn(outputs, labels):
        if fails and model.calls > 20:
            raise fails("the user's own")
        return CROSS_ENTROPY(outputs, labels)

    gradients, before = [parameter.grad for parameter in model.parameters()], everything()
    settings = dict(iterations=30, scaler=scaler, autocast=torch.bfloat16, validation=batches)
    if fails:
        with pytest.raises(fails, match="the user's own"):
            range_test(model, optimizer, loss_fn, loader, **settings)
    else:
        table = range_test(model, optimizer, loss_fn, loader, **settings)
        assert table.val_loss.notna().any()
    assert everything() == before
    assert optimizer.param_groups[0]["lr"] is rate
    assert all(p.grad is gradient for p, gradient in zip(model.parameters(), gradients, strict=True))
    assert all(optimizer.state[model.last.bias][key] is value for key, value in moments.items())
    assert "initial_lr" not in optimizer.param_groups[0]
    assert "step" not in vars(optimizer)


@pytest.mark.parametrize("when", ["pre", "post"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_scaler_unscales_the_next_step_although_the_one_before_was_interrupted(error, when):
    model, data = torch.nn.Linear(4, 2), [(torch.randn(8, 4), torch.randint(2, (8,)))] * 4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler, loss_fn = torch.amp.GradScaler("cpu", init_scale=1024.0), torch.nn.CrossEntropyLoss()

    def fail(*_):
        raise error

    with getattr(optimizer, f"register_step_{when}_hook")(fail), pytest.raises(error):
        range_test(model, optimizer, loss_fn, data, scaler=scaler, iterations=8)
    before, own = model.weight.detach().clone(), deepcopy(model)
    loss_fn(own(data[0][0]), data[0][1]).backward()
    scaler.scale(loss_fn(model(data[0][0]), data[0][1])).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.allclose(before - model.weight, 0.1 * own.weight.grad, atol=1e-7)


def test_accumulated_batches_are_one_iteration():
    """Two halves, their gradients averaged, are the whole batch."""
    tables = []
    for accumulate in (1, 2):
        model, optimizer, batches, accuracy = problem()
        if accumulate == 2:
            batches = [(x[half], y[half]) for x, y in batches for half in (slice(0, 25), slice(25, 50))]
        tables.append(
            range_test(model, optimizer, CROSS_ENTROPY, batches, accuracy, 1e-3, 1, 40, accumulate=accumulate)
        )
    for column in ("train_loss", "accuracy"):
        assert tables[0][column].tolist() == pytest.approx(tables[1][column].tolist(), rel=1e-3)


class Named(torch.nn.Module):
    """A model of two inputs."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(10, 4)

    def forward(self, left, right):
        return self.linear(torch.cat([left, right], 1))


Pair = namedtuple("Pair", "inputs labels")


@every(
    ("shape", "forward"),
    [
        (lambda x, y: (x[:, :5], x[:, 5:], y), None),
        (lambda x, y: ((x[:, :5], x[:, 5:]), y), None),
        (lambda x, y: [{"left": x[:, :5], "right": x[:, 5:]}, y], None),
        (lambda x, y: (Pair(x[:, :5], x[:, 5:]), y), lambda model, batch: CROSS_ENTROPY(model(*batch[0]), batch[1])),
        (
            lambda x, y: {"x": {"left": x[:, :5], "right": x[:, 5:]}, "labels": [y], "names": ["a", "b"]},
            lambda model, batch: CROSS_ENTROPY(model(**batch["x"]), batch["labels"][0]),
        ),
        (
            lambda x, y: Pair([x[:, :5], x[:, 5:]], y),
            lambda model, batch: CROSS_ENTROPY(model(*batch.inputs), batch.labels),
        ),
    ],
    ids=["three", "nested", "keywords", "named inputs", "mapping", "namedtuple"],
)
def test_batches_of_any_kind(shape, forward):
    plain, _, batches, _ = problem()
    model = Named()
    model.linear.load_state_dict(plain.state_dict())
    given = [shape(x, y) for x, y in batches]
    expected = range_test(plain, torch.optim.SGD(plain.parameters(), lr=0.1), CROSS_ENTROPY, batches, iterations=40)
    loss_fn = None if forward else CROSS_ENTROPY
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    table = range_test(model, optimizer, loss_fn, given, iterations=40, forward=forward)
    assert table.train_loss.tolist() == expected.train_loss.tolist()


def test_targets_that_the_loss_ignores_are_left_out_of_the_accuracy():
    model, optimizer, batches, _ = problem()
    some = [(inputs, target.where(torch.arange(50) % 3 > 0, -100)) for inputs, target in batches]
    same = [(inputs[target >= 0], target[target >= 0]) for inputs, target in some]
    first, second = (
        range_test(model, optimizer, CROSS_ENTROPY, batches, validation=validation, iterations=20)
        for validation in (some, same)
    )
    assert first.accuracy.tolist() == second.accuracy.tolist()


def answers(*shape, classes, at):
    """Targets of a shape, and outputs with the classes in a dimension, of which three quarters are right."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(classes, shape, generator=generator)
    said = torch.where(torch.arange(target.numel()).reshape(shape) % 4 > 0, target, (target + 1) % classes)
    return torch.nn.functional.one_hot(said, classes).movedim(-1, at).float(), target


@every(
    ("answered", "ignored", "accuracy"),
    [
        (answers(40, classes=5, at=1), None, 0.75),
        (answers(40, 6, classes=5, at=1), None, 0.75),
        (answers(40, 6, classes=5, at=-1), None, 0.75),
        (answers(4, 10, 6, classes=5, at=1), None, 0.75),
        (answers(4, 10, 6, classes=5, at=-1), None, 0.75),
        (answers(40, 5, classes=5, at=-1), None, None),  # which dimension has the classes, nobody can tell
        (answers(40, classes=1, at=1), None, None),  # a single output, as of a binary loss
        (answers(40, 6, classes=5, at=-1), 0, 0.75),
    ],
)
def test_an_accuracy_is_of_the_dimension_with_the_classes_and_of_the_targets_that_count(answered, ignored, accuracy):
    outputs, target = answered
    if ignored is not None:  # such as the padding of sequences; what is said there counts nowhere
        padded = torch.arange(target.numel()).reshape(target.shape) % 8 < 4
        target, accuracy = target.where(~padded, ignored), None
        right = (outputs.argmax(-1) == target)[target != ignored]
        accuracy = right.float().mean().item()
    model = torch.nn.Linear(1, 1)
    loss_fn = torch.nn.CrossEntropyLoss(ignore_index=-100 if ignored is None else ignored)
    _, found = validate(model, [None], lambda _: (torch.zeros(()), outputs, target), ignored_by(loss_fn))
    assert found == pytest.approx(math.nan if accuracy is None else accuracy, nan_ok=True)


@pytest.mark.parametrize("shape", ["pair", "mapping", "nested"])
def test_a_short_last_validation_batch_weighs_less_with_a_forward_too(shape):
    model, optimizer, batches, _ = problem()
    shapes = {
        "pair": lambda inputs, target: (inputs, target),
        "mapping": lambda inputs, target: {"name": "toy", "x": inputs, "y": target},
        "nested": lambda inputs, target: [[{"x": inputs}], target],
    }
    taken = {
        "pair": lambda batch: batch,
        "mapping": lambda batch: (batch["x"], batch["y"]),
        "nested": lambda batch: (batch[0][0]["x"], batch[1]),
    }

    def forward(model, batch):
        inputs, target = taken[shape](batch)
        return CROSS_ENTROPY(model(inputs), target)

    short = [batches[0], tuple(part[:3] for part in batches[1])]
    found = []
    for settings, make in (
        (dict(loss_fn=CROSS_ENTROPY), lambda *pair: pair),
        (dict(forward=forward), shapes[shape]),
    ):
        made = [[make(*pair) for pair in pairs] for pairs in (batches, short)]
        found.append(range_test(model, optimizer, batches=made[0], validation=made[1], iterations=5, **settings))
    assert found[0].val_loss.tolist() == pytest.approx(found[1].val_loss.tolist())


def test_a_validation_batch_that_is_no_number_is_no_divergence_of_the_training():
    model, optimizer, batches, _ = problem()
    validation = [*batches[:2], (torch.full((50, 10), float("nan")), batches[0][1])]
    with pytest.raises(ValueError, match="validation: the loss is not finite at the first evaluation"):
        range_test(model, optimizer, CROSS_ENTROPY, batches, validation=validation, iterations=40)


@every("undefined", [[1], [20], [1, 2, 3, 30]])
def test_an_accuracy_that_is_not_defined_ends_no_ramp_and_changes_no_rate(undefined):
    model, optimizer, batches, accuracy = problem()
    clean = range_test(model, optimizer, CROSS_ENTROPY, batches, accuracy)
    count = iter(range(1, 51))
    table = range_test(
        *(model, optimizer, CROSS_ENTROPY, batches),
        lambda model: float("nan") if next(count) in undefined else accuracy(model),
    )
    assert table.train_loss.tolist() == clean.train_loss.tolist()
    lost = clean.accuracy.notna() & table.accuracy.isna()
    assert clean.iteration[lost].tolist() == [8 * each for each in undefined]
    assert suggest_bounds(table.lr, table.accuracy).max_lr == pytest.approx(
        suggest_bounds(clean.lr, clean.accuracy).max_lr, rel=0.5
    )


def test_a_validation_whose_forward_takes_a_gradient_is_refused_in_a_line():
    model, optimizer, batches, _ = problem()

    def forward(model, batch):
        inputs = batch[0].clone().requires_grad_()
        loss = CROSS_ENTROPY(model(inputs), batch[1])
        return loss + torch.autograd.grad(loss, inputs, create_graph=True)[0].square().sum()

    with pytest.raises(ValueError, match=r"the forward takes one: put what takes it under torch.enable_grad\(\)"):
        range_test(model, optimizer, None, batches, iterations=4, forward=forward, validation=batches)
    enabled = torch.enable_grad()(forward)
    found = range_test(model, optimizer, None, batches, iterations=4, forward=enabled, validation=batches)
    assert found.val_loss.notna().all()


def test_batches_that_are_sorted_by_class_are_told():
    model, optimizer, batches, _ = problem()
    inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    order = labels.argsort()
    with pytest.warns(UserWarning, match="most batches have a single class") as warned:
        range_test(
            model, optimizer, CROSS_ENTROPY, [*zip(inputs[order].split(20), labels[order].split(20), strict=True)]
        )
    assert warned[0].filename == __file__
    rare = (torch.arange(400) % 40 == 0).long()  # nearly all batches have the frequent class alone
    range_test(model, optimizer, CROSS_ENTROPY, [*zip(inputs.split(20), rare.split(20), strict=True)])


def test_a_packed_sequence_is_one_input():
    """As any named tuple: a plain list or tuple is the model's arguments."""

    class Recurrent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent = torch.nn.GRU(3, 2)

        def forward(self, packed):
            return self.recurrent(packed)[1][0]

    model = Recurrent()
    packed = torch.nn.utils.rnn.pack_sequence([torch.randn(4, 3), torch.randn(2, 3)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    table = range_test(model, optimizer, CROSS_ENTROPY, [(packed, torch.tensor([0, 1]))], iterations=5)
    assert table.train_loss.notna().all()


def test_a_validation_loader_gives_loss_and_accuracy():
    model, optimizer, batches, accuracy = problem()
    uneven = [*batches[:-1], *((x[:7], y[:7]) for x, y in batches[-1:]), *((x[7:], y[7:]) for x, y in batches[-1:])]

    def loss(model):
        return CROSS_ENTROPY(model(torch.cat([x for x, _ in batches])), torch.cat([y for _, y in batches])).item()

    by_loader = range_test(model, optimizer, CROSS_ENTROPY, batches, iterations=50, validation=uneven)
    accuracies = range_test(model, optimizer, CROSS_ENTROPY, batches, accuracy, iterations=50).accuracy
    assert by_loader.accuracy.tolist() == pytest.approx(accuracies.tolist())
    losses = range_test(model, optimizer, CROSS_ENTROPY, batches, loss, iterations=50).accuracy
    assert by_loader.val_loss.tolist() == pytest.approx(losses.tolist(), rel=1e-5)
    regression = [(x, x[:, :4]) for x, _ in batches]
    table = range_test(model, optimizer, torch.nn.MSELoss(), regression, iterations=50, validation=regression)
    assert table.val_loss.notna().any()
    assert table.accuracy.isna().all()


def test_a_criterion_with_parameters_is_trained_and_put_back():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, outputs, labels):
            scales.append(self.scale.item())
            return CROSS_ENTROPY(self.scale * outputs, labels)

    scales = []
    model, _, batches, _ = problem()
    criterion = Scaled()
    optimizer = torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=0.1)
    range_test(model, optimizer, criterion, batches, iterations=20)
    assert len(set(scales)) > 5
    assert criterion.scale.item() == 1


def test_lazy_modules_are_initialised_by_the_first_batch():
    _, _, batches, _ = problem()
    model = torch.nn.Sequential(torch.nn.LazyLinear(8), torch.nn.LazyBatchNorm1d(), torch.nn.LazyLinear(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    state = torch.get_rng_state()
    seen = []
    table = range_test(model, optimizer, CROSS_ENTROPY, (seen.append(0) or batch for batch in batches), iterations=8)
    assert table.train_loss.notna().all()
    assert len(seen) == 8
    assert model[0].weight.shape == (8, 10)
    assert model[1].num_batches_tracked == 0
    assert torch.equal(torch.get_rng_state(), state)


@every(
    ("groups", "keep", "expected"),
    [
        ([dict(lr=0.1), dict(lr=0.01)], True, [1, 0.1]),
        ([dict(lr=0.1), dict(lr=0.01)], False, [1, 1]),
        ([dict(lr=0.01), dict(lr=torch.tensor(0.1))], True, [0.1, 1]),
        ([dict(lr=0.1, lr_mult=3.0), dict(lr=0.01)], True, [3, 1]),
        ([dict(lr=0.0), dict(lr=0.0)], True, [1, 1]),
        ([dict(lr=0.1), dict(lr=0.0)], True, [1, 0]),
        ([dict(lr=0.1, lr_scale=0.5), dict(lr=0.1, lr_scale=0.25)], True, [0.5, 0.25]),
        ([dict(lr=0.1, lr_scale=0.5, lr_mult=3.0), dict(lr=0.01)], True, [1.5, 1]),
        ([dict(lr=0.1, lr_mult=3.0), dict(lr=0.0, lr_mult=1.0)], True, [3, 0]),
    ],
    ids=["ratio", "same", "second is largest", "lr_mult", "all zero", "frozen", "timm", "both", "lr_mult, frozen"],
)
def test_groups_keep_their_ratios(groups, keep, expected):
    model, _, batches, _ = problem()
    optimizer = torch.optim.SGD(
        [{"params": [p], **group} for p, group in zip((model.weight, model.bias), groups, strict=True)], lr=0.5
    )
    used = []
    optimizer.register_step_pre_hook(lambda o, *_: used.append([float(group["lr"]) for group in o.param_groups]))
    table = range_test(model, optimizer, CROSS_ENTROPY, batches, iterations=50, max_lr=1.0, keep_ratios=keep)
    assert np.allclose(used, np.outer(table.lr, expected))
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([float(g["lr"]) for g in groups])


RATIO = st.sampled_from([0.0, 1e-3, 0.1, 0.5, 1.0, 3.0])
GROUP = st.fixed_dictionaries({"lr": RATIO}, optional={"lr_mult": RATIO, "lr_scale": RATIO})


@given(groups=st.lists(GROUP, min_size=1, max_size=4), keep=st.booleans(), tensors=st.booleans())
def test_a_rate_is_applied_to_groups_as_the_ramp_had_set_them(groups, keep, tensors):
    """A frozen group stays frozen; a scheduler made next begins with these rates, whatever one before had left."""
    layers = [torch.nn.Linear(1, 1) for _ in groups]
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.SGD(
        [{"params": layer.parameters(), **group} for layer, group in zip(layers, groups, strict=True)], lr=1.0
    )
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    if tensors:
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
    before = [group["lr"] for group in optimizer.param_groups]
    used = []
    optimizer.register_step_pre_hook(lambda o, *_: used.append([float(group["lr"]) for group in o.param_groups]))
    batches = [(torch.ones(1, 1), torch.ones(1, 1))]
    table = range_test(
        model, optimizer, torch.nn.MSELoss(), batches, min_lr=1e-9, max_lr=1e-6, iterations=5, keep_ratios=keep
    )
    with pytest.warns(UserWarning, match="a scheduler that was made before goes on from its own rates"):
        apply_rate(optimizer, table.lr[3], keep)
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    assert rates == pytest.approx(used[3])
    assert [float(group["initial_lr"]) for group in optimizer.param_groups] == rates
    assert all((group["lr"] is old) == tensors for group, old in zip(optimizer.param_groups, before, strict=True))
    own = [(rate, group["lr"]) for rate, group in zip(rates, groups, strict=True) if group.keys() == {"lr"}]
    if keep and max((lr for _, lr in own), default=0) > 0:
        assert [rate for rate, _ in own] == pytest.approx([table.lr[3] * lr / max(own)[1] for _, lr in own])
    if keep and max(group["lr"] for group in groups) > 0:
        assert all(rate == 0 for rate, group in zip(rates, groups, strict=True) if group["lr"] == 0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 4)
    optimizer.step()
    scheduler.step()
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.75 * rate for rate in rates])


def test_at_the_start_of_a_warm_up_groups_have_the_ratios_of_their_initial_rates():
    model = problem()[0]
    optimizer = torch.optim.SGD([{"params": [model.weight], "lr": 0.5}, {"params": [model.bias], "lr": 0.1}])
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    assert [group["lr"] for group in optimizer.param_groups] == [0, 0]
    with pytest.warns(UserWarning, match="make it anew"):
        apply_rate(optimizer, 0.2)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.04])


@every("rate", [float("nan"), 0.0, -1, float("inf"), None, "0.1", True, torch.ones(2)])
def test_what_is_no_rate_is_not_applied(rate):
    optimizer = problem()[1]
    with pytest.raises(ValueError, match="rate must be a number above 0, not "):
        apply_rate(optimizer, rate)
    assert optimizer.param_groups[0]["lr"] == 0.5


class OfTimm(torch.optim.Optimizer):
    """As timm's Lookahead: no state of its own, slow weights in the state of the optimizer it wraps."""

    def __init__(self, base):
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = {}, {}
        self._base_optimizer, self.param_groups, self.defaults = base, base.param_groups, base.defaults
        self.state = {}

    def state_dict(self):
        return self._base_optimizer.state_dict()

    def step(self, closure=None):
        self._base_optimizer.step()
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self._base_optimizer.state[parameter]
                slow = state.setdefault("lookahead_slow_buff", parameter.detach().clone())
                parameter.data.copy_(slow.lerp_(parameter.data, 0.5))


class OfPytorchOptimizer(torch.optim.Optimizer):
    """As pytorch_optimizer's Lookahead, with slow weights in a list: neither state nor groups have them."""

    def __init__(self, optimizer):
        super().__init__(optimizer.param_groups, {})
        self.optimizer, self.steps = optimizer, 0
        self.slow = [parameter.detach().clone() for group in self.param_groups for parameter in group["params"]]

    def step(self, closure=None):
        self.optimizer.step()
        self.steps += 1
        self.late = self.steps
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for parameter, slow in zip(parameters, self.slow, strict=True):
            parameter.data.copy_(slow.lerp_(parameter.data, 0.5))


@pytest.mark.parametrize("wrapper", [OfTimm, OfPytorchOptimizer])
def test_an_optimizer_that_wraps_another_is_put_back_with_it(wrapper):
    """So what is trained afterwards is what would have been trained without the test."""
    trained = []
    for tests in (False, True):
        model, _, batches, _ = problem()
        optimizer = wrapper(torch.optim.Adam(model.parameters(), lr=0.01))
        losses = []
        for index, (inputs, labels) in enumerate(4 * batches):
            if tests and index in (0, 3):
                known = set(vars(optimizer))
                range_test(model, optimizer, CROSS_ENTROPY, batches, iterations=30)
                assert set(vars(optimizer)) == known
            optimizer.zero_grad()
            CROSS_ENTROPY(model(inputs), labels).backward()
            optimizer.step()
            losses.append(model.weight.tolist())
        trained.append(losses)
    assert trained[0] == trained[1]


def network():
    return torch.nn.Sequential(torch.nn.Linear(10, 4), torch.nn.BatchNorm1d(4))


SECOND = network()


def with_second(outputs, labels, second=None):
    """A loss that uses a second network; a global, unless one is given."""
    looked = (second or SECOND)(torch.ones(len(labels), 10) * outputs.detach().mean())
    return CROSS_ENTROPY(outputs, labels) + looked.square().mean()


class Adversary:
    """An object with a loss, whose own network is trained in it by an optimizer of its own."""

    def __init__(self, second):
        self.parts = {"second": second}
        self.optimizer = torch.optim.Adam(second.parameters(), lr=0.1)

    def __call__(self, outputs, labels):
        self.optimizer.zero_grad()
        with_second(outputs.detach(), labels, self.parts["second"]).backward()
        self.optimizer.step()
        return CROSS_ENTROPY(outputs, labels)


class Taught(torch.nn.Module):
    """A second network in a list, so that its parameters are not this one's."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.kept = first, [second]

    def forward(self, inputs):
        return self.first(inputs) + self.kept[0](inputs).detach()


class Names(torch.nn.Module):
    """A loss that names a global in its method."""

    def forward(self, outputs, labels):
        return with_second(outputs, labels)


class Object:
    """The same, of no module."""

    loss = Names.forward

    def __call__(self, outputs, labels):
        return self.loss(outputs, labels)


class Average:
    """An average of the weights that is no module and has no `state_dict()`."""

    def __init__(self, model, anew):
        self.shadow, self.updates, self.anew = [p.detach().clone() for p in model.parameters()], 0, anew

    def update(self, model):
        self.updates += 1
        with torch.no_grad():
            pairs = list(zip(self.shadow, model.parameters(), strict=True))
            if self.anew:
                self.shadow = [old + (new - old) / self.updates for old, new in pairs]
            for old, new in pairs:
                old.lerp_(new, 0.1)


WAYS = {
    "global": lambda second: with_second,
    "closure": lambda second: lambda outputs, labels: with_second(outputs, labels, second),
    "partial": lambda second: functools.partial(with_second, second=second),
    "default": lambda second: lambda outputs, labels, second=second: with_second(outputs, labels, second),
    "within a function": lambda second: lambda *of: sum(with_second(*each, SECOND) for each in [of]),
    "a module's method": lambda second: Names(),
    "an object's method": lambda second: Object(),
    "a class": lambda second: lambda *of: with_second(*of, type("Holder", (), {"second": second}).second),
}


@every(
    "way", [*WAYS, "method", "object", "list", "step hook", "module hook", "average", "average made anew", "collate"]
)
def test_a_second_network_that_is_used_is_put_back_too(way):
    """With its optimizer, where it has one: a teacher, an adversary, an average of the weights."""
    model, optimizer, batches, _ = problem()
    second, average = network(), Average(model, way == "average made anew")
    adversary = Adversary(second)
    loss_fn = WAYS.get(way, lambda second: CROSS_ENTROPY)(second)
    if way in ("method", "object"):
        loss_fn = adversary if way == "object" else adversary.__call__
    elif way == "list":
        model = Taught(model, second)
    elif way == "step hook":
        second = torch.optim.swa_utils.AveragedModel(model)
        optimizer.register_step_post_hook(lambda *_: second.update_parameters(model))
    elif way == "module hook":
        second = torch.optim.swa_utils.AveragedModel(model)
        model.register_forward_hook(lambda *_: second.update_parameters(model))
    elif way.startswith("average"):
        optimizer.register_step_post_hook(lambda *_: average.update(model))
    elif way == "collate":
        batches = torch.utils.data.DataLoader(batches, collate_fn=lambda each: (second[1](second[0](each[0][0])), 0))
        model, optimizer = torch.nn.Linear(4, 4), None
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss_fn = lambda outputs, _: outputs.square().mean()  # noqa: E731

    def state():
        return str((second.state_dict(), SECOND.state_dict(), adversary.optimizer.state_dict(), vars(average)))

    changed, before, shadow = [], state(), average.shadow
    optimizer.register_step_post_hook(lambda *_: changed.append(state() != before))
    range_test(model, optimizer, loss_fn, batches, iterations=30)
    assert any(changed)
    assert state() == before
    assert average.shadow is shadow


class Slots:
    """An average in slots; `__slots__` may also be a single name."""

    __slots__ = ("average", "updates")

    def __init__(self):
        self.average, self.updates = torch.zeros(4, 10), 0


class MoreSlots(Slots):
    __slots__ = "other"


@pytest.mark.parametrize("way", ["register_hook", "register_post_accumulate_grad_hook", "slots"])
def test_what_hooks_of_parameters_and_slots_hold_is_put_back(way):
    model, optimizer, batches, _ = problem()
    kept, total = MoreSlots(), torch.zeros(4, 10)
    kept.other = torch.zeros(1)

    def hook(tensor):
        total.add_(1)

    def loss_fn(outputs, target):
        if way == "slots":
            kept.average, kept.updates = kept.average + 1, kept.updates + 1
            kept.other.add_(1)
        return CROSS_ENTROPY(outputs, target)

    if way != "slots":
        getattr(model.weight, way)(hook)
    average = kept.average
    range_test(model, optimizer, loss_fn, batches, iterations=10)
    assert not total.any()
    assert kept.average is average
    assert [kept.average.sum(), kept.updates, kept.other.sum()] == [0, 0, 0]


ODD = {
    "coo": lambda: torch.eye(4).to_sparse(),
    "csr": lambda: torch.eye(4).to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested")
@pytest.mark.parametrize("where", ["buffer", "attribute", "closure"])
@pytest.mark.parametrize("layout", ODD)
def test_sparse_and_nested_tensors_are_put_back_wherever_they_are(layout, where):
    model, optimizer, batches, _ = problem()
    odd = ODD[layout]()
    before = odd.clone()
    if where == "buffer":
        model.register_buffer("odd", odd)
    elif where == "attribute":
        model.odd = odd

    def forward(model, batch):
        used = odd if where == "closure" else model.odd
        if layout == "coo":  # the others have no such method
            used.mul_(2)
        return CROSS_ENTROPY(model(batch[0]), batch[1])

    range_test(model, optimizer, None, batches, iterations=10, forward=forward)
    assert snapshot._same(odd, before)
    assert where == "closure" or model.odd is odd


def test_sparse_momentum_is_put_back():
    model = torch.nn.Sequential(torch.nn.Embedding(10, 4, sparse=True), torch.nn.Flatten(), torch.nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batches = [(torch.randint(10, (8, 1)), torch.randint(2, (8,))) for _ in range(4)]
    CROSS_ENTROPY(model(batches[0][0]), batches[0][1]).backward()
    optimizer.step()
    before = deepcopy(optimizer.state_dict()["state"][0]["momentum_buffer"])
    range_test(model, optimizer, CROSS_ENTROPY, batches, iterations=10)
    assert torch.equal(optimizer.state_dict()["state"][0]["momentum_buffer"].to_dense(), before.to_dense())


def test_where_one_tensor_cannot_be_put_back_all_others_are_and_it_is_named():
    model, optimizer, batches, _ = problem()
    model.register_buffer("shared", torch.zeros(1).expand(3))  # cannot be written to
    CROSS_ENTROPY(model(batches[0][0]), batches[0][1]).backward()
    optimizer.step()
    before = deepcopy((model.weight, optimizer.state_dict()))
    whole = model.shared

    def forward(model, batch):
        whole.data[0] += 1
        return CROSS_ENTROPY(model(batch[0]), batch[1])

    named = (r"could not put back buffer shared \(RuntimeError\)", "range_test could not put back Linear shared")
    with pytest.warns(match=named[0]), pytest.warns(match=named[1]):
        range_test(model, optimizer, None, batches, iterations=10, forward=forward)
    assert torch.equal(model.weight, before[0])
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert torch.equal(optimizer.state_dict()["state"][0]["momentum_buffer"], before[1]["state"][0]["momentum_buffer"])


class Observer(torch.nn.Module):
    """Its buffer gets its size from the first batch, as those of quantization do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("largest", torch.zeros(0))

    def forward(self, inputs):
        if not len(self.largest):
            self.largest.resize_(inputs.shape[1]).zero_()
        self.largest.copy_(torch.maximum(self.largest, inputs.detach().amax(0)))
        return inputs


def test_a_buffer_that_grows_in_place_is_put_back_and_may_grow_again():
    model, optimizer, batches, _ = problem()
    observed = torch.nn.Sequential(observer := Observer(), model)
    buffer = observer.largest
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            range_test(observed, optimizer, CROSS_ENTROPY, batches, iterations=10)
        assert observer.largest is buffer
        assert len(buffer) == 0


class Noisy(torch.nn.Module):
    """A layer that adds noise of its own generators."""

    def __init__(self):
        super().__init__()
        self.generators = torch.Generator(), np.random.default_rng(0), np.random.RandomState(0), random.Random(0)

    def forward(self, inputs):
        ours, numpy_s, legacy, python_s = self.generators
        return inputs + torch.rand(1, generator=ours) + numpy_s.random() + legacy.rand() + python_s.random()


class Drawn(torch.utils.data.Dataset):
    """A data set that draws its images."""

    def __init__(self):
        self.generator = np.random.default_rng(0)

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.tensor(self.generator.normal(size=10), dtype=torch.float32), index % 4


class Wrapped:
    """A loader around another."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        return iter(self.loader)


@every("where", ["loader", "sampler", "batch sampler", "wrapped", "dataset", "layer"])
def test_generators_of_random_numbers_are_put_back_wherever_they_are(where):
    """So what is drawn after the test is what would have been drawn without it, and all races see the same batches."""
    generator = torch.Generator().manual_seed(0)
    utils, (_, _, pairs, _) = torch.utils.data, problem()
    points = (
        Drawn() if where == "dataset" else utils.TensorDataset(*(torch.cat(each) for each in zip(*pairs, strict=True)))
    )
    sampler = utils.RandomSampler(points, generator=generator)
    loader = {
        "sampler": lambda: utils.DataLoader(points, 20, sampler=sampler),
        "batch sampler": lambda: utils.DataLoader(points, batch_sampler=utils.BatchSampler(sampler, 20, False)),
        "wrapped": lambda: Wrapped(utils.DataLoader(points, 20, shuffle=True, generator=generator)),
    }.get(where, lambda: utils.DataLoader(points, 20, shuffle=True, generator=generator))()
    noise = Noisy()
    model = torch.nn.Sequential(*([noise] if where == "layer" else []), torch.nn.Linear(10, 4))

    def drawn():
        owners = (generator, noise.generators[0])
        states = [each.get_state().tolist() for each in owners]
        others = noise.generators[1].bit_generator.state, str(noise.generators[2].get_state())
        own = points.generator.bit_generator.state if where == "dataset" else None
        return deepcopy((states, others, noise.generators[3].getstate(), own))

    before, during = drawn(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: during.append(drawn() != before))
    range_test(model, optimizer, CROSS_ENTROPY, loader, iterations=10)
    assert all(during)
    assert drawn() == before


@pytest.mark.parametrize("scaler", [None, torch.amp.GradScaler("cpu", init_scale=1024.0)])
def test_gradients_are_clipped_by_a_hook(scaler):
    model, optimizer, batches, _ = problem()
    norms, clipped = [], []

    def clip(optimizer, args, kwargs):
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)))

    def after(optimizer, args, kwargs):
        clipped.append(float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])))

    optimizer.register_step_pre_hook(clip)
    optimizer.register_step_post_hook(after)
    range_test(model, optimizer, CROSS_ENTROPY, batches, iterations=10, scaler=scaler)
    assert all(0.1 < norm < 10 for norm in norms)
    assert clipped == pytest.approx([0.1] * 10, rel=1e-3)


class Stranger:
    """An object that answers every question with an error."""

    __slots__ = ("unset",)

    def __getattr__(self, name):
        raise RuntimeError(f"there is no {name}")


def test_an_object_whose_attributes_raise_errors_ends_no_ramp():
    model, optimizer, batches, _ = problem()
    stranger = Stranger()

    def loss_fn(outputs, labels):
        return CROSS_ENTROPY(outputs, labels) + 0 * isinstance(stranger, int)

    assert len(range_test(model, optimizer, loss_fn, batches, iterations=10)) == 10


class Remembers(torch.nn.Module):
    """A network that counts its steps, and has hidden states that are still to come."""

    def __init__(self):
        super().__init__()
        self.layer, self.steps, self.hidden, self.several = torch.nn.Linear(10, 4), 0, None, [None, (None, None)]

    def forward(self, inputs):
        self.steps += 1
        if not hasattr(self, "first"):
            self.first = inputs.mean(0)
        self.hidden = inputs.mean(0) if self.hidden is None else self.hidden + self.first
        self.several = [self.hidden, (self.hidden, self.hidden)]
        return self.layer(inputs + self.hidden)


def test_what_a_network_counts_and_remembers_is_put_back():
    """Or a diverged race would leave its hidden state to the next one, and a schedule within the network be over."""
    _, _, batches, _ = problem()
    model = torch.nn.Sequential(Remembers())
    several = model[0].several
    range_test(model, torch.optim.SGD(model.parameters(), lr=0.1), CROSS_ENTROPY, batches, iterations=10)
    assert (model[0].steps, model[0].hidden, model[0].several) == (0, None, [None, (None, None)])
    assert model[0].several is several
    assert not hasattr(model[0], "first")


class Epochs(torch.utils.data.Sampler):
    """An order that depends on a count of its epochs."""

    def __init__(self, length):
        self.length, self.epoch = length, 0

    def __iter__(self):
        self.epoch += 1
        return iter(torch.randperm(self.length, generator=torch.Generator().manual_seed(self.epoch)).tolist())

    def __len__(self):
        return self.length


@pytest.mark.parametrize("within", [False, True])
def test_a_sampler_that_counts_its_epochs_goes_on_where_it_was(within):
    model, optimizer, batches, _ = problem()
    utils, sampler = torch.utils.data, Epochs(400)
    points = utils.TensorDataset(*(torch.cat(each) for each in zip(*batches, strict=True)))
    order = dict(batch_sampler=utils.BatchSampler(sampler, 50, False)) if within else dict(sampler=sampler)
    loader = utils.DataLoader(points, **order, **({} if within else dict(batch_size=50)))
    list(loader)
    range_test(model, optimizer, CROSS_ENTROPY, loader, iterations=20)
    assert sampler.epoch == 1


@pytest.mark.parametrize("started", [False, True])
def test_workers_that_stay_are_set_aside(started):
    """An epoch in whose middle a range test is made goes on to its end, in the order that it would have had."""
    orders = []
    for tests in (False, True):
        model, optimizer, batches, _ = problem()
        points = torch.utils.data.TensorDataset(*(torch.cat(each) for each in zip(*batches, strict=True)))
        torch.manual_seed(0)
        loader = torch.utils.data.DataLoader(points, 50, shuffle=True, num_workers=1, persistent_workers=True)
        order = []
        for epoch in range(2):
            if tests and epoch == 0 and not started:
                range_test(model, optimizer, CROSS_ENTROPY, loader, iterations=10)
            for index, (_, labels) in enumerate(loader):
                order += labels.tolist()
                if tests and epoch == 0 and index == 2 and started:
                    range_test(model, optimizer, CROSS_ENTROPY, loader, iterations=10)
        orders.append(order)
    assert orders[0] == orders[1]


def test_workers_that_stay_train_whole_epochs_though_their_loader_is_the_validation_too():
    model, optimizer, batches, _ = problem()
    points = torch.utils.data.TensorDataset(*(torch.cat(each) for each in zip(*batches, strict=True)))
    loader = torch.utils.data.DataLoader(points, 50, num_workers=1, persistent_workers=True)
    seen = []

    def loss_fn(outputs, labels):
        seen.extend([labels.tolist()] * torch.is_grad_enabled())
        return CROSS_ENTROPY(outputs, labels)

    range_test(model, optimizer, loss_fn, loader, validation=loader, iterations=16, evaluate_every=3)
    assert seen == [labels.tolist() for _, labels in 2 * batches]


def test_what_an_optimizer_keeps_in_attributes_is_put_back():
    class Keeper(torch.optim.SGD):
        def __init__(self, parameters):
            super().__init__(parameters, lr=0.1)
            self.kept = np.zeros(2), deque([1, 2], maxlen=2), {1}, {"a": [torch.zeros(1)]}, OrderedDict(a=1)
            self.array, self.queue, self.seen, self.tensors, self.ordered = self.kept

        def step(self, closure=None):
            super().step()
            self.array += 1
            self.queue.append(len(self.seen))
            self.seen.add(len(self.seen))
            self.tensors["a"][0] += 1
            self.tensors["b"] = torch.ones(1)
            self.ordered["a"] += 1

    model, _, batches, _ = problem()
    optimizer = Keeper(model.parameters())
    before = str(optimizer.kept)
    range_test(model, optimizer, CROSS_ENTROPY, batches, iterations=5)
    assert str(optimizer.kept) == before
    assert [*map(id, optimizer.kept[:4])] == [
        *map(id, (optimizer.array, optimizer.queue, optimizer.seen, optimizer.tensors))
    ]


@pytest.mark.filterwarnings("ignore:The given NumPy array")
def test_more_tensors_than_are_kept_and_what_did_not_change_are_not_touched(monkeypatch):
    """Data may be large, and lie in memory that cannot be written."""
    model, optimizer, batches, _ = problem()
    data = np.ones(4)
    data.flags.writeable = False
    read_only, large = torch.from_numpy(data), torch.zeros(1000)

    def loss_fn(outputs, labels):
        large.add_(read_only.sum())
        return CROSS_ENTROPY(outputs, labels)

    range_test(model, optimizer, loss_fn, batches, iterations=5)
    assert large.sum() == 0
    monkeypatch.setattr(snapshot, "MOST_BYTES", 1000)
    range_test(model, optimizer, loss_fn, batches, iterations=5)
    assert large.sum() > 0


def test_what_could_not_be_put_back_is_named():
    class Memory:
        """What only it can put back."""

        def __init__(self):
            self.seen = iter(range(100))

        def state_dict(self):
            return {"seen": str(self.seen.__reduce__())}

    memory = Memory()

    def loss_fn(outputs, labels):
        next(memory.seen)
        return CROSS_ENTROPY(outputs, labels)

    model, optimizer, batches, _ = problem()
    with pytest.warns(UserWarning, match="range_test could not put back Memory seen: make them anew") as warned:
        range_test(model, optimizer, loss_fn, batches, iterations=5)
    assert warned[0].filename == __file__


@given(lost=st.sets(st.integers(1, 29), max_size=10), skipped=st.sets(st.integers(1, 29), max_size=10))
def test_single_lost_batches_and_batches_without_a_loss_leave_holes_and_no_divergence(lost, skipped):
    """Three lost ones in a row are a divergence; any number may be skipped, by returning None as in Lightning."""
    given = sorted(set(range(30)) - skipped)
    ends = {last for *before, last in zip(given, given[1:], given[2:], strict=False) if lost.issuperset(before)}
    lost = (lost - skipped - ends) or {3}
    skipped = skipped - lost
    model, optimizer, batches, _ = problem()
    calls = iter(range(30))

    def forward(model, batch):
        index = next(calls)
        loss = CROSS_ENTROPY(model(batch[0]), batch[1])
        return None if index in skipped else loss * (float("nan") if index in lost else 1)

    table = range_test(model, optimizer, None, batches, iterations=30, forward=forward)
    at_the_end = set(range(max(set(range(30)) - skipped) + 1, 30))
    assert set(np.flatnonzero(table.train_loss.isna())) == lost | (skipped - at_the_end)


def test_an_error_of_a_network_that_has_diverged_ends_the_ramp_there():
    """torch's distributions refuse a mean that is no number."""
    model, optimizer, batches, _ = problem()

    def forward(model, batch):
        if optimizer.param_groups[0]["lr"] > 1:  # a step too large, while the loss is still a number
            model.weight.data.fill_(torch.nan)
        return -torch.distributions.Normal(model(batch[0]), 1.0).log_prob(batch[0][:, :4]).mean()

    table = range_test(model, optimizer, None, batches, forward=forward)
    assert table.lr[table.train_loss.last_valid_index()] == pytest.approx(1, rel=0.05)


def test_batches_that_are_skipped_to_the_end_are_no_divergence():
    """The readers take what is missing at the end for one: here the loss falls until then, and never rises."""
    model, optimizer, batches, _ = problem()
    calls = iter(range(400))

    def forward(model, batch):
        return CROSS_ENTROPY(model(batch[0]), batch[1]) if next(calls) < 320 else None

    for row_every in (1, 8):
        calls = iter(range(400))
        table = range_test(
            model, optimizer, None, batches, max_lr=1.0, iterations=400, evaluate_every=row_every, forward=forward
        )
        assert table.train_loss.notna().all()
        with pytest.raises(AnalysisError, match="does not rise again"):
            best_rate(table.lr, table.train_loss)


def test_a_batch_without_a_loss_is_left_out_of_its_iteration_and_of_the_validation():
    model, optimizer, batches, _ = problem()

    def forward(model, batch):
        found = CROSS_ENTROPY(model(batch[0]), batch[1])
        return None if len(batch) > 2 else found

    settings = dict(forward=forward, iterations=8, min_lr=1e-9, max_lr=1e-8)
    expected = range_test(model, optimizer, None, batches, validation=batches, **settings)
    twice = [each for inputs, labels in batches for each in ((inputs, labels), (inputs, labels, "skip"))]
    table = range_test(model, optimizer, None, twice, validation=twice, accumulate=2, **settings)
    for column in ("train_loss", "val_loss"):
        assert table[column].tolist() == pytest.approx(expected[column].tolist(), rel=1e-5)


@pytest.mark.parametrize("bad", [[3], [3, 10], [8]], ids=["one", "two", "at a row's end"])
def test_a_single_batch_without_a_finite_loss_is_survived(bad):
    """It changes no weight; the rows go on, and the one it lies in is the mean of the others."""
    model, optimizer, batches, accuracy = problem()
    calls = []

    def loss_fn(outputs, labels):
        calls.append(0)
        return CROSS_ENTROPY(outputs, labels) * (float("nan") if len(calls) in bad else 1)

    table = range_test(model, optimizer, loss_fn, batches, accuracy, 1e-3, 0.1, 40, 4)
    assert table.train_loss.notna().all()
    assert table.accuracy.iloc[-1] > 0.8


def test_a_batch_that_is_no_number_leaves_no_trace_in_running_statistics():
    """The forward pass has put it into them before the loss is known."""
    torch.manual_seed(0)
    inputs = torch.randn(800, 6)
    labels = (inputs @ torch.randn(6, 3)).argmax(1)
    batches = [(inputs[at : at + 20].clone(), labels[at : at + 20]) for at in range(0, 800, 20)]
    batches[20][0][3, 2] = float("nan")
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    validation = [(inputs[:200], labels[:200])]
    table = range_test(
        model, optimizer, CROSS_ENTROPY, batches, min_lr=1e-3, max_lr=0.1, iterations=40, validation=validation
    )
    measured = table[table.val_loss.notna()]
    assert measured.iteration.iloc[-1] == 40
    assert measured.accuracy.iloc[-1] > 0.5


@pytest.mark.parametrize("in_a_row", [1, 2, 3, 5])
def test_several_lost_iterations_in_a_row_end_the_test_at_the_first(in_a_row):
    """Also where a row ends between them: it was measured while the run had diverged."""
    model, optimizer, batches, accuracy = problem()
    calls = []

    def loss_fn(outputs, labels):
        calls.append(0)
        return CROSS_ENTROPY(outputs, labels) * (float("inf") if len(calls) >= 12 else 1)

    table = range_test(model, optimizer, loss_fn, batches, accuracy, 1e-3, 0.1, 40, 4, lost_in_a_row=in_a_row)
    assert len(calls) == 11 + in_a_row
    assert table.iteration[table.train_loss.notna()].tolist() == [4, 8]
    assert (table.train_loss.notna() == table.accuracy.notna()).all()
    assert len(table) == 10


def test_an_iterator_lasts_for_the_ramp_or_says_so():
    model, optimizer, batches, _ = problem()
    table = range_test(model, optimizer, CROSS_ENTROPY, (batch for batch in 3 * batches), iterations=24)
    assert table.train_loss.notna().all()
    before = model.weight.tolist()
    with pytest.raises(ValueError, match="batches ended after 24 of 50, and can be gone through only once"):
        range_test(model, optimizer, CROSS_ENTROPY, iter(3 * batches), iterations=25, accumulate=2)
    assert model.weight.tolist() == before


def test_what_is_not_supported_is_refused_in_a_line():
    model, optimizer, batches, accuracy = problem()
    lbfgs = torch.optim.LBFGS(model.parameters())
    torch.optim.lr_scheduler.StepLR(lbfgs, 1)  # which wraps its step
    each = torch.nn.CrossEntropyLoss(reduction="none")
    usual, samples = (model, optimizer, CROSS_ENTROPY, batches), torch.utils.data.TensorDataset(*batches[0])
    shared, alone = (torch.nn.Linear(10, 4) for _ in range(2))
    shared.process_group, alone.process_group = SimpleNamespace(size=lambda: 2), SimpleNamespace(size=lambda: 1)
    of_alone = torch.optim.SGD(alone.parameters(), lr=0.1)
    assert len(range_test(alone, of_alone, CROSS_ENTROPY, batches, iterations=10)) == 10
    rateless, without = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    del rateless.param_groups[0]["lr"]
    without.param_groups[0]["lr"] = None
    for message, arguments, settings in (
        ("LBFGS calls a closure many times a step", (model, lbfgs, CROSS_ENTROPY, batches), {}),
        ("optimizer must be a torch.optim.Optimizer, not list", (model, [], CROSS_ENTROPY, batches), {}),
        ("model must be a torch.nn.Module, not function", (accuracy, optimizer, CROSS_ENTROPY, batches), {}),
        ("model is a Linear over 2 processes, each of", (shared, optimizer, CROSS_ENTROPY, batches), {}),
        ("either a loss_fn", (model, optimizer, None, batches), {}),
        ("either a loss_fn", (model, optimizer, CROSS_ENTROPY, batches), dict(forward=accuracy)),
        ("give one of them", (model, optimizer, CROSS_ENTROPY, batches, accuracy), dict(validation=batches)),
        ("are called validation", (model, optimizer, CROSS_ENTROPY, batches, batches), {}),
        (
            "validation can be gone through only once",
            (model, optimizer, CROSS_ENTROPY, batches),
            dict(validation=iter(batches)),
        ),
        ("validation is empty", (model, optimizer, CROSS_ENTROPY, batches), dict(validation=[])),
        ("a tensor of one number, not a tensor of shape \\(50,\\)", (model, optimizer, each, batches), {}),
        ("a tensor of one number, not float", (model, optimizer, None, batches), dict(forward=lambda *_: 1.0)),
        (
            "a batch is inputs and a target, not a dict: give a forward",
            (model, optimizer, CROSS_ENTROPY, [{"x": 1}]),
            {},
        ),
        (
            "a batch is inputs and a target, not a list of fewer than two: give a forward",
            (model, optimizer, CROSS_ENTROPY, [[batches[0][0]]]),
            {},
        ),
        ("autocast must be a type such as torch.bfloat16, or None, not 'bfloat16'", usual, dict(autocast="bfloat16")),
        ("scaler must be a torch.amp.GradScaler, or None, not True", usual, dict(scaler=True)),
        (
            "accumulate must be a whole number above 0, not 0",
            (model, optimizer, CROSS_ENTROPY, batches),
            dict(accumulate=0),
        ),
        *(
            (f"{name} must be a whole number above 0, not {value!r}", usual, {name: value})
            for name in ("iterations", "evaluate_every", "accumulate")
            for value in (10.5, 0, -1, "4", True)
        ),
        ("stop_factor must be above 1, or None, not '4'", usual, dict(stop_factor="4")),
        ("min_lr must be below max_lr: min_lr=0.1, max_lr=0.1", usual, dict(min_lr=0.1, max_lr=0.1)),
        ("batches is a Dataset, .* DataLoader", (model, optimizer, CROSS_ENTROPY, samples), {}),
        ("validation is a Dataset, .* DataLoader", usual, dict(validation=samples)),
        ("evaluate must return a number, not NoneType", (*usual, lambda model: None), {}),
        ("no batch gave a loss", (model, optimizer, None, batches), dict(forward=lambda *_: None)),
        ("group 0 has no lr", (model, rateless, CROSS_ENTROPY, batches), {}),
        ("group 0 has lr=None", (model, without, CROSS_ENTROPY, batches), {}),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            range_test(*arguments, **{"iterations": 10, **settings})
        assert "\n" not in str(refused.value)


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
