"""The second tournament's registration, and the runs it asks for, question by question."""

import hashlib
import io
import math
import re
from collections.abc import Iterable
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import yaml
from pydantic import Field, ValidationError, model_validator

from modules.checks import RunError, complaints, short
from modules.data.datasets import load
from modules.policies import Count, Frozen, Number, Rate, Share
from modules.range_test import best_rate
from modules.range_test.reading import after_divergence
from modules.rate_finders.rules import suggest_rate
from modules.runs.files import RunFiles
from modules.runs.parallel import check_all, run_all
from modules.runs.spec import Spec, differences, rate_label, spec
from modules.runs.training import branches_of, leaves_at
from modules.statistics import AnalysisError

COLLAPSED = 0.2  # a run that ends below twice chance has learnt next to nothing
CHANCE = 0.1  # what a run counts as that diverged, with ten classes
_EXPRESSION = re.compile(r"(rate|T)(?: \* (\d+)(?:/(\d+))?)?")

Margin = Annotated[Number, Field(gt=0, lt=1)]
Seeds = tuple[Count, Count]


class Arm(Frozen):
    """A schedule: its name in legends, its policy with `rate` and `T` to be filled in, and settings of its own."""

    label: str
    policy: dict[str, Any]
    settings: dict[str, Any] = Field(default_factory=dict)


class Ladder(Frozen):
    """Runs of some arms: by octave, log2 of the peak over the registration's rate, the first and the last seed.

    Attributes:
        budgets: lengths in iterations; none for the registration's alone.
    """

    arms: tuple[str, ...]
    octaves: dict[float, Seeds]
    budgets: tuple[Count, ...] = ()


class Contrast(Frozen):
    """The test accuracy of one arm less that of another.

    Attributes:
        octave: the rate of both; None for each arm at its own best rate, read off a curve.
        budget: the length of both; None for the registration's.
        against: the other arm's weights as they are, their moving average, or the arm at its own best rate.
    """

    arms: tuple[str, str]
    octave: float | None = None
    budget: Count | None = None
    against: Literal["plain", "averaged", "tuned"] = "plain"


class Question(Frozen):
    """Runs, the differences that are judged, by name, and those that are described."""

    margin: Margin
    runs: tuple[Ladder, ...]
    primary: dict[str, Contrast] = Field(default_factory=dict)
    described: tuple[Contrast, ...] = ()


class Rule(Frozen):
    """How a range test gives a rate; its ramp is exponential, `ramp` iterations long, a row every `rows` iterations."""

    ramp: Count
    min_lr: Rate
    max_lr: Rate
    rows: Count
    evaluate_every: Count


class Untuned(Frozen):
    """Runs at the rate of one range test each, by rule: `lowest` or `advised`."""

    arms: tuple[str, ...]
    seeds: Seeds
    rules: dict[Literal["lowest", "advised"], Rule]


class Design(Frozen):
    """A registration's content."""

    alpha: Share
    precisions: tuple[Literal["float32", "bfloat16"], ...]
    setting: dict[str, Any]
    split: Literal["validation", "folds"] = "validation"
    iterations: Count
    evaluate_every: Count
    rate: Rate
    arms: dict[str, Arm]
    questions: dict[str, Question]
    untuned: Untuned | None = None
    predicted: dict[str, Number] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _arms_are_known(self):
        named = {*self.predicted, *(self.untuned.arms if self.untuned else ())}
        for question in self.questions.values():
            asked = (*question.runs, *question.primary.values(), *question.described)
            named |= {arm for one in asked for arm in one.arms}
        if unknown := named - set(self.arms):
            raise ValueError(f"unknown arms {', '.join(sorted(unknown))}: choose from {', '.join(self.arms)}")
        return self

    @property
    def primary(self) -> dict[str, tuple[str, Contrast]]:
        """Every difference that is judged, with its question, by its name."""
        return {
            name: (key, contrast)
            for key, question in self.questions.items()
            for name, contrast in question.primary.items()
        }


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


def read(path: str | Path) -> tuple[Design, str]:
    """A registration, and the first 16 hexadecimal digits of its SHA-256, which stand in every run's JSON.

    Raises:
        RunError: it cannot be read, or is no such file.
    """
    try:
        content = Path(path).read_bytes()
        asked = dict(yaml.safe_load(content))
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise RunError(f"registration={short(str(path))}: cannot be read ({type(error).__name__})") from error
    try:
        return Design.model_validate(asked), hashlib.sha256(content).hexdigest()[:16]
    except ValidationError as error:
        raise RunError(f"registration={short(str(path))}: {complaints(error, Design.model_fields)}") from None


def _rows(files: RunFiles) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(files.read()[0]))


class Tournament:
    """A registration's runs on one data set.

    Args:
        registration: the file.
        dataset: the data set's name.
        precision: of all runs; one that the registration allows.
        folder: of the runs; those without tuning go beside it, into `<folder>_untuned`.

    Raises:
        RunError: no such registration, or a precision that it does not allow.
    """

    def __init__(self, registration: str | Path, dataset: str, precision: str, folder: str | Path) -> None:
        self.design, self.checksum = read(registration)
        if precision not in self.design.precisions:
            raise RunError(f"precision={short(precision)}: choose from {', '.join(self.design.precisions)}")
        self.dataset, self.precision, self.folder = dataset, precision, Path(folder)
        self.untuned_folder = self.folder.with_name(f"{self.folder.name}_untuned")

    @property
    def questions(self) -> list[str]:
        """The names of the questions, in the order of their runs: what is judged, then what is described."""
        judged = [name for name, question in self.design.questions.items() if question.primary]
        untuned = ["untuned"] if self.design.untuned else []
        return [*judged, *untuned, *(name for name in self.design.questions if name not in judged)]

    def asked(self, question: str) -> list[str]:
        """The questions that a name asks for: one, `all` or `none`.

        Raises:
            RunError: there is no such question.
        """
        named = {"all": self.questions, "none": [], **{name: [name] for name in self.questions}}
        if question not in named:
            raise RunError(f"question={short(question)}: choose from {', '.join(named)}")
        return named[question]

    def rate(self, octave: float) -> float:
        """The peak rate so many octaves above the registration's, in four digits."""
        return float(f"{self.design.rate * 2**octave:.4g}")

    def spec(self, arm: str, octave: float, seed: int, budget: int | None = None) -> Spec:
        """One run of an arm.

        Args:
            arm: its name.
            octave: log2 of its peak rate over the registration's.
            seed: the run's.
            budget: its length in iterations; None for the registration's. A fraction of `T` in the policy is of the
                registration's length whatever the budget: a shorter run is another's beginning. Only the anneal is the
                last part of the run itself.
        """
        rate, length = self.rate(octave), self.design.iterations
        policy = filled(self.design.arms[arm].policy, rate, length)
        end = f"_{budget}" if budget not in (None, length) else ""
        return self._spec(arm, seed, policy, f"{arm}_{rate_label(rate)}{end}", budget or length)

    def _spec(self, arm: str, seed: int, policy: dict, variant: str, iterations: int, **others: Any) -> Spec:
        how = dict(evaluation="validation", test_at_end=True, evaluate_every=self.design.evaluate_every)
        return spec(
            dataset=self.dataset,
            split=self.design.split,
            precision=self.precision,
            registration=self.checksum,
            seed=seed,
            policy=policy,
            variant=variant,
            iterations=iterations,
            **{**self.design.setting, **self.design.arms[arm].settings, **how, **others},
        )

    def keys(self, question: str) -> list[tuple[str, float, int, int]]:
        """A question's runs, but for `untuned`: arm, octave, budget and seed of each, once."""
        return list(
            dict.fromkeys(
                (arm, octave, budget, seed)
                for ladder in self.design.questions[question].runs
                for octave, (first, last) in ladder.octaves.items()
                for seed in range(first, last + 1)
                for arm in ladder.arms
                for budget in ladder.budgets or (self.design.iterations,)
            )
        )

    @cached_property
    def _specs(self) -> dict[str, dict[tuple, Spec]]:
        return {
            question: {
                (arm, octave, budget, seed): self.spec(arm, octave, seed, budget)
                for arm, octave, budget, seed in self.keys(question)
            }
            for question in self.design.questions
        }

    def specs(self, question: str) -> list[Spec]:
        """A question's runs; of `untuned` the range tests, and the trainings whose range tests are complete."""
        if question == "untuned":
            return [*self.ramps(), *self.untuned_runs().values()]
        return list(self._specs[question].values())

    def to_make(self, question: str) -> list[Spec]:
        """A question's runs, and those of other questions that go on from them: at the same time they cost little."""
        own = {run.name: run for run in self.specs(question)}
        if question == "untuned":
            return list(own.values())
        by_seed: dict[int, list[Spec]] = {}
        for run in own.values():
            by_seed.setdefault(run.seed, []).append(run)
        more = {
            run.name: run
            for other in self.design.questions
            for run in self.specs(other)
            if run.name not in own and any(leaves_at(run, trunk) is not None for trunk in by_seed.get(run.seed, ()))
        }
        return [*own.values(), *more.values()]

    def check(self, data_dir: str | Path | None = None, workers: int | None = None) -> None:
        """Look for everything that can be wrong, and change nothing; arguments and errors as for `parallel.run_all`."""
        runs = {run.name: run for question in self.design.questions for run in self.specs(question)}
        check_all(list(runs.values()), self.folder, data_dir, workers)
        if self.design.untuned:
            check_all(self.specs("untuned"), self.untuned_folder, data_dir, workers)

    def play(self, question: str, data_dir: str | Path | None = None, workers: int | None = None) -> None:
        """Make every run of a question that is still to be made; arguments and errors as for `parallel.run_all`."""
        if question == "untuned":
            run_all(self.ramps(), self.untuned_folder, data_dir, workers)
            run_all(list(self.untuned_runs().values()), self.untuned_folder, data_dir, workers)
        else:
            run_all(self.to_make(question), self.folder, data_dir, workers)

    def label(self, data_dir: str | Path | None = None) -> str:
        """What tables and captions call the data."""
        return load(self.dataset, data_dir).label

    def work(self) -> pd.DataFrame:
        """What each question asks for: columns `question`, `runs`, `complete`, `iterations` (of what is to be trained).

        A run that another question has asked for counts with the first, and one that goes on from another's checkpoint
        with what it adds to it. Of `untuned` the trainings are as long whatever the range tests say.
        """
        rows, seen = [], set()
        for question in self.questions:
            asked = self._placeholders() if question == "untuned" else self.to_make(question)
            own = asked if question == "untuned" else self.specs(question)
            folder = self.untuned_folder if question == "untuned" else self.folder
            new = [run for run in asked if run.name not in seen]
            branches = branches_of(new)
            total = sum(run.iterations for run in new)
            for name, found in branches.items():
                trunk = next(run for run in new if run.name == name)
                total -= sum(leaves_at(branch, trunk) for branch in found)
            seen |= {run.name for run in new}
            complete = sum(RunFiles(folder, run.name).complete for run in own)
            rows.append({"question": question, "runs": len(own), "complete": complete, "iterations": total})
        return pd.DataFrame(rows)

    def table(self, question: str) -> pd.DataFrame:
        """The ends of a question's runs, but for `untuned`; see `untuned_table`.

        Returns:
            One row a run: `arm`, `octave`, `rate` (the peak), `budget`, `seed`, `validation` and `test` accuracy (0 to
            1), `average_validation` and `average` (of the moving average of its weights; NaN where it has none), each
            chance where the run diverged, `collapsed`.

        Raises:
            AnalysisError: runs are missing.
            RunError: a run is not as it was written, or not as it is asked for.
        """
        asked = self._specs[question]
        self._whole(question, asked.values(), self.folder)
        rows = [
            {"arm": arm, "octave": octave, "rate": self.rate(octave), "budget": budget, "seed": seed}
            | self._end(run, self.folder)
            for (arm, octave, budget, seed), run in asked.items()
        ]
        return pd.DataFrame(rows)

    def complete(self, question: str) -> bool:
        """Whether all runs of a question are there."""
        if question == "untuned" and not all(RunFiles(self.untuned_folder, run.name).complete for run in self.ramps()):
            return False
        folder = self.untuned_folder if question == "untuned" else self.folder
        return all(RunFiles(folder, run.name).complete for run in self.specs(question))

    @staticmethod
    def _whole(question: str, runs: Iterable[Spec], folder: Path) -> None:
        runs = list(runs)
        missing = [run.name for run in runs if not RunFiles(folder, run.name).complete]
        if missing:
            raise AnalysisError(
                f"{question}: {len(missing)} of {len(runs)} runs are missing in {folder}, the first is {missing[0]}"
            )

    @staticmethod
    def _end(asked: Spec, folder: Path) -> dict[str, Any]:
        files = RunFiles(folder, asked.name)
        text, record = files.read()
        if found := differences(spec(**record["spec"]), asked):
            raise RunError(f"{files.place} is another run than the one that was registered ({'; '.join(found)})")
        lost = record["diverged"]
        validation = CHANCE if lost else float(text.splitlines()[-1].rpartition(",")[2])
        test = CHANCE if lost else record["test"]["accuracy"]
        average = record.get("ema", {})
        if lost and asked.ema is not None:
            average = {part: {"accuracy": CHANCE} for part in ("validation", "test")}
        return {
            "validation": validation,
            "test": test,
            "average_validation": average.get("validation", {}).get("accuracy", math.nan),
            "average": average.get("test", {}).get("accuracy", math.nan),
            "collapsed": lost or test < COLLAPSED,
        }

    def curves(self, arm: str, octave: float) -> pd.DataFrame:
        """Validation accuracy on the way, of an arm's whole runs at a rate: `iteration`, `seed`, `lr`, `val_acc`."""
        tables = [
            _rows(RunFiles(self.folder, run.name)).assign(seed=run.seed)
            for run in self._at(arm, octave)
            if RunFiles(self.folder, run.name).complete
        ]
        return pd.concat(tables, ignore_index=True)

    def _at(self, arm: str, octave: float) -> Iterable[Spec]:
        found = {
            run.name: run
            for runs in self._specs.values()
            for (name, at, budget, _), run in runs.items()
            if (name, at, budget) == (arm, octave, self.design.iterations)
        }
        return found.values()

    # Without tuning.

    @property
    def _seeds(self) -> range:
        first, last = self.design.untuned.seeds
        return range(first, last + 1)

    def ramp(self, rule: str, arm: str, seed: int) -> Spec:
        """The range test that gives one run of an arm its rate; arms with the same settings share it."""
        asked, settings = self.design.untuned.rules[rule], dict(self.design.arms[arm].settings)
        own = settings.get("optimizer")
        return self._spec(
            arm,
            seed,
            dict(name="range_test", min_lr=asked.min_lr, max_lr=asked.max_lr, ramp="exponential"),
            f"{rule}_ramp" + (f"_{own}" if own else ""),
            asked.ramp,
            **dict(evaluate_every=asked.rows, evaluation="none", test_at_end=False, ema=None),
        )

    def ramps(self) -> list[Spec]:
        """The range tests of the analysis without tuning."""
        untuned = self.design.untuned
        found = (self.ramp(rule, arm, seed) for rule in untuned.rules for seed in self._seeds for arm in untuned.arms)
        return list(dict.fromkeys(found))

    def untuned_rate(self, rule: str, arm: str, seed: int) -> float | None:
        """What a run's own range test says, by a rule; None where it is not made yet, or gives no rate.

        An arm whose rate is constant and then drops counts as constant.
        """
        files = RunFiles(self.untuned_folder, self.ramp(rule, arm, seed).name)
        if not files.complete:
            return None
        table, name = _rows(files), self.design.arms[arm].policy["name"]
        curve = table.lr.to_numpy(), table.train_loss.to_numpy()
        if files.read()[1]["diverged"] and len(table) > 1:
            curve = after_divergence(*curve)
        try:
            if rule == "advised":
                schedule = {"fixed": "constant", "triangular": "cycle", "linear": "linear"}[name]
                return float(f"{suggest_rate(*curve, schedule):.4g}")
            found = best_rate(*curve).lr
        except AnalysisError:
            return None
        return float(f"{found / 2 if name == 'fixed' else found:.4g}")

    def untuned_runs(self) -> dict[tuple[str, str, int], Spec]:
        """The trainings at the rates of `untuned_rate`, by rule, arm and seed, shorter by their range test."""
        return {
            key: self._untuned(*key, rate)
            for key in self._untuned_keys()
            if (rate := self.untuned_rate(*key)) is not None
        }

    def _untuned_keys(self) -> list[tuple[str, str, int]]:
        untuned = self.design.untuned
        return [(rule, arm, seed) for rule in untuned.rules for arm in untuned.arms for seed in self._seeds]

    def _placeholders(self) -> list[Spec]:
        """All runs of the analysis without tuning, at some rate."""
        runs = [self._untuned(*key, self.design.rate) for key in self._untuned_keys()]
        return [*self.ramps(), *runs]

    def _untuned(self, rule: str, arm: str, seed: int, rate: float) -> Spec:
        asked = self.design.untuned.rules[rule]
        length = self.design.iterations - asked.ramp
        policy = filled(self.design.arms[arm].policy, rate, length)
        return self._spec(arm, seed, policy, f"{rule}_{arm}", length, evaluate_every=asked.evaluate_every)

    def untuned_table(self) -> pd.DataFrame:
        """The ends of the runs without tuning.

        Returns:
            One row a run: `rule`, `arm`, `seed`, `rate` (NaN where a range test gave none), and what `table` has.

        Raises:
            AnalysisError: runs are missing.
            RunError: as for `table`.
        """
        self._whole("untuned", self.ramps(), self.untuned_folder)
        runs = self.untuned_runs()
        self._whole("untuned", runs.values(), self.untuned_folder)
        rows = []
        for rule, arm, seed in self._untuned_keys():
            about = {"rule": rule, "arm": arm, "seed": seed, "rate": np.nan, "test": np.nan}
            if run := runs.get((rule, arm, seed)):
                about |= self._end(run, self.untuned_folder) | {"rate": self.untuned_rate(rule, arm, seed)}
            rows.append(about)
        return pd.DataFrame(rows)
