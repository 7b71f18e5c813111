"""The benchmark of rate finders: the trainings and ramps of its tasks, and what every rule suggests on each ramp."""

import inspect
import io
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from modules.checks import RunError, short
from modules.data.datasets import load
from modules.data.splits import split
from modules.range_test import suggest_bounds
from modules.rate_finders.regret import CHOSEN_HERE, TRAINED, Landscape
from modules.rate_finders.rules import (
    ROWS,
    RULES,
    default_rate,
    halving_lengths,
    random_rate,
    share_of_lowest,
    successive_halving,
)
from modules.runs.files import RunFiles
from modules.runs.parallel import check_all, run_all
from modules.runs.spec import Spec, rate_label, spec
from modules.statistics import AnalysisError

CANDIDATES = 8  # of successive halving
CYCLES = 4  # in a training whose rate cycles
DEFAULT, RANDOM, HALVING = "default (0.01, Adam 0.001)", "random rate", "successive halving of eight"
BOUNDS = TRAINED[0]

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
        ramps: ramps of each length; their seeds are other than the grid's.
        ramp_lengths: iterations of the ramps; 0 stands for two epochs.
        low, high: where every ramp starts and ends.
        halvings: repeats of successive halving.
        each: measure accuracy in every iteration of a ramp, where that is cheap; else a ramp is trained twice, once
            for its losses and once for 50 accuracies.
        data_dir: as for `datasets.load`.
    """

    def __init__(
        self,
        name: str,
        results: str | Path,
        settings: Mapping[str, Any],
        iterations: int,
        grid: Sequence[float],
        grid_factor: float = 2**0.5,
        grid_seeds: int = 4,
        ramps: int = 30,
        ramp_lengths: Sequence[int] = (100, 400, 0),
        low: float = 1e-6,
        high: float = 10.0,
        halvings: int = 10,
        each: bool = False,
        data_dir: str | Path | None = None,
    ) -> None:
        if grid_seeds < 2:
            raise RunError(f"grid_seeds={grid_seeds}: two are needed, one to choose a rate and one to value it")
        if not (len(grid) == 2 and 0 < grid[0] < grid[1]):
            raise RunError(f"grid={short(grid)}: the lowest and the highest rate are needed")
        self.name, self.folder, self.settings = name, Path(results) / f"rate_finders_{name}", dict(settings)
        self.iterations, self.grid_seeds, self.ramps, self.halvings = iterations, grid_seeds, ramps, halvings
        self.low, self.high, self.each, self.data_dir = low, high, each, data_dir
        steps = round(np.log(grid[1] / grid[0]) / np.log(grid_factor))
        self.rates = [float(f"{rate:.3g}") for rate in grid[0] * grid_factor ** np.arange(steps + 1)]
        self._lengths = ramp_lengths

    @cached_property
    def data(self) -> tuple[str, int, int]:
        """The data set's label, its classes and its images that train."""
        dataset = load(self.settings["dataset"], self.data_dir)
        return dataset.label, len(dataset.classes), len(split(dataset, "validation", 1).train)

    @cached_property
    def lengths(self) -> dict[str, int]:
        """The ramps' iterations, by what tables call them."""
        two = 2 * (self.data[2] // self.settings["batch_size"])
        return {f"{length} iterations" if length else "2 epochs": length or two for length in self._lengths}

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

    def _seeds(self, count: int) -> range:
        return range(1001, 1001 + count)  # no seed of the grid

    def ramp(self, length: int, seed: int, of: str) -> Spec:
        """A ramp, for its `loss` of every iteration or its `accuracy` on validation images in 50 rows."""
        policy = dict(name="range_test", min_lr=self.low, max_lr=self.high, ramp="exponential")
        if self.each:
            return self._spec(
                f"ramp{length}", seed, policy, iterations=length, evaluate_every=1, evaluation="validation"
            )
        every = 1 if of == "loss" else max(1, length // ROWS)
        evaluation = "none" if of == "loss" else "validation"
        return self._spec(
            f"ramp{length}_{of}", seed, policy, iterations=length, evaluate_every=every, evaluation=evaluation
        )

    @cached_property
    def candidates(self) -> np.ndarray:
        """The rates of successive halving, spread over the ramps' range."""
        return np.geomspace(self.low, self.high, CANDIDATES)

    def halving(self, rate: float, seed: int) -> Spec:
        """A candidate of successive halving, at a constant rate, as long as the longest ramp lets it live."""
        length = max(halving_lengths(CANDIDATES, length)[-1] for length in self.lengths.values())
        policy = SCHEDULES["constant"](rate, length)
        return self._spec(
            f"halving_{rate_label(rate)}", seed, policy, iterations=length, evaluate_every=1, evaluation="none"
        )

    def bounded(self, label: str, seed: int) -> Spec | None:
        """A training that cycles between the bounds suggested on a ramp; None where there are none."""
        lr, accuracy = self._read_ramp(self.lengths[label], seed, "accuracy")
        try:
            found = suggest_bounds(lr, accuracy, log=True)
        except AnalysisError:
            return None
        base, top = (float(f"{rate:.3g}") for rate in (found.base_lr, found.max_lr))
        length = self.lengths[label]
        return self._spec(f"bounds{length}", seed, cycle(base, top, self.iterations))

    def first(self) -> list[Spec]:
        """All runs that depend on no other."""
        runs = [
            self.training(schedule, rate, seed)
            for schedule in SCHEDULES
            for rate in self.rates
            for seed in range(1, self.grid_seeds + 1)
        ]
        runs += [self.halving(rate, seed) for rate in self.candidates for seed in self._seeds(self.halvings)]
        kinds = ("accuracy",) if self.each else ("loss", "accuracy")
        for length in dict.fromkeys(self.lengths.values()):
            runs += [self.ramp(length, seed, of) for seed in self._seeds(self.ramps) for of in kinds]
        return runs

    def check(self, workers: int | None = None) -> None:
        """Look for everything that can be wrong; arguments and errors as for `parallel.run_all`."""
        check_all(self.first(), self.folder, self.data_dir, workers)

    def run(self, workers: int | None = None) -> None:
        """Train what is to be trained; the cycles between suggested bounds last."""
        run_all(self.first(), self.folder, self.data_dir, workers)
        run_all([run for run in self._bounded().values() if run], self.folder, self.data_dir, workers)

    def _bounded(self) -> dict[tuple[str, int], Spec | None]:
        return {(label, seed): self.bounded(label, seed) for label in self.lengths for seed in self._seeds(self.ramps)}

    def _read(self, run: Spec) -> tuple[pd.DataFrame, bool]:
        text, record = RunFiles(self.folder, run.name).read()
        return pd.read_csv(io.StringIO(text)), record["diverged"]

    def _accuracy(self, run: Spec) -> float:
        """A training's test accuracy; chance, where it diverged."""
        table, diverged = self._read(run)
        return 1 / self.data[1] if diverged else float(table.val_acc.iloc[-1])

    def _read_ramp(self, length: int, seed: int, of: str) -> tuple[np.ndarray, np.ndarray]:
        """Rates and losses, or accuracies, of a ramp; NaN from where it diverged."""
        run = self.ramp(length, seed, of)
        table = self._read(run)[0].set_index("iteration")
        every = 1 if of == "loss" else max(1, length // ROWS)
        ends = [*range(every, length, every), length]
        lr = self.low * (self.high / self.low) ** ((np.array(ends) - 1) / length)
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

    def suggestions(self) -> pd.DataFrame:
        """What every rule suggests on every ramp, and what the baselines do: columns as `regret.regrets` takes them."""
        rows = []
        for label, length in self.lengths.items():
            for seed in self._seeds(self.ramps):
                read = {of: self._read_ramp(length, seed, of) for of in ("loss", "accuracy")}
                rows += [(label, name, seed, rule(*read[rule.of]), None) for name, rule in RULES.items()]
                (lr, loss), (rows_lr, values) = read["loss"], read["accuracy"]
                accuracy = np.full(len(lr), np.nan)
                accuracy[np.abs(np.log(lr) - np.log(rows_lr)[:, None]).argmin(axis=1)] = values
                for schedule in SCHEDULES:
                    rates = [share_of_lowest(lr, loss, schedule, given) for given in (None, accuracy)]
                    rows += [(label, name, seed, rate, schedule) for name, rate in zip(CHOSEN_HERE, rates, strict=True)]
                rows.append((label, RANDOM, seed, random_rate(self.low, self.high, seed), None))
            for seed in self._seeds(self.halvings):
                losses = [self._read(self.halving(rate, seed))[0] for rate in self.candidates]
                longest = self.halving(self.candidates[0], seed).iterations
                table = np.stack(
                    [run.set_index("iteration").train_loss.reindex(range(1, longest + 1)) for run in losses], axis=1
                )
                rows.append((label, HALVING, seed, successive_halving(self.candidates, table, length), None))
            rows.append((label, DEFAULT, 0, default_rate(self.settings.get("optimizer", "sgd")), None))
        return pd.DataFrame(rows, columns=["ramp", "rule", "seed", "rate", "only"]).assign(task=self.name)

    def bounded_regrets(self, landscapes: Mapping[tuple[str, str], Landscape]) -> pd.DataFrame:
        """The regret of cycles between both suggested bounds, against the best cycle from a quarter of a rate to it.

        Returns:
            Columns as `regret.regrets` gives them; `rate` is `max_lr`.
        """
        oracle = landscapes[self.name, "cycle"].oracle
        rows = [
            dict(
                task=self.name,
                schedule="cycle",
                ramp=label,
                rule=BOUNDS,
                seed=seed,
                rate=run.policy.max_lr if run else np.nan,
                regret=oracle - self._accuracy(run) if run else np.nan,
            )
            for (label, seed), run in self._bounded().items()
        ]
        return pd.DataFrame(rows)


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
