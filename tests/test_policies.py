"""Phases: policies one after another, on parameter groups, through a resume."""

import pytest
import torch
from toys import FIXED, TRIANGULAR, small

from modules.checks import RunError
from modules.policies import make_scheduler
from modules.runs.spec import Spec
from modules.runs.training import train

# The paper's Table 2, shortened; the second phase's own cuts are counted from its start.
PARTS = [
    dict(iterations=10, policy=dict(name="triangular2", base_lr=0.01, max_lr=0.05, step_size=2)),
    dict(iterations=6, policy=dict(name="fixed", lr=0.004, milestones=(2, 4))),
    dict(iterations=4, policy=dict(name="decay", base_lr=0.001, max_lr=0.002, step_size=2)),
    dict(iterations=4, policy=dict(name="exp", lr=0.001, gamma=0.5)),
]
PHASES = dict(name="phases", phases=PARTS)


def rates(policy, iterations, multipliers=(1, 2)):
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr_mult": factor} for factor in multipliers]
    optimizer = torch.optim.SGD(groups, lr=1)
    scheduler = make_scheduler(policy, optimizer, iterations)
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


@pytest.mark.parametrize("stop", [6, 12, 18])
def test_phases_resume_bit_for_bit(tmp_path, stop):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    run = small(PHASES, bias_lr_mult=2.0)
    train(run, parts, stop_after=stop)
    assert not list(parts.glob("*.csv"))
    assert train(run, parts).read_bytes() == train(run, whole).read_bytes()


def test_phases_that_do_not_add_up_are_named():
    with pytest.raises(RunError, match="phases last 24 iterations together, the run iterations=30"):
        small(PHASES, iterations=30)
    with pytest.raises(RunError, match="step_sise=2: no such setting of policy name='triangular2', did you mean"):
        small(dict(name="phases", phases=[dict(iterations=12, policy={**PARTS[0]["policy"], "step_sise": 2})] * 2))
    with pytest.raises(RunError, match="gamma=0"):
        small(dict(name="phases", phases=[*PARTS[:3], dict(iterations=4, policy=dict(name="exp", lr=0.1, gamma=0))]))


def test_a_spec_with_phases_survives_json():
    run = small(PHASES)
    assert Spec(**run.model_dump(mode="json")) == run


def test_a_variant_names_the_run_and_changes_no_result(tmp_path):
    plain, named = small(FIXED), small(FIXED, variant="constant")
    assert (plain.name, named.name) == ("fixed-seed1", "constant-seed1")
    assert train(plain, tmp_path).read_bytes() == train(named, tmp_path).read_bytes()
    for bad in ("a/b", "", "Größe", "a b"):
        with pytest.raises(RunError, match="variant="):
            small(TRIANGULAR, variant=bad)
