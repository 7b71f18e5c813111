"""The policies against the formulas of the paper, against torch, and across stops."""

import io
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.schedulers import SCALE_FUNCTIONS, CyclicLR, RangeTestLR, decay, exponential, fixed

RATES = st.floats(1e-6, 1.0)
STEPS = st.integers(1, 50)


def sgd(*multipliers: float) -> torch.optim.SGD:
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))]} for _ in multipliers or (1,)]
    for group, factor in zip(groups, multipliers, strict=False):
        group["lr_mult"] = factor
    return torch.optim.SGD(groups, lr=123.0)


def rates(scheduler, count: int, group: int = 0) -> list[float]:
    out = []
    for _ in range(count):
        out.append(scheduler.optimizer.param_groups[group]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return out


def triangle(t, base, top, step, scale=lambda cycle, t: 1.0):
    """The published formula, as it stands in bckenstler/CLR's README."""
    cycle = math.floor(1 + t / (2 * step))
    x = abs(t / step - 2 * cycle + 1)
    return base + (top - base) * max(0, 1 - x) * scale(cycle, t)


REFERENCES = {
    "triangular": lambda t, b, m, s, g: triangle(t, b, m, s),
    "triangular2": lambda t, b, m, s, g: triangle(t, b, m, s, lambda cycle, t: 1 / 2 ** (cycle - 1)),
    "exp_range": lambda t, b, m, s, g: triangle(t, b, m, s, lambda cycle, t: g**t),
    "exp_range_both": lambda t, b, m, s, g: triangle(t, b * g**t, m * g**t, s),
}


@pytest.mark.parametrize("mode", REFERENCES)
@given(low=RATES, high=RATES, step=STEPS, gamma=st.floats(0.9, 1.0))
@settings(max_examples=40)
def test_cyclic_modes_follow_their_formulas(mode, low, high, step, gamma):
    base, top = sorted((low, high))
    got = rates(CyclicLR(sgd(), base, top, step, mode, gamma), 5 * step)
    expected = [REFERENCES[mode](t, base, top, step, gamma) for t in range(5 * step)]
    assert got == pytest.approx(expected, abs=1e-12, rel=1e-12)


@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
@given(low=RATES, high=RATES, step=STEPS, gamma=st.floats(0.9, 1.0))
@settings(max_examples=40)
def test_cyclic_equals_torch(mode, low, high, step, gamma):
    base, top = sorted((low, high))
    ours = CyclicLR(sgd(), base, top, step, mode, gamma)
    theirs = torch.optim.lr_scheduler.CyclicLR(
        sgd(), base, top, step_size_up=step, mode=mode, gamma=gamma, cycle_momentum=False
    )
    assert rates(ours, 5 * step) == pytest.approx(rates(theirs, 5 * step), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "mode", "scale"),
    [
        ("sinusoidal", "cycle", lambda cycle, t: 0.5 * (1 + math.sin(cycle * math.pi / 2))),
        ("inverse_power_of_5", "iterations", lambda cycle, t: 1 / 5 ** (t * 1e-4)),
    ],
)
def test_custom_scale_functions(name, mode, scale):
    expected = [triangle(t, 0.001, 0.006, 20, scale) for t in range(100)]
    for scale_fn in (name, SCALE_FUNCTIONS[name]):
        got = rates(CyclicLR(sgd(), 0.001, 0.006, 20, scale_fn=scale_fn, scale_mode=mode), 100)
        assert got == pytest.approx(expected, abs=1e-12)


@given(low=RATES, high=RATES, step=STEPS)
@settings(max_examples=30)
def test_decay_falls_to_base_and_stays(low, high, step):
    base, top = sorted((low, high))
    expected = [max(base, top - (top - base) * min(t / step, 1)) for t in range(3 * step)]
    assert rates(decay(sgd(), base, top, step), 3 * step) == pytest.approx(expected, abs=1e-12)


def test_exponential_and_fixed():
    assert rates(exponential(sgd(), 0.1, 0.99), 50) == pytest.approx([0.1 * 0.99**t for t in range(50)], abs=1e-12)
    expected = [0.001] * 6 + [0.0001] * 2 + [0.00001] * 2
    assert rates(fixed(sgd(), 0.001, (6, 8)), 10) == pytest.approx(expected, abs=1e-15)


@given(low=RATES, high=RATES, count=STEPS)
@settings(max_examples=30)
def test_range_test_ramps(low, high, count):
    low, high = sorted((low, high))
    linear = [low + (high - low) * min(t / count, 1) for t in range(count + 3)]
    exponential_ramp = [low * (high / low) ** min(t / count, 1) for t in range(count + 3)]
    assert rates(RangeTestLR(sgd(), low, high, count), count + 3) == pytest.approx(linear, abs=1e-12)
    assert rates(RangeTestLR(sgd(), low, high, count, "exponential"), count + 3) == pytest.approx(exponential_ramp)


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: CyclicLR(optimizer, 0.001, 0.006, 7),
        lambda optimizer: RangeTestLR(optimizer, 0.001, 0.006, 15),
        lambda optimizer: decay(optimizer, 0.001, 0.006, 7),
        lambda optimizer: exponential(optimizer, 0.1, 0.99),
        lambda optimizer: fixed(optimizer, 0.001, (5, 9)),
    ],
)
def test_lr_mult_multiplies_a_group(make):
    single, double = make(sgd(1, 2)), make(sgd(1, 2))
    assert rates(double, 20, group=1) == pytest.approx([2 * lr for lr in rates(single, 20)])


def test_base_lr_is_set_at_once_and_rate_is_the_first_one_used():
    optimizer = sgd()
    CyclicLR(optimizer, 0.25, 0.5, 10)
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_no_warning_in_normal_use():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rates(CyclicLR(sgd(), 0.001, 0.006, 5), 10)


def test_reset_starts_a_new_first_cycle_and_history_goes_on():
    scheduler = CyclicLR(sgd(), 0.001, 0.008, 10, mode="triangular2")
    first = rates(scheduler, 25)
    scheduler.reset(max_lr=0.004, step_size=5)
    second = rates(scheduler, 10)
    assert second == pytest.approx([REFERENCES["triangular2"](t, 0.001, 0.004, 5, 1) for t in range(10)])
    assert scheduler.history["iteration"] == list(range(35))
    assert scheduler.history["lr"] == pytest.approx(first + second)


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


def through_disk(state: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


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


def test_training_resumed_from_saved_states_equals_training_without_a_stop():
    def train(steps, parameter, optimizer, scheduler):
        for _ in range(steps):
            optimizer.zero_grad()
            ((parameter - 3) ** 2).sum().backward()
            optimizer.step()
            scheduler.step()

    def fresh():
        parameter = torch.nn.Parameter(torch.zeros(3))
        optimizer = torch.optim.SGD([parameter], lr=1, momentum=0.9)
        return parameter, optimizer, CyclicLR(optimizer, 0.001, 0.1, 4)

    whole = fresh()
    train(20, *whole)
    half = fresh()
    train(11, *half)
    again = fresh()
    again[0].data.copy_(half[0].data)
    again[1].load_state_dict(through_disk(half[1].state_dict()))
    again[2].load_state_dict(through_disk(half[2].state_dict()))
    train(9, *again)
    assert torch.equal(whole[0], again[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(base_lr=0.02, max_lr=0.01), "base_lr=0.02, max_lr=0.01"),
        (dict(base_lr=-1.0), "base_lr.*-1.0"),
        (dict(max_lr=float("nan")), "max_lr.*nan"),
        (dict(step_size=0), "step_size.*0"),
        (dict(mode="square"), "mode.*'square'"),
        (dict(gamma=0), "gamma.*0"),
        (dict(scale_fn="square"), "scale_fn.*'square'"),
        (dict(scale_mode="epoch"), "scale_mode.*'epoch'"),
    ],
)
def test_bad_arguments_are_named_with_their_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        CyclicLR(sgd(), **arguments)


def test_bad_arguments_of_the_other_policies():
    with pytest.raises(ValueError, match=r"min_lr=0.1, max_lr=0.01"):
        RangeTestLR(sgd(), 0.1, 0.01, 100)
    with pytest.raises(ValueError, match="iterations.*0"):
        RangeTestLR(sgd(), 0.01, 0.1, 0)
    with pytest.raises(ValueError, match="ramp.*'steep'"):
        RangeTestLR(sgd(), 0.01, 0.1, 10, "steep")
    with pytest.raises(ValueError, match="milestones"):
        fixed(sgd(), 0.1, (8, 6))
    with pytest.raises(ValueError, match="gamma"):
        exponential(sgd(), 0.1, -1)
