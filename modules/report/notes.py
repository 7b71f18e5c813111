"""Single numbers of a study's runs, each a row of a table: what texts quote besides the tables.

`quoted.py` says which ones. Every function here that is a `note` takes the row's name first, then arms.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from pathlib import Path

import numpy as np
import pandas as pd

from modules import statistics
from modules.range_test import best_rate, suggest_bounds
from modules.report import crossing as crossings
from modules.report.formatting import read_reference
from modules.report.tables import METHODS, best, curves, difference_of, mean_row, read_runs, row_of
from modules.runs.files import complete_runs
from modules.statistics import AnalysisError

Found = dict[str, object]


class Experiment:
    """The runs of one folder, read when a number first needs them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def runs(self) -> pd.DataFrame:
        """All of them, as `read_runs` gives them; what is said of them is the same wherever the folder lies."""
        try:
            return read_runs(self.folder)
        except AnalysisError as error:
            raise AnalysisError(str(error).replace(str(self.folder), self.folder.name)) from error

    def records(self, arm: str = "*") -> list[dict]:
        """The JSON of each run, or of those of one arm."""
        found = complete_runs(self.folder, arm)
        if not found:
            raise AnalysisError(f"no run of {self.folder.name}")
        return [run.read()[1] for run in found]

    def curve(self, arm: str) -> pd.DataFrame:
        """An arm's accuracies `[iterations, runs]`."""
        return curves(self.runs, arm)

    def arms(self, *names: str) -> "list[Arm]":
        """Arms by their names."""
        return [Arm(self, name) for name in names]


class Theirs(Experiment):
    """Somebody else's runs, in a CSV with the columns `policy`, `run`, `iteration`, `val_acc`."""

    def curve(self, arm: str) -> pd.DataFrame:
        table = pd.read_csv(self.folder)
        return table[table.policy == arm].pivot(index="iteration", columns="run", values="val_acc")


@dataclass(frozen=True)
class Arm:
    """A policy or variant of an experiment, and where its accuracy is taken.

    Attributes:
        experiment: the runs.
        name: the arm's.
        where: of the evaluations whose mean is a run's accuracy, the iterations; the last one by default, or the best.
    """

    experiment: Experiment
    name: str
    where: str | tuple[int, ...] | slice = "end"

    def at(self, *iterations: int) -> "Arm":
        """The same arm, its accuracy the mean over these iterations."""
        return replace(self, where=iterations)

    def last(self, count: int) -> "Arm":
        """The same arm, its accuracy the mean over its last evaluations."""
        return replace(self, where=slice(-count, None))

    def at_best(self) -> "Arm":
        """The same arm, its accuracy each run's best."""
        return replace(self, where="best")

    @cached_property
    def curve(self) -> pd.DataFrame:
        """Accuracies `[iterations, runs]`."""
        return self.experiment.curve(self.name)

    @property
    def evaluations(self) -> list[int]:
        """The iterations of `where`.

        Raises:
            AnalysisError: the runs were not evaluated there.
        """
        index = self.curve.index.tolist()
        if self.where == "end":
            return index[-1:]
        if isinstance(self.where, slice):
            return index[self.where]
        if missing := [iteration for iteration in self.where if iteration not in index]:
            raise AnalysisError(f"not evaluated at {missing[0]}")
        return list(self.where)

    @property
    def values(self) -> pd.Series:
        """Accuracy, one number a run."""
        if self.where == "best":
            return best(self.curve)
        found = self.curve.loc[self.evaluations].mean()
        found.attrs = self.curve.attrs
        return found

    def setting(self, name: str) -> float:
        """A number among its policy's settings, or the `mean` of its bounds."""
        policy = self.experiment.records(self.name)[0]["spec"]["policy"]
        return (policy["base_lr"] + policy["max_lr"]) / 2 if name == "mean" else policy[name]


def note(quantity: str) -> Callable[[Callable[..., Found]], Callable[..., Found]]:
    """Make a function that finds a number one that makes a row of a table of notes.

    The row's function takes a name first, and may take a `note`. The name is the row's `policy`, by which markers find
    it: letters, digits, spaces, dots and - only. What the runs do not say has no value, and its note says why.

    Args:
        quantity: of `formatting.QUANTITIES`.
    """

    def decorate(find: Callable[..., Found]) -> Callable[..., Found]:
        @wraps(find)
        def row(name: str, *asked: object, note: str | None = None, **more: object) -> Found:
            about = {"quantity": quantity, "policy": name}
            try:
                found = find(*asked, **more)
            except (AnalysisError, KeyError, OSError) as error:
                return {**about, "note": f"not in these runs ({' '.join(str(error).split())})"}
            return {**found, **about, "note": note or found.get("note")}

        return row

    return decorate


@note("accuracy")
def accuracy(arm: Arm) -> Found:
    """Its mean, with Student's interval."""
    return {"runs": len(arm.values), **mean_row(arm.values, 0, 1)}


@note("accuracy")
def lowest_run(arm: Arm) -> Found:
    """The accuracy of its worst run."""
    return {"runs": len(arm.values), "value": arm.values.min(), "method": "lowest run"}


@note("accuracy_difference")
def difference(a: Arm, b: Arm, method: str = "welch", pooled: Sequence[Arm] = ()) -> Found:
    """The accuracy of one arm less that of another; `method` and `pooled` as for `tables.difference_of`."""
    count, found = difference_of(a.values, b.values, method, [arm.values for arm in pooled])
    return {"runs": count, **row_of(found, METHODS[method], -1, 1)}


@note("accuracy_difference")
def difference_from_mean(a: Arm, others: Sequence[Arm], pooled: Sequence[Arm]) -> Found:
    """The accuracy of one arm less the mean of several arms', by the deviation that `pooled` have in common."""
    first, values = a.values, [arm.values for arm in others]
    sd, df = statistics.pooled_sd([arm.values for arm in pooled])
    value = first.mean() - np.mean([other.mean() for other in values])
    error = sd * math.sqrt(1 / len(first) + sum(1 / len(other) for other in values) / len(values) ** 2)
    count = min(map(len, (first, *values)))
    return {"runs": count, **row_of(statistics.Estimate(value, error, df), "pooled", -1, 1)}


@note("accuracy")
def prediction(arm: Arm, pooled: Sequence[Arm] = ()) -> Found:
    """Where one more run would end."""
    sd = statistics.pooled_sd([other.values for other in pooled]) if pooled else None
    found = statistics.prediction(arm.values, sd)
    return {"runs": len(arm.values), **row_of(found, "prediction, pooled" if pooled else "prediction", 0, 1)}


@note("accuracy_difference")
def theirs_less_ours(arm: Arm, reference: str | Path, source: str) -> Found:
    """An accuracy that somebody published, less our mean.

    Args:
        arm: ours.
        reference: the CSV that has it, as `read_reference` takes it.
        source: whose it is, as that file says.
    """
    table = read_reference(reference)
    rows = table[(table.source == source) & (table.policy == arm.name)]
    rows = rows[rows.quantity.isin(("final_accuracy", "best_accuracy"))]
    if len(rows) != 1:
        raise AnalysisError(f"{reference} has no one accuracy of {arm.name} from {source}")
    return {"runs": len(arm.values), "value": rows.value.item() - arm.values.mean(), "note": source}


@note("sd")
def deviation(arm: Arm) -> Found:
    """The deviation between runs, over several evaluations: the root of its mean square, lowest and highest."""
    found = arm.curve.loc[arm.evaluations].std(axis=1)
    ends = {"low": found.min(), "high": found.max(), "method": "lowest to highest"} if len(found) > 1 else {}
    return {"runs": arm.curve.shape[1], "value": math.sqrt((found**2).mean()), **ends}


@note("accuracy")
def best_mean(arm: Arm, until: int | None = None) -> Found:
    """The highest point of its mean curve, up to an iteration."""
    return {"runs": arm.curve.shape[1], **crossings.best_mean_row(arm.curve.loc[:until])}


@note("reached")
def best_mean_at(arm: Arm, until: int | None = None) -> Found:
    """The iteration of `best_mean`."""
    return {"runs": arm.curve.shape[1], "value": arm.curve.loc[:until].mean(axis=1).idxmax()}


@note("reached")
def reaches(arm: Arm, target: Callable[[], float]) -> Found:
    """The first evaluation at which its mean has an accuracy."""
    mean = arm.curve.mean(axis=1)
    above = mean[mean >= target() - crossings.TIE]
    return {"runs": arm.curve.shape[1], "value": above.index[0] if len(above) else math.nan}


@note("crossing_iteration")
def crossing(challenger: Arm, baseline: Arm) -> Found:
    """Where the challenger's mean first has the baseline's best mean, as `crossing.crossing` has it."""
    found = crossings.crossing(baseline.curve, challenger.curve)
    return {"runs": challenger.curve.shape[1], **crossings.set_row(found)}


@note("factor")
def factor(challenger: Arm, baseline: Arm, target: float) -> Found:
    """How many times fewer iterations the challenger's mean needs for an accuracy."""
    found = crossings.factor_at(baseline.curve, challenger.curve, target)
    ends = {key: found[key] for key in ("value", "low", "high")}
    return {"runs": challenger.curve.shape[1], "method": "resampled", **ends}


@note("factor")
def factor_counting(challenger: Arm, baseline: Arm, tests: Experiment, count: int) -> Found:
    """The headline's factor when that many range tests are counted with the challenger's iterations."""
    took = tests.records()[0]["iterations"] * count
    at = crossings.crossing(baseline.curve, challenger.curve).iteration
    return {"runs": challenger.curve.shape[1], "value": baseline.curve.index[-1] / (at + took)}


@note("ratio")
def ratio(a: Arm, of_a: str, b: Arm, of_b: str) -> Found:
    """One rate over another; both as `Arm.setting` names them."""
    return {"value": a.setting(of_a) / b.setting(of_b), "method": "settings"}


@note("max_lr")
def upper_bounds_one_by_one(arm: Arm) -> Found:
    """The upper bound that range tests give one by one: their mean curve's, the lowest and the highest."""
    curve, rates = arm.curve, _rates(arm)
    single = [suggest_bounds(rates, curve[seed]).max_lr for seed in curve]
    ends = {"low": min(single), "high": max(single), "method": "lowest to highest run"}
    return {"runs": len(single), "value": suggest_bounds(rates, curve).max_lr, **ends}


@note("base_lr")
def lower_bound(of: Arm | Path) -> Found:
    """The lower bound that the rule reads: off range tests, with an interval from five runs on, or off others' CSV."""
    return _bound(of, "base")


@note("max_lr")
def upper_bound(of: Arm | Path) -> Found:
    """As `lower_bound`."""
    return _bound(of, "max")


def _bound(of: Arm | Path, which: str) -> Found:
    if isinstance(of, Path):
        table = pd.read_csv(of)
        found, more = suggest_bounds(table.lr, table.val_acc), {"method": "the rule, one curve"}
    else:
        found = suggest_bounds(_rates(of), of.curve)
        ends = {end: getattr(found, f"{which}_{end}") for end in ("low", "high")}
        more = {"runs": of.curve.shape[1], "method": "the rule", **ends}
    return {"value": getattr(found, f"{which}_lr"), **more}


def _rates(arm: Arm) -> pd.Series:
    """The rate at each evaluation of a range test."""
    return arm.experiment.runs.groupby("iteration").lr.first()[arm.curve.index]


@note("falls")
def falls(arm: Arm, first: int | None = None, last: int | None = None) -> Found:
    """How many evaluations lie below the one before them."""
    change = arm.curve.mean(axis=1).diff().dropna().loc[first:last]
    return {"runs": arm.curve.shape[1], "value": int((change < 0).sum()), "note": f"of {len(change)} evaluations"}


@note("roughness")
def roughness(arm: Arm, first: int | None = None, last: int | None = None) -> Found:
    """How far an evaluation lies from the mean of its two neighbours, a mean over evaluations, run by run."""
    curve = arm.curve
    apart = (curve - (curve.shift(1) + curve.shift(-1)) / 2).abs().loc[first:last].mean()
    return {"runs": len(apart), **row_of(statistics.mean(apart), "Student", 0, 1)}


@note("hours")
def hours(experiments: Sequence[Experiment], workers: int = 1) -> Found:
    """Processor time of experiments, on that many cores."""
    return _took(experiments, 3600 * workers)


@note("minutes")
def minutes(experiments: Sequence[Experiment]) -> Found:
    """As `hours`, on one core."""
    return _took(experiments, 60)


def _took(experiments: Sequence[Experiment], unit: int) -> Found:
    seconds = [record["seconds"] for experiment in experiments for record in experiment.records()]
    return {"runs": len(seconds), "value": sum(seconds) / unit, "note": "processor time"}


@note("best_lr")
def best_rates_one_by_one(sweeps: Experiment) -> Found:
    """The rate of the lowest loss, sweep by sweep: the mean of its logarithm, the lowest and the highest."""
    single = [best_rate(run.lr, run.train_loss, window=1).lr for _, run in sweeps.runs.groupby("seed")]
    ends = {"low": min(single), "high": max(single), "method": "lowest to highest run"}
    return {"runs": len(single), "value": float(np.exp(np.log(single).mean())), **ends}


@note("epochs")
def epochs(experiment: Experiment, of: Callable[[Sequence[float]], float]) -> Found:
    """Epochs that runs took: their `max`, or their `sum`."""
    each = [
        record["iterations"] * record["spec"]["batch_size"] / record["data"]["train"] for record in experiment.records()
    ]
    return {"runs": len(each), "value": of(each)}
