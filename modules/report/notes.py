"""A study's notes: the numbers that texts give besides the tables, each asked for in the study's file.

A note is `{name: ..., kind: ..., ...}`, a row of a table, so that no number of a text is without one. Its *terms* `a`
and `b` say which runs: `{arm: fixed, at: 20000}`, or `fixed` alone. A term has

* `arm`: a policy or variant; `experiment`: the folder of its runs (else the one it stands under), or `file`: a CSV of
  somebody else's runs with the columns `policy`, `run`, `iteration`, `val_acc`;
* `at`: where its accuracy is taken, run by run: `end` (also by default), `best` (each run's best evaluation), an
  iteration, a list of them, `{last: 5}` evaluations, or `{first: 4000, last: 40000, every: 4000}`; of several the mean.
"""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from modules import statistics
from modules.checks import RunError, did_you_mean, short
from modules.range_test import best_rate, suggest_bounds
from modules.report import crossing as crossings
from modules.report.tables import (
    METHODS,
    best,
    curves,
    difference_of,
    mean_row,
    pooled_arms,
    read_runs,
    row_of,
    table_of,
    write,
)
from modules.runs.files import complete_runs
from modules.statistics import AnalysisError

NAME = re.compile(r"[\w .-]+")


class Runs:
    """The runs of a results folder, experiment by experiment, read when a note asks for them."""

    def __init__(self, results: str | Path, experiment: str, pooled: Sequence[str] = ()) -> None:
        """`experiment` is where an arm is looked for, and `pooled` names the arms whose variance is pooled."""
        self.results, self.experiment, self.pooled = Path(results), experiment, pooled
        self._read: dict[str, pd.DataFrame] = {}

    def of(self, experiment: str | None = None) -> pd.DataFrame:
        """All runs of an experiment, as `read_runs` gives them."""
        name = experiment or self.experiment
        if name not in self._read:
            self._read[name] = read_runs(self.results / name)
        return self._read[name]

    def curve(self, term: dict | str) -> pd.DataFrame:
        """A term's accuracies, `[iterations, runs]`."""
        term = _term(term)
        if "file" in term:
            table = pd.read_csv(term["file"])
            return table[table.policy == term["arm"]].pivot(index="iteration", columns="run", values="val_acc")
        return curves(self.of(term.get("experiment")), term["arm"])

    def values(self, term: dict | str) -> pd.Series:
        """A term's accuracy, one number a run."""
        term = _term(term)
        curve = self.curve(term)
        if term.get("at") == "best":
            return best(curve)
        found = curve.loc[evaluations(curve, term.get("at", "end"))].mean()
        found.attrs = curve.attrs
        return found

    def records(self, experiment: str | None = None, arm: str = "*") -> list[dict]:
        """The JSON of each run of an experiment."""
        found = complete_runs(self.results / (experiment or self.experiment), arm)
        if not found:
            raise AnalysisError(f"no run of {experiment or self.experiment}")
        return [run.read()[1] for run in found]

    def policy(self, term: dict | str) -> dict:
        """The settings of a term's policy."""
        term = _term(term)
        return self.records(term.get("experiment"), term["arm"])[0]["spec"]["policy"]


def _term(term: dict | str) -> dict:
    return {"arm": term} if isinstance(term, str) else term


def evaluations(curve: pd.DataFrame, at: object) -> list[int]:
    """The iterations of a curve that `at` means.

    Raises:
        AnalysisError: the runs were not evaluated there.
    """
    index = curve.index.tolist()
    if at == "end":
        return index[-1:]
    if isinstance(at, dict):
        if at.keys() == {"last"}:
            return index[-at["last"] :]
        at = list(range(at["first"], at["last"] + 1, at["every"]))
    wanted = at if isinstance(at, list) else [at]
    if missing := [iteration for iteration in wanted if iteration not in index]:
        raise AnalysisError(f"not evaluated at {missing[0]}")
    return wanted


def _both(note: dict) -> tuple[dict, dict]:
    """The two terms of a note; its own `at` is that of terms without one."""
    return tuple({"at": note.get("at", "end"), **_term(note[key])} for key in "ab")


def _accuracy(note: dict, runs: Runs) -> dict:
    values = runs.values({"at": note.get("at", "end"), **_term(note["a"])})
    return {"runs": len(values), **mean_row(values, 0, 1)}


def _least(note: dict, runs: Runs) -> dict:
    values = runs.values({"at": note.get("at", "end"), **_term(note["a"])})
    return {"runs": len(values), "value": values.min(), "method": "lowest run"}


def _difference(note: dict, runs: Runs) -> dict:
    method = note.get("method", "welch")
    if isinstance(note["b"], list):
        return _from_several(note, runs)
    a, b = map(runs.values, _both(note))
    count, found = difference_of(a, b, method, _pooled(note, runs))
    return {"runs": count, **row_of(found, METHODS[method], -1, 1)}


def _from_several(note: dict, runs: Runs) -> dict:
    """One arm less the mean of several, by the pooled deviation."""
    at = note.get("at", "end")
    a, *others = (runs.values({"at": at, **_term(term)}) for term in (note["a"], *note["b"]))
    sd, df = statistics.pooled_sd(_pooled(note, runs))
    value = a.mean() - np.mean([other.mean() for other in others])
    error = sd * math.sqrt(1 / len(a) + sum(1 / len(other) for other in others) / len(others) ** 2)
    count = min(map(len, (a, *others)))
    return {"runs": count, **row_of(statistics.Estimate(value, error, df), "pooled", -1, 1)}


def _pooled(note: dict, runs: Runs) -> list[pd.Series]:
    return [runs.values({"arm": arm}) for arm in runs.pooled] if note.get("method") == "pooled" else []


def _prediction(note: dict, runs: Runs) -> dict:
    values = runs.values({"at": note.get("at", "end"), **_term(note["a"])})
    arms = _pooled(note, runs)
    found = statistics.prediction(values, statistics.pooled_sd(arms) if arms else None)
    return {"runs": len(values), **row_of(found, "prediction, pooled" if arms else "prediction", 0, 1)}


def _sd(note: dict, runs: Runs) -> dict:
    """The deviation between runs, over several evaluations: the root of its mean square, lowest and highest."""
    curve = runs.curve(note["a"])
    found = curve.loc[evaluations(curve, note.get("at", "end"))].std(axis=1)
    ends = {"low": found.min(), "high": found.max(), "method": "lowest to highest"} if len(found) > 1 else {}
    return {"runs": curve.shape[1], "value": math.sqrt((found**2).mean()), **ends}


def _target(note: dict, runs: Runs) -> float:
    """A target accuracy: a number; a term's mean; `{arm: ..., at: best mean}`, or the best `until` an iteration."""
    target = note["target"]
    if isinstance(target, int | float):
        return target
    if "until" in target or target.get("at") == "best mean":
        return runs.curve(target).loc[: target.get("until")].mean(axis=1).max()
    return runs.values(target).mean()


def _reached(note: dict, runs: Runs) -> dict:
    curve = runs.curve(note["a"])
    mean = curve.mean(axis=1)
    above = mean[mean >= _target(note, runs) - crossings.TIE]
    return {"runs": curve.shape[1], "value": above.index[0] if len(above) else math.nan}


def _best_mean(note: dict, runs: Runs) -> dict:
    curve = runs.curve(note["a"]).loc[: note.get("until")]
    return {"runs": curve.shape[1], **crossings.best_mean_row(curve)}


def _best_mean_at(note: dict, runs: Runs) -> dict:
    curve = runs.curve(note["a"]).loc[: note.get("until")]
    return {"runs": curve.shape[1], "value": curve.mean(axis=1).idxmax()}


def _crossing(note: dict, runs: Runs) -> dict:
    challenger = runs.curve(note["a"])
    cross = crossings.crossing(runs.curve(note["b"]), challenger)
    return {"runs": challenger.shape[1], **crossings.set_row(cross)}


def _share(note: dict, runs: Runs) -> dict:
    challenger = runs.curve(note["a"])
    table = crossings.crossing(runs.curve(note["b"]), challenger).table
    found = table[table.iteration == note["at"]].share.sum()
    return {"runs": challenger.shape[1], "value": float(found), "method": "resampled"}


def _factor(note: dict, runs: Runs) -> dict:
    challenger = runs.curve(note["a"])
    found = crossings.factor_at(runs.curve(note["b"]), challenger, _target(note, runs))
    return {"runs": challenger.shape[1], "method": "resampled", **{key: found[key] for key in ("value", "low", "high")}}


def _counted(note: dict, runs: Runs) -> dict:
    """The headline's factor when range tests are counted with the challenger's iterations."""
    baseline, challenger = runs.curve(note["b"]), runs.curve(note["a"])
    took = runs.records(note["experiment"])[0]["iterations"] * note["count"]
    at = crossings.crossing(baseline, challenger).iteration
    return {"runs": challenger.shape[1], "value": baseline.index[-1] / (at + took)}


def _ratio(note: dict, runs: Runs) -> dict:
    """One rate over another; a term's `rate` is a setting of its policy, or `mean`, that of its bounds."""

    def rate(term: dict) -> float:
        policy = runs.policy(term)
        return (policy["base_lr"] + policy["max_lr"]) / 2 if term["rate"] == "mean" else policy[term["rate"]]

    return {"value": rate(note["a"]) / rate(note["b"]), "method": "settings"}


def _single_bound(bound: str) -> Callable[[dict, Runs], dict]:
    """A bound that range tests give one by one: their mean curve's, the lowest and the highest."""

    def found(note: dict, runs: Runs) -> dict:
        curve = runs.curve(note["a"])
        tested = runs.of(_term(note["a"]).get("experiment"))
        rates = tested.groupby("iteration").lr.first()[curve.index]
        single = [getattr(suggest_bounds(rates, curve[seed]), bound) for seed in curve]
        value = getattr(suggest_bounds(rates, curve), bound)
        ends = {"low": min(single), "high": max(single), "method": "lowest to highest run"}
        return {"runs": len(single), "value": value, **ends}

    return found


def _bound_of(bound: str) -> Callable[[dict, Runs], dict]:
    """A bound that the rule reads off somebody else's curve, or off that of an experiment."""

    def found(note: dict, runs: Runs) -> dict:
        if "file" in note:
            table = pd.read_csv(note["file"])
        else:
            tested = runs.of(note["experiment"])
            table = tested.groupby("iteration").agg(lr=("lr", "first"), val_acc=("val_acc", "mean"))
        return {"value": getattr(suggest_bounds(table.lr, table.val_acc), bound), "method": "the rule, one curve"}

    return found


def _falls(note: dict, runs: Runs) -> dict:
    curve = runs.curve(note["a"])
    change = curve.mean(axis=1).diff().dropna().loc[note.get("first") : note.get("last")]
    return {"runs": curve.shape[1], "value": int((change < 0).sum()), "note": f"of {len(change)} evaluations"}


def _roughness(note: dict, runs: Runs) -> dict:
    """How far an evaluation lies from the mean of its two neighbours, a mean over evaluations, run by run."""
    curve = runs.curve(note["a"])
    apart = (curve - (curve.shift(1) + curve.shift(-1)) / 2).abs().loc[note.get("first") : note.get("last")].mean()
    return {"runs": len(apart), **row_of(statistics.mean(apart), "Student", 0, 1)}


def _hours(note: dict, runs: Runs) -> dict:
    seconds = [record["seconds"] for name in note["experiments"] for record in runs.records(name)]
    return {"runs": len(seconds), "value": sum(seconds) / note.get("workers", 1) / 3600, "note": "processor time"}


def _minutes(note: dict, runs: Runs) -> dict:
    return {**(hours := _hours(note, runs)), "value": 60 * hours["value"]}


def _single_rates(note: dict, runs: Runs) -> dict:
    sweeps = runs.of(note["experiment"])
    single = [best_rate(run.lr, run.train_loss, window=1).lr for _, run in sweeps.groupby("seed")]
    ends = {"low": min(single), "high": max(single), "method": "lowest to highest run"}
    return {"runs": len(single), "value": float(np.exp(np.log(single).mean())), **ends}


def _epochs(note: dict, runs: Runs) -> dict:
    """Epochs that runs took, the longest of them or all together."""
    records = runs.records(note["experiment"])
    each = [record["iterations"] * record["spec"]["batch_size"] / record["data"]["train"] for record in records]
    return {"runs": len(each), "value": {"longest": max, "all": sum}[note["of"]](each)}


def _gap(note: dict, runs: Runs) -> dict:
    """Somebody else's single number less our mean."""
    values = runs.values({"at": note.get("at", "end"), **_term(note["a"])})
    return {"runs": len(values), "value": note["published"] - values.mean(), "note": note["source"]}


#: Each kind of note: the quantity it is, what it needs beside its name, what it may have, and how it is found.
KINDS: dict[str, tuple[str, set[str], set[str], Callable[[dict, Runs], dict]]] = {
    "accuracy": ("accuracy", {"a"}, {"at"}, _accuracy),
    "least": ("accuracy", {"a"}, {"at"}, _least),
    "difference": ("accuracy_difference", {"a", "b"}, {"at", "method"}, _difference),
    "prediction": ("accuracy", {"a"}, {"at", "method"}, _prediction),
    "gap": ("accuracy_difference", {"a", "published", "source"}, {"at"}, _gap),
    "sd": ("sd", {"a"}, {"at"}, _sd),
    "reached": ("reached", {"a", "target"}, set(), _reached),
    "best_mean": ("accuracy", {"a"}, {"until"}, _best_mean),
    "best_mean_at": ("reached", {"a"}, {"until"}, _best_mean_at),
    "crossing": ("crossing_iteration", {"a", "b"}, set(), _crossing),
    "share": ("share", {"a", "b", "at"}, set(), _share),
    "factor": ("factor", {"a", "b", "target"}, set(), _factor),
    "factor_counting": ("factor", {"a", "b", "experiment", "count"}, set(), _counted),
    "ratio": ("ratio", {"a", "b"}, set(), _ratio),
    "single_base_lr": ("base_lr", {"a"}, set(), _single_bound("base_lr")),
    "single_max_lr": ("max_lr", {"a"}, set(), _single_bound("max_lr")),
    "base_lr": ("base_lr", set(), {"file", "experiment"}, _bound_of("base_lr")),
    "max_lr": ("max_lr", set(), {"file", "experiment"}, _bound_of("max_lr")),
    "falls": ("falls", {"a"}, {"first", "last"}, _falls),
    "roughness": ("roughness", {"a"}, {"first", "last"}, _roughness),
    "hours": ("hours", {"experiments"}, {"workers"}, _hours),
    "minutes": ("minutes", {"experiments"}, {"workers"}, _minutes),
    "single_rates": ("best_lr", {"experiment"}, set(), _single_rates),
    "epochs": ("epochs", {"experiment", "of"}, set(), _epochs),
}


def check_notes(notes: dict[str, list]) -> None:
    """Refuse notes that say too little, or too much; nothing is read yet.

    Args:
        notes: by experiment, each a list of notes; an entry `{pooled: [...]}` names the arms of the experiment whose
            variance `method: pooled` takes together.

    Raises:
        RunError: one line that names the note.
    """
    if not isinstance(notes, dict) or not all(isinstance(entries, list) for entries in notes.values()):
        raise RunError(f"notes: a list of notes under the name of each experiment is needed, not {short(notes)}")
    for entries in notes.values():
        pooled, names = pooled_arms(entries), set()
        for note in entries:
            if isinstance(note, dict) and note.keys() == {"pooled"}:
                continue
            if not (isinstance(note, dict) and isinstance(note.get("name"), str)):
                raise RunError(f"notes: an entry with a name is needed, not {short(note)}")
            if not NAME.fullmatch(note["name"]):
                raise RunError(f"notes: {short(note['name'])}: a marker takes letters, digits, spaces, dots and - only")
            if note["name"] in names:
                raise RunError(f"notes: {note['name']} stands there twice")
            names.add(note["name"])
            _check(note, pooled)


def _check(note: dict, pooled: list[str]) -> None:
    where = f"notes: {note['name']}"
    if (kind := note.get("kind")) not in KINDS:
        raise RunError(f"{where}: unknown kind {short(kind)}{did_you_mean(str(kind), KINDS)}")
    _, needs, may, _ = KINDS[kind]
    if lacking := needs - note.keys():
        raise RunError(f"{where}: {', '.join(sorted(lacking))} must be given for a note of kind {kind}")
    if unknown := note.keys() - needs - may - {"name", "kind", "note"}:
        raise RunError(f"{where}: a note of kind {kind} has no {', '.join(map(str, sorted(unknown)))}")
    if (method := note.get("method", "welch")) not in METHODS:
        raise RunError(f"{where}: method={short(method)}: one of {', '.join(METHODS)} is needed")
    if not pooled and (method == "pooled" or isinstance(note.get("b"), list)):
        raise RunError(f"{where}: an entry {{pooled: [...]}} must name the arms whose variance is pooled")


def notes_table(notes: Sequence[dict], results: str | Path, experiment: str) -> pd.DataFrame:
    """An experiment's notes as a table, one a row, under its name; what the runs here do not say has no value.

    Args:
        notes: those of one experiment, as `check_notes` takes them.
        results: the results folder.
        experiment: whose arms a term means that names no experiment.

    Returns:
        A table with `tables.TABLE_COLUMNS`; a note's name is in the column `policy`.
    """
    runs = Runs(results, experiment, pooled_arms(notes))
    rows = []
    for note in notes:
        if "pooled" in note:
            continue
        quantity, _, _, find = KINDS[note["kind"]]
        named = {"quantity": quantity, "policy": note["name"]}
        try:
            found = find(note, runs)
        except (AnalysisError, KeyError, OSError) as error:
            rows.append(named | {"note": f"not in these runs ({' '.join(str(error).split())})"})
        else:
            rows.append({**found, **named, "note": note.get("note", found.get("note"))})
    return table_of(rows)


def write_notes(notes: dict[str, list], results: str | Path) -> None:
    """Write each experiment's notes to `tables/<experiment>_notes.csv`; arguments as for `check_notes`."""
    for experiment, entries in notes.items():
        write(notes_table(entries, results, experiment), Path(results) / "tables" / f"{experiment}_notes.csv")
