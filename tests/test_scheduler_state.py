"""Schedulers from one iteration to the next: reset, history, rates that are tensors, and stops."""

import math
import random

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import ChainedScheduler, SequentialLR
from toys import rates, sgd, through_disk

from modules.schedulers import CyclicLR, RangeTestLR, decay, exponential, fixed


def test_reset_without_arguments_repeats_the_cycle():
    scheduler = CyclicLR(sgd(), 0.001, 0.008, 10)
    first = rates(scheduler, 13)
    scheduler.reset()
    assert rates(scheduler, 13) == first


def test_bad_reset_changes_nothing():
    scheduler = CyclicLR(sgd(), 0.001, 0.008, 10)
    with pytest.raises(ValueError, match=r"base_lr=0.1, max_lr=0.008"):
        scheduler.reset(base_lr=0.1)
    assert rates(scheduler, 12) == rates(CyclicLR(sgd(), 0.001, 0.008, 10), 12)


def test_history_keeps_metrics_and_gaps():
    scheduler = CyclicLR(sgd(), 0.001, 0.008, 10)
    scheduler.optimizer.step()
    scheduler.step()
    scheduler.step(metrics={"loss": 2.5})
    scheduler.step(metrics={"loss": 2.0, "acc": 0.5})
    assert scheduler.history["loss"] == [None, 2.5, 2.0]
    assert scheduler.history["acc"] == [None, None, 0.5]
    assert {len(values) for values in scheduler.history.values()} == {3}


def test_history_counts_from_0_and_bckenstlers_from_1_with_the_next_rates():
    """His callback, after each batch: counts, sets the rate of the batch to come, and keeps that."""
    his = {"lr": [], "iterations": []}
    scheduler = CyclicLR(sgd(), 0.001, 0.006, 4, "triangular2")
    for done in range(1, 20):
        his["lr"].append(scheduler.lr_at(done))
        his["iterations"].append(done)
    trained = rates(scheduler, 20)
    assert scheduler.history["lr"] == trained
    assert scheduler.history["lr"][1:] == his["lr"]
    assert scheduler.history["iteration"][1:] == his["iterations"]


def test_base_lrs_are_those_of_the_cycle_after_reset_loading_and_a_new_group():
    scheduler = CyclicLR(sgd(1, 2), 0.25, 0.5, 4)
    theirs = torch.optim.lr_scheduler.CyclicLR(sgd(1, 1), [0.25, 0.5], 1.0, 4, cycle_momentum=False)
    assert scheduler.base_lrs == theirs.base_lrs == [0.25, 0.5]
    scheduler.reset(base_lr=0.125)
    assert scheduler.base_lrs == [0.125, 0.25]
    other = CyclicLR(sgd(1, 2), 0.25, 0.5, 4)
    other.load_state_dict(scheduler.state_dict())
    assert other.base_lrs == [0.125, 0.25]
    other.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr_mult": 4.0})
    assert other.base_lrs == [0.125, 0.25, 0.5]


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # torch's first step of the chain
def test_history_in_a_sequence_holds_the_iterations_of_its_turn():
    optimizer = sgd()
    chain = ChainedScheduler([CyclicLR(optimizer, 0.25, 0.5, 2)], optimizer)
    after = CyclicLR(optimizer, 0.5, 1.0, 2)
    rates(SequentialLR(optimizer, [chain, after], [3]), 6)
    assert chain._schedulers[0].history["iteration"] == [0, 1]  # of the last one before a milestone torch says nothing
    assert after.history == {"iteration": [0, 1, 2], "lr": [0.5, 0.75, 1.0]}


def test_metrics_of_any_kind_of_number_are_kept_as_floats():
    """A numpy number in the history would make a checkpoint that `torch.load` refuses to read."""
    scheduler = CyclicLR(sgd())
    scheduler.optimizer.step()
    loss = torch.tensor(0.5, requires_grad=True)
    scheduler.step(metrics={"loss": loss, "accuracy": np.float64(0.25), "count": 3})
    history = through_disk(scheduler.state_dict())["history"]
    assert [history[key] for key in ("loss", "accuracy", "count")] == [[0.5], [0.25], [3.0]]
    assert {type(history[key][0]) for key in ("loss", "accuracy", "count")} == {float}


@pytest.mark.parametrize("name", ["lr", "iteration"])
def test_a_metric_cannot_take_the_place_of_the_rate(name):
    scheduler = CyclicLR(sgd())
    scheduler.optimizer.step()
    with pytest.raises(ValueError, match=f"history has {name} already"):
        scheduler.step(metrics={name: 1.0})
    assert scheduler.last_epoch == 0
    assert scheduler.history == {"iteration": [], "lr": []}


def test_numbers_of_numpy_are_numbers_and_truth_values_are_not():
    scheduler = CyclicLR(sgd(), np.float32(0.25), np.float64(0.5), np.int64(4))
    assert rates(scheduler, 3) == [0.25, 0.3125, 0.375]
    with pytest.raises(ValueError, match="step_size must be a positive number, not True"):
        CyclicLR(sgd(), step_size=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: CyclicLR(optimizer, 0.25, 0.5, 4),
        lambda optimizer: RangeTestLR(optimizer, 0.25, 0.5, 4),
        lambda optimizer: decay(optimizer, 0.25, 0.5, 4),
        lambda optimizer: exponential(optimizer, 0.5, 0.5),
        lambda optimizer: fixed(optimizer, 0.5, (2,)),
    ],
)
def test_a_rate_that_is_a_tensor_stays_that_tensor(make):
    """A compiled or captured optimizer reads the rate from the tensor it was made with."""
    expected = rates(make(sgd()), 6)
    lr = torch.tensor(1.0, dtype=torch.float64)
    scheduler = make(torch.optim.Adam([torch.nn.Parameter(torch.ones(1))], lr=lr))
    seen = []
    for _ in range(6):
        seen.append(lr.item())
        scheduler.optimizer.step()
        scheduler.step()
    assert seen == pytest.approx(expected, rel=1e-12)
    if isinstance(scheduler, CyclicLR):
        scheduler.reset()
        assert lr.item() == 0.25
        scheduler.load_state_dict(through_disk(scheduler.state_dict()))
        assert scheduler.optimizer.param_groups[0]["lr"] is lr


def test_the_last_rate_is_of_the_optimizers_kind_and_its_own_after_reset_and_loading():
    for lr in (1.0, torch.tensor(1.0)):
        scheduler = CyclicLR(torch.optim.Adam([torch.nn.Parameter(torch.ones(1))], lr=lr), 0.25, 0.5, 4)
        rates(scheduler, 2)
        before = scheduler.get_last_lr()
        scheduler.load_state_dict(through_disk(scheduler.state_dict()))
        assert scheduler.get_last_lr() == before == [0.375]
        assert type(scheduler.get_last_lr()[0]) is type(before[0]) is type(lr)
        scheduler.reset()
        assert type(scheduler.get_last_lr()[0]) is type(lr)
        assert scheduler.get_last_lr() == [0.25]
        if isinstance(lr, torch.Tensor):
            assert scheduler.get_last_lr()[0] is not lr


@pytest.mark.parametrize(
    "settings_",
    [
        dict(mode="triangular2"),
        dict(mode="exp_range_both", gamma=0.99),
        dict(scale_fn="sinusoidal"),
        dict(scale_fn=math.exp, scale_mode="iterations"),
    ],
)
def test_saved_and_loaded_scheduler_goes_on_bit_for_bit(settings_):
    scheduler = CyclicLR(sgd(1, 2), 0.001, 0.002, 7, **settings_)
    rates(scheduler, 9)
    scheduler.reset(max_lr=0.004)
    rates(scheduler, 4)
    custom = {key: value for key, value in settings_.items() if callable(value)}
    other = CyclicLR(sgd(1, 2), 0.5, 0.9, 3, **custom)
    other.load_state_dict(through_disk(scheduler.state_dict()))
    assert other.optimizer.param_groups[1]["lr"] == scheduler.optimizer.param_groups[1]["lr"]
    assert other.history == scheduler.history
    assert rates(other, 30, group=1) == rates(scheduler, 30, group=1)
    assert other.state_dict() == scheduler.state_dict()


def test_a_state_counts_and_not_what_the_constructor_was_given():
    """As in torch; another cycle after a stop begins with `reset`."""
    old, new = (CyclicLR(sgd(), 0.1, 0.2, step_size) for step_size in (10, 30))
    rates(old, 25)
    new.load_state_dict(old.state_dict())
    assert new.step_size == 10
    new.reset(step_size=30)
    assert rates(new, 61) == pytest.approx([0.1 + 0.1 * (1 - abs(1 - t / 30)) for t in range(61)])


def test_loading_a_custom_scale_function_needs_that_function():
    scheduler = CyclicLR(sgd(), scale_fn=math.exp)
    with pytest.raises(ValueError, match="'exp'"):
        CyclicLR(sgd()).load_state_dict(scheduler.state_dict())


def test_lambdas_are_told_apart_by_what_they_give():
    saved = CyclicLR(sgd(), scale_fn=lambda cycle: 1 / cycle).state_dict()
    CyclicLR(sgd(), scale_fn=lambda cycle: 1 / cycle).load_state_dict(saved)
    with pytest.raises(ValueError, match="gave other values than this one's 'custom:.*<lambda>'"):
        CyclicLR(sgd(), scale_fn=lambda cycle: 0.5**cycle).load_state_dict(saved)


def test_scale_functions_of_a_few_cycles_are_saved():
    saved = CyclicLR(sgd(), scale_fn=lambda cycle: (1, 0.5, 0.25)[cycle - 1]).state_dict()
    CyclicLR(sgd(), scale_fn=lambda cycle: (1, 0.5, 0.25)[cycle - 1]).load_state_dict(saved)


class Shrinking:
    """Halves the height at each call, whatever it is called with."""

    def __init__(self):
        self.calls, self.parts = 0, [1.0]

    def __call__(self, x):
        self.calls += 1
        self.parts.append(self.parts[-1] / 2)
        return self.parts[-1]

    def method(self, x):
        return self(x)


@pytest.mark.parametrize("make", [Shrinking, lambda: Shrinking().method])
def test_a_scale_function_that_remembers_goes_on_where_it_was(make):
    def fresh():
        return CyclicLR(sgd(), 0.1, 1.0, 4, scale_fn=make())

    scheduler, other = fresh(), fresh()
    rates(scheduler, 3)
    saved = through_disk(scheduler.state_dict())
    expected = rates(scheduler, 6)
    other.load_state_dict(saved)
    assert rates(other, 6) == expected
    assert other.state_dict() == scheduler.state_dict()


def test_a_scale_function_is_called_once_an_iteration_and_not_by_saving_or_loading():
    scheduler = CyclicLR(sgd(), 0.1, 1.0, 4, scale_fn=Shrinking())
    rates(scheduler, 3)
    scheduler.load_state_dict(scheduler.state_dict())
    assert scheduler._scale_fn.calls == 4  # iterations 0 to 3
    saved = scheduler.state_dict()
    rates(scheduler, 2)
    assert saved["scale_memory"]["calls"] == 4
    assert len(saved["scale_memory"]["parts"]) == 5


def test_a_scale_function_whose_memory_cannot_be_saved_is_told_by_what_it_gives():
    class Drawn:
        def __init__(self, seed):
            self.random = random.Random(seed)

        def __call__(self, x):
            return self.random.random()

    def fresh(seed):
        return CyclicLR(sgd(), 0.1, 1.0, 4, scale_fn=Drawn(seed))

    saved = through_disk(fresh(1).state_dict())
    fresh(1).load_state_dict(saved)
    with pytest.raises(ValueError, match="gave other values than this one's 'custom:.*Drawn'"):
        fresh(2).load_state_dict(saved)


def test_a_state_of_torchs_own_scheduler_is_refused_with_the_way_on():
    theirs = torch.optim.lr_scheduler.CyclicLR(sgd(), 0.1, 1.0, 4, cycle_momentum=False)
    rates(theirs, 3)
    scheduler = CyclicLR(sgd(), 0.2, 0.4, 4)
    with pytest.raises(
        ValueError, match=r"^the state is of torch's own CyclicLR: CyclicLR\(..., last_epoch=2\) goes on"
    ):
        scheduler.load_state_dict(theirs.state_dict())
    assert rates(scheduler, 5) == rates(CyclicLR(sgd(), 0.2, 0.4, 4), 5)
    assert rates(CyclicLR(sgd(), 0.1, 1.0, 4, last_epoch=2), 9) == pytest.approx(rates(theirs, 9), abs=1e-12)
    with pytest.raises(ValueError, match="the state is of another scheduler"):
        scheduler.load_state_dict(fixed(sgd()).state_dict())
    with pytest.raises(ValueError, match="^the state is of another scheduler$"):
        scheduler.load_state_dict({})


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (dict(max_lr=0.01), "the state's base_lr must not exceed max_lr: base_lr=0.1, max_lr=0.01"),
        (dict(step_size="four"), "the state's step_size must be a positive number, not 'four'"),
        (dict(scale_fn="custom:mine"), "the state's scale_fn is 'mine': give it to CyclicLR first"),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(broken, message):
    scheduler = CyclicLR(sgd(), 0.2, 0.8, 4)
    before = scheduler.state_dict()
    with pytest.raises(ValueError, match=f"^{message}$"):
        scheduler.load_state_dict(CyclicLR(sgd(), 0.1, 0.4, 4).state_dict() | broken)
    assert scheduler.state_dict() == before


def test_a_state_that_does_not_fit_the_optimizer_is_refused_and_changes_nothing():
    of_groups = CyclicLR(sgd(1, 1), [0.1, 0.2], 0.4, 4).state_dict()
    of_momentum = CyclicLR(sgd(), 0.1, 0.4, 4, cycle_momentum=True).state_dict()
    adagrad = torch.optim.Adagrad([torch.nn.Parameter(torch.ones(1))])
    for optimizer, saved, message in (
        (sgd(), of_groups, "the state's base_lr has 2 values, the optimizer has 1 parameter groups"),
        (adagrad, of_momentum, "cycle_momentum: Adagrad has neither"),
    ):
        scheduler = CyclicLR(optimizer, 0.2, 0.8, 4)
        before = scheduler.state_dict()
        with pytest.raises(ValueError, match=message):
            scheduler.load_state_dict(saved)
        assert scheduler.state_dict() == before
        assert optimizer.param_groups[0]["lr"] == 0.2


def test_one_number_for_all_groups_is_loaded_by_an_optimizer_with_more_of_them():
    scheduler = CyclicLR(sgd(1), 0.1, 0.5, 4)
    rates(scheduler, 2)
    other = CyclicLR(sgd(1, 2), 0.1, 0.5, 4)
    other.load_state_dict(scheduler.state_dict())
    assert rates(other, 3, group=1) == pytest.approx([0.6, 0.8, 1.0])


@pytest.mark.parametrize("size", [0, 1, 3])
def test_history_keeps_as_many_iterations_as_asked_for(size):
    scheduler = CyclicLR(sgd(), 0.001, 0.008, 10, history_size=size)
    scheduler.optimizer.step()
    for t in range(7):
        scheduler.step(metrics={"loss": t} if t > 4 else None)
    assert scheduler.history["iteration"] == list(range(7))[7 - size :]
    assert scheduler.history.get("loss", []) == [None, 5.0, 6.0][3 - size :]
    whole = CyclicLR(sgd(), 0.001, 0.008, 10)
    rates(whole, 7)
    scheduler.load_state_dict(whole.state_dict())
    assert scheduler.history["iteration"] == list(range(7))[7 - size :]


def test_a_custom_scale_function_is_never_taken_for_a_named_one():
    def sinusoidal(cycle):
        return cycle / 10

    sinusoidal.__qualname__ = "sinusoidal"
    scheduler = CyclicLR(sgd(), 0.1, 1.0, 4, scale_fn=sinusoidal)
    with pytest.raises(ValueError, match="'sinusoidal'"):
        CyclicLR(sgd(), 0.1, 1.0, 4).load_state_dict(scheduler.state_dict())
    other = CyclicLR(sgd(), scale_fn=sinusoidal)
    other.load_state_dict(scheduler.state_dict())
    assert other.lr_at(4) == scheduler.lr_at(4)
