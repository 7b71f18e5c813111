"""The policy that a run's spec names, as a torch scheduler."""

from itertools import accumulate

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, SequentialLR

from modules import schedulers
from modules.runs.spec import Policy


def make_scheduler(policy: Policy, optimizer: Optimizer, iterations: int) -> LRScheduler:
    """A policy on an optimizer, whose groups may have an `lr_mult`.

    Args:
        policy: as in a `runs.Spec`.
        optimizer: its rates are set at once.
        iterations: length of the run, which a range test fills.
    """
    if policy.name == "phases":
        parts = [make_scheduler(phase.policy, optimizer, phase.iterations) for phase in policy.phases]
        # Each policy set the optimizer's rates to its own; SequentialLR starts from these.
        for group, lr in zip(optimizer.param_groups, parts[0].base_lrs, strict=True):
            group["initial_lr"] = lr
        ends = list(accumulate(phase.iterations for phase in policy.phases))
        return SequentialLR(optimizer, parts, milestones=ends[:-1])
    settings = policy.model_dump(exclude={"name"})
    if policy.name == "fixed":
        return schedulers.fixed(optimizer, **settings)
    if policy.name == "decay":
        return schedulers.decay(optimizer, **settings)
    if policy.name == "exp":
        return schedulers.exponential(optimizer, **settings)
    if policy.name == "range_test":
        settings.pop("stop_factor")
        return schedulers.RangeTestLR(optimizer, iterations=iterations, **settings)
    if policy.name == "custom":
        return schedulers.CyclicLR(optimizer, **settings)
    return schedulers.CyclicLR(optimizer, mode=policy.name, **settings)
