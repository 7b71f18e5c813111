"""Tables from the CSVs of runs: means with intervals, and the iterations one policy needs for another's accuracy.

Nothing here trains or draws. Intervals are 95 % throughout; statistics are scipy's.
"""

import io
import warnings
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from modules.checks import RunError
from modules.range_test import diverged_as_chance, suggest_bounds
from modules.runs.files import COLUMNS, RunFiles, atomic_write
from modules.runs.spec import Spec, spec
from modules.statistics import AnalysisError

CONFIDENCE = 0.95
RESAMPLES = 9999
LEAST_BOOTSTRAP = 5  # runs
TABLE_COLUMNS = ["quantity", "policy", "runs", "diverged", "value", "std", "low", "high", "t_low", "t_high"]


def read_runs(folder: str | Path, specs: Iterable[Spec] | None = None) -> pd.DataFrame:
    """The complete runs of a folder, one row an evaluation.

    Args:
        folder: an experiment's results folder.
        specs: read these runs only; by default all.

    Returns:
        Columns `policy` (or the run's variant), `seed`, `diverged`, `seconds`, `label` (the data set's), then those of
        the CSVs: `iteration`, `lr`, `train_loss`, `val_loss`, `val_acc` (0 to 1).

    Raises:
        AnalysisError: no complete run, or runs that do not belong together.
        RunError: a run's CSV or JSON is not as the run wrote it.
    """
    tables, known, of_all = [], {}, None
    asked = None if specs is None else {spec.name for spec in specs}
    for path in sorted(Path(folder).glob("*-seed*.csv")):
        if asked is not None and path.stem not in asked:
            continue
        text, record = RunFiles(folder, path.stem).read()
        try:
            settings = spec(**record["spec"])
        except RunError as error:
            raise AnalysisError(f"{path.with_suffix('.json')}: {error}") from error
        table = pd.read_csv(io.StringIO(text), dtype={"iteration": int} | dict.fromkeys(COLUMNS[1:], float))
        if table.empty:  # diverged before its first evaluation: a row without numbers, or it would not be counted
            table.loc[0, "iteration"] = settings.evaluate_every
        first, expected = known.setdefault(settings.kind, (path, settings))
        source, data = of_all = of_all or (path, record["data"])
        if path.stem != settings.name:
            raise AnalysisError(
                f"{path} is the run {settings.name}: give it its name back, or take it out of the folder"
            )
        if settings.model_copy(update={"seed": expected.seed}) != expected:
            raise AnalysisError(f"{path} and {first} are runs with different settings: keep one kind in the folder")
        if record["data"]["label"] != data["label"] or record["data"].get("fingerprint") != data.get("fingerprint"):
            raise AnalysisError(f"{path} and {source} were trained on different data: keep one kind in the folder")
        run = {
            "policy": settings.kind,
            "seed": settings.seed,
            "diverged": record["diverged"],
            "seconds": record["seconds"],
            "label": record["data"]["label"],
        }
        tables.append(table.assign(**run)[[*run, *table.columns]])
    if not tables:
        raise AnalysisError(f"no complete run in {folder}")
    return pd.concat(tables, ignore_index=True)


def curves(runs: pd.DataFrame, policy: str) -> pd.DataFrame:
    """Test accuracy of one policy's runs, iterations down, seeds across; diverged runs are left out.

    Raises:
        AnalysisError: no run of the policy.
    """
    found = runs[runs.policy == policy]
    if found.empty:
        raise AnalysisError(f"no run with the policy {policy!r}")
    kept = found[~found.diverged]
    return kept.pivot(index="iteration", columns="seed", values="val_acc").dropna()


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


def interval_of_mean(values: np.ndarray, least: float = -np.inf, most: float = np.inf) -> dict[str, float]:
    """Mean, standard deviation, and two 95 % intervals of the mean of `values` `[runs]`; of no run at all: NaN.

    `low`, `high` are the percentile bootstrap's over runs. With five runs it is known to be too narrow (it covers
    nearer 85 % than 95 %), so `t_low`, `t_high`, Student's interval, stand beside it. With fewer it can name little but
    the lowest and the highest run, so Student's stands in both places. One run has no interval: NaN. Intervals end
    where the values can: at `least` and `most`.
    """
    values = np.asarray(values, dtype=float)
    out = dict.fromkeys(("value", "std", "low", "high", "t_low", "t_high"), np.nan)
    if len(values):
        out["value"] = values.mean()
    if len(values) > 1:
        out["std"] = values.std(ddof=1)
        if values.std() > 0:
            student = stats.t.interval(CONFIDENCE, len(values) - 1, values.mean(), stats.sem(values))
            student = np.clip(student, least, most)
            out.update(t_low=student[0], t_high=student[1])
        if len(values) >= LEAST_BOOTSTRAP:
            boot = stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=0)
            out.update(low=boot.confidence_interval.low, high=boot.confidence_interval.high)
        else:
            out.update(low=out["t_low"], high=out["t_high"])
    return out


def over_runs(statistic: Callable[..., float], *counts: int, paired: bool = False) -> np.ndarray:
    """A statistic's values over bootstrap resamples of runs; none, `[0]`, with fewer than five runs.

    Args:
        statistic: given the indices of the runs that were drawn, a tuple for each of `counts`.
        counts: how many runs there are, of one policy or of several.
        paired: draw the same runs of all policies.
    """
    if min(counts) < LEAST_BOOTSTRAP:
        return np.empty(0)
    cached = lru_cache(maxsize=None)(statistic)
    # Of its own interval, which is not used here, scipy would say that it cannot hold infinities or be of width 0.
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        return stats.bootstrap(
            tuple(np.arange(count) for count in counts),
            lambda *drawn: cached(*(tuple(sorted(runs.astype(int))) for runs in drawn)),
            n_resamples=RESAMPLES,
            paired=paired,
            vectorized=False,
            method="percentile",
            rng=0,
        ).bootstrap_distribution


def percentiles(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of resampled values, each end one of them; of no values: NaN."""
    if not len(values):
        return np.nan, np.nan
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, (tail, 1 - tail), method="inverted_cdf")
    return float(low), float(high)


def by_policy(runs: pd.DataFrame, quantities: tuple[str, ...]) -> pd.DataFrame:
    """Means over the runs of each policy, with intervals; one quantity of one policy a row, in the order of `runs`.

    Diverged runs are counted, and left out of the means.

    Args:
        runs: as `read_runs` gives them.
        quantities: of `iterations`, `final_accuracy` (which nobody selected), `best_accuracy` (the highest of a run's
            evaluations), `seconds` (of training, evaluations included).

    Returns:
        Columns `quantity`, `policy`, `runs`, `diverged`, `value`, `std`, `low`, `high`, `t_low`, `t_high`; accuracies
        are on the test images, 0 to 1.
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
                row.update(interval_of_mean(found[~found.diverged].groupby("seed").seconds.first(), 0))
            else:
                accuracy = curve.iloc[-1:].max() if quantity == "final_accuracy" else curve.max()
                row.update(interval_of_mean(accuracy, 0, 1))
            rows.append(row)
    return pd.DataFrame(rows, columns=TABLE_COLUMNS).astype({"diverged": "Int64"})


def final_difference(runs: pd.DataFrame, policy: str, baseline: str) -> dict:
    """By how much one policy's final accuracy exceeds another's, in pairs of runs with the same seed.

    Returns:
        A row for a table like `by_policy`'s; without a seed that both finished, its numbers are NaN.
    """
    a, b = curves(runs, policy), curves(runs, baseline)
    seeds = [seed for seed in a.columns if seed in b.columns]
    values = a[seeds].iloc[-1] - b[seeds].iloc[-1] if seeds else []
    row = {"quantity": "final_accuracy_difference", "policy": f"{policy} - {baseline}", "runs": len(seeds)}
    return row | interval_of_mean(values, -1, 1)


def mean_curves(runs: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy by policy and iteration: columns `policy`, `iteration`, `lr`, `runs`, `mean`, `std`, `low`, `high`.

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
        The curve (`lr`, `mean`, lowest run `low`, highest `high`, the line `fitted`) and the bounds (`bound`, `value`,
        `low`, `high`, `runs`).

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
    return pd.DataFrame(
        {"lr": rates, "mean": accuracy.mean(axis=1), "low": accuracy.min(axis=1), "high": accuracy.max(axis=1)}
    )


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
