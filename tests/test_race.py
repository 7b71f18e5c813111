"""A learning rate by a race: what it finds, what it costs, what it leaves behind, and what it refuses."""

import math
import random
import warnings
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F
from torch.optim import lr_scheduler as torch_schedulers
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, StepLR
from torch.utils.data import DataLoader, TensorDataset
from toys import every, rates, sgd

from modules.rate_finders import benchmark, find_rate, race, trials
from modules.rate_finders.race import LADDER, best_beside, edge, lowest_point
from modules.rate_finders.trials import SCHEDULES
from modules.runs.spec import spec
from modules.schedulers import CyclicLR
from modules.statistics import AnalysisError

POINTS = torch.randn(400, 8, generator=torch.Generator().manual_seed(1))
LABELS = (POINTS @ torch.randn(8, 4, generator=torch.Generator().manual_seed(2))).argmax(1)


class Toy:
    """A small classification: a network, its optimizer, batches in a random order, and images that decide.

    Attributes:
        calls: the inputs and the rate of each batch that trained.
    """

    def __init__(self, scale=1.0, **groups):
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(8, 16),
            torch.nn.BatchNorm1d(16),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.1),
            torch.nn.Linear(16, 4),
        )
        first, last = self.model[0].parameters(), [*self.model[1].parameters(), *self.model[4].parameters()]
        self.optimizer = torch.optim.SGD(
            [{"params": [*first], "lr": 0.01, **groups}, {"params": last, "lr": 0.1}], lr=0.1, momentum=0.9
        )
        train = TensorDataset(POINTS[:300], LABELS[:300])
        self.batches = DataLoader(train, 10, shuffle=True, generator=torch.Generator().manual_seed(3))
        self.validation = DataLoader(TensorDataset(POINTS[300:], LABELS[300:]), 100)
        self.scale, self.calls, self.steps = scale, [], 0
        self.breaks = {}  # after how many calls what is raised

    def loss(self, outputs, target):
        if torch.is_grad_enabled():
            self.calls.append((target.tolist(), [float(group["lr"]) for group in self.optimizer.param_groups]))
            if len(self.calls) in self.breaks:
                raise self.breaks[len(self.calls)]
        return self.scale * F.cross_entropy(outputs, target)

    def find(self, iterations=300, **settings):
        return find_rate(
            self.model, self.optimizer, self.loss, self.batches, self.validation, iterations=iterations, **settings
        )

    def state(self):
        """Everything that must be as before, as bytes and numbers."""
        groups = self.optimizer.param_groups
        return deepcopy(
            (
                {name: tensor.tolist() for name, tensor in self.model.state_dict().items()},
                [module.training for module in self.model.modules()],
                [{key: value for key, value in group.items() if key != "params"} for group in groups],
                str(self.optimizer.state),
                sorted(vars(self.optimizer)),
                str([parameter.grad for parameter in self.model.parameters()]),
                self.batches.generator.get_state().tolist(),
                torch.get_rng_state().tolist(),
                random.getstate(),
                str(np.random.get_state()),
            )
        )


def races(toy, found):
    """The calls of each race, a list each."""
    at, out = found.cost - found.tried.iterations.sum(), []
    for length in found.tried.iterations:
        out.append(toy.calls[at : at + length])
        at += length
    return out


def trained(rate, iterations):
    """The validation loss after the whole training, a line to zero from `rate`."""
    toy = Toy()
    for group, share in zip(toy.optimizer.param_groups, (0.1, 1), strict=True):
        group["lr"] = rate * share
    scheduler = torch.optim.lr_scheduler.LambdaLR(toy.optimizer, lambda t: 1 - t / iterations)
    done = 0
    while done < iterations:
        for inputs, target in toy.batches:
            toy.optimizer.zero_grad()
            toy.loss(toy.model(inputs), target).backward()
            toy.optimizer.step()
            scheduler.step()
            done += 1
    toy.model.eval()
    with torch.no_grad():
        return toy.loss(toy.model(POINTS[300:]), LABELS[300:]).item()


def test_the_rate_it_finds_is_nearly_as_good_as_the_best_of_a_grid():
    grid = 2.0 ** np.arange(-9, 2, 2)
    losses = [trained(rate, 300) for rate in grid]
    found = Toy().find(300, budget=240)
    assert trained(found.rate, 300) < min(losses) + 0.1 * (max(losses) - min(losses))
    assert found.low < found.rate < found.high
    assert found.low < grid[np.argmin(losses)] * 2
    assert found.high > grid[np.argmin(losses)] / 2


@pytest.mark.parametrize(("budget", "accumulate"), [(20, 1), (99, 1), (150, 2), (333, 1), (700, 1)])
def test_ramp_and_races_train_no_more_than_the_budget_and_say_how_much(budget, accumulate):
    toy = Toy()
    found = toy.find(1000, budget=budget, accumulate=accumulate)
    assert len(toy.calls) == accumulate * found.cost
    assert budget - max(10, budget // 10) <= found.cost <= budget


def test_the_default_budget_is_a_fifth_of_the_training():
    assert Toy().find(700).budget == 140


def test_a_race_that_diverges_ends_early_and_is_never_chosen():
    usual = Toy().find(200, budget=330)
    limit, ramp_length = usual.tried.trained_at.max() * 0.9, len(usual.ramp)
    toy = Toy()

    def forward(model, batch):
        loss = toy.loss(model(batch[0]), batch[1])
        broken = len(toy.calls) > ramp_length and toy.optimizer.param_groups[1]["lr"] > limit
        return loss * torch.nan if broken and torch.is_grad_enabled() else loss

    found = find_rate(
        toy.model, toy.optimizer, None, toy.batches, toy.validation, iterations=200, budget=330, forward=forward
    )
    assert [*found.tried.val_loss.isna()] == [*(found.tried.trained_at > limit)]
    assert found.tried.val_loss.isna().any()
    assert found.cost == len(toy.calls) < usual.cost
    assert found.rate < usual.tried.rate.max() * 0.9


@pytest.mark.parametrize("error", [None, KeyboardInterrupt(), RuntimeError("the loader broke")])
@pytest.mark.parametrize("call", [30, 160])
def test_everything_is_as_it_was_after_an_end_an_error_and_an_interrupt(error, call):
    toy = Toy()
    toy.model[1].eval()  # a frozen BatchNorm stays so
    for inputs, target in list(toy.batches)[:2]:  # the optimizer has a past
        toy.loss(toy.model(inputs), target).backward()
        toy.optimizer.step()
    toy.calls.clear()
    toy.breaks = {call: error} if error else {}
    before = toy.state()
    if error:
        with pytest.raises(type(error)):
            toy.find(300, budget=200)
        assert len(toy.calls) == call
    else:
        toy.find(300, budget=200)
    assert toy.state() == before


def test_every_race_starts_from_the_same_weights_and_sees_the_same_batches():
    toy = Toy()
    found = toy.find(300, budget=200)
    first, *others = [[labels for labels, _ in calls] for calls in races(toy, found)]
    assert len(others) >= 2
    assert all(labels == (first + others[-1][len(first) :])[: len(labels)] for labels in others)
    assert first[:5] != first[5:10]


def test_groups_keep_their_ratios_and_a_multiplier_multiplies():
    toy = Toy()
    toy.find(300, budget=150)
    assert {round(second / first, 6) for _, (first, second) in toy.calls if first} == {10}
    toy = Toy(lr_mult=0.5)
    toy.find(300, budget=150)
    assert {round(second / first, 6) for _, (first, second) in toy.calls if first} == {2}


def test_a_race_has_the_whole_schedule_in_its_own_length():
    toy = Toy()
    found = toy.find(300, budget=300, schedule="linear")
    for calls, (_, length, rate, at) in zip(
        races(toy, found),
        found.tried[["round", "iterations", "rate", "trained_at"]].itertuples(index=False),
        strict=True,
    ):
        assert at == pytest.approx(rate * best_beside(length, 300, scaled=False))
        assert [second for _, (_, second) in calls] == pytest.approx([at * (1 - t / length) for t in range(length)])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_is_the_one_that_the_study_trains_with(schedule):
    policy = benchmark.SCHEDULES[schedule](0.02, 80)
    ours = spec(dataset="digits", policy=policy, iterations=80, evaluate_every=1, seed=1).policy
    expected = rates(ours.scheduler(sgd(), 80), 80)
    assert [0.02 * SCHEDULES[schedule](t, 80) for t in range(80)] == pytest.approx(expected)


def test_a_schedule_of_ones_own_is_made_at_the_rates_that_are_tried():
    toy, made = Toy(), []

    def one_cycle(optimizer, iterations):
        tops = [group["lr"] for group in optimizer.param_groups]
        made.append((tops[1], iterations))
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, tops, total_steps=iterations)

    before = toy.state()
    found = toy.find(300, budget=300, schedule=one_cycle)
    assert made[:3] == [(1.0, 300), (1.0, 30), (2.0, 30)]  # what it does is looked at before the ramp
    assert made[3:] == [*found.tried[["trained_at", "iterations"]].itertuples(index=False, name=None)]
    assert found.schedule == "one_cycle"
    assert toy.state() == before  # one cycle also turns the momentum


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_it_works_where_the_ramp_gives_no_answer(scale):
    """A loss so small that no rate of the ramp is too large, and one so large that nearly all are."""
    toy = Toy(scale)
    found = toy.find(400, budget=400)
    assert found.tried.val_loss.min() < 0.8 * found.start_loss
    usual = Toy().find(400, budget=400).rate / scale
    assert usual / 30 < found.rate < usual * 30
    assert (found.edge is None) == (scale < 1)


def test_a_budget_too_small_for_a_race_gives_the_ramps_rate_and_says_so():
    found = Toy().find(1000, budget=60)
    assert found.tried.empty
    assert "the ramp alone" in found.note
    assert found.rate == pytest.approx(1.2 * found.edge * best_beside(1000, 60 / 6, scaled=False), rel=0.01)


def test_where_nothing_is_learnt_no_race_is_believed():
    toy = Toy()
    found = find_rate(
        toy.model,
        toy.optimizer,
        lambda outputs, target: F.cross_entropy(outputs, (target + torch.arange(len(target))) % 4),
        toy.batches,
        toy.validation,
        iterations=300,
        budget=200,
    )
    assert found.low == 0


def test_batches_are_of_any_kind_that_a_range_test_takes():
    class Named(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(8, 4)

        def forward(self, points):
            return self.layer(points)

    torch.manual_seed(0)
    model = Named()
    optimizer = torch.optim.AdamW(model.parameters())
    pairs = [({"points": POINTS[i : i + 50]}, LABELS[i : i + 50]) for i in range(0, 400, 50)]
    by_keyword = find_rate(model, optimizer, F.cross_entropy, pairs[:6], pairs[6:], iterations=300, budget=200)
    assert by_keyword.tried.accuracy.max() > 0.5
    mappings = [dict(points=inputs["points"], labels=target) for inputs, target in pairs]
    forward = find_rate(
        model,
        optimizer,
        batches=mappings[:6],
        validation=mappings[6:],
        iterations=300,
        budget=200,
        forward=lambda model, batch: F.cross_entropy(model(batch["points"]), batch["labels"]),
    )
    assert forward.rate == by_keyword.rate
    assert forward.tried.accuracy.isna().all()


def test_an_answer_has_a_table_and_a_picture_and_reads_as_a_sentence():
    found = Toy().find(600, budget=600)
    assert [*found.tried.groupby("round").size()] == [*LADDER]
    first, second = found.tried.groupby("round").iterations.first()
    assert second == pytest.approx(2 * first, abs=3)
    assert str(found).startswith(f"rate {found.rate:.2g}, the best is probably between")
    ramp, race = found.figure().axes
    assert len(ramp.lines) == 2
    assert len(race.lines) == len(LADDER) + 1


@pytest.mark.parametrize(
    ("losses", "open_below", "open_above"),
    [
        ([1.2, 1.0, 1.1], False, False),
        ([1.3, 1.2, 1.0], True, False),
        ([1.0, 1.2, 1.3], False, True),
        ([np.nan, 1.0, 1.2], False, False),
    ],
)
def test_nothing_is_known_beyond_the_rates_that_were_raced(losses, open_below, open_above):
    """A rate that diverged was raced, too."""
    rates = np.geomspace(1e-6, 10, 60)
    ramp = pd.DataFrame({"lr": rates, "train_loss": np.where(rates < 1, 2 - rates, np.nan)})
    raced = race.Race(ramp, iterations=1000, budget=200, schedule="linear", scaled=False)
    raced.start_loss = 2.0
    asked = raced.ask()
    raced.tell([(loss, np.nan, asked.length) for loss in losses])
    assert raced.ask() is None
    found = raced.found()
    assert (found.low == 0, math.isinf(found.high)) == (open_below, open_above)
    assert bool(found.note) == (open_below or open_above)
    assert "inf" not in str(found)
    assert np.isfinite(found.figure().axes[1].get_xlim()).all()


def test_what_makes_no_sense_is_refused_in_a_line_before_any_training():
    toy = Toy()
    for settings, message in (
        (dict(iterations=0), "iterations must be a whole number above 0, not 0"),
        (dict(iterations=60), "iterations=60: a fifth of them is too small a budget, give budget=20 or more"),
        (dict(budget=10), "budget=10: 20 iterations or more are needed"),
        (dict(budget=2.5), "budget must be a whole number above 0, not 2.5"),
        (dict(schedule="cosine"), "schedule must be one of constant, linear, cycle, or a function .* not 'cosine'"),
        (dict(schedule=["linear"]), r"schedule must be one of constant, .* not \['linear'\]"),
        (dict(schedule=lambda optimizer, iterations: None), "schedule must return a torch scheduler, not NoneType"),
        (
            dict(schedule=lambda optimizer, iterations: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)),
            "schedule: ReduceLROnPlateau.step needs an argument",
        ),
        (dict(schedule=lambda optimizer: None), "schedule must be a function of two, an optimizer and a number of"),
        (
            dict(schedule=lambda optimizer, iterations: StepLR(Toy().optimizer, 9)),
            "schedule must make its scheduler with",
        ),
        (
            dict(schedule=lambda optimizer, iterations: OneCycleLR(optimizer, 0.1, total_steps=100)),
            "schedule: step 101 of 300 fails: Tried to step 101 times",
        ),
        (dict(autocast=True), "autocast must be a type such as torch.bfloat16, or None, not True"),
        (dict(scaler=True), "scaler must be a torch.amp.GradScaler, or None, not True"),
        (dict(accumulate=0), "accumulate must be a whole number above 0, not 0"),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            toy.find(**{"iterations": 300, **settings})
        assert "\n" not in str(refused.value)
    given = dict(model=toy.model, optimizer=toy.optimizer, loss_fn=toy.loss, iterations=300)
    for settings, message in (
        (dict(batches=toy.batches), "validation is missing: batches that do not train"),
        (dict(batches=iter(toy.batches), validation=toy.validation), "batches can be gone through only once"),
        (dict(batches=toy.batches, validation=iter(toy.validation)), "validation can be gone through only once"),
    ):
        with pytest.raises(ValueError, match=message):
            find_rate(**given, **settings)
    assert not toy.calls


def test_a_validation_whose_loss_is_not_finite_is_refused_before_any_training():
    toy, lost = Toy(), (torch.full((10, 8), float("nan")), LABELS[:10])
    for validation, message in (([lost], "validation: the loss is not finite before any"), ([], "validation is empty")):
        toy.validation = validation
        with pytest.raises(ValueError, match=message):
            toy.find()
    assert not toy.calls


def test_neither_an_edge_nor_a_race_is_no_answer():
    with pytest.raises(AnalysisError, match="no rate that is too large, and budget=60 leaves nothing for a race"):
        Toy(scale=1e-6).find(300, budget=60)


@pytest.mark.filterwarnings("ignore:all parameter groups get one rate")
@every(
    "schedule",
    [
        lambda optimizer, iterations: OneCycleLR(optimizer, 0.1, total_steps=iterations),
        lambda optimizer, iterations: CyclicLR(optimizer, 0.001, 0.006, iterations // 8),
        # The first rate is the optimizer's.
        lambda optimizer, iterations: torch_schedulers.CyclicLR(optimizer, 0.001, 0.006, iterations // 8),
    ],
    ids=["OneCycleLR", "CyclicLR", "torch's CyclicLR"],
)
def test_a_schedule_that_sets_rates_of_its_own_is_refused_before_any_training(schedule):
    """Every race would be the same training, and no rate better than another."""
    toy = Toy()
    with pytest.raises(ValueError, match="schedule sets rates of its own, whatever the optimizer has"):
        toy.find(1500, schedule=schedule)
    assert not toy.calls


def warm_up(share, iterations):
    return lambda t: min(1.0, (t + 1) / share) * (1 - t / iterations)


@every(
    ("schedule", "told"),
    [
        (lambda optimizer, n: LambdaLR(optimizer, warm_up(500, n)), True),
        (lambda optimizer, n: LambdaLR(optimizer, warm_up(0.1 * n, n)), False),
        (lambda optimizer, n: StepLR(optimizer, 600), True),
        (lambda optimizer, n: StepLR(optimizer, n // 3), False),
        (lambda optimizer, n: CosineAnnealingLR(optimizer, 2000), True),
        (CosineAnnealingLR, False),
    ],
)
def test_a_schedule_whose_shape_depends_on_its_length_is_told(schedule, told):
    """A warm-up of 500 iterations is never over in a race of 40: the rate found would be far too high."""
    toy = Toy()
    toy.breaks = {1: KeyboardInterrupt()}  # all is said before the first batch
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(KeyboardInterrupt):
            toy.find(2000, schedule=schedule)
    assert [str(each.message).startswith("schedule: its mean rate in a race of 40") for each in said] == [True] * told
    assert all(each.filename == __file__ for each in said)


def test_a_validation_that_trains_is_told():
    toy = Toy()
    toy.validation, toy.breaks = toy.batches, {1: KeyboardInterrupt()}
    with pytest.warns(match="validation is what trains"), pytest.raises(KeyboardInterrupt):
        toy.find(2000)


def test_a_schedule_of_a_very_long_training_is_looked_at_in_a_shorter_one(monkeypatch):
    monkeypatch.setattr(trials, "MOST_STEPPED", 1000)
    toy, made = Toy(), []
    toy.breaks = {1: KeyboardInterrupt()}

    def linear(optimizer, iterations):
        made.append(iterations)
        return LambdaLR(optimizer, lambda t: 1 - t / iterations)

    with pytest.raises(KeyboardInterrupt):
        toy.find(10**9, schedule=linear)
    assert made == [1000, 1000, 1000]


def test_a_forward_that_gives_no_loss_is_refused_in_a_line():
    class Output(dict):
        loss = torch.zeros(())

    toy = Toy()
    for found, message in (
        (Output(), "the loss must be a tensor of one number, not Output: return its loss"),
        (1.5, "the loss must be a tensor of one number, not float"),
        (torch.zeros(3), r"the loss must be a tensor of one number, not a tensor of shape \(3,\)"),
    ):
        with pytest.raises(ValueError, match=f"^validation, which is measured in evaluation mode: {message}$"):
            find_rate(
                toy.model,
                toy.optimizer,
                batches=toy.batches,
                validation=toy.validation,
                iterations=300,
                forward=lambda model, batch, found=found: found,
            )


def test_a_loss_that_is_never_finite_is_refused():
    toy = Toy(scale=float("nan"))
    with pytest.raises(AnalysisError, match="the loss is not finite before any training"):
        toy.find()
    toy = Toy()
    toy.batches = [(points * float("nan"), labels) for points, labels in toy.batches]
    with pytest.raises(AnalysisError, match="the loss is not finite even at the lowest rates"):
        toy.find()


def test_where_every_race_diverges_there_is_no_answer():
    toy = Toy()
    toy.batches = [(points.clone(), labels) for points, labels in toy.batches]
    for points, _ in toy.batches[-2:]:
        points.fill_(float("nan"))
    with pytest.raises(AnalysisError, match=r"every race diverged.* batches whose loss is not finite"):
        toy.find(2000)


def test_a_shorter_training_has_a_higher_best_rate():
    lengths = [20, 50, 200, 1000, 10_000]
    for scaled in (False, True):
        beside = [best_beside(length, 1000, scaled) for length in lengths]
        assert beside == sorted(beside, reverse=True)
        assert beside[3] == 1
    assert best_beside(20, 1000, scaled=False) > 3 * best_beside(20, 1000, scaled=True)
    assert best_beside(50, 200, False) * best_beside(200, 1000, False) == pytest.approx(best_beside(50, 1000, False))


def test_the_edge_of_a_ramp_is_where_its_loss_exceeds_its_start():
    lr = np.geomspace(1e-6, 10, 120)
    falls = np.interp(np.log10(lr), [-6, -3, -1, 0, 1], [2, 2, 1, 2.1, 9])
    assert edge(lr, falls) == pytest.approx(1, rel=0.3)
    assert edge(lr, np.where(lr > 0.1, np.nan, falls)) == pytest.approx(0.1, rel=0.3)
    assert edge(lr, np.minimum(falls, 2)) == pytest.approx(10**-0.55, rel=0.4)  # half of what it had lost
    assert edge(lr, np.interp(np.log10(lr), [-6, -3, 1], [2, 2, 1])) is None
    assert edge(lr, np.full(120, 2.0)) is None
    assert edge(lr, falls - 5) == pytest.approx(edge(lr, falls), rel=0.3)  # a loss below zero


@pytest.mark.parametrize("constant", [-1.2, 1000.0, -1000.0])
def test_a_constant_added_to_the_loss_changes_no_rate(constant):
    usual, toy = Toy().find(300, budget=240), Toy()
    moved = find_rate(
        toy.model,
        toy.optimizer,
        lambda *of: toy.loss(*of).double() + constant,
        toy.batches,
        toy.validation,
        iterations=300,
        budget=240,
    )
    assert (moved.rate, moved.edge, moved.cost, moved.note) == (usual.rate, usual.edge, usual.cost, usual.note)


def test_the_lowest_point_is_between_the_rates_that_were_tried():
    tried = np.array([0.4, 0.1, 0.2])

    def loss(rate):
        return 1 + np.log(rate / 0.17) ** 2

    assert lowest_point(tried, loss(tried) - 5) == pytest.approx(0.17)
    assert lowest_point(tried, np.array([1.0, 3.0, 2.0])) == pytest.approx(0.4)
    assert lowest_point(tried, np.array([np.nan, 3.0, 2.0])) == pytest.approx(0.2)
    assert 0.1 <= lowest_point(tried, np.array([2.0, 2.0, 2.0])) <= 0.4


def test_the_lowest_point_at_an_end_is_the_very_rate_that_was_tried():
    """Or the answer would not be known for an end of the ladder."""
    for rate in np.random.default_rng(0).uniform(1e-5, 1, 200):
        tried = rate * np.array([2.0, 1.0, 0.5])
        assert (lowest_point(tried, tried), lowest_point(tried, -tried)) == (tried[2], tried[0])
