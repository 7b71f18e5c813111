"""The policies against the formulas of the paper and against torch."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import ChainedScheduler, ReduceLROnPlateau
from toys import every, rates, sgd

from modules.range_test import apply_rate, range_test
from modules.schedulers import (
    SCALE_FUNCTIONS,
    Annealed,
    CyclicLR,
    RangeTestLR,
    WarmedUp,
    decay,
    exponential,
    fixed,
    set_lr,
)

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


@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
@given(low=RATES, high=RATES, up=STEPS, down=STEPS, momenta=st.tuples(*[st.floats(0.0, 0.99)] * 4))
@settings(max_examples=20)
def test_bounds_of_groups_steps_up_and_down_and_momentum_equal_torch(mode, make, low, high, up, down, momenta):
    least, middle, most, top = sorted(momenta)
    options = dict(step_size_up=up, step_size_down=down, mode=mode, gamma=0.97, cycle_momentum=True)
    options |= dict(base_momentum=[least, middle], max_momentum=[most, top])
    base, top = sorted((low, high))
    seen = []
    for scheduler in (CyclicLR, torch.optim.lr_scheduler.CyclicLR):
        optimizer = make([{"params": [torch.nn.Parameter(torch.ones(1))]} for _ in range(2)], lr=1.0)
        scheduler = scheduler(optimizer, [0.0, base], [base, top], **options)
        seen.append([])
        for _ in range(3 * (up + down)):
            for group in optimizer.param_groups:
                seen[-1] += [group["lr"], *group.get("betas", [group.get("momentum")])]
            optimizer.step()
            scheduler.step()
    assert seen[0] == pytest.approx(seen[1], abs=1e-12)


@given(low=RATES, high=RATES, step=STEPS)
@settings(max_examples=20)
def test_as_many_steps_down_as_up_is_the_cycle_without_steps_down(low, high, step):
    base, top = sorted((low, high))
    options = dict(mode="exp_range_both", gamma=0.99)
    got = rates(CyclicLR(sgd(), base, top, step_size_up=step, step_size_down=step, **options), 5 * step)
    assert got == pytest.approx(rates(CyclicLR(sgd(), base, top, step, **options), 5 * step), abs=1e-12)


def test_momentum_is_left_alone_unless_asked_for():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0, momentum=0.7)
    rates(CyclicLR(optimizer, 0.001, 0.006, 4), 6)
    assert optimizer.param_groups[0]["momentum"] == 0.7


def test_momentum_cycles_within_both_falling_bounds_as_in_exp_range():
    seen = []
    for mode in ("exp_range", "exp_range_both"):
        optimizer = torch.optim.RMSprop([torch.nn.Parameter(torch.ones(1))])
        scheduler = CyclicLR(optimizer, 0.001, 0.006, 4, mode, 0.9, cycle_momentum=True)
        seen.append([])
        for _ in range(20):
            seen[-1].append(optimizer.param_groups[0]["momentum"])
            rates(scheduler, 1)
    assert seen[0] == seen[1]
    assert seen[0][4] == pytest.approx(0.9 - 0.1 * 0.9**4)


def test_a_beta_that_is_a_tensor_stays_that_tensor():
    beta = torch.tensor(0.5)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(1))], betas=(beta, torch.tensor(0.99)), capturable=True)
    scheduler = CyclicLR(optimizer, 0.001, 0.006, 4, cycle_momentum=True)
    assert beta.item() == pytest.approx(0.9)
    rates(scheduler, 4)
    assert beta.item() == pytest.approx(0.8)
    assert optimizer.param_groups[0]["betas"][0] is beta


def test_bounds_of_groups_are_multiplied_by_lr_mult_and_lr_at_gives_each():
    optimizer = sgd(1, 2)
    scheduler = CyclicLR(optimizer, [0.1, 0.2], [0.5, 0.4], 4)
    assert rates(scheduler, 5, group=1) == pytest.approx([0.4, 0.5, 0.6, 0.7, 0.8])
    assert [scheduler.lr_at(4, group) for group in (0, 1)] == [0.5, 0.4]
    assert scheduler.history["lr"] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])  # the first group's


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_tensors_and_arrays_are_bounds(kind):
    got = CyclicLR(sgd(1, 1), kind(0.25), kind([0.5, 0.75]), kind(4), base_momentum=kind(0.5))
    assert rates(got, 9, group=1) == rates(CyclicLR(sgd(1, 1), 0.25, [0.5, 0.75], 4), 9, group=1)
    assert {type(x) for x in (got.base_lr, *got.max_lr, got.step_size, got.base_momentum)} == {float}
    ramp = RangeTestLR(sgd(), kind(0.25), kind(0.5), kind(4))
    assert rates(ramp, 5) == rates(RangeTestLR(sgd(), 0.25, 0.5, 4), 5)
    assert type(ramp.state_dict()["iterations"]) is int
    assert rates(decay(sgd(), kind(0.25), kind(0.5), kind(4)), 5) == [0.5, 0.4375, 0.375, 0.3125, 0.25]
    assert rates(fixed(sgd(), kind(0.5), (2,), kind(0.5)), 3) == [0.5, 0.5, 0.25]
    assert rates(exponential(sgd(), kind(0.5), kind(0.5)), 3) == [0.5, 0.25, 0.125]


@pytest.mark.parametrize("mode", REFERENCES)
def test_a_cycle_may_start_from_nothing(mode):
    expected = [REFERENCES[mode](t, 0.0, 0.1, 5, 0.9) for t in range(25)]
    assert rates(CyclicLR(sgd(), 0, 0.1, 5, mode, 0.9), 25) == pytest.approx(expected, abs=1e-12)


def test_a_linear_ramp_may_start_at_nothing_and_a_fall_end_there():
    assert rates(RangeTestLR(sgd(), 0, 0.5, 4), 6) == [0, 0.125, 0.25, 0.375, 0.5, 0.5]
    assert rates(decay(sgd(), 0, 0.5, 4), 6) == [0.5, 0.375, 0.25, 0.125, 0, 0]
    with pytest.raises(ValueError, match=r"min_lr=0: an exponential ramp cannot start at 0, a linear one can"):
        RangeTestLR(sgd(), 0, 0.5, 4, "exponential")


def test_a_group_added_midway_takes_part_from_the_next_step():
    optimizer = sgd(1)
    cycle = CyclicLR(optimizer, 0.25, 0.5, 4)
    rates(cycle, 2)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr_mult": 2.0, "lr": 0.125})
    assert rates(cycle, 3, group=1) == [0.125, 0.875, 1.0]
    assert cycle.get_last_lr() == [0.4375, 0.875]


def test_a_group_added_midway_to_bounds_of_groups_needs_bounds_of_its_own():
    optimizer = sgd(1)
    scheduler = CyclicLR(optimizer, [0.25], [0.5], 4, cycle_momentum=True, base_momentum=[0.5])
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
    with pytest.raises(ValueError, match="base_lr has 1 values, the optimizer has 2 parameter groups"):
        rates(scheduler, 1)
    scheduler.reset(base_lr=[0.25, 0.5], max_lr=1, base_momentum=0.25)
    assert rates(scheduler, 3, group=1) == [0.5, 0.625, 0.75]


@every(
    "make",
    [
        CyclicLR,
        lambda optimizer: RangeTestLR(optimizer, 0.001, 0.006, 15),
        lambda optimizer: decay(optimizer, 0.001, 0.006, 7),
        lambda optimizer: exponential(optimizer, 0.1, 0.99),
        fixed,
        lambda optimizer: set_lr(optimizer, 0.1),
    ],
)
def test_what_is_no_optimizer_is_refused(make):
    with pytest.raises(TypeError, match="^optimizer must be a torch optimizer, not Linear$"):
        make(torch.nn.Linear(1, 1))


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


@pytest.mark.parametrize("mode", ["custom", None, "exp_range_both", "triangular2"])
def test_a_scale_function_goes_before_the_mode_as_in_torch(mode):
    def scale(cycle):
        return 0.9**cycle

    ours = CyclicLR(sgd(), 0.1, 1.0, 4, mode, scale_fn=scale)
    theirs = torch.optim.lr_scheduler.CyclicLR(sgd(), 0.1, 1.0, 4, mode=mode, scale_fn=scale, cycle_momentum=False)
    assert rates(ours, 30) == pytest.approx(rates(theirs, 30), abs=1e-12)
    again = CyclicLR(sgd(), 0.1, 1.0, 4, scale_fn=scale)
    again.load_state_dict(ours.state_dict())
    assert rates(again, 30) == rates(ours, 30)


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


@given(ends=st.lists(RATES, min_size=2, max_size=2, unique=True), count=STEPS)
@settings(max_examples=30)
def test_range_test_ramps(ends, count):
    low, high = sorted(ends)
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


def test_no_warning_in_normal_use():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rates(CyclicLR(sgd(), 0.001, 0.006, 5), 10)


def test_warnings_name_the_line_that_called_as_torchs_do():
    theirs = torch.optim.lr_scheduler.CyclicLR(sgd(), 0.1, 1.0, 4, cycle_momentum=False)
    told = []
    for scheduler in (theirs, CyclicLR(sgd(), 0.1, 1.0, 4)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            scheduler.step()  # before the optimizer's
            scheduler.step(3)
        told.append([(each.category, each.filename, each.lineno, str(each.message)[:60]) for each in caught])
    assert told[0] == told[1]
    assert {filename for _, filename, *_ in told[1]} == {__file__}
    assert len(told[1]) == 2


@pytest.mark.parametrize(
    ("lr", "message"),
    [
        ([0.1], "lr has 1 values, the optimizer has 2 parameter groups"),
        ([0.1, 0.2, 0.3], "lr has 3 values, the optimizer has 2 parameter groups"),
        ([0.1, float("nan")], "lr must be a positive number or 0, not nan"),
        ([0.1, "0.2"], "lr must be a positive number or 0, not '0.2'"),
        (-0.1, "lr must be a positive number or 0, not -0.1"),
    ],
)
def test_a_rate_that_cannot_be_set_changes_no_group(lr, message):
    optimizer = sgd(1, 2)
    before = [dict(group) for group in optimizer.param_groups]
    with pytest.raises(ValueError, match=f"^{message}$"):
        set_lr(optimizer, lr)
    assert optimizer.param_groups == before


@pytest.mark.parametrize("around", [lambda inner: WarmedUp(inner, 4), lambda inner: Annealed(inner, 2, 4)])
def test_a_scheduler_around_another_hands_on_metrics_and_refuses_what_counts_no_steps(around):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=torch.tensor([0.1]))
    scheduler = around(ReduceLROnPlateau(optimizer, factor=0.5, patience=0))
    for loss in (1.0, 2.0, 3.0):
        optimizer.step()
        scheduler.step(metrics=loss)
    assert scheduler.scheduler.get_last_lr() == [pytest.approx(0.025)]
    assert scheduler.get_last_lr() == [pytest.approx(0.025 * scheduler.factor(3))]
    cycle = around(CyclicLR(optimizer, 0.1, 0.2, 5))
    optimizer.step()
    cycle.step(metrics={"loss": 2.0})
    assert cycle.scheduler.history == {"iteration": [0], "lr": [0.1], "loss": [2.0]}
    with pytest.raises(TypeError, match="must be a torch scheduler with a last_epoch, not ChainedScheduler"):
        around(ChainedScheduler([fixed(optimizer)]))


@pytest.mark.parametrize("around", [lambda inner: WarmedUp(inner, 4), lambda inner: Annealed(inner, 2, 4)])
def test_a_scheduler_around_another_says_what_it_cannot_go_on_from(around):
    optimizer = sgd(1)
    scheduler = around(CyclicLR(optimizer))
    before = scheduler.state_dict()
    with pytest.raises(ValueError, match="the state is of another scheduler"):
        scheduler.load_state_dict(CyclicLR(sgd(1)).state_dict())
    assert scheduler.state_dict() == before
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
    with pytest.raises(ValueError, match="the optimizer has 2 parameter groups, and had 1 when .* make the scheduler"):
        scheduler.step()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        *(
            (dict(lr_mult=bad), "lr_mult of the optimizer's group 1 must be a")
            for bad in (None, "2", -1.0, float("nan"))
        ),
        (dict(lr_scale=float("inf")), "lr_scale of the optimizer's group 1 must be a"),
        (dict(lr=torch.tensor(1)), r"the optimizer's group 1 has lr=tensor\(1\): a tensor of floats is needed"),
    ],
)
def test_a_group_that_no_rate_can_be_set_in_is_refused_and_none_is_changed(changed, message):
    optimizer = sgd(1, 2)
    optimizer.param_groups[1].update(changed)
    before = [dict(group) for group in optimizer.param_groups]
    model = torch.nn.Module()
    model.own = torch.nn.ParameterList(p for group in optimizer.param_groups for p in group["params"])
    for use in (
        lambda: set_lr(optimizer, 0.5),
        lambda: CyclicLR(optimizer),
        lambda: fixed(optimizer),
        lambda: apply_rate(optimizer, 0.5),
        lambda: range_test(model, optimizer, torch.nn.MSELoss(), [0]),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            use()
        assert "\n" not in str(refused.value)
        assert [dict(group) for group in optimizer.param_groups] == before


def test_a_rate_set_under_a_scheduler_is_told_and_one_set_before_is_not():
    """It holds until the next step, at the most: OneCycleLR, for one, has rates of its own."""
    optimizer = sgd()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        set_lr(optimizer, 0.1)
        CyclicLR(optimizer, 0.1, 0.2, 4)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=10)
    with pytest.warns(UserWarning, match="a scheduler that was made before goes on from its own rates") as told:
        set_lr(optimizer, 0.1)
    assert told[0].filename == __file__


@every("last_epoch", [-5, -2, 3.5, True, "1", None, float("nan")])
@every("make", [CyclicLR, lambda optimizer, **given: RangeTestLR(optimizer, 0.1, 0.2, 5, **given)])
def test_what_is_no_iteration_to_go_on_from_is_refused(make, last_epoch):
    optimizer = sgd()
    before = dict(optimizer.param_groups[0])
    with pytest.raises(ValueError, match="^last_epoch must be a whole number from -1 on, not "):
        make(optimizer, last_epoch=last_epoch)
    assert optimizer.param_groups[0] == before


@every("factor", [float("nan"), float("inf"), None, "1"])
def test_a_scale_function_that_gives_no_number_is_told_before_its_rate_is_used(factor):
    scheduler = CyclicLR(sgd(), 0.1, 0.2, 2, scale_fn=lambda cycle: 1 if cycle < 2 else factor)
    with pytest.raises(ValueError, match="^scale_fn must give a finite number, not .* for 2$"):
        rates(scheduler, 10)
    assert scheduler.optimizer.param_groups[0]["lr"] == pytest.approx(0.15)


def test_a_scale_function_that_makes_a_rate_negative_is_told_before_it_is_used():
    scheduler = CyclicLR(sgd(), 0.1, 1.0, 2, scale_fn=lambda cycle: 2 - cycle)  # falls by the same amount, for ever
    with pytest.raises(ValueError, match="^scale_fn must not make a rate negative: -1 gives -0.35, which climbs the"):
        rates(scheduler, 20)
    assert scheduler.optimizer.param_groups[0]["lr"] == 0.1
    below = CyclicLR(sgd(), 0.5, 1.0, 2, scale_fn=lambda cycle: -math.sin(math.pi * cycle) - 0.5)  # below the base only
    assert min(rates(below, 20)) == pytest.approx(0.25)


@pytest.mark.parametrize("epoch", [2.3, torch.tensor(2.3), {"loss": 2.3}])
def test_what_is_no_epoch_is_refused_with_how_metrics_are_given(epoch):
    scheduler = CyclicLR(sgd(), 0.1, 1.0, 4)
    with pytest.raises(ValueError, match="^epoch must be a whole number, not .*; metrics are given by name: metrics="):
        scheduler.step(epoch)
    assert scheduler.last_epoch == 0


def test_one_rate_for_groups_that_had_several_is_told():
    two, others = torch.nn.Linear(2, 2), [torch.nn.Linear(2, 2) for _ in range(2)]

    def fresh():
        groups = [{"params": two.parameters(), "lr": 0.001}, {"params": others[0].parameters()}]
        return torch.optim.SGD(groups, lr=0.1)

    for make in (
        lambda optimizer: CyclicLR(optimizer, 0.1, 1.0, 4),
        lambda optimizer: RangeTestLR(optimizer, 0.1, 0.2, 5),
        lambda optimizer: fixed(optimizer, 0.1, (5,)),
        lambda optimizer: exponential(optimizer, 0.1, 0.9),
        lambda optimizer: decay(optimizer, 0.1, 0.2, 5),
        lambda optimizer: set_lr(optimizer, 0.1),
    ):
        with pytest.warns(UserWarning, match="get one rate now, where they had 0.001, 0.1: to keep") as told:
            make(fresh())
        assert [each.filename for each in told] == [__file__]
    optimizer = fresh()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CyclicLR(optimizer, [0.001, 0.1], [0.01, 1.0], 4)
        optimizer.add_param_group({"params": others[1].parameters(), "lr_mult": 10.0, "lr": 3.0})
        CyclicLR(optimizer, [0.001, 0.1, 0.1], 1.0, 4)
        optimizer.param_groups[0]["lr"] = 0.1
        CyclicLR(optimizer, 0.1, 1.0, 4)


@every(
    "make",
    [
        lambda optimizer: CyclicLR(optimizer, 0.1, 0.3, 5),
        lambda optimizer: RangeTestLR(optimizer, 0.1, 0.2, 5),
        lambda optimizer: fixed(optimizer, 0.1, (5,)),
        lambda optimizer: exponential(optimizer, 0.1, 0.9),
        lambda optimizer: decay(optimizer, 0.1, 0.2, 5),
        lambda optimizer: WarmedUp(CyclicLR(optimizer, 0.1, 0.3, 5), 3),
    ],
    ids=["cycle", "ramp", "fixed", "exponential", "decay", "warmed up"],
)
def test_both_multipliers_of_a_group_multiply_its_rate_in_every_scheduler(make):
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    groups = [{}, {"lr_scale": 0.5}, {"lr_scale": 0.5, "lr_mult": 4.0}]
    groups = [{"params": [each], **group} for each, group in zip(parameters, groups, strict=True)]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    scheduler = make(optimizer)
    for _ in range(7):
        optimizer.step()
        scheduler.step()
        own, scaled, both = (group["lr"] for group in optimizer.param_groups)
        assert own > 0
        assert (scaled, both) == pytest.approx((0.5 * own, 2 * own))


def test_a_ramp_does_not_go_on_from_another_scheduler_s_state():
    ramp = RangeTestLR(sgd(), 0.1, 0.2, 5)
    rates(ramp, 3)
    again = RangeTestLR(sgd(), 0.5, 0.6, 7)
    before = again.state_dict()
    for other in (CyclicLR(sgd()), exponential(sgd(), 0.1, 0.9), fixed(sgd())):
        with pytest.raises(ValueError, match="^the state is of another scheduler: it has no "):
            again.load_state_dict(other.state_dict())
        assert again.state_dict() == before
    again.load_state_dict(ramp.state_dict())
    assert rates(again, 4)[1:] == rates(ramp, 4)[1:]  # as torch's: the optimizer's own state has the present rate


def test_reset_starts_a_new_first_cycle_and_history_goes_on():
    scheduler = CyclicLR(sgd(), 0.001, 0.008, 10, mode="triangular2")
    first = rates(scheduler, 25)
    scheduler.reset(max_lr=0.004, step_size=5)
    second = rates(scheduler, 10)
    assert second == pytest.approx([REFERENCES["triangular2"](t, 0.001, 0.004, 5, 1) for t in range(10)])
    assert scheduler.history["iteration"] == list(range(35))
    assert scheduler.history["lr"] == pytest.approx(first + second)


@every(
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
        (dict(scale_fn=0.5), "scale_fn must be a function or one of sinusoidal, .*, not 0.5"),
        (dict(scale_fn=["sinusoidal"]), "scale_fn must be a function"),
        (dict(base_lr=0, max_lr=0), "max_lr must be a positive number, not 0"),
        (dict(base_lr=torch.tensor(float("inf"))), "base_lr must be a positive number or 0, not inf"),
        (dict(base_lr=[0.001, 0.002]), "base_lr has 2 values, the optimizer has 1 parameter groups"),
        (dict(base_lr=[0.02], max_lr=torch.tensor([0.01])), "base_lr=0.02, max_lr=0.0099"),
        (dict(max_lr=["0.1"]), "max_lr must be a positive number, not '0.1'"),
        (dict(step_size=100, step_size_up=50), "step_size=100 and step_size_up=50 are one thing: give one"),
        (dict(step_size_down=0), "step_size_down.*0"),
        (dict(base_momentum=0.95), "base_momentum must not exceed max_momentum: base_momentum=0.95, max_momentum=0.9"),
        (dict(max_momentum=1), "max_momentum must be below 1, not 1.0"),
        (dict(history_size=-1), "history_size must be a count or None, not -1"),
        (dict(history_size=True), "history_size must be a count or None, not True"),
    ],
)
def test_bad_arguments_are_named_with_their_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        CyclicLR(sgd(), **arguments)


def test_momentum_of_an_optimizer_without_one_cannot_cycle():
    optimizer = torch.optim.Adagrad([torch.nn.Parameter(torch.ones(1))], lr=0.5)
    with pytest.raises(ValueError, match="cycle_momentum: Adagrad has neither momentum nor betas"):
        CyclicLR(optimizer, cycle_momentum=True)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_bad_arguments_of_the_other_policies():
    with pytest.raises(ValueError, match=r"min_lr=0.1, max_lr=0.01"):
        RangeTestLR(sgd(), 0.1, 0.01, 100)
    with pytest.raises(ValueError, match="^min_lr must be below max_lr: min_lr=0.1, max_lr=0.1$"):
        RangeTestLR(sgd(), 0.1, 0.1, 100)
    with pytest.raises(ValueError, match="iterations.*0"):
        RangeTestLR(sgd(), 0.01, 0.1, 0)
    with pytest.raises(ValueError, match="ramp.*'steep'"):
        RangeTestLR(sgd(), 0.01, 0.1, 10, "steep")
    with pytest.raises(ValueError, match="milestones"):
        fixed(sgd(), 0.1, (8, 6))
    with pytest.raises(ValueError, match="gamma"):
        exponential(sgd(), 0.1, -1)


def test_groups_that_share_a_tensor_as_their_rate_get_rates_of_their_own():
    """torch's constructor puts one tensor into every group; filled for one, it would be the others' rate, too."""

    def optimizer():
        weights = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr_mult": mult} for mult in (1.0, 0.1)]
        return torch.optim.SGD(weights, lr=torch.tensor(0.1))

    def now(made):
        return pytest.approx([float(group["lr"]) for group in made.param_groups])

    made = optimizer()
    scheduler = CyclicLR(made, 0.01, 0.2, 5)
    for expected in (scheduler.lr_at(0), scheduler.lr_at(1)):
        assert now(made) == [expected, expected / 10]
        made.step()
        scheduler.step()
    made = optimizer()
    set_lr(made, 1.0)
    assert now(made) == [1.0, 0.1]
