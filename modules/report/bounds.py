"""A study's range test as tables: its curve, and the bounds suggested from it."""

import pandas as pd

from modules.range_test import suggest_bounds
from modules.statistics import AnalysisError


def bounds_table(runs: pd.DataFrame, log: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The range test's curve and the bounds suggested from it.

    A run that diverged stands at its first accuracy, chance, from there on: that is the fall the test looks for.

    Args:
        runs: as `read_runs` gives them, of the policy `range_test`.
        log: whether the ramp was exponential.

    Returns:
        The curve (`lr`, `mean`, lowest run `low`, highest `high`, the line `fitted`) and the bounds (`bound`, `value`,
        `low`, `high`, `runs`).

    Raises:
        AnalysisError: no range test here, or no rise in it.
    """
    rates, accuracy = _accuracies(runs)
    found = suggest_bounds(rates.to_numpy(), accuracy.to_numpy(), log)
    bounds = pd.DataFrame(
        {
            "bound": ["base_lr", "max_lr"],
            "value": [found.base_lr, found.max_lr],
            "low": [found.base_low, found.max_low],
            "high": [found.base_high, found.max_high],
            "runs": accuracy.shape[1],
        }
    )
    return curve_of(runs).assign(fitted=found.fitted), bounds


def curve_of(runs: pd.DataFrame) -> pd.DataFrame:
    """The range test's curve alone; arguments, errors and columns as for `bounds_table`, without `fitted`."""
    rates, accuracy = _accuracies(runs)
    ends = {"mean": accuracy.mean(axis=1), "low": accuracy.min(axis=1), "high": accuracy.max(axis=1)}
    return pd.DataFrame({"lr": rates, **ends}).reset_index(drop=True)


def _accuracies(runs: pd.DataFrame) -> tuple[pd.Series, pd.DataFrame]:
    """Learning rate, and accuracy by seed, at each evaluation of the range tests among these runs."""
    tests = runs[runs.policy == "range_test"]
    if tests.empty:
        raise AnalysisError("no range test among these runs")
    accuracy = tests.pivot(index="iteration", columns="seed", values="val_acc")
    accuracy = accuracy.fillna(accuracy.iloc[0]).fillna(accuracy.iloc[0].min())
    return tests.groupby("iteration").lr.first(), accuracy
