"""What a study got, set beside what it published."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd


class Table(NamedTuple):
    """A table of results."""

    notebook: str  # that writes it
    experiments: tuple[str, ...]  # whose runs it is of
    keys: tuple[str, ...] = ("quantity", "policy")  # what tells its rows apart; none: it is a curve, and not compared
    always: bool = True  # else only where there are such runs


#: The tables that a study is judged by. A notebook that trains has at least one.
TABLES = {
    "range_test_bounds": Table("02_range_test", ("range_test",), ("bound",)),
    "headline": Table("04_headline_figures", ("headline",)),
    "policies": Table("05_policies", ("policies",)),
    "policies_range_test": Table("05_policies", ("policies_range_test",), (), always=False),
    "ablation": Table("05_policies", ("ablation",), always=False),
    "best_lr": Table("06_best_lr", ("best_lr_sweep", "best_lr")),
    "mlp": Table("07_mlp_mnist", ("mlp",)),
}


def compare(ours: str | Path, published: str | Path, tables: Iterable[str] = tuple(TABLES)) -> pd.DataFrame:
    """Set the tables of two results folders side by side.

    Args:
        ours, published: results folders.
        tables: of `TABLES`, those to compare, where we have them.

    Returns:
        One row a number: `quantity`, `value`, `low`, `high`, `published`, `published_low`, `published_high`,
        `verdict`. Verdicts: `same bytes` when the run CSVs behind both are identical, and so are the numbers; `differs`
        when the runs are and the numbers are not; of other runs, `agrees` when the 95 % intervals overlap, or the
        values are equal, and `differs` when they do not; `no interval` when the values differ and nothing says how much
        they may; `not published` when there is nothing to compare with; `itself` when both folders are one.
    """
    rows = []
    for name in tables:
        experiments, keys = TABLES[name].experiments, list(TABLES[name].keys)
        mine, theirs = (Path(folder) / "tables" / f"{name}.csv" for folder in (ours, published))
        if not (keys and mine.exists()):
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


def _runs(results: str | Path, experiments: Iterable[str]) -> dict[str, bytes]:
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
    if low <= other_high and other_low <= high:
        return "agrees"
    measured = row.get("quantity") != "iterations"  # those were asked for
    return "no interval" if measured and pd.isna(row["low"]) and pd.isna(row["low_published"]) else "differs"
