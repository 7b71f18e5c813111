"""The rule that reads bounds off a curve, on curves whose knees are known; the test itself, on a real model."""

import subprocess
import sys
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch

from modules.range_test import best_rate, range_test, suggest_bounds
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


@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("seed", range(5))
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
    loss = 2 + 0.1 * rng.normal(0, 1, (20, 5)) + 3000 * (lr[:, None] - 0.02) ** 2
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
        found = suggest_bounds(LR, curve("slows")[:, None] + scale * noise)
        widths.append(found.max_high - found.max_low)
    assert widths[0] < widths[1]


@pytest.mark.parametrize("seed", range(10))
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
    hole = curve("falls")
    hole[20] = np.nan
    for unfinished in (np.full(40, np.nan), hole):
        with pytest.raises(AnalysisError, match="finite"):
            suggest_bounds(LR, unfinished)


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
    with pytest.raises(AnalysisError, match="still rises at the last learning rate: let the ramp end higher"):
        suggest_bounds(LR, rising + np.random.default_rng(0).normal(0, noise, 40))


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
    table = range_test(model, optimizer, torch.nn.functional.cross_entropy, batches, accuracy, 0.1, 1.0, 20, 5)
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
    table = range_test(model, optimizer, torch.nn.functional.cross_entropy, batches, accuracy, 0.1, 1.0, 39, 20)
    assert len(table) == 2
    assert table.lr.iloc[-1] == pytest.approx(0.1 + 0.9 * 38 / 39)


def test_range_test_stops_when_the_loss_is_not_finite():
    model, optimizer, batches, accuracy = problem()

    def explodes(logits, labels):
        return torch.nn.functional.cross_entropy(logits, labels) * (
            float("nan") if optimizer.param_groups[0]["lr"] > 0.5 else 1
        )

    table = range_test(model, optimizer, explodes, batches, accuracy, 0.1, 1.0, 100, 5)
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
