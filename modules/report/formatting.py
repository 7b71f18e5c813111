"""Numbers and tables as the project prints them everywhere, and the one list of what its quantities are."""

import math
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from modules.statistics import AnalysisError


class Quantity(NamedTuple):
    """How a quantity is printed, and what counts as no difference between two measurements of it.

    `margin` is named here, before anything is measured. By `measure` it is a difference, a `factor`, a number of
    evaluation `steps`, or `asked`: the quantity was asked for, and is equal or not. Without a margin a quantity
    describes, and is not judged.
    """

    form: str
    unit: str = ""
    scale: float = 1
    margin: float | None = None
    measure: str = "difference"

    def text(self, value: float) -> str:
        """A number without its unit."""
        if math.isnan(value):
            return "never" if self.measure == "steps" else "-"
        return "more" if math.isinf(value) else self.form.format(value * self.scale)


ACCURACY = Quantity("{:.2f}", " %", 100, 0.005)
POINTS = Quantity("{:+.2f}", " points", 100, 0.005)
RATE = Quantity("{:#.3g}", margin=1.15, measure="factor")
COUNT = Quantity("{:,.0f}")
TIMES = Quantity("{:.2f}")

QUANTITIES = {
    "iterations": Quantity("{:,.0f}", margin=0, measure="asked"),
    "final_accuracy": ACCURACY,
    "best_accuracy": ACCURACY,
    "accuracy": ACCURACY,
    "final_accuracy_difference": POINTS,
    "accuracy_difference": POINTS,
    "best_mean_accuracy": ACCURACY,
    "best_mean_iteration": COUNT,
    "crossing_iteration": Quantity("{:,.0f}", margin=1, measure="steps"),
    "crossing_ratio": TIMES,  # the three that follow tell of the crossing once more
    "symmetric_ratio": TIMES,
    "never_crossed_share": Quantity("{:.2f}", " %", 100),
    "share": Quantity("{:.0f}", " %", 100),
    "base_lr": RATE,
    "max_lr": RATE,
    "best_lr": RATE,
    "lr": RATE._replace(margin=None),
    "seconds": TIMES,  # another machine's are no reproduction's business
    "hours": Quantity("{:.1f}"),
    "minutes": Quantity("{:.0f}"),
    "described_difference": POINTS._replace(margin=None),
    "registered_difference": POINTS._replace(margin=None),  # its interval is the rule's, not of 95 %
    "regret": Quantity("{:z.2f}", " points", 100, 0.005),
    "robustness": POINTS._replace(margin=None),
    "sd": POINTS._replace(form="{:.2f}"),
    "roughness": POINTS._replace(form="{:.1f}"),
    "factor": TIMES,
    "ratio": TIMES,
    "reached": COUNT,
    "falls": COUNT,
    "epochs": Quantity("{:.1f}"),
    "bound": Quantity("{:.3f}"),
    "tau": TIMES,
}
FORMS = ("all", "value", "interval", "low", "high", "runs", "note")


def known(quantity: str) -> Quantity:
    """A quantity by its name.

    Raises:
        AnalysisError: it is not in `QUANTITIES`.
    """
    try:
        return QUANTITIES[quantity]
    except KeyError:
        raise AnalysisError(f"unknown quantity {quantity!r}: give it a line in QUANTITIES") from None


def show(quantity: str, value: float, low: float = math.nan, high: float = math.nan, form: str = "all") -> str:
    """A number as the project prints it everywhere: value and unit, and its interval where it has one.

    Args:
        quantity: of `QUANTITIES`.
        value, low, high: NaN for what is not known.
        form: `all`, or one of `value`, `interval`, `low` and `high`, each with its unit.

    Returns:
        The text. An interval without a width is none, and is said in words: all runs came out equal, or all resampled
        runs point at the same one of the rates that were tried.
    """
    about = known(quantity)
    unit = "" if math.isnan(value) else about.unit
    interval = "" if math.isnan(low) else f"[{about.text(low)}, {about.text(high)}]"
    if math.isclose(low, high, abs_tol=1e-12) and (about.scale == 100 or about.measure == "factor"):
        interval = "(one of the rates tried)" if about.measure == "factor" else "(all runs equal)"
    if form == "interval":
        return interval if interval.startswith("(") else interval + unit
    if form in ("low", "high"):
        return about.text(low if form == "low" else high) + unit
    text = about.text(value) + unit
    return f"{text} {interval}" if interval and form == "all" else text


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A table of results, or of `compare`, for the eye: value and interval in one column, with a unit."""
    out = pd.DataFrame({"quantity": table.quantity})
    if "policy" in table and (table.policy != "-").any():
        out["policy"] = table.policy
    if "runs" in table:
        lost = table.diverged.fillna(0) if "diverged" in table else 0 * table.runs
        out["runs"] = [f"{runs}" + (f" ({n} diverged)" if n else "") for runs, n in zip(table.runs, lost, strict=True)]
    others = "method" in table and table.method.astype(str).str.endswith("%").any()
    heading = "95 % interval, unless method says another" if others else "95 % interval"
    out[f"value [{heading}]"] = _shown(table, "value", "low", "high")
    for name in ("method", "note"):
        if name in table and table[name].notna().any():
            out[name] = table[name].fillna("")
    if "verdict" in table:
        out["published"] = _shown(table, "published", "published_low", "published_high")
        out.loc[table.verdict == "not published", "published"] = "-"
        out["difference [95 %]"] = [
            "" if math.isnan(row.difference) else _difference(row) for row in table.itertuples(index=False)
        ]
        out["verdict"] = [
            row.verdict + (f" ({row.seeds:,.0f} seeds would)" if row.seeds > 0 else "")
            for row in table.itertuples(index=False)
        ]
    return out


def _shown(table: pd.DataFrame, *columns: str) -> list[str]:
    return [show(*row) for row in zip(table.quantity, *(table[name] for name in columns), strict=True)]


def _difference(row: NamedTuple) -> str:
    """The difference of two measurements of one quantity; of rates it is a factor."""
    about = known(row.quantity)
    form = "x {:.2f}" if about.measure == "factor" else "{:+,.2f}" if about.scale == 100 else "{:+,.0f}"
    scale = 1 if about.measure == "factor" else about.scale
    value, low, high = (
        form.format(scale * number) for number in (row.difference, row.difference_low, row.difference_high)
    )
    interval = "" if math.isnan(row.difference_low) else f" [{low}, {high}]"
    return value + interval + (" points" if about.scale == 100 else "")


def markdown(table: pd.DataFrame) -> str:
    """A table for the eye as Markdown."""
    return table.astype(str).to_markdown(index=False, disable_numparse=True)


def latex(table: pd.DataFrame) -> str:
    """A table for the eye as LaTeX, for a paper; percent signs and underscores stay what they are."""
    return table.astype(str).to_latex(index=False, escape=True)


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
    for quantity in table.quantity:
        known(quantity)
    return table


def by_schedule(table: pd.DataFrame) -> pd.DataFrame:
    """Mean regrets of ways to find a rate, for the eye: a way a row, a schedule a column, the least mean of all first.

    Args:
        table: `rate_finders_summary` of a study. Of rows of single tasks, `<way> <schedule> <task>`, a way's worst is
            shown.
    """
    named = table.policy.str.extract(r"^(?P<way>.+) (?P<schedule>constant|linear|cycle)(?: (?P<task>\w+))?$")
    found = table.join(named).assign(shown=_shown(table, "value", "low", "high"))
    single = found[found.task.notna()]
    cells = found[found.task.isna()].pivot_table(
        index="way", columns="schedule", values=["value", "shown"], aggfunc="first"
    )
    order = cells["value"].mean(axis=1).sort_values().index
    shown = cells["shown"].loc[order, ["constant", "linear", "cycle"]]
    worst = single.loc[single.groupby("way").value.idxmax()]
    shown["worst task"] = pd.Series(
        [f"{100 * row.value:.2f} ({row.task}, {row.schedule})" for row in worst.itertuples()], worst.way, dtype=object
    )
    return shown.fillna("").replace(" points", "", regex=True).reset_index()


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
