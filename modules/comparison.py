"""What a study got, set beside what it published."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

#: By table: the experiments whose runs it is of, and what tells its rows apart.
TABLES = {
    "range_test_bounds": (["range_test"], ["bound"]),
    "headline": (["headline"], ["quantity", "policy"]),
    "policies": (["policies"], ["quantity", "policy"]),
    "ablation": (["ablation"], ["quantity", "policy"]),
    "best_lr": (["best_lr_sweep", "best_lr"], ["quantity", "policy"]),
    "mlp": (["mlp"], ["quantity", "policy"]),
}


def compare(ours: str | Path, published: str | Path, tables: Iterable[str] = tuple(TABLES)) -> pd.DataFrame:
    """Set the tables of two results folders side by side.

    Args:
        ours, published: results folders.
        tables: of `TABLES`, those to compare, where we have them.

    Returns:
        One row a number: `quantity`, `value`, `low`, `high`, `published`, `published_low`, `published_high`,
        `verdict`. Verdicts: `same bytes` when the run CSVs behind both are identical, and so are the numbers; `differs`
        when the runs are and the numbers are not; of other runs, `agrees` when the 95 % intervals overlap (equal values
        where there are none) and `differs` when they do not; `not published` when there is nothing to compare with;
        `itself` when both folders are one.
    """
    rows = []
    for name in tables:
        experiments, keys = TABLES[name]
        mine, theirs = (Path(folder) / "tables" / f"{name}.csv" for folder in (ours, published))
        if not mine.exists():
            continue
        table = pd.read_csv(mine)
        if "quantity" in table:
            table = table[table.quantity != "seconds"]  # another machine's are no reproduction's business
        other = pd.read_csv(theirs) if theirs.exists() else table.iloc[:0]
        other = other.assign(found=True)[[*keys, "value", "low", "high", "found"]]
        itself = Path(ours).resolve() == Path(published).resolve()
        runs = _runs(ours, experiments)
        same_runs = bool(runs) and runs == _runs(published, experiments)
        for row in table.merge(other, on=keys, how="left", suffixes=("", "_published")).to_dict("records"):
            rows.append(
                {
                    "quantity": " ".join(str(row[key]) for key in keys),
                    "value": row["value"],
                    "low": row["low"],
                    "high": row["high"],
                    "published": row["value_published"],
                    "published_low": row["low_published"],
                    "published_high": row["high_published"],
                    "verdict": "itself" if itself else _verdict(row, same_runs),
                }
            )
    return pd.DataFrame(rows)


def _runs(results: str | Path, experiments: list[str]) -> dict[str, bytes]:
    """The CSVs of all runs of some experiments, by their place in a results folder."""
    files = [path for experiment in experiments for path in (Path(results) / experiment).glob("*-seed*.csv")]
    return {str(path.relative_to(results)): path.read_bytes() for path in files}


def _verdict(row: dict, same_runs: bool) -> str:
    if pd.isna(row["found"]):
        return "not published"
    if same_runs:
        # Two versions of a library may round an average differently.
        pairs = (
            [row[key] for key in ("value", "low", "high")],
            [row[f"{key}_published"] for key in ("value", "low", "high")],
        )
        return "same bytes" if np.allclose(*pairs, rtol=1e-9, atol=0, equal_nan=True) else "differs"
    if pd.isna(row["value"]) or pd.isna(row["value_published"]):
        return "agrees" if pd.isna(row["value"]) and pd.isna(row["value_published"]) else "differs"

    def interval(suffix: str) -> tuple[float, float]:
        value = row["value" + suffix]
        return tuple(value if pd.isna(row[key + suffix]) else row[key + suffix] for key in ("low", "high"))

    (low, high), (other_low, other_high) = interval(""), interval("_published")
    return "agrees" if low <= other_high and other_low <= high else "differs"
