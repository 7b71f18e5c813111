"""The rule that reads bounds off a curve, on curves whose knees are known; the test itself, on a real model."""

import random
import subprocess
import sys
from collections import Counter, namedtuple
from copy import deepcopy
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch

from modules.data.batches import Data, batches
from modules.data.datasets import load
from modules.data.splits import split
from modules.range_test import best_rate, range_test, suggest_bounds
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
    with pytest.raises(AnalysisError, match="no knee that is clear of its noise: let the ramp end higher if"):
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
    assert table.iteration.tolist() == list(range(8, 401, 8))
    assert table.lr.iloc[0] == pytest.approx(1e-6 * 1e7 ** (7 / 400))
    assert 1e-3 < best_rate(table.lr, table.train_loss).lr < 10


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
            **wanted.policy.model_dump(exclude={"name", "anneal"}),
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


@pytest.mark.parametrize("fails", [False, True])
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
            raise RuntimeError("the user's own")
        return CROSS_ENTROPY(outputs, labels)

    gradients, before = [parameter.grad for parameter in model.parameters()], everything()
    settings = dict(iterations=30, scaler=scaler, autocast=torch.bfloat16, validation=batches)
    if fails:
        with pytest.raises(RuntimeError, match="the user's own"):
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


@pytest.mark.parametrize(
    ("shape", "forward"),
    [
        (lambda x, y: (x[:, :5], x[:, 5:], y), None),
        (lambda x, y: ((x[:, :5], x[:, 5:]), y), None),
        (lambda x, y: [{"left": x[:, :5], "right": x[:, 5:]}, y], None),
        (
            lambda x, y: {"x": {"left": x[:, :5], "right": x[:, 5:]}, "labels": [y], "names": ["a", "b"]},
            lambda model, batch: CROSS_ENTROPY(model(**batch["x"]), batch["labels"][0]),
        ),
        (
            lambda x, y: Pair([x[:, :5], x[:, 5:]], y),
            lambda model, batch: CROSS_ENTROPY(model(*batch.inputs), batch.labels),
        ),
    ],
    ids=["three", "nested", "keywords", "mapping", "namedtuple"],
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


@pytest.mark.parametrize(
    ("groups", "keep", "expected"),
    [
        ([dict(lr=0.1), dict(lr=0.01)], True, [1, 0.1]),
        ([dict(lr=0.1), dict(lr=0.01)], False, [1, 1]),
        ([dict(lr=0.01), dict(lr=torch.tensor(0.1))], True, [0.1, 1]),
        ([dict(lr=0.1, lr_mult=3.0), dict(lr=0.01)], True, [3, 1]),
        ([dict(lr=0.0), dict(lr=0.0)], True, [1, 1]),
        ([dict(lr=0.1), dict(lr=0.0)], True, [1, 0]),
    ],
    ids=["ratio", "same", "second is largest", "lr_mult", "all zero", "frozen"],
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


def test_two_lost_iterations_in_a_row_end_the_test_at_the_first():
    """Also where a row ends between the two: it was measured while the run had diverged."""
    model, optimizer, batches, accuracy = problem()
    calls = []

    def loss_fn(outputs, labels):
        calls.append(0)
        return CROSS_ENTROPY(outputs, labels) * (float("inf") if len(calls) >= 12 else 1)

    table = range_test(model, optimizer, loss_fn, batches, accuracy, 1e-3, 0.1, 40, 4)
    assert len(calls) == 13
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
    for message, arguments, settings in (
        ("LBFGS calls a closure many times a step", (model, lbfgs, CROSS_ENTROPY, batches), {}),
        ("optimizer must be a torch.optim.Optimizer, not list", (model, [], CROSS_ENTROPY, batches), {}),
        ("model must be a torch.nn.Module, not function", (accuracy, optimizer, CROSS_ENTROPY, batches), {}),
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
            "accumulate must be a whole number above 0, not 0",
            (model, optimizer, CROSS_ENTROPY, batches),
            dict(accumulate=0),
        ),
        (
            "iterations must be a whole number above 0, not 10.5",
            (model, optimizer, CROSS_ENTROPY, batches),
            dict(iterations=10.5),
        ),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            range_test(*arguments, **{"iterations": 10, **settings})
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("read", [suggest_bounds, best_rate])
def test_points_at_both_ends_can_be_skipped(read):
    rng = np.random.default_rng(0)
    values = curve("falls") if read is suggest_bounds else 1 - curve("falls")
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
    with pytest.raises(AnalysisError, match="skip_start=-1"):
        read(lr, wild, skip_start=-1)


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
