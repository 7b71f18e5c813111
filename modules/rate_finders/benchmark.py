"""The benchmark of rate finders: the trainings, ramps and searches of its tasks, and what everybody answers.

Everybody has the same number of iterations in all: a `share` of a training's for the search, and the training.
"""

import inspect
import io
import math
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd
from tqdm import tqdm

from modules.checks import RunError, short
from modules.data.datasets import load
from modules.range_test import suggest_bounds
from modules.rate_finders.entrants import ENTRANTS, PEAK_OF_RANGE_TEST, entered
from modules.rate_finders.race import LEAST_BUDGET
from modules.rate_finders.regret import BOUNDS, CHOSEN_HERE, OF_RANGE_TEST, Landscape
from modules.rate_finders.rules import ROWS, RULES, share_of_lowest
from modules.rate_finders.trials import CYCLES
from modules.runs.files import RunFiles, atomic_write
from modules.runs.parallel import check_all, cluster, run_all
from modules.runs.spec import Spec, rate_label, spec
from modules.statistics import AnalysisError

SEARCHES = "searches.csv"
FOUND = ["entrant", "schedule", "seed", "rate", "accuracy"]

#: The schedules, each of one rate: a constant, the start of a line to zero, the top of a cycle from a quarter of it.
SCHEDULES = {
    "constant": lambda rate, iterations: dict(name="fixed", lr=rate, milestones=[]),
    "linear": lambda rate, iterations: dict(name="linear", lr=rate),
    "cycle": lambda rate, iterations: cycle(rate / 4, rate, iterations),
}


def cycle(base_lr: float, max_lr: float, iterations: int) -> dict[str, Any]:
    """Four whole cycles between two bounds."""
    return dict(name="triangular", base_lr=base_lr, max_lr=max_lr, step_size=max(1, iterations // (2 * CYCLES)))


class Task:
    """One network on one data set with one optimizer.

    Args:
        name: of the task; its runs lie in `<results>/rate_finders_<name>/`.
        results: the results folder.
        settings: of `runs.spec`, such as `dataset`, `model`, `optimizer`, `batch_size`.
        iterations: of a training.
        grid: the lowest and the highest rate trained with.
        grid_factor: between neighbouring rates.
        grid_seeds: trainings a rate.
        repeats: ramps, and searches of each kind; their seeds are other than the grid's.
        share: of a training's iterations, for a ramp or a search.
        low, high: where every ramp starts and ends.
        each: measure accuracy in every iteration of a ramp, where that is cheap; else a ramp is trained twice, once
            for its losses and once for 50 accuracies.
        chosen: whether rules were chosen on this task; all others are held out.
        data_dir: as for `datasets.load`.
    """

    def __init__(
        self,
        name: str,
        results: str | Path,
        settings: Mapping[str, Any],
        iterations: int,
        grid: Sequence[float],
        grid_factor: float = 2.0,
        grid_seeds: int = 8,
        repeats: int = 8,
        share: float = 0.2,
        low: float = 1e-6,
        high: float = 10.0,
        each: bool = False,
        chosen: bool = False,
        data_dir: str | Path | None = None,
    ) -> None:
        if grid_seeds < 2:
            raise RunError(f"grid_seeds={grid_seeds}: two are needed, one to choose a rate and one to value it")
        if not (len(grid) == 2 and 0 < grid[0] < grid[1]):
            raise RunError(f"grid={short(grid)}: the lowest and the highest rate are needed")
        self.name, self.folder, self.settings = name, Path(results) / f"rate_finders_{name}", dict(settings)
        self.iterations, self.grid_seeds, self.seeds = iterations, grid_seeds, range(1001, 1001 + repeats)
        self.low, self.high, self.each, self.chosen, self.data_dir = low, high, each, chosen, data_dir
        steps = round(np.log(grid[1] / grid[0]) / np.log(grid_factor))
        self.rates = [float(f"{rate:.3g}") for rate in grid[0] * grid_factor ** np.arange(steps + 1)]
        if len(self.rates) < 3:
            had = f"has {len(self.rates)} rates: three are needed"
            raise RunError(f"{name}: grid={short(grid)} by grid_factor={grid_factor:g} {had}")
        self.budget = round(share * iterations)
        if self.budget < LEAST_BUDGET:
            raise RunError(f"{name}: share={share} of iterations={iterations} is less than {LEAST_BUDGET} iterations")

    @cached_property
    def data(self) -> tuple[str, int]:
        """The data set's label, and its classes."""
        dataset = load(self.settings["dataset"], self.data_dir)
        return dataset.label, len(dataset.classes)

    def _spec(self, variant: str, seed: int, policy: Mapping[str, Any], **others: Any) -> Spec:
        settings = dict(evaluation="test", iterations=self.iterations, evaluate_every=self.iterations)
        return spec(
            variant=f"{self.name}_{variant}",
            seed=seed,
            policy=policy,
            split="validation",
            **{**settings, **self.settings, **others},
        )

    def training(self, schedule: str, rate: float, seed: int) -> Spec:
        """A training of the grid; test accuracy stands in its last row."""
        return self._spec(f"{schedule}_{rate_label(rate)}", seed, SCHEDULES[schedule](rate, self.iterations))

    def ramp(self, seed: int, of: str) -> Spec:
        """A ramp, for its `loss` of every iteration or its `accuracy` on validation images in 50 rows."""
        policy = dict(name="range_test", min_lr=self.low, max_lr=self.high, ramp="exponential")
        name = f"ramp{self.budget}" if self.each else f"ramp{self.budget}_{of}"
        every = 1 if self.each or of == "loss" else max(1, self.budget // ROWS)
        evaluation = "validation" if self.each or of == "accuracy" else "none"
        return self._spec(name, seed, policy, iterations=self.budget, evaluate_every=every, evaluation=evaluation)

    def bounded(self, seed: int) -> Spec | None:
        """A training that cycles between the bounds suggested on a ramp; None where there are none."""
        try:
            found = suggest_bounds(*self.read_ramp(seed, "accuracy"), log=True)
        except AnalysisError:
            return None
        base, top = (float(f"{rate:.3g}") for rate in (found.base_lr, found.max_lr))
        return self._spec(f"bounds{self.budget}", seed, cycle(base, top, self.iterations))

    def first(self) -> list[Spec]:
        """All runs that depend on no other."""
        grid = [
            self.training(schedule, rate, seed)
            for schedule in SCHEDULES
            for rate in self.rates
            for seed in range(1, self.grid_seeds + 1)
        ]
        kinds = ("accuracy",) if self.each else ("loss", "accuracy")
        return grid + [self.ramp(seed, of) for seed in self.seeds for of in kinds]

    def check(self, workers: int | None = None) -> None:
        """Look for everything that can be wrong; arguments and errors as for `parallel.run_all`."""
        check_all(self.first(), self.folder, self.data_dir, workers)

    def run(self, workers: int | None = None) -> None:
        """Train what is to be trained, and search what is to be searched."""
        run_all(self.first(), self.folder, self.data_dir, workers)
        run_all([run for run in map(self.bounded, self.seeds) if run], self.folder, self.data_dir, workers)
        self.search(workers)

    def asked(self) -> list[tuple[str, str, int]]:
        """What is searched: entrant, schedule, seed."""
        return [
            (name, schedule, seed)
            for name, entrant in ENTRANTS.items()
            for schedule in entrant.schedules
            for seed in self.seeds[: entrant.repeats]
        ]

    def search(self, workers: int | None = None) -> None:
        """Let all entrants search; what has been found is kept, a row at a time, in `searches.csv`."""
        from distributed import as_completed

        asked = self.asked()
        found = {tuple(row[:3]): row for row in self.searched().itertuples(index=False, name=None)}
        left = [row for row in asked if row not in found]
        if not left:
            return
        bar = tqdm(total=len(asked), initial=len(found), desc=f"{self.name}: searches", disable=None)
        with bar, cluster(min(workers or os.cpu_count() or 1, len(left))) as client:
            futures = {client.submit(self.answer, *row, key=f"search-{uuid4().hex}", pure=False): row for row in left}
            for future in as_completed(futures):
                row = futures[future]
                found[row] = *row, *future.result()
                table = pd.DataFrame([found[key] for key in asked if key in found], columns=FOUND)
                atomic_write(self.folder / SEARCHES, table.to_csv(index=False, lineterminator="\n"))
                bar.update()

    def answer(self, entrant: str, schedule: str, seed: int) -> tuple[float, float]:
        """An entrant's rate and accuracy, one of them NaN; a rate of 0 is no answer."""
        run = self.training(schedule, self.rates[0], seed)
        found = entered(entrant, run, schedule, self.budget, self.data_dir)
        if ENTRANTS[entrant].answers == "accuracy":
            return math.nan, found
        return (float(f"{found:.3g}") if math.isfinite(found) else 0.0), math.nan

    def searched(self) -> pd.DataFrame:
        """What all entrants have answered: `entrant`, `schedule`, `seed`, and `rate` or `accuracy`."""
        file = self.folder / SEARCHES
        return pd.read_csv(file) if file.exists() else pd.DataFrame(columns=FOUND)

    def _read(self, run: Spec) -> tuple[pd.DataFrame, bool]:
        text, record = RunFiles(self.folder, run.name).read()
        return pd.read_csv(io.StringIO(text)), record["diverged"]

    def _accuracy(self, run: Spec) -> float:
        """A training's test accuracy; chance, where it diverged."""
        table, diverged = self._read(run)
        return 1 / self.data[1] if diverged else float(table.val_acc.iloc[-1])

    def read_ramp(self, seed: int, of: str) -> tuple[np.ndarray, np.ndarray]:
        """Rates and losses, or accuracies, of a ramp; NaN from where it diverged."""
        table = self._read(self.ramp(seed, of))[0].set_index("iteration")
        every = 1 if of == "loss" else max(1, self.budget // ROWS)
        ends = [*range(every, self.budget, every), self.budget]
        lr = self.low * (self.high / self.low) ** ((np.array(ends) - 1) / self.budget)
        return lr, table["train_loss" if of == "loss" else "val_acc"].reindex(ends).to_numpy(dtype=float)

    def landscapes(self) -> dict[tuple[str, str], Landscape]:
        """The accuracy at every rate of the grid, by task and schedule."""
        seeds = range(1, self.grid_seeds + 1)
        return {
            (self.name, schedule): Landscape(
                np.array(self.rates),
                [[self._accuracy(self.training(schedule, rate, seed)) for seed in seeds] for rate in self.rates],
            )
            for schedule in SCHEDULES
        }

    def answers(self) -> pd.DataFrame:
        """What every rule answers on every ramp, and every entrant: columns as `regret.regrets` takes them."""
        rows = []
        for found in self.searched().itertuples():
            one = len(ENTRANTS[found.entrant].schedules) == 1
            rate = found.rate or math.nan
            rows.append((found.entrant, found.seed, None if one else found.schedule, rate, found.accuracy))
            if found.entrant == PEAK_OF_RANGE_TEST:
                ramp = self.read_ramp(found.seed, "loss")
                for only in SCHEDULES:
                    smaller = np.fmin(share_of_lowest(*ramp, only), rate)
                    rows.append((OF_RANGE_TEST, found.seed, only, smaller, math.nan))
        for seed in self.seeds:
            found = read_off(*(self.read_ramp(seed, of) for of in ("loss", "accuracy")))
            rows += [(name, seed, only, rate, math.nan) for name, only, rate in found]
            if run := self.bounded(seed):
                rows.append((BOUNDS, seed, "cycle", run.policy.max_lr, self._accuracy(run)))
            else:
                rows.append((BOUNDS, seed, "cycle", math.nan, math.nan))
        return pd.DataFrame(rows, columns=["rule", "seed", "only", "rate", "accuracy"]).assign(task=self.name)


Curve = tuple[np.ndarray, np.ndarray]


def at_every_rate(loss: Curve, accuracy: Curve) -> np.ndarray:
    """The accuracies of a ramp at the rates of its losses, `[points]`; NaN where none was measured."""
    (lr, _), (rates, values) = loss, accuracy
    found = np.full(len(lr), np.nan)
    found[np.abs(np.log(lr) - np.log(rates)[:, None]).argmin(axis=1)] = values
    return found


def read_off(loss: Curve, accuracy: Curve) -> list[tuple[str, str | None, float]]:
    """What every rule that reads a ramp says of one: its name, the schedule it is for, if not for all, and the rate.

    Args:
        loss, accuracy: rates and what was measured at them, as `Task.read_ramp` gives them.
    """
    read, both = {"loss": loss, "accuracy": accuracy}, at_every_rate(loss, accuracy)
    rows = [(name, None, rule(*read[rule.of])) for name, rule in RULES.items()]
    for schedule in SCHEDULES:
        rates = [share_of_lowest(*loss, schedule, given) for given in (None, both)]
        rows += [(name, schedule, rate) for name, rate in zip(CHOSEN_HERE, rates, strict=True)]
    return rows


def tasks(entries: Sequence[Mapping[str, Any]], results: str | Path, common: Mapping[str, Any]) -> list[Task]:
    """The tasks of a study.

    Args:
        entries: the arguments of each `Task`, by name.
        results: the results folder.
        common: arguments that all share, where an entry does not have its own.

    Raises:
        RunError: an entry with an argument that no task has, or without one that it needs; two of one name.
    """
    if not isinstance(entries, list | tuple) or not entries or not all(isinstance(entry, Mapping) for entry in entries):
        raise RunError(f"tasks={short(entries)}: a list of tasks is needed")
    known = inspect.signature(Task).parameters
    for entry in entries:
        if unknown := set(entry) - set(known):
            raise RunError(
                f"tasks: {', '.join(sorted(unknown))}: no such setting of a task (choose {', '.join(known)})"
            )
        if missing := {"name", "settings", "iterations", "grid"} - set(entry):
            raise RunError(f"tasks: {short(dict(entry))} lacks {', '.join(sorted(missing))}")
    names = [entry["name"] for entry in entries]
    if len(set(names)) != len(names):
        raise RunError(f"tasks: two have the same name: {', '.join(map(str, names))}")
    return [Task(results=results, **{**common, **entry}) for entry in entries]
