"""Tables from the CSVs of runs: means and differences, each with its interval and the method behind it.

Nothing here trains or draws. Intervals are 95 % throughout, by the one method of `modules.statistics`.
"""

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from modules import statistics
from modules.checks import RunError, short
from modules.data.splits import FOLDS
from modules.range_test import suggest_bounds
from modules.range_test.reading import diverged_as_chance
from modules.runs.files import COLUMNS, atomic_write, complete_runs
from modules.runs.provenance import recorded
from modules.runs.spec import Spec
from modules.statistics import AnalysisError, Estimate

TABLE_COLUMNS = [
    *("quantity", "policy", "runs", "diverged", "value", "std", "error", "df", "low", "high", "method", "note")
]
#: How two arms are compared, and what a table calls it. Pairs are for a shared prefix and for precision.
METHODS = {"welch": "Welch", "pooled": "pooled", "pairs": "pairs", "blocks": "blocks"}


def table_of(rows: Iterable[dict]) -> pd.DataFrame:
    """Rows as a table of results: the columns are `TABLE_COLUMNS`, whatever the rows have."""
    return pd.DataFrame(list(rows), columns=TABLE_COLUMNS).astype({"runs": "Int64", "diverged": "Int64"})


def read_table(path: str | Path) -> pd.DataFrame:
    """A written table, with a quantity and a policy (`-` where it has none) in every row."""
    table = pd.read_csv(path).rename(columns={"bound": "quantity"})
    return table if "policy" in table else table.assign(policy="-")


def read_runs(folder: str | Path, specs: Iterable[Spec] | None = None) -> pd.DataFrame:
    """The complete runs of a folder, one row an evaluation.

    Args:
        folder: an experiment's results folder.
        specs: read these runs only; by default all.

    Returns:
        Columns `policy` (or the run's variant), `seed`, `diverged`, `seconds`, `label` (the data set's), `images` (of
        which `val_acc` is: `test` or `validation`), `fold` (of its test images, where the run has one), `test_acc` (on
        the test images at its end, where its JSON has it), then those of the CSVs: `iteration`, `lr`, `train_loss`,
        `val_loss`, `val_acc` (0 to 1).

    Raises:
        AnalysisError: no complete run, or runs that do not belong together.
        RunError: a run's CSV or JSON is not as the run wrote it.
    """
    found, rows, known, of_all = [], [",".join(COLUMNS)], {}, None
    asked = None if specs is None else {spec.name for spec in specs}
    for run in complete_runs(folder):
        if asked is not None and run.name not in asked:
            continue
        path = run.place
        text, record = run.read()
        settings = recorded(record)
        # Diverged before its first evaluation: a row without numbers, or it would not be counted.
        own = text.splitlines()[1:] or [f"{settings.evaluate_every},,,,"]
        rows += own
        first, expected = known.setdefault(settings.kind, (path, settings))
        source, data = of_all = of_all or (path, record["data"])
        if run.name != settings.name:
            raise AnalysisError(
                f"{path} is the run {settings.name}: give it its name back, or take it out of the folder"
            )
        if settings.model_copy(update={"seed": expected.seed}) != expected:
            raise AnalysisError(f"{path} and {first} are runs with different settings: keep one kind in the folder")
        if record["data"]["label"] != data["label"] or record["data"]["fingerprint"] != data["fingerprint"]:
            raise AnalysisError(f"{path} and {source} were trained on different data: keep one kind in the folder")
        about = {
            "policy": settings.kind,
            "seed": settings.seed,
            "diverged": record["diverged"],
            "seconds": record["seconds"],
            "label": record["data"]["label"],
            "images": "validation" if settings.evaluation == "validation" else "test",
            "fold": settings.seed % FOLDS if settings.split == "folds" else None,
            "test_acc": record.get("test", {}).get("accuracy", math.nan),
        }
        found += [about] * len(own)
    if not found:
        raise AnalysisError(f"no complete run in {folder}")
    # All rows at once: a table for each of thousands of runs takes many times as long.
    dtypes = {"iteration": int} | dict.fromkeys(COLUMNS[1:], float)
    return pd.concat([pd.DataFrame(found), pd.read_csv(io.StringIO("\n".join(rows)), dtype=dtypes)], axis=1)


def curves(runs: pd.DataFrame, policy: str) -> pd.DataFrame:
    """Accuracy of one policy's runs, iterations down, seeds across; diverged runs are left out.

    Where runs are tested on folds, `attrs["folds"]` has each seed's.

    Raises:
        AnalysisError: no run of the policy.
    """
    found = runs[runs.policy == policy]
    if found.empty:
        raise AnalysisError(f"no run with the policy {policy!r}")
    kept = found[~found.diverged]
    curve = kept.pivot(index="iteration", columns="seed", values="val_acc").dropna()
    if "fold" in found and found.fold.notna().all():
        curve.attrs["folds"] = found.groupby("seed").fold.first().to_dict()
    return curve


def blocks(accuracies: pd.DataFrame | pd.Series | Sequence[float]) -> list[int] | None:
    """The fold of each run of a curve `[iterations, seeds]`, or of numbers by seed; None where runs have no folds."""
    folds = getattr(accuracies, "attrs", {}).get("folds")
    if folds is None:
        return None
    return [folds[seed] for seed in (accuracies.columns if accuracies.ndim == 2 else accuracies.index)]


def mean_of(values: Sequence[float]) -> tuple[Estimate, str]:
    """The mean of `values` `[runs]` and its method: by blocks, where they are by seed and their runs have folds."""
    folds = blocks(values)
    return (statistics.mean(values), "Student") if folds is None else (statistics.blocked_mean(values, folds), "blocks")


def final_accuracies(runs: pd.DataFrame, policy: str) -> pd.Series:
    """Accuracy on the test images at the end of each of a policy's runs, by seed; diverged runs are left out.

    A run whose rows are of validation images has it in its JSON; else it is the last row's.
    """
    curve = curves(runs, policy)
    last = curve.iloc[-1:].max()
    if "test_acc" in runs:
        at_end = runs[runs.policy == policy].groupby("seed").test_acc.first().reindex(last.index)
        last = at_end.where(at_end.notna(), last)
    last.attrs = curve.attrs
    return last


def best(curve: pd.DataFrame) -> pd.Series:
    """The highest evaluation of each run of a curve, by seed."""
    found = curve.max()
    found.attrs = curve.attrs
    return found


def other_policy(runs: pd.DataFrame, baseline: str) -> str:
    """The one policy among these runs that is not the baseline.

    Raises:
        AnalysisError: there is none, or more than one.
    """
    others = sorted(set(runs.policy) - {baseline})
    if len(others) != 1:
        raise AnalysisError(
            f"challenger: choose one of the policies beside {baseline!r}: {', '.join(others) or 'none'}"
        )
    return others[0]


def row_of(found: Estimate, method: str, least: float = -math.inf, most: float = math.inf) -> dict[str, object]:
    """An estimate as part of a table's row; intervals end where the values can, at `least` and `most`."""
    low, high = (float(np.clip(end, least, most)) for end in found.interval())
    numbers = {"value": found.value, "error": found.error, "df": found.df, "low": low, "high": high}
    return {"method": method if found.df > 0 else None, **numbers}


def mean_row(values: Sequence[float], least: float = -math.inf, most: float = math.inf) -> dict[str, object]:
    """The mean of `values` `[runs]` with its interval, by the method of `mean_of`, as part of a table's row."""
    found, method = mean_of(values)
    return {**row_of(found, method, least, most), "std": found.error * math.sqrt(len(values))}


def by_policy(runs: pd.DataFrame, quantities: tuple[str, ...]) -> pd.DataFrame:
    """Means over the runs of each policy, with intervals; one quantity of one policy a row, in the order of `runs`.

    Diverged runs are counted, and left out of the means.

    Args:
        runs: as `read_runs` gives them.
        quantities: of `iterations`, `final_accuracy` (which nobody selected), `best_accuracy` (the highest of a run's
            evaluations), `seconds` (of training, evaluations included).

    Returns:
        A table with `TABLE_COLUMNS`; accuracies are on the test images, 0 to 1.
    """
    rows = []
    for quantity in quantities:
        for policy in runs.policy.unique():
            found, curve = runs[runs.policy == policy], curves(runs, policy)
            seeds = found.groupby("seed").diverged.first()
            row = {"quantity": quantity, "policy": policy, "runs": len(seeds), "diverged": int(seeds.sum())}
            if quantity == "iterations":
                row["value"] = np.nan if curve.empty else float(curve.index[-1])
            elif quantity == "seconds":
                row.update(mean_row(found[~found.diverged].groupby("seed").seconds.first(), 0))
            else:
                row.update(
                    mean_row(final_accuracies(runs, policy) if quantity == "final_accuracy" else best(curve), 0, 1)
                )
            rows.append(row)
    return table_of(rows)


def check_compare(compare: Sequence, variants: Sequence[str]) -> None:
    """Refuse what `differences` could not do with a study's entries; as there, and `variants` are all arms.

    Raises:
        RunError: an entry that names no two variants, an unknown method, or a pair that was there before.
    """
    names = ", ".join(map(str, variants))
    arms = pooled_arms(compare)
    if not isinstance(arms, list) or not all(arm in variants for arm in arms):
        raise RunError(f"compare: pooled: variants of {names} are needed, not {short(arms)}")
    seen = set()
    for entry in compare:
        pair = next(iter(pairs_of([entry])), None)
        if pair is None:  # it names the arms to pool
            continue
        if not (pair.keys() >= {"a", "b"} and pair["a"] in variants and pair["b"] in variants):
            raise RunError(f"compare: two variants of {names} are needed, not {short(entry)}")
        if unknown := pair.keys() - {"a", "b", "method", "note"}:
            raise RunError(f"compare: a, b, method and note are known, not {', '.join(map(str, sorted(unknown)))}")
        if (method := pair.get("method", "welch")) not in METHODS:
            raise RunError(f"compare: method={short(method)}: one of {', '.join(METHODS)} is needed")
        if method == "pooled" and not arms:
            raise RunError("compare: method='pooled' needs an entry {pooled: [...]} with the variants to pool")
        if (key := (pair["a"], pair["b"])) in seen:
            raise RunError(f"compare: {' - '.join(key)} stands there twice")
        seen.add(key)


def pooled_arms(compare: Iterable) -> list[str]:
    """The arms that the entry `{pooled: [...]}` names, whose variance is taken together; none without one."""
    return next((entry["pooled"] for entry in compare if isinstance(entry, dict) and "pooled" in entry), [])


def pairs_of(compare: Iterable) -> list[dict]:
    """The pairs among a study's entries, each with `a` and `b`, and what else is said of it."""
    pairs = []
    for entry in compare:
        if isinstance(entry, list | tuple) and len(entry) == 2:
            pairs.append(dict(zip("ab", entry, strict=True)))
        elif not isinstance(entry, dict):
            pairs.append({})
        elif "pooled" not in entry:
            pairs.append(entry)
    return pairs


def differences(runs: pd.DataFrame, compare: Iterable) -> pd.DataFrame:
    """By how much final accuracies differ, one pair of arms a row.

    Args:
        runs: as `read_runs` gives them.
        compare: pairs `[a, b]`, or `{a: ..., b: ..., method: welch, pooled, pairs or blocks, note: ...}`, and
            `{pooled: [...]}`, the arms whose variance `pooled` takes together; a study names them all before its
            results are known.
    """
    rows = []
    for pair in pairs_of(compare):
        row = final_difference(runs, pair["a"], pair["b"], pair.get("method"), pooled_arms(compare))
        rows.append({**row, "note": pair.get("note")})
    return table_of(rows)


def final_difference(
    runs: pd.DataFrame, policy: str, baseline: str, method: str | None = None, pooled: Sequence[str] = ()
) -> dict[str, object]:
    """By how much one policy's final accuracy exceeds another's.

    Args:
        runs: as `read_runs` gives them.
        policy, baseline: two arms.
        method, pooled: as for `difference_of`, arms by their names; by default Welch's, and blocks for runs with folds.

    Returns:
        A row for a table like `by_policy`'s; without runs to compare, its numbers are NaN.
    """
    ends = {arm: final_accuracies(runs, arm) for arm in dict.fromkeys((policy, baseline, *pooled))}
    method = method or ("blocks" if all(blocks(end) is not None for end in ends.values()) else "welch")
    count, found = difference_of(ends[policy], ends[baseline], method, [ends[arm] for arm in pooled])
    row = {"quantity": "final_accuracy_difference", "policy": f"{policy} - {baseline}", "runs": count}
    return row | row_of(found, METHODS[method], -1, 1)


def difference_of(
    a: pd.Series, b: pd.Series, method: str = "welch", pooled: Sequence[pd.Series] = ()
) -> tuple[int, Estimate]:
    """The difference of two arms and how many runs an arm it is of: the fewer.

    Args:
        a, b: one value a run, by seed.
        method: of `METHODS`.
        pooled: the same of the arms whose variance is pooled.

    Raises:
        AnalysisError: `blocks` of runs without folds.
    """
    if method == "pairs":
        shared = a.index.intersection(b.index)
        return len(shared), statistics.paired_difference(a[shared], b[shared])
    count = min(len(a), len(b))
    if method == "blocks":
        folds = blocks(a), blocks(b)
        if None in folds:
            raise AnalysisError("method='blocks': these runs have no folds")
        return count, statistics.blocked_difference(a, folds[0], b, folds[1])
    return count, statistics.difference(a, b, statistics.pooled_sd(pooled) if method == "pooled" else None)


def mean_curves(runs: pd.DataFrame) -> pd.DataFrame:
    """Accuracy by policy and iteration: columns `policy`, `iteration`, `lr`, `runs`, `mean`, `std`, `low`, `high`.

    `low` and `high` are the lowest and the highest run; diverged runs are left out.
    """
    grouped = runs[~runs.diverged].groupby(["policy", "iteration"])
    table = grouped.val_acc.agg(runs="count", mean="mean", std="std", low="min", high="max")
    table.insert(0, "lr", grouped.lr.first())
    return table.reset_index()


def bounds_table(runs: pd.DataFrame, log: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The range test's curve and the bounds suggested from it.

    Args:
        runs: as `read_runs` gives them, of the policy `range_test`.
        log: whether the ramp was exponential.

    Returns:
        The curve (`lr`, `mean`, lowest run `low`, highest `high`, the line `fitted`; `attrs["images"]`: which accuracy
        is of) and the bounds (`bound`, `value`, `low`, `high`, `runs`).

    Raises:
        AnalysisError: no range test here, or no rise in it.
    """
    rates, accuracy = _range_tests(runs)
    found = suggest_bounds(rates, accuracy, log)
    bounds = pd.DataFrame(
        {
            "bound": ["base_lr", "max_lr"],
            "value": [found.base_lr, found.max_lr],
            "low": [found.base_low, found.max_low],
            "high": [found.base_high, found.max_high],
            "runs": accuracy.shape[1],
        }
    )
    return range_test_curve(runs).assign(fitted=found.fitted), bounds


def range_test_curve(runs: pd.DataFrame) -> pd.DataFrame:
    """The range test's curve alone; arguments, errors and columns as for `bounds_table`, without `fitted`."""
    rates, accuracy = _range_tests(runs)
    curve = pd.DataFrame(
        {"lr": rates, "mean": accuracy.mean(axis=1), "low": accuracy.min(axis=1), "high": accuracy.max(axis=1)}
    )
    curve.attrs["images"] = runs["images"].iloc[0]
    return curve


def _range_tests(runs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Learning rates `[points]` of the range tests among these runs, and accuracies `[points, runs]`."""
    tests = runs[runs.policy == "range_test"]
    if tests.empty:
        raise AnalysisError("no range test among these runs")
    accuracy = tests.pivot(index="iteration", columns="seed", values="val_acc")
    return tests.groupby("iteration").lr.first().to_numpy(), diverged_as_chance(accuracy.to_numpy())


def read_bounds(results: str | Path) -> tuple[float, float]:
    """The bounds that the range test wrote into a results folder: `base_lr`, `max_lr`.

    Raises:
        AnalysisError: the range test has not been run there.
    """
    path = Path(results) / "tables" / "range_test_bounds.csv"
    if not path.exists():
        raise AnalysisError(f"no bounds in {path}: run the range test there first, or give base_lr and max_lr")
    values = pd.read_csv(path).set_index("bound").value
    return float(values["base_lr"]), float(values["max_lr"])


def write(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table as CSV, whole or not at all."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    atomic_write(Path(path), table.to_csv(index=False, lineterminator="\n"))
