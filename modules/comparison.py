"""What a study got, set beside what it published."""

from pathlib import Path

import pandas as pd

#: By table: the experiment whose runs it is of, and what tells its rows apart.
TABLES = {
    "range_test_bounds": ("range_test", ["bound"]),
    "headline": ("headline", ["quantity", "policy"]),
    "policies": ("policies", ["quantity", "policy"]),
    "best_lr": ("best_lr", ["quantity", "policy"]),
    "mlp": ("mlp", ["quantity", "policy"]),
}


def compare(ours: str | Path, published: str | Path) -> pd.DataFrame:
    """Set the tables of two results folders side by side.

    Returns:
        One row a number: `quantity`, `value`, `low`, `high`, `published`, `published_low`, `published_high`,
        `verdict`. Verdicts: `same bytes` when the run CSVs behind both are identical; else `agrees` when the 95 %
        intervals overlap (equal values where there are none) and `differs` when they do not; `not published` when
        there is nothing to compare with; `itself` when both folders are one.
    """
    rows = []
    for name, (experiment, keys) in TABLES.items():
        mine, theirs = (Path(folder) / "tables" / f"{name}.csv" for folder in (ours, published))
        if not mine.exists():
            continue
        table = pd.read_csv(mine)
        if "quantity" in table:
            table = table[table.quantity != "seconds"]  # another machine's are no reproduction's business
        other = pd.read_csv(theirs) if theirs.exists() else table.iloc[:0]
        other = other.assign(found=True)[[*keys, "value", "low", "high", "found"]]
        same = _same_runs(Path(ours) / experiment, Path(published) / experiment)
        if Path(ours).resolve() == Path(published).resolve():
            same = "itself"
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
                    "verdict": _verdict(row, same),
                }
            )
    return pd.DataFrame(rows)


def _same_runs(ours: Path, published: Path) -> str | None:
    mine, theirs = (
        {path.name: path.read_bytes() for path in folder.glob("*-seed*.csv")} for folder in (ours, published)
    )
    return "same bytes" if mine and mine == theirs else None


def _verdict(row: dict, same: str | None) -> str:
    if pd.isna(row["found"]):
        return "not published"
    if same:
        return same
    if pd.isna(row["value"]) or pd.isna(row["value_published"]):
        return "agrees" if pd.isna(row["value"]) and pd.isna(row["value_published"]) else "differs"

    def interval(suffix: str) -> tuple[float, float]:
        value = row["value" + suffix]
        return tuple(value if pd.isna(row[key + suffix]) else row[key + suffix] for key in ("low", "high"))

    (low, high), (other_low, other_high) = interval(""), interval("_published")
    return "agrees" if low <= other_high and other_low <= high else "differs"


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A table of `compare` or `analysis.headline` for the eye: value and interval in one column, in the right unit."""
    out = pd.DataFrame({"quantity": table.quantity})
    if "policy" in table:
        out["policy"] = table.policy
        lost = table.diverged.fillna(0) if "diverged" in table else 0 * table.runs
        out["runs"] = [f"{runs}" + (f" ({n} diverged)" if n else "") for runs, n in zip(table.runs, lost, strict=True)]
    out["value [95 % interval]"] = [
        show(*row) for row in zip(table.quantity, table.value, table.low, table.high, strict=True)
    ]
    if "t_low" in table:
        columns = (table.quantity, table.value, table.t_low, table.t_high)
        texts = (show(*row) for row in zip(*columns, strict=True))
        out["Student's interval"] = [text[text.index("[") :] if "[" in text else "" for text in texts]
    if "verdict" in table:
        columns = (table.quantity, table.published, table.published_low, table.published_high)
        out["published"] = [show(*row) for row in zip(*columns, strict=True)]
        out.loc[table.verdict == "not published", "published"] = "-"
        out["verdict"] = table.verdict
    return out


def beside(table: pd.DataFrame, reference: str | Path, source: str) -> pd.DataFrame:
    """What others published beside our own values: one row a quantity and policy, one column a source.

    Args:
        table: columns `quantity`, `policy`, `value`; rows that nobody else has are left out.
        reference: CSV with columns `source`, `quantity`, `policy`, `value`.
        source: what our own column is called.
    """
    others = pd.read_csv(reference)
    keys = ["quantity", "policy"]
    ours = table.merge(others[keys].drop_duplicates(), on=keys).assign(source=source)[[*keys, "source", "value"]]
    pivot = pd.concat([ours, others]).pivot(index=keys, columns="source", values="value")
    return pivot[[source, *others.source.unique()]].reset_index().rename_axis(columns=None)


def show(quantity: str, value: float, low: float, high: float) -> str:
    """A number with its interval as the project prints it everywhere: percent, iterations or plain."""
    if "difference" in quantity:
        form, unit = "{:+.2f}", " points"
    elif "accuracy" in quantity or "share" in quantity:
        form, unit = "{:.2f}", " %"
    elif "iteration" in quantity:
        form, unit = "{:,.0f}", ""
    elif quantity.split()[0].endswith("lr"):  # in `compare` the policy follows
        form, unit = "{:.5f}", ""
    else:
        form, unit = "{:.2f}", ""
    scale = 100 if unit else 1

    def number(x: float) -> str:
        if pd.isna(x):
            return "never" if quantity.startswith("crossing") else "-"
        return "more" if x == float("inf") else form.format(x * scale)

    text = number(value) + (unit if not pd.isna(value) else "")
    return text if pd.isna(low) else f"{text} [{number(low)}, {number(high)}]"


def speed_table(table: pd.DataFrame, network: str) -> pd.DataFrame:
    """One network's part of the throughput benchmark's table, for the eye."""
    part = table[table.network == network]
    return pd.DataFrame(
        {
            "one iteration of " + network: part.variant,
            "ms, whole machine [lowest, highest]": [
                f"{row.ms:.1f} [{row.ms_low:.1f}, {row.ms_high:.1f}]" for row in part.itertuples()
            ],
            "times the conventional loop's speed": [f"{value:.2f}" for value in part.times_conventional],
            "of the limit": [f"{value:.0%}" for value in part.fraction_of_limit],
        }
    )
