"""Tables from the CSVs of runs: means with intervals, and the iterations one policy needs for another's accuracy.

Nothing here trains or draws. Intervals are 95 % throughout; statistics are scipy's.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from modules.files import COLUMNS, RunFiles, atomic_write

CONFIDENCE = 0.95
RESAMPLES = 9999


class AnalysisError(ValueError):
    """Results that cannot answer the question; the message is one line for the user."""


def read_runs(folder: str | Path) -> pd.DataFrame:
    """All complete runs of a folder, one row an evaluation.

    Returns:
        Columns `policy`, `seed`, `diverged`, `label` (the data set's), then those of the CSVs: `iteration`, `lr`,
        `train_loss`, `val_loss`, `val_acc` (0 to 1).

    Raises:
        AnalysisError: no complete run, or runs that do not belong together.
        RunError: a run's CSV or JSON is not as the run wrote it.
    """
    tables, known = [], {}
    for path in sorted(Path(folder).glob("*-seed*.csv")):
        text, record = RunFiles(folder, path.stem).read()
        table = pd.read_csv(io.StringIO(text), dtype={"iteration": int} | dict.fromkeys(COLUMNS[1:], float))
        if table.empty:  # diverged before its first evaluation: a row without numbers, or it would not be counted
            table.loc[0, "iteration"] = record["spec"]["evaluate_every"]
        settings = {**record["spec"], "seed": None}
        first, expected, data = known.setdefault(record["spec"]["policy"]["name"], (path, settings, record["data"]))
        name = f"{record['spec']['policy']['name']}-seed{record['spec']['seed']}"
        if path.stem != name:
            raise AnalysisError(f"{path} is the run {name}: give it its name back, or take it out of the folder")
        if settings != expected:
            raise AnalysisError(f"{path} and {first} are runs with different settings: keep one kind in the folder")
        if record["data"]["label"] != data["label"] or record["data"].get("fingerprint") != data.get("fingerprint"):
            raise AnalysisError(f"{path} and {first} were trained on different data: keep one kind in the folder")
        run = {
            "policy": record["spec"]["policy"]["name"],
            "seed": record["spec"]["seed"],
            "diverged": record["diverged"],
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


def interval_of_mean(values: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation, and two 95 % intervals of the mean of `values` `[runs]`; of no run at all: NaN.

    `low`, `high` are the percentile bootstrap's over runs. With five runs it is known to be too narrow (it covers
    nearer 85 % than 95 %), so `t_low`, `t_high`, Student's interval, stand beside it. One run has no interval: NaN.
    """
    values = np.asarray(values, dtype=float)
    out = dict.fromkeys(("value", "std", "low", "high", "t_low", "t_high"), np.nan)
    if len(values):
        out["value"] = values.mean()
    if len(values) > 1:
        boot = stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=0)
        out.update(std=values.std(ddof=1), low=boot.confidence_interval.low, high=boot.confidence_interval.high)
        if values.std() > 0:
            student = stats.t.interval(CONFIDENCE, len(values) - 1, values.mean(), stats.sem(values))
            out.update(t_low=student[0], t_high=student[1])
    return out


@dataclass(frozen=True)
class Crossing:
    """Where one policy's mean accuracy first reaches the best mean accuracy of another.

    Attributes:
        target: the best mean accuracy of the baseline, over its evaluations.
        target_iteration: the evaluation at which the baseline has it.
        iteration: the first evaluation at which the challenger's mean reaches it; NaN when it never does.
        low, high: bootstrap interval of `iteration` over runs; infinite when that many resamples never reach it.
        ratio, ratio_low, ratio_high: the baseline's length over those iterations.
        never: share of resamples in which the challenger never reaches the target.
    """

    target: float
    target_iteration: float
    iteration: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float
    never: float


def crossing(baseline: pd.DataFrame, challenger: pd.DataFrame) -> Crossing:
    """Iterations the challenger needs for the baseline's best mean accuracy (coxy1989/clr's definition).

    The target is taken anew in every resample, so its own uncertainty is in the interval. Where both sides have the
    same seeds, runs are resampled in pairs: a seed gives both policies the same initial weights and image order.

    Args:
        baseline, challenger: accuracies as `curves` gives them, `[iterations, seeds]`; without a run of either nothing
            is known, and all is NaN.
    """
    if baseline.empty or challenger.empty:
        nothing = dict.fromkeys(("iteration", "low", "high", "ratio", "ratio_low", "ratio_high", "never"), np.nan)
        target = np.nan if baseline.empty else baseline.mean(axis=1)
        return Crossing(target=float(np.max(target)), target_iteration=_best_at(baseline), **nothing)
    base, chall = baseline.to_numpy(), challenger.to_numpy()
    steps = challenger.index.to_numpy(dtype=float)

    # A tie counts as reached, so it must not depend on how a mean is rounded.
    def first(base_runs: np.ndarray, chall_runs: np.ndarray) -> float:
        reached = chall[:, chall_runs].mean(axis=1) >= base[:, base_runs].mean(axis=1).max() - 1e-9
        return steps[reached.argmax()] if reached.any() else np.inf

    mean = base.mean(axis=1)
    paired = list(baseline.columns) == list(challenger.columns)
    everyone = np.arange(base.shape[1]), np.arange(chall.shape[1])
    at = first(*everyone)
    low = high = never = np.nan
    if min(base.shape[1], chall.shape[1]) > 1:
        # scipy's own percentiles cannot hold infinities, so they are taken from its resamples.
        with np.errstate(invalid="ignore"):
            drawn = stats.bootstrap(
                everyone,
                lambda b, c: first(b.astype(int), c.astype(int)),
                n_resamples=RESAMPLES,
                paired=paired,
                vectorized=False,
                method="percentile",
                rng=0,
            ).bootstrap_distribution
        tail = (1 - CONFIDENCE) / 2
        low = np.quantile(drawn, tail, method="inverted_cdf")
        high = np.quantile(drawn, 1 - tail, method="inverted_cdf")
        never = float(np.isinf(drawn).mean())
    length = float(baseline.index[-1])
    return Crossing(
        target=float(mean.max()),
        target_iteration=_best_at(baseline),
        iteration=at if np.isfinite(at) else np.nan,
        low=float(low),
        high=float(high),
        ratio=length / at if np.isfinite(at) else np.nan,
        ratio_low=length / high,
        ratio_high=length / low,
        never=never,
    )


def _best_at(curve: pd.DataFrame) -> float:
    """The evaluation at which the mean is best."""
    return np.nan if curve.empty else float(curve.mean(axis=1).idxmax())


def headline(runs: pd.DataFrame, baseline: str = "fixed", challenger: str = "triangular") -> pd.DataFrame:
    """The headline table, one quantity a row; accuracies are on the test images, 0 to 1.

    Final accuracy, which nobody selected, comes before best accuracy, the highest of a run's evaluations.

    Args:
        runs: as `read_runs` gives them.
        baseline, challenger: two policies' names.

    Returns:
        Columns `quantity`, `policy`, `runs`, `diverged`, `value`, `std`, `low`, `high`, `t_low`, `t_high`.

    Raises:
        AnalysisError: a policy without a run.
    """
    rows = []
    both = {policy: curves(runs, policy) for policy in (baseline, challenger)}
    for quantity in ("iterations", "final_accuracy", "best_accuracy"):
        for policy, curve in both.items():
            seeds = runs[runs.policy == policy].groupby("seed").diverged.first()
            row = {"quantity": quantity, "policy": policy, "runs": len(seeds), "diverged": int(seeds.sum())}
            if quantity == "iterations":
                row["value"] = np.nan if curve.empty else float(curve.index[-1])
            else:
                row.update(interval_of_mean(curve.iloc[-1:].max() if quantity == "final_accuracy" else curve.max()))
            rows.append(row)
    shared = [seed for seed in both[baseline].columns if seed in both[challenger].columns]
    if shared:
        difference = both[challenger][shared].iloc[-1] - both[baseline][shared].iloc[-1]
        name = f"{challenger} - {baseline}"
        rows.append(
            {
                "quantity": "final_accuracy_difference",
                "policy": name,
                "runs": len(shared),
                **interval_of_mean(difference),
            }
        )
    cross = crossing(both[baseline], both[challenger])
    count = both[challenger].shape[1]
    rows += [
        {"quantity": "best_mean_accuracy", "policy": baseline, "runs": both[baseline].shape[1], "value": cross.target},
        {
            "quantity": "best_mean_iteration",
            "policy": baseline,
            "runs": both[baseline].shape[1],
            "value": cross.target_iteration,
        },
        {
            "quantity": "crossing_iteration",
            "policy": challenger,
            "runs": count,
            "value": cross.iteration,
            "low": cross.low,
            "high": cross.high,
        },
        {
            "quantity": "crossing_ratio",
            "policy": challenger,
            "runs": count,
            "value": cross.ratio,
            "low": cross.ratio_low,
            "high": cross.ratio_high,
        },
        {"quantity": "never_crossed_share", "policy": challenger, "runs": count, "value": cross.never},
    ]
    table = pd.DataFrame(
        rows, columns=["quantity", "policy", "runs", "diverged", "value", "std", "low", "high", "t_low", "t_high"]
    )
    return table.astype({"diverged": "Int64"})


def mean_curves(runs: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy by policy and iteration: columns `policy`, `iteration`, `lr`, `runs`, `mean`, `std`, `low`, `high`.

    `low` and `high` are the lowest and the highest run; diverged runs are left out.
    """
    grouped = runs[~runs.diverged].groupby(["policy", "iteration"])
    table = grouped.val_acc.agg(runs="count", mean="mean", std="std", low="min", high="max")
    table.insert(0, "lr", grouped.lr.first())
    return table.reset_index()


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
