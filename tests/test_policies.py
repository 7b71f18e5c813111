"""The registry of policies: their rates on parameter groups, phases, anneals, through a resume."""

import math
from typing import Literal

import pytest
import torch
from toys import FIXED, PHASES, TRIANGULAR, small

from modules import policies, schedulers
from modules.checks import RunError
from modules.runs.spec import Spec
from modules.runs.training import train

PARTS = PHASES["phases"]


def rates(policy, iterations, multipliers=(1, 2)):
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr_mult": factor} for factor in multipliers]
    optimizer = torch.optim.SGD(groups, lr=1)
    scheduler = policy.scheduler(optimizer, iterations)
    out = []
    for _ in range(iterations):
        assert scheduler.get_last_lr() == [group["lr"] for group in optimizer.param_groups]
        out.append(scheduler.get_last_lr())
        optimizer.step()
        scheduler.step()
    return torch.tensor(out, dtype=torch.float64)


def test_phases_are_their_policies_one_after_another_in_every_parameter_group():
    got = rates(small(PHASES).policy, 24)
    parts = [rates(small(part["policy"]).policy, part["iterations"]) for part in PARTS]
    assert torch.allclose(got, torch.cat(parts), rtol=1e-12, atol=0)
    by_hand = [0.01, 0.03, 0.05, 0.03, 0.01, 0.02, 0.03, 0.02, 0.01, 0.015, 0.004, 0.004, 0.0004, 0.0004, 4e-05, 4e-05]
    by_hand += [0.002, 0.0015, 0.001, 0.001, 0.001, 0.0005, 0.00025, 0.000125]
    assert got[:, 0].tolist() == pytest.approx(by_hand, rel=1e-12)
    assert (got[:, 1] == 2 * got[:, 0]).all()


def test_a_warm_up_that_outlasts_the_run_is_refused():
    assert small({**FIXED, "warm_up": 24}).policy.warm_up == 24
    with pytest.raises(RunError, match="warm_up=25 exceeds the run's iterations=24"):
        small({**FIXED, "warm_up": 25})


def test_phases_that_do_not_add_up_are_named():
    with pytest.raises(RunError, match="phases last 24 iterations together, the run iterations=30"):
        small(PHASES, iterations=30)
    with pytest.raises(RunError, match="step_sise=2: no such setting of policy name='triangular2', did you mean"):
        small(dict(name="phases", phases=[dict(iterations=12, policy={**PARTS[0]["policy"], "step_sise": 2})] * 2))
    with pytest.raises(RunError, match="gamma=0"):
        small(dict(name="phases", phases=[*PARTS[:3], dict(iterations=4, policy=dict(name="exp", lr=0.1, gamma=0))]))


def test_a_variant_names_the_run_and_changes_no_result(tmp_path):
    plain, named = small(FIXED), small(FIXED, variant="constant")
    assert (plain.name, named.name) == ("fixed-seed1", "constant-seed1")
    assert train(plain, tmp_path).read_bytes() == train(named, tmp_path).read_bytes()
    for bad in ("a/b", "", "Größe", "a b"):
        with pytest.raises(RunError, match="variant="):
            small(TRIANGULAR, variant=bad)


LR = 0.08


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (dict(name="linear", lr=LR), [LR * (1 - t / 24) for t in range(24)]),
        (
            dict(name="cosine_restarts", lr=LR, period=6),
            [LR * (1 + math.cos(math.pi * (t % 6) / 6)) / 2 for t in range(24)],
        ),
    ],
)
def test_the_formulas_of_policies_from_torch(policy, expected):
    got = rates(small(policy).policy, 24)
    assert got[:, 0].tolist() == pytest.approx(expected, rel=1e-9)
    assert got[:, 1].tolist() == pytest.approx([2 * lr for lr in expected], rel=1e-9)


def test_one_cycle_rises_to_its_bound_and_falls_to_almost_nothing():
    got = rates(small(dict(name="one_cycle", max_lr=LR)).policy, 100)[:, 0]
    assert got.max().item() == pytest.approx(LR, rel=1e-2)
    assert got.argmax().item() == pytest.approx(29, abs=1)
    assert got[-1] < LR / 1000


@pytest.mark.parametrize(
    "policy",
    [
        FIXED,
        TRIANGULAR,
        dict(name="exp", lr=0.1, gamma=0.9),
        dict(name="cosine_restarts", lr=LR, period=6),
        dict(name="one_cycle", max_lr=LR),
        dict(name="linear", lr=LR),
        PHASES,
    ],
    ids=lambda policy: policy["name"],
)
def test_a_warm_up_is_a_straight_line_from_a_quarter_and_an_anneal_one_to_zero(policy):
    def shaped(**shape):
        return rates(small({**policy, **shape}).policy, 24)

    plain, warm = shaped(), shaped(warm_up=8)
    climb = torch.tensor([min(1.0, 0.25 + 0.75 * t / 8) for t in range(24)], dtype=torch.float64)[:, None]
    drop = torch.tensor([min(1.0, (24 - t) / 6) for t in range(24)], dtype=torch.float64)[:, None]
    torch.testing.assert_close(warm, plain * climb, rtol=1e-9, atol=0)
    torch.testing.assert_close(shaped(anneal=0.25), plain * drop, rtol=1e-9, atol=0)
    torch.testing.assert_close(shaped(warm_up=8, anneal=0.25), plain * climb * drop, rtol=1e-9, atol=0)
    assert (warm[8:] == plain[8:]).all()


def test_a_policy_says_whether_its_rates_depend_on_the_runs_length():
    settings = {
        **{name: dict(name=name, base_lr=0.01, max_lr=0.1, step_size=6) for name in ("triangular", "decay")},
        "custom": dict(name="custom", base_lr=0.01, max_lr=0.1, step_size=6, scale_fn="sinusoidal"),
        "fixed": FIXED,
        "exp": dict(name="exp", lr=0.1, gamma=0.9),
        "linear": dict(name="linear", lr=LR),
        "cosine_restarts": dict(name="cosine_restarts", lr=LR, period=6),
        "one_cycle": dict(name="one_cycle", max_lr=LR),
        "range_test": dict(name="range_test", min_lr=0.01, max_lr=0.1),
    }
    names = {kind.model_fields["name"].default for kind in policies.POLICIES}
    assert set(settings) == names - {"phases"}  # whose lengths add up to the run's
    for name, policy in settings.items():
        policy = small({**policy, "warm_up": 3}).policy
        same = bool((rates(policy, 12) == rates(policy, 24)[:12]).all())
        assert policy.any_length == same, name


class Staircase(policies.PolicyBase):
    """A toy: half the rate every so many iterations."""

    name: Literal["staircase"] = "staircase"
    lr: policies.Rate
    every: policies.Count

    def unannealed(self, optimizer, iterations):
        schedulers.set_lr(optimizer, self.lr)
        return torch.optim.lr_scheduler.StepLR(optimizer, self.every, 0.5)


def test_a_policy_is_added_in_one_place(monkeypatch, tmp_path):
    stairs = dict(name="staircase", lr=0.1, every=6)
    with pytest.raises(RunError, match="unknown policy 'staircase'"):
        small(stairs)
    monkeypatch.setattr(policies, "POLICIES", (*policies.POLICIES, Staircase))
    assert Spec(**small(stairs).model_dump(mode="json")) == small(stairs)
    assert "0.0125," in train(small(stairs), tmp_path).read_text()
    assert policies.label("staircase") == "staircase"
    with pytest.raises(RunError, match="evry=6: no such setting of policy name='staircase', did you mean 'every'"):
        small(dict(name="staircase", lr=0.1, evry=6))
    with pytest.raises(RunError, match="a phase can be no range_test"):
        small(dict(name="phases", phases=[dict(iterations=12, policy=dict(name="range_test", min_lr=1, max_lr=2))] * 2))
