"""The policies against the formulas of the paper and against torch."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import rates, sgd

from modules.schedulers import SCALE_FUNCTIONS, CyclicLR, RangeTestLR, decay, exponential, fixed

RATES = st.floats(1e-6, 1.0)
STEPS = st.integers(1, 50)


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
