"""Tables and numbers as the project prints them everywhere."""

from pathlib import Path

import numpy as np
import pandas as pd

from modules.statistics import AnalysisError


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A table of `compare` or `headline` for the eye: value and interval in one column, with a unit."""
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


def read_reference(path: str | Path) -> pd.DataFrame:
    """What others published: columns `source`, `quantity`, `policy`, `value`, a number.

    Raises:
        AnalysisError: it is no CSV with these columns, says two things of one quantity, or speaks for this study.
    """
    try:
        table = pd.read_csv(path)[["source", "quantity", "policy", "value"]].astype({"value": float})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AnalysisError(
            f"reference={path}: a CSV with columns source, quantity, policy and value, a number, is needed"
        ) from error
    if (twice := table.duplicated(["source", "quantity", "policy"])).any():
        row = table[twice].iloc[0]
        raise AnalysisError(f"reference={path}: two values of {row.quantity} {row.policy} from {row.source}")
    if table.source.astype(str).str.startswith("this study").any():
        raise AnalysisError(f"reference={path}: only this study's own column is called 'this study'")
    return table


def beside(table: pd.DataFrame, reference: str | Path, source: str) -> pd.DataFrame:
    """What others published beside our own values: one row a quantity and policy, one column a source.

    Args:
        table: columns `quantity`, `policy`, `value`; rows that nobody else has are left out.
        reference: CSV as `read_reference` takes it.
        source: what our own column is called, `this study` and more.
    """
    others = read_reference(reference)
    keys = ["quantity", "policy"]
    ours = table.merge(others[keys].drop_duplicates(), on=keys).assign(source=source)[[*keys, "source", "value"]]
    pivot = pd.concat([ours, others]).pivot(index=keys, columns="source", values="value")
    return pivot.reindex(columns=[source, *others.source.unique()]).reset_index().rename_axis(columns=None)


def readable_beside(table: pd.DataFrame) -> pd.DataFrame:
    """A table of `beside` for the eye; `-` where a source says nothing."""
    out = table.copy()
    for source in table.columns[2:]:
        pairs = zip(table.quantity, table[source], strict=True)
        out[source] = ["-" if pd.isna(value) else show(quantity, value, np.nan, np.nan) for quantity, value in pairs]
    return out


def show(quantity: str, value: float, low: float, high: float) -> str:
    """A number with its interval as the project prints it everywhere: percent, iterations or plain."""
    quantity = quantity.split()[0]  # in `compare` the policy follows
    if "difference" in quantity:
        form, unit = "{:+.2f}", " points"
    elif "accuracy" in quantity or "share" in quantity:
        form, unit = "{:.2f}", " %"
    elif "iteration" in quantity:
        form, unit = "{:,.0f}", ""
    elif quantity.endswith("lr"):
        form, unit = "{:.5f}", ""
    else:
        form, unit = "{:.2f}", ""
    scale = 100 if unit else 1

    def number(x: float) -> str:
        if pd.isna(x):
            return "never" if quantity.startswith("crossing") else "-"
        if x == float("inf"):
            return "more"
        # A rate below a thousandth would keep too few digits behind the point.
        return f"{x:.3g}" if quantity.endswith("lr") and 0 < x < 1e-3 else form.format(x * scale)

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
