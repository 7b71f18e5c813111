"""The tournament's runs, as its registration has them: tuning, rate by rate, then the final seeds."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from modules.checks import RunError, short
from modules.data.datasets import load
from modules.data.splits import FOLDS
from modules.report.tournament import AVERAGED, CHANCE, Choice, choose, contrast, verdicts
from modules.runs.files import RunFiles
from modules.runs.parallel import check_all, run_all
from modules.runs.spec import Spec, rate_label, spec
from modules.statistics import AnalysisError

EXTENSIONS = 3  # of a grid whose best rate lies at its edge
_EXPRESSION = re.compile(r"(rate|T)(?: \* (\d+)(?:/(\d+))?)?")


def registered(path: str | Path) -> tuple[dict[str, Any], str]:
    """A registration's content, and the first 16 hexadecimal digits of its SHA-256, which stand in every run's JSON.

    Raises:
        RunError: it cannot be read.
    """
    try:
        content = Path(path).read_bytes()
        return dict(yaml.safe_load(content)), hashlib.sha256(content).hexdigest()[:16]
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise RunError(f"registration={short(str(path))}: cannot be read ({type(error).__name__})") from error


@dataclass(frozen=True)
class Registration:
    """What was fixed before the first run.

    Attributes:
        design, checksum: as `registered` gives them.
    """

    design: dict[str, Any]
    checksum: str

    @classmethod
    def read(cls, path: str | Path) -> "Registration":
        """Read a registration.

        Raises:
            RunError: it is no such file.
        """
        design, checksum = registered(path)
        missing = {"setting", "iterations", "tuning", "final", "primary", "arms", "margin", "alphas"} - design.keys()
        if missing:
            raise RunError(f"registration={short(str(path))}: {', '.join(sorted(missing))} missing")
        return cls(design, checksum)

    def tuned(self, arm: str) -> bool:
        """Whether the arm's rate is tuned, or given."""
        return self.design["arms"][arm].get("tuned", True)

    def seeds(self, arm: str, more: bool) -> list[int]:
        """The arm's final seeds, at the second look with those that are added."""
        final = self.design["final"]
        count = self.design["arms"][arm].get("seeds", final["seeds"])
        return list(range(1, count + 1 + (final["more"] if more else 0)))


def filled(template: Any, rate: float | None, iterations: int) -> Any:
    """A policy's settings with `rate`, `T` and fractions of them replaced by their values; iterations are rounded."""
    if isinstance(template, dict):
        return {key: filled(value, rate, iterations) for key, value in template.items()}
    if isinstance(template, list):
        return [filled(value, rate, iterations) for value in template]
    found = _EXPRESSION.fullmatch(template) if isinstance(template, str) else None
    if not found:
        return template
    factor = Fraction(int(found[2] or 1), int(found[3] or 1))
    if found[1] == "T":
        return round(iterations * factor)
    return rate if factor == 1 else rate * float(factor)


class Tournament:
    """A registration's runs on one data set, in two experiments of a results folder.

    Args:
        registration: the design.
        dataset: the data set's name.
        tuning, finals: folders of the tuning runs and of the final ones.
        arms: some of the registration's; by default all.
    """

    def __init__(
        self, registration: Registration, dataset: str, tuning: Path, finals: Path, arms: list[str] | None = None
    ) -> None:
        known = registration.design["arms"]
        if unknown := set(arms or []) - set(known):
            raise RunError(f"arms={short(sorted(unknown))}: choose from {', '.join(known)}")
        self.registration, self.dataset, self.tuning, self.finals = registration, dataset, Path(tuning), Path(finals)
        self.arms = [arm for arm in known if arms is None or arm in arms]

    def spec(self, arm: str, rate: float | None, seed: int, final: bool) -> Spec:
        """One run of an arm."""
        design = self.registration.design
        entry, iterations = design["arms"][arm], design["iterations"]
        return spec(
            dataset=self.dataset,
            split=design.get("split", "validation"),
            seed=seed,
            registration=self.registration.checksum,
            **{**design["setting"], **entry.get("settings", {})},
            policy=filled(entry["policy"], rate, iterations),
            variant=arm if final else f"{arm}_{rate_label(rate)}",
            iterations=iterations,
            evaluate_every=design["evaluate_every"],
            evaluation="validation",
            test_at_end=final,
        )

    def grid(self, arm: str) -> dict[float, list[float]] | None:
        """Validation accuracies at the end of the arm's tuning runs by rate, as far as the grid is known and run.

        Returns:
            None where runs that the grid asks for are still to be made.
        """
        found = {rate: self._accuracies(arm, rate) for rate in self.rates(arm)}
        return None if any(None in values for values in found.values()) else found

    @property
    def _tuning(self) -> dict:
        return self.registration.design["tuning"]

    def rates(self, arm: str) -> list[float]:
        """The rates to test, as far as the runs made decide them: the octaves, then extensions, then half steps."""
        first = self.registration.design["arms"][arm].get("first", self._tuning["first"])
        rates = [first * 2.0**k for k in range(self._tuning["octaves"])]
        for _ in range(EXTENSIONS + 1):
            values = {rate: self._mean(arm, rate) for rate in rates}
            if None in values.values():
                return rates
            best = max(rates, key=values.get)
            if best not in (rates[0], rates[-1]):
                break
            if len(rates) < self._tuning["octaves"] + EXTENSIONS:
                rates = sorted([*rates, best * (2.0 if best == rates[-1] else 0.5)])
        return sorted([*rates, best * 2**-0.5, best * 2**0.5])

    def _mean(self, arm: str, rate: float) -> float | None:
        values = self._accuracies(arm, rate)
        return None if None in values else sum(values) / len(values)

    def _accuracies(self, arm: str, rate: float) -> list[float | None]:
        return [self._accuracy(self.spec(arm, rate, seed, False)) for seed in self._tuning["seeds"]]

    def _accuracy(self, asked: Spec) -> float | None:
        """The last validation accuracy of a tuning run; chance, when it diverged; None where it is still to be made."""
        files = RunFiles(self.tuning, asked.name)
        if not files.complete:
            return None
        table, record = files.read()
        return CHANCE if record["diverged"] else float(table.splitlines()[-1].split(",")[-1])

    def to_tune(self) -> list[Spec]:
        """The tuning runs that are to be made next; none when all rates are chosen."""
        return [
            run
            for arm in self.arms
            if self.registration.tuned(arm)
            for rate in self.rates(arm)
            for run in (self.spec(arm, rate, seed, False) for seed in self._tuning["seeds"])
            if not RunFiles(self.tuning, run.name).complete
        ]

    def choices(self) -> dict[str, Choice]:
        """Each tuned arm's rate, once its tuning is complete."""
        grids = {arm: self.grid(arm) for arm in self.arms if self.registration.tuned(arm)}
        return {arm: choose(grid, self._folds(self._tuning["seeds"])) for arm, grid in grids.items() if grid}

    def _folds(self, seeds: Iterable[int]) -> list[int] | None:
        """The fold of each seed, where runs are tested on folds."""
        return [seed % FOLDS for seed in seeds] if self.registration.design.get("split") == "folds" else None

    def final(self, more: bool = False) -> list[Spec]:
        """The final runs of all arms whose rate is known.

        Args:
            more: also the seeds of the second look, for the arms of primary differences that the first left open.
        """
        choices = self.choices()
        open_arms = self.undecided() if more else set()
        return [
            self.spec(arm, choices[arm].rate if arm in choices else None, seed, True)
            for arm in self.arms
            if arm in choices or not self.registration.tuned(arm)
            for seed in self.registration.seeds(arm, arm in open_arms)
        ]

    def accuracies(self, arm: str, seeds: Iterable[int] | None = None, averaged: bool = False) -> pd.Series:
        """Test accuracies of an arm's final runs, by seed, or of the averages of their weights.

        A run that diverged counts as chance. Where runs are tested on folds, `attrs["folds"]` has each seed's.
        """
        found = {}
        for seed in self.registration.seeds(arm, True) if seeds is None else seeds:
            run = RunFiles(self.finals, f"{arm}-seed{seed}")
            if run.complete:
                record = run.read()[1]
                if record["diverged"]:
                    found[seed] = CHANCE
                else:
                    found[seed] = (record["ema"] if averaged else record)["test"]["accuracy"]
        series = pd.Series(found, dtype=float)
        if folds := self._folds(found):
            series.attrs["folds"] = dict(zip(found, folds, strict=True))
        return series

    def undecided(self) -> set[str]:
        """The arms of the primary differences that the first look leaves open."""
        primary, choices = self.registration.design["primary"], self.choices()
        first = {
            name: contrast(
                *(self.accuracies(arm, self.registration.seeds(arm, False)) for arm in pair),
                *(choices[arm].error for arm in pair),
            )
            for name, pair in primary.items()
            if set(pair) <= set(choices)
        }
        said = verdicts(first, self.registration.design["margin"], self.registration.design["alphas"][0])
        return {arm for name, verdict in said.items() if verdict == "not resolved" for arm in primary[name]}

    def final_accuracies(self) -> dict[str, pd.Series]:
        """`accuracies` of every arm; of those that average their weights, and never anneal, the averages' too.

        The averages of `constant` are called `constant_averaged`: the same runs, with other weights.

        Raises:
            AnalysisError: an arm has final runs, and not all of the tuning runs that its rate came from: without them
                the error of that choice would count as none.
        """
        found = {}
        for arm in self.arms:
            found[arm] = self.accuracies(arm)
            if len(found[arm]) and self.registration.tuned(arm) and self.grid(arm) is None:
                raise AnalysisError(f"{self.tuning}: {arm} has final runs, but tuning runs of it are missing")
            entry = self.registration.design["arms"][arm]
            if "ema" in entry.get("settings", {}) and "anneal" not in entry["policy"]:
                found[arm + AVERAGED] = self.accuracies(arm, found[arm].index, averaged=True)
        return found

    def second_look(self) -> bool:
        """Whether there are runs of the second look."""
        first = self.registration.design["final"]["seeds"]
        return any(RunFiles(self.finals, f"{arm}-seed{first + 1}").complete for arm in self.arms)

    def check(self, data_dir: str | Path | None = None, workers: int | None = None) -> None:
        """Look for everything that can be wrong, and change nothing; arguments and errors as for `parallel.run_all`."""
        rate = self._tuning["first"]
        runs = [self.spec(arm, rate, self._tuning["seeds"][0], True) for arm in self.arms]
        check_all(runs, self.finals, data_dir, workers)

    def label(self, data_dir: str | Path | None = None) -> str:
        """What tables and captions call the data."""
        return load(self.dataset, data_dir).label

    def play(self, data_dir: str | Path | None = None, workers: int | None = None) -> None:
        """Make every run there is to make: tuning until all rates are chosen, final seeds, and those of a second look.

        Arguments and errors as for `parallel.run_all`.
        """
        while runs := self.to_tune():
            run_all(runs, self.tuning, data_dir, workers)
        run_all(self.final(), self.finals, data_dir, workers)
        run_all(self.final(more=True), self.finals, data_dir, workers)

    def tuning_curves(self) -> pd.DataFrame:
        """Validation accuracies of the tuning runs made so far: columns `arm`, `rate`, `seed`, `val_acc`."""
        rows = [
            [arm, rate, seed, value]
            for arm in self.arms
            if self.registration.tuned(arm)
            for rate in self.rates(arm)
            for seed, value in zip(self._tuning["seeds"], self._accuracies(arm, rate), strict=True)
            if value is not None
        ]
        return pd.DataFrame(rows, columns=["arm", "rate", "seed", "val_acc"])
