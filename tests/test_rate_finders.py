"""Rules for a rate: on curves whose answer is known, and beside the packages that have them, where these install."""

import types

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from toys import every

from modules.range_test import best_rate, suggest_bounds
from modules.rate_finders.rules import (
    RULES,
    SLIDE,
    accuracy_peak,
    in_rows,
    share_of_lowest,
    suggest_rate,
)
from modules.statistics import AnalysisError

POINTS = 400
LR = np.geomspace(1e-6, 10, POINTS)


def ramp(seed, ended=True, points=POINTS, top=10.0):
    """A loss as ramps show it: flat, falling, lowest, and then the divergence."""
    rng = np.random.default_rng(seed)
    x = np.log10(np.geomspace(1e-6, top, points))
    centre = rng.uniform(-3, -1)
    loss = 0.3 + 2 / (1 + np.exp(3 * (x - centre + 0.5))) + rng.normal(0, 0.05, points)
    loss += np.exp(np.clip(6 * (x - centre - 1), None, 12))
    if ended:
        loss[x > centre + rng.uniform(1.3, 2.0)] = np.nan
    return loss


def curve(of, seed):
    if of == "loss":
        return LR, ramp(seed)
    lr = LR[7::8]
    x = np.log10(lr)
    accuracy = np.interp(x, [-6, -3, -1, 0, 1], [0.1, 0.1, 0.9, 0.3, 0.1])
    return lr, accuracy + np.random.default_rng(seed).normal(0, 0.01, len(lr))


@every("name", RULES)
def test_every_rule_gives_a_rate_of_the_ramp_or_no_answer(name):
    rule = RULES[name]
    lr, values = curve(rule.of, 0)
    assert lr[0] / 10 <= rule(lr, values) <= lr[-1]
    for nothing in (np.full(len(lr), np.nan), values[:0], values[:3]):
        rate = rule(lr[: len(nothing)], nothing)
        assert np.isnan(rate) or lr[0] / 10 <= rate <= lr[-1]


@every("name", RULES)
def test_a_ramp_ten_times_higher_gives_a_rate_ten_times_higher(name):
    lr, values = curve(RULES[name].of, 1)
    assert RULES[name](10 * lr, values) == pytest.approx(10 * RULES[name](lr, values))


def test_rows_are_those_of_the_range_test():
    lr, loss = in_rows(np.arange(1.0, 104), np.arange(103.0))
    assert len(lr) == 52
    assert lr[:2].tolist() == [2, 4]
    assert lr[-1] == 103
    assert loss[[0, 1, -1]].tolist() == [0.5, 2.5, 102]
    assert RULES["best_rate"](LR, ramp(3)) == best_rate(*in_rows(LR, ramp(3))).lr
    assert RULES["best_rate / 2"](LR, ramp(3)) == RULES["best_rate"](LR, ramp(3)) / 2


def test_the_accuracy_s_peak():
    lr, accuracy = curve("accuracy", 0)
    assert accuracy_peak(lr, accuracy) == pytest.approx(0.1, rel=0.5)
    ended = np.where(lr > 0.1, np.nan, accuracy)
    assert accuracy_peak(lr, ended) == pytest.approx(0.1, rel=0.7)  # the mean of five rows feels the fall early


def test_the_rate_suggested_depends_on_what_it_is_for():
    rates = [suggest_rate(LR, ramp(2), schedule) for schedule in ("constant", "cycle", "linear")]
    assert rates == sorted(rates)
    assert rates[2] / rates[0] == pytest.approx(2)
    assert rates[0] == RULES["fastai minimum"](LR, ramp(2))
    with pytest.raises(ValueError, match="schedule must be one of constant, linear, cycle, not 'cosine'"):
        suggest_rate(LR, ramp(2), "cosine")


def test_with_accuracies_the_smaller_of_two_rates_is_suggested():
    alone = suggest_rate(LR, ramp(2), "linear")
    for peak in (alone / 10, alone * 30):
        accuracy = np.exp(-(np.log(LR / peak) ** 2))
        found = suggest_rate(LR, ramp(2), "linear", accuracy)
        assert found == pytest.approx(min(alone, peak / 3), rel=0.2)
        rows = np.where(np.arange(POINTS) % (POINTS // 50) == POINTS // 50 - 1, accuracy, np.nan)
        assert suggest_rate(LR, ramp(2), "linear", rows) == found
    with pytest.raises(AnalysisError, match="give range_test a validation"):
        suggest_rate(LR, ramp(2), "linear", np.full(POINTS, np.nan))
    with pytest.raises(AnalysisError, match=r"lr \[points\] and accuracy"):
        suggest_rate(LR, ramp(2), "linear", accuracy[1:])


def peaked(at, points=POINTS):
    """Accuracies `[points]` with a peak at a share of the ramp, and a noise of a point."""
    x = np.linspace(0, 1, points)
    return 0.1 + 0.6 * np.exp(-(((x - at) / 0.1) ** 2)) + 0.01 * np.random.default_rng(0).normal(size=points)


@every("loss", [np.linspace(2, 1, POINTS), np.ones(POINTS), np.full(POINTS, np.nan)])
def test_accuracies_with_a_clear_peak_are_enough_where_the_loss_says_nothing(loss):
    with pytest.raises(AnalysisError):
        suggest_rate(LR, loss, "linear")
    found = suggest_rate(LR, loss, "linear", peaked(0.6))
    assert 0 < found < LR[int(0.6 * POINTS)]
    if np.isnan(loss).all():
        assert found == pytest.approx(LR[int(0.6 * POINTS)] / 3, rel=0.3)


def test_a_short_ramp_with_accuracies_is_read():
    lr = np.geomspace(1e-6, 10, 50)
    assert suggest_rate(lr, ramp(2)[::8], "linear", peaked(0.6, 50)) <= lr[30]


SAYS_NOTHING = {
    "flat": (np.full(50, 0.1), "does not rise clear of its noise: let the ramp be longer, validate on more images"),
    "rises to the end": (peaked(1.1, 50), r"does not fall again by the last learning rate: .* \(max_lr\)"),
    "falls from the start": (peaked(-0.1, 50), r"highest at the ramp's start: .* \(min_lr\)"),
    "few": (peaked(0.5, 9), "10 accuracies or more are needed, not 9"),
}


@every("kind", SAYS_NOTHING)
def test_accuracies_without_a_peak_are_refused_with_what_to_do(kind):
    accuracy, message = SAYS_NOTHING[kind]
    lr = np.geomspace(1e-6, 10, len(accuracy))
    with pytest.raises(AnalysisError, match=message):
        suggest_rate(lr, np.ones(len(lr)), "linear", accuracy)


def test_where_the_ramp_diverges_the_accuracy_need_not_fall_before():
    ended = np.arange(POINTS) > 240
    loss, accuracy = np.where(ended, np.nan, 1.0), np.where(ended, np.nan, peaked(0.6))
    assert LR[0] < suggest_rate(LR, loss, "linear", accuracy) < LR[240]


FINITE = st.floats(-1e4, 1e4)
SEED = st.integers(0, 99)
READERS = {
    "suggest_rate": lambda lr, loss: suggest_rate(lr, loss, "linear"),
    "best_rate": lambda *of: best_rate(*of).lr,
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@given(seed=SEED, constant=FINITE, factor=st.floats(1e-3, 1e3), ended=st.booleans())
def test_a_constant_added_to_the_loss_or_a_factor_changes_no_answer(read, seed, constant, factor, ended):
    loss = ramp(seed, ended)
    assert read(LR, factor * loss + constant) == read(LR, loss)


@pytest.mark.parametrize("name", ["fastai minimum", "fastai valley", "Lightning", "pytorch-lr-finder"])
def test_a_rule_that_counts_in_multiples_of_the_least_loss_has_no_answer_below_zero(name):
    assert np.isfinite(RULES[name](LR, ramp(0)))
    assert np.isnan(RULES[name](LR, ramp(0) - 2))


@given(seed=SEED, lost=st.sets(st.integers(0, POINTS // 2 - 1), max_size=10))
def test_single_lost_batches_end_no_ramp(seed, lost):
    """Every second row at the most, also the first ones; what is missing at the end is a divergence."""
    whole = ramp(seed)
    holed = whole.copy()
    holed[[2 * row for row in lost if np.isfinite(whole[2 * row + 1])]] = np.nan
    for read in READERS.values():
        assert read(LR, holed) == pytest.approx(read(LR, whole), rel=0.5)
    for name, rule in RULES.items():
        if rule.of == "loss":
            assert np.isfinite(rule(LR, holed)), name


def test_a_last_row_that_is_missing_is_a_lost_batch_too():
    falling = np.linspace(2, 1, POINTS)
    falling[-1] = np.nan
    for read in READERS.values():
        with pytest.raises(AnalysisError, match="does not rise again by the last learning rate"):
            read(LR, falling)


def autoregressive(memory, rng):
    """Losses that hang together from batch to batch; with all the memory there is a random walk."""
    losses = np.zeros(POINTS + 200)
    for index, push in enumerate(rng.normal(size=len(losses) - 1), start=1):
        losses[index] = memory * losses[index - 1] + push
    return losses[200:]


def by_class(epoch, rng):
    """Batches of ten classes one after the other, again in each epoch, of a network that is not trained."""
    return rng.normal(size=10)[np.arange(POINTS) % epoch * 10 // epoch] + 0.1 * rng.normal(size=POINTS)


WANDERING = {
    "memory 0.5": lambda rng: autoregressive(0.5, rng),
    "memory 0.9": lambda rng: autoregressive(0.9, rng),
    "memory 0.99": lambda rng: autoregressive(0.99, rng),
    "random walk": lambda rng: autoregressive(1, rng),
    "random walk in noise": lambda rng: autoregressive(1, rng) + 3 * rng.normal(size=POINTS),
    "sorted, a short epoch": lambda rng: by_class(90, rng),
    "sorted, an epoch of the ramp's length": lambda rng: by_class(POINTS, rng),
}


@every("end", [POINTS, 320])
@every("read", [*READERS.values(), lambda *of: best_rate(*in_rows(*of)), lambda *of: best_rate(*of, window=1)])
def test_losses_that_depend_on_the_order_of_batches_are_no_ramp(read, end):
    """However they are read, but for a few; a few more where a divergence says that the rates became too large."""
    taken = []
    for made in WANDERING.values():
        losses = [made(np.random.default_rng(seed)) for seed in range(50)]
        losses = [np.where(np.arange(POINTS) < end, loss, np.nan) for loss in losses]
        taken.append(np.mean([not isinstance(answer(read, LR, loss), str) for loss in losses]))
    assert np.mean(taken) < (0.05 if end == POINTS else 0.16)
    assert max(taken) <= (0.12 if end == POINTS else 0.3)


@every("seed", range(20))
def test_ramps_are_read_however_much_of_them_is_flat_and_however_they_end(seed):
    for ended in (False, True):
        for start in (0, 100, 150):
            assert 1e-4 < best_rate(LR[start:], ramp(seed, ended)[start:]).lr < 1
        assert 1e-4 < best_rate(*in_rows(LR, ramp(seed, ended))).lr < 1


def still_falls(seed):
    return 2 - np.exp(np.linspace(-9, 0, POINTS)) + 0.05 * np.random.default_rng(seed).normal(size=POINTS)


NOTHING_LEARNT = {
    "flat": (lambda seed: np.full(POINTS, seed / 3), "does not fall clear of its noise"),
    "noise": (lambda seed: 2.3 + 0.02 * np.random.default_rng(seed).normal(size=POINTS), "does not fall clear"),
    "rises": (lambda seed: np.linspace(seed, seed + 1, POINTS), "does not fall clear"),
    "rises in noise": (lambda seed: -still_falls(seed), "does not fall clear"),
    "still falls": (lambda seed: np.linspace(seed + 1, seed, POINTS), r"does not rise again .* \(max_lr\)"),
    "still falls in noise": (still_falls, r"does not rise again .* \(max_lr\)"),
    "turns in the last iterations": (
        lambda seed: np.interp(np.arange(POINTS), [0, 200, 384, 399], [2, 2, 1, 1.1 + seed / 500]),
        r"does not rise again .* \(max_lr\)",
    ),
    "diverges, nothing learnt": (
        lambda seed: np.where(LR > 0.1, np.nan, np.random.default_rng(seed).exponential(size=POINTS)),
        "does not fall clear",
    ),
    "lowest at the start": (lambda seed: seed + np.interp(np.arange(POINTS), [0, 25, 400], [2, 0, 50]), "start lower"),
    "diverges at the start": (lambda seed: np.where(np.arange(POINTS) < 30, 2.0, np.nan), "start lower"),
    "no number": (lambda seed: np.full(POINTS, np.nan), "no finite loss"),
}


@every("kind", NOTHING_LEARNT)
def test_a_curve_that_teaches_nothing_is_refused_with_what_to_do(kind):
    made, message = NOTHING_LEARNT[kind]
    for seed in range(20):
        with pytest.raises(AnalysisError, match=message):
            suggest_rate(LR, made(seed), "linear")


@every("seed", range(20))
def test_a_loss_that_falls_and_then_stays_has_its_least_anywhere(seed):
    loss = np.interp(np.arange(POINTS), [0, 200, 300], [2, 2, 1]) + 0.05 * np.random.default_rng(seed).normal(
        size=POINTS
    )
    for read in READERS.values():
        with pytest.raises(AnalysisError, match="does not rise again by the last learning rate"):
            read(LR, loss)


def test_no_rate_below_the_ramp_is_suggested():
    lr, early = np.geomspace(1e-3, 0.1, POINTS), np.interp(np.arange(POINTS), [0, 60, 120, 400], [2, 2, 0, 3])
    assert suggest_rate(lr, early, "linear") > lr[0]
    with pytest.raises(AnalysisError, match=r"let it start lower \(min_lr\)"):
        suggest_rate(lr, early, "constant")


def test_a_fall_of_five_times_the_noise_of_an_iteration_is_read():
    """As with batches of a few images; means of twenty iterations tell it from the noise, nearly always."""
    fall = np.interp(np.arange(POINTS), [0, 200, 330, 399], [5, 5, 0, 7])
    losses = [fall + np.random.default_rng(seed).normal(size=POINTS) for seed in range(20)]
    for name, read in READERS.items():
        rates = [rate for loss in losses if not isinstance(rate := answer(read, LR, loss), str)]
        assert len(rates) >= 17
        assert np.median(rates) == pytest.approx(LR[325] if name == "best_rate" else LR[345] / 5, rel=0.3)


@every("left", [3, 50, 99, 150])
def test_a_curve_that_is_mostly_missing_is_refused_and_not_filled_in(left):
    loss, kept = np.full(POINTS, np.nan), np.linspace(0, POINTS - 1, left).astype(int)
    loss[kept] = ramp(0, ended=False)[kept]
    with pytest.raises(AnalysisError, match=f"only {left} of the first {POINTS} losses are finite"):
        suggest_rate(LR, loss, "linear")


@every("points", [1, 2, 5, 20, 50, 99])
def test_a_ramp_that_is_too_short_is_refused(points):
    lr = np.geomspace(1e-6, 10, points)
    with pytest.raises(AnalysisError, match=f"100 iterations or more is needed, each with its row, not {points} rows"):
        suggest_rate(lr, ramp(0)[:: POINTS // points][:points], "linear")


def answer(read, lr, loss):
    """The rate, or what is said instead."""
    try:
        return read(lr, loss)
    except AnalysisError as refused:
        return str(refused)


@given(
    loss=arrays(float, st.integers(0, 150), elements=st.floats(width=32)),
    lr=arrays(float, st.integers(0, 150), elements=st.floats(width=32)),
    ordered=st.booleans(),
)
def test_any_arrays_give_a_rate_above_zero_or_a_refusal_in_a_line(loss, lr, ordered):
    if ordered:
        lr = np.geomspace(1e-6, 10, max(1, len(loss)))
    for read in READERS.values():
        found = answer(read, lr, loss)
        if isinstance(found, str):
            assert found.count("\n") == 0 < len(found)
        else:
            assert 0 < found <= lr[-1]


@given(seed=SEED, runs=st.integers(1, 4))
def test_runs_are_averaged_as_the_other_readers_do(seed, runs):
    losses = np.stack([ramp(seed, ended=False)] * runs, axis=1)
    losses += np.linspace(-1, 1, runs) if runs > 1 else 0
    assert suggest_rate(LR, losses, "linear") == suggest_rate(LR, losses.mean(axis=1), "linear")


@pytest.mark.parametrize("read", [*READERS.values(), suggest_bounds], ids=[*READERS, "suggest_bounds"])
def test_rates_that_do_not_increase_or_lengths_that_differ_are_refused(read):
    loss = ramp(0)
    for lr in (LR[::-1], np.roll(LR, 5), np.full(POINTS, 0.1), -LR, np.where(LR > 1, np.nan, LR)):
        with pytest.raises(AnalysisError, match="increasing positive learning rates"):
            read(lr, loss)
    with pytest.raises(AnalysisError, match="whole numbers, as iterations are"):
        read(np.arange(1, POINTS + 1), loss)
    for lr, losses in ((LR[1:], loss), (LR, np.stack([loss, loss])), (LR[:0], loss[:0]), (LR, loss[:, None, None])):
        with pytest.raises(AnalysisError, match=r"\[points, runs\] are needed"):
            read(lr, losses)
    for name, rule in RULES.items():
        if rule.of == "loss":
            assert np.isnan(rule(LR[::-1], loss)), name


MISSING = {
    "a masked array": lambda values, lost: np.ma.masked_array(values, lost),
    "masked rows of runs": lambda values, lost: np.ma.masked_array(values[:, None], lost[:, None]),
    "a column that may be empty": lambda values, lost: pd.Series(values, dtype="Float64").mask(lost),
    "None": lambda values, lost: [None if each else value for value, each in zip(values, lost, strict=True)],
}


@every("kind", MISSING)
@every("read", [*READERS.values(), suggest_bounds, *(rule for rule in RULES.values() if rule.of == "loss")])
def test_a_value_that_is_masked_or_missing_is_none(kind, read):
    """What lies under a mask is no measurement, here a loss that would be the least; at the end it is a divergence."""
    values = ramp(0, ended=False) if read is not suggest_bounds else np.interp(LR, [1e-3, 1], [0.1, 0.9])
    for lost in (np.arange(POINTS) == 300, np.arange(POINTS) >= 380):
        holed = np.where(lost, -50.0, values)
        found, expected = (
            answer(read, LR, each) for each in (MISSING[kind](holed, lost), np.where(lost, np.nan, holed))
        )
        assert str(found) == str(expected)


@every(
    "values", [LR + 1j, LR.astype(str), LR.astype("datetime64[s]"), ["a"] * POINTS, torch.ones(POINTS).requires_grad_()]
)
def test_what_are_no_real_numbers_are_refused(values):
    for read in (*READERS.values(), suggest_bounds):
        for arguments, name in (((values, ramp(0)), "lr"), ((LR, values), "loss|accuracy")):
            with pytest.raises(AnalysisError, match=f"^({name}) must be an array of numbers$"):
                read(*arguments)


def test_a_setting_of_a_reader_that_makes_no_sense_is_refused():
    for settings in (dict(window=True), dict(window=0), dict(window=2.5), dict(skip_start=True), dict(skip_end=-1)):
        with pytest.raises(AnalysisError, match=f"^{next(iter(settings))}="):
            best_rate(LR, ramp(0), **settings)
    for log in ("no", 1, np.nan):
        with pytest.raises(AnalysisError, match="^log=.*: True, False or None is needed$"):
            suggest_bounds(LR, ramp(0), log=log)


def test_the_benchmark_counts_the_rule_where_suggest_rate_refuses_too():
    assert share_of_lowest(LR, ramp(1), "cycle") == suggest_rate(LR, ramp(1), "cycle")
    with pytest.raises(AnalysisError):
        suggest_rate(LR, np.ones(POINTS), "cycle")
    assert share_of_lowest(LR, np.ones(POINTS), "cycle") > 0
    assert np.isnan(share_of_lowest(LR, np.full(POINTS, np.nan), "cycle"))


SEEDS = range(12)


@every("ended", [False, True])
@every("name", ["valley", "slide", "steep", "minimum"])
def test_fastai_s_rules_are_fastai_s(name, ended):
    """Their ramp is replayed through their own callbacks' arithmetic: recorder, stop and trimming."""
    schedule = pytest.importorskip("fastai.callback.schedule")
    from fastai.learner import AvgSmoothLoss

    for seed in SEEDS:
        raw, average, lrs, losses, best = ramp(seed, ended), AvgSmoothLoss(), [], [], float("inf")
        average.val = average.val.double()
        for lr, loss in zip(LR, raw, strict=True):
            average.accumulate(types.SimpleNamespace(loss=torch.tensor(loss)))
            lrs.append(lr)
            losses.append(average.value)
            best = losses[-1] if losses[-1] < best else best
            if losses[-1] > 4 * best:
                break
        lrs, losses = torch.tensor(lrs[POINTS // 10 : -5]), torch.tensor(losses[POINTS // 10 : -5])
        if len(lost := torch.nonzero(torch.isnan(losses))):
            lrs, losses = lrs[: lost.min()], losses[: lost.min()]
        expected = getattr(schedule, name)(lrs, losses, POINTS)[0]
        assert len(losses) > SLIDE
        assert RULES[f"fastai {name}"](LR, raw) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("ended", [False, True])
def test_lightning_s_rule_is_lightning_s(ended):
    """The callback is fed the losses, and asked."""
    lightning = pytest.importorskip("lightning")
    finder = pytest.importorskip("lightning.pytorch.tuner.lr_finder")
    version = tuple(int(part) for part in lightning.__version__.split(".")[:3])
    name = "Lightning" if version >= (2, 5, 3) else "Lightning, per step"
    for seed in SEEDS:
        raw = ramp(seed, ended)
        callback = finder._LRCallback(POINTS)
        trainer = types.SimpleNamespace(
            fit_loop=types.SimpleNamespace(batch_idx=0),
            accumulate_grad_batches=1,
            should_stop=False,
            strategy=types.SimpleNamespace(broadcast=lambda value: value),
        )
        for step, loss in enumerate(raw, start=1):
            trainer.global_step = step
            callback.on_train_batch_end(
                trainer, None, {"loss": types.SimpleNamespace(item=lambda loss=loss: loss)}, None, 0
            )
            if trainer.should_stop:
                break
        found = finder._LRFinder("exponential", 1e-6, 10, POINTS)
        found.results = {"lr": LR[: len(callback.losses)].tolist(), "loss": callback.losses}
        assert RULES[name](LR, raw) == pytest.approx(found.suggestion())


def test_lr_finder_s_rule_is_lr_finder_s(monkeypatch):
    package = pytest.importorskip("torch_lr_finder")
    import matplotlib.pyplot as plt

    for seed in SEEDS:
        raw = ramp(seed, ended=False)

        model = torch.nn.Linear(1, 1)
        finder = package.LRFinder(model, torch.optim.SGD(model.parameters(), lr=1e-6), torch.nn.MSELoss(), "cpu")
        losses = iter(raw)
        monkeypatch.setattr(finder, "_train_batch", lambda *_, losses=losses, **__: next(losses))
        batches = torch.utils.data.DataLoader([(torch.zeros(1), torch.zeros(1))])
        finder.range_test(batches, end_lr=10, num_iter=POINTS)
        figure, axes = plt.subplots()
        _, expected = finder.plot(ax=axes, suggest_lr=True)
        plt.close(figure)
        assert RULES["pytorch-lr-finder"](LR, raw) == pytest.approx(expected)
