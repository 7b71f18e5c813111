"""What trainings on a user's own data say: the rate, the schedule, and how sure both are."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd

from modules.data.datasets import Dataset
from modules.data.splits import Split
from modules.models import label
from modules.rate_finders.bracket import Tried
from modules.report.formatting import show
from modules.report.tables import TABLE_COLUMNS, by_policy, final_accuracies, final_difference, mean_row, table_of
from modules.runs.spec import Spec
from modules.statistics import AnalysisError

#: Of schedules that nothing tells apart the first is advised, a choice: its only number is its rate, and it ends low.
PREFERENCE = ("linear", "cycle", "constant")

#: What is said of a schedule beside another.
LOWER, ALIKE, ONE_RUN = "ends lower", "is not told from it", "has one run"
FAILED = "is no choice: runs diverged, or learnt nothing"

IN_WORDS = {
    "constant": "Hold the rate constant at {0:.3g}",
    "linear": "Let the rate fall in a straight line from {0:.3g} to zero",
    "cycle": "Let the rate cycle between {1:.3g} and {0:.3g}, four whole cycles",
}
#: Each schedule in torch's own words; `{0}` is a quarter of its rate.
IN_TORCH = {
    "linear": "LinearLR(optimizer, 1.0, 0.0, total_iters=iterations)",
    "cycle": "CyclicLR(optimizer, {0}, {1}, step_size_up=iterations // 8, cycle_momentum=False)",
}
OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop"}


class Images(NamedTuple):
    """What is known of the images that trainings are judged on.

    Attributes:
        deciding: how many choose rate and schedule.
        majority: the largest class's share of them.
        tested: how many others are read once, at the end, and choose nothing.
    """

    deciding: int
    majority: float
    tested: int


def judged(data: Dataset, divided: Split) -> Images:
    """The images of a data set that decide, and those that are only reported; a folder's held-out images decide."""
    deciding = divided.validation_labels if len(divided.validation) else divided.test_labels
    largest = np.bincount(divided.labels[divided.train], minlength=len(data.classes)).argmax()
    return Images(len(deciding), float(np.mean(deciding == largest)), 0 if data.held_out else len(divided.test_labels))


def described(data: Dataset, divided: Split, images: Images) -> str:
    """What a data set's images are, how they are divided, whether the classes are unequal."""
    counts = np.bincount(divided.labels[divided.train], minlength=len(data.classes))
    size = f"{data.size} x {data.size} pixels, {'grey' if data.channels == 1 else 'in colour'}"
    shown = ", ".join(f"{name}: {count:,}" for name, count in zip(data.classes, counts, strict=True))
    said = f"{data.label}: {counts.sum():,} images train, {images.deciding:,} others decide; {size}. To train: {shown}."
    if counts.max() > 2 * counts.min():
        largest = data.classes[counts.argmax()]
        said += f" The classes are unequal: always naming {largest!r} is right in {images.majority:.0%}."
    if data.validation_labels is not None:
        said += " Those of the folder for validation decide."
    return " ".join([said, *data.notes])


def results(found: Mapping[str, Tried], trained: pd.DataFrame, images: Images) -> pd.DataFrame:
    """The rate of each schedule, where its trainings end, and by how much these differ, as a table of results.

    Args:
        found: by schedule.
        trained: the trainings, a policy for each schedule; as `tables.read_runs` gives them.
        images: that they are judged on.
    """
    chosen, best = deciding_only(trained), advised(trained, images)
    rates = table_of(
        {
            "quantity": "lr",
            "policy": schedule,
            "value": tried.rate,
            "low": tried.low,
            "high": tried.high,
            "method": "tried",
            "note": "advised" if schedule == best else None,
        }
        for schedule, tried in found.items()
    )
    parts = [rates, by_policy(chosen, ("iterations", "final_accuracy"))]
    parts.append(table_of(final_difference(chosen, a, b) for a, b in combinations(PREFERENCE, 2)))
    if images.tested:
        tested = by_policy(trained, ("final_accuracy",))
        parts.append(tested.assign(quantity="accuracy", note="of test images, which chose nothing"))
    known = [part.dropna(axis=1, how="all") for part in parts]
    return pd.concat(known, ignore_index=True).reindex(columns=TABLE_COLUMNS)


def summary(found: Mapping[str, Tried], trained: pd.DataFrame, images: Images) -> pd.DataFrame:
    """The schedules beside each other, for the eye, the advised one first; arguments as for `results`."""
    chosen, best = deciding_only(trained), advised(trained, images)
    rows = []
    for schedule in [best, *(other for other in PREFERENCE if other != best)]:
        tried, less = found[schedule], final_difference(chosen, schedule, best)
        row = {
            "schedule": schedule,
            "rate": f"{tried.rate:.3g}",
            "the best is probably": tried.where,
        }
        for name, runs in {"images that chose": chosen, **({"test images": trained} if images.tested else {})}.items():
            end = mean_row(final_accuracies(runs, schedule), 0, 1)
            row[f"accuracy, {name} [95 %]"] = show("final_accuracy", end["value"], end["low"], end["high"])
        by = show("final_accuracy_difference", less["value"], less["low"], less["high"])
        row[f"less {best}"] = "" if schedule == best else by
        rows.append(row)
    return pd.DataFrame(rows)


def deciding_only(trained: pd.DataFrame) -> pd.DataFrame:
    """The trainings without what test images say, which must choose nothing."""
    return trained.assign(test_acc=np.nan)


def learnt_nothing(trained: pd.DataFrame, arm: str, images: Images) -> bool:
    """Whether a run of a schedule ended no better than always naming the largest class.

    A mean over such runs has so wide an interval that nothing is told from it.
    """
    return bool((final_accuracies(deciding_only(trained), arm) <= images.majority).any())


def advised(trained: pd.DataFrame, images: Images) -> str:
    """The schedule to take: the best mean, unless an earlier one of `PREFERENCE` is not told from it.

    One with a run that learnt nothing is taken only where all have such a run; one with a run that diverged never.

    Args:
        trained: the trainings, a policy for each schedule; as `tables.read_runs` gives them.
        images: that accuracies are of.

    Raises:
        AnalysisError: every schedule has runs that diverged.
    """
    trained = deciding_only(trained)
    stable = [arm for arm in PREFERENCE if not trained[trained.policy == arm].diverged.any()]
    stable = [arm for arm in stable if not learnt_nothing(trained, arm, images)] or stable
    if not stable:
        raise AnalysisError(
            "every schedule has runs that diverged at the best rate that was tried: look at the data and the network"
        )
    best = max(stable, key=lambda arm: final_accuracies(trained, arm).mean())
    return next(arm for arm in stable if arm == best or compared(trained, arm, best, images) != LOWER)


def compared(trained: pd.DataFrame, arm: str, best: str, images: Images) -> str:
    """What is said of a schedule beside another: one of `LOWER`, `ALIKE`, `FAILED`, `ONE_RUN`.

    It ends lower where the whole interval of the difference lies more than one of the deciding images below zero: runs
    that end alike have an interval without width.

    Args:
        trained, images: as for `advised`.
        arm, best: the schedules.
    """
    worse = learnt_nothing(trained, arm, images) and not learnt_nothing(trained, best, images)
    if worse or trained[trained.policy == arm].diverged.any():
        return FAILED
    high = final_difference(deciding_only(trained), arm, best)["high"]
    if np.isnan(high):
        return ONE_RUN
    return LOWER if round(high * images.deciding, 6) < -1 else ALIKE


def in_torch(schedule: str, rate: float, run: Spec, groups: bool = False) -> str:
    """Optimizer and scheduler of a training as torch's own lines.

    Args:
        schedule, rate: what is advised.
        run: a training with it.
        groups: whether the network has parameter groups of its own, whose rates keep their ratios.
    """
    parameters, given = "model.parameters()", [f"weight_decay={run.weight_decay:g}"]
    if run.optimizer in ("sgd", "rmsprop") and run.momentum:
        given.insert(0, f"momentum={run.momentum:g}")
    low, high = f"{rate / 4:.4g}", f"{rate:.3g}"
    lines = [f"iterations = {run.iterations}  # of {run.batch_size} images each"]
    if groups:
        times = f'{rate:.3g} * group.get("lr_mult", 1.0)'
        parameters = "groups"
        lines.append(f'groups = [group | {{"lr": {times}}} for group in model.parameter_groups()]')
        high = '[group["lr"] for group in groups]'
        low = '[group["lr"] / 4 for group in groups]'
    given = ", ".join([parameters, f"lr={rate:.3g}", *given])
    lines.append(f"optimizer = torch.optim.{OPTIMIZERS[run.optimizer]}({given})")
    if schedule in IN_TORCH:
        lines.append(f"scheduler = torch.optim.lr_scheduler.{IN_TORCH[schedule].format(low, high)}")
        lines.append("# after every batch: optimizer.step(), then scheduler.step()")
    return "\n".join(lines)


def answer(
    found: Mapping[str, Tried],
    trained: pd.DataFrame,
    run: Spec,
    images: Images,
    spent: Mapping[str, Sequence[pd.DataFrame]],
    groups: bool = False,
) -> str:
    """What to do, and how sure that is, as Markdown.

    Args:
        found, trained, images: as for `results`.
        run: one of the trainings.
        spent: tables of all runs on the way, each as `tables.read_runs` gives it, by what they were for.
        groups: as for `in_torch`.

    Raises:
        AnalysisError: as `advised`.
    """
    arm = advised(trained, images)
    tried = found[arm]
    said = []
    ends = final_accuracies(deciding_only(trained), arm)
    reached = mean_row(ends, 0, 1)
    if not (reached["low"] if len(ends) > 1 else reached["value"]) > images.majority:
        said.append(
            f"**That anything was learnt is not sure.** Always naming the largest class is right in "
            f"{images.majority:.1%}, and the accuracy is not clear of that. More runs may settle it; else look at the "
            "data and the network first."
        )
    what = IN_WORDS[arm].format(tried.rate, tried.rate / 4)
    said.append(f"**{what}.** The best rate for this is probably {tried.where}.")
    said.append(f"```python\n{in_torch(arm, tried.rate, run, groups)}\n```")
    said.append(" ".join(["**How good that is.**", _reached(ends), *_judged_by(trained, arm, images)]))
    said.append(" ".join(["**How sure the schedule is.**", *_others(found, trained, arm, images)]))
    said.append(" ".join(filter(None, ["**What it is for.**", _used_for(run), tried.note])))
    last = {
        part: pd.concat([runs.groupby(["policy", "seed"]).tail(1) for runs in lists]) for part, lists in spent.items()
    }
    cost = {part: int(runs.iteration.sum()) for part, runs in last.items()}
    shown = ", ".join(f"{part} {count:,}" for part, count in cost.items())
    seconds = sum(runs.seconds.sum() for runs in last.values())
    took = f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.1f} minutes"
    said.append(f"**What it cost.** {sum(cost.values()):,} iterations ({shown}), {took} if one after another.")
    return "\n\n".join(said)


def _reached(ends: pd.Series) -> str:
    alike = len(ends) > 1 and ends.nunique() == 1  # an interval without width would say too much
    row = mean_row(ends, 0, 1)
    shown = show("final_accuracy", row["value"], *(() if alike else (row["low"], row["high"])))
    return f"{f'{len(ends)} runs' if len(ends) > 1 else 'One run'}{' all' if alike else ''} ended at {shown}"


def _judged_by(trained: pd.DataFrame, arm: str, images: Images) -> list[str]:
    said = [f"of {images.deciding:,} images that did not train; one image is {100 / images.deciding:.2g} points."]
    if images.tested:
        tested = _reached(final_accuracies(trained, arm)).partition(" ended at ")[2]
        return [*said, f"These images chose. Of {images.tested:,} test images, which chose nothing: {tested}."]
    return [*said, "These images also chose rate and schedule: expect a little less of new ones."]


def _others(found: Mapping[str, Tried], trained: pd.DataFrame, arm: str, images: Images) -> list[str]:
    said, alike = [], False
    for other in (other for other in PREFERENCE if other != arm):
        row = final_difference(deciding_only(trained), other, arm)
        verdict = compared(trained, other, arm, images)
        by = show("final_accuracy_difference", row["value"], row["low"], row["high"])
        name = f"{other.capitalize()} at {found[other].rate:.3g}"
        said.append(f"{name} {verdict}{'' if verdict == FAILED else f': {by}'}.")
        alike = alike or verdict in (ALIKE, ONE_RUN)
    if alike:
        said.append(
            "Of schedules that are not told apart, linear is advised before cycle, and cycle before constant. That is "
            "a choice, and no finding: a line has no other number than its rate, and ends low."
        )
    return said


def _used_for(run: Spec) -> str:
    return (
        f"{label(run.model)}, {run.iterations:,} iterations of {run.batch_size} images. A training of another length "
        "has another best rate, a longer one most often a lower one; the parameter `epochs` finds it."
    )
