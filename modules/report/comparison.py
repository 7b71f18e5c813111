"""What a study got, set beside what it published, and beside what others did."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from modules import statistics
from modules.checks import RunError
from modules.report.formatting import ACCURACY, Quantity, known, read_reference, show
from modules.report.tables import curves, read_table
from modules.runs.files import complete_runs
from modules.runs.provenance import recorded
from modules.runs.spec import Spec
from modules.statistics import Estimate


class Table(NamedTuple):
    """A table of results."""

    notebook: str  # that writes it
    experiments: tuple[str, ...]  # whose runs it is of; patterns of their folders
    always: bool = True  # else only where there are such runs
    compared: bool = True  # a curve is not
    judged: str = ""  # a pattern of the policies that are compared, where they are not all
    counts_runs: bool = True  # its `runs` are those of its experiments


#: The tables that a study is judged by. A notebook that trains has at least one.
TABLES = {
    "range_test_bounds": Table("02_range_test", ("range_test",)),
    "headline": Table("04_headline_figures", ("headline",)),
    "policies": Table("05_policies", ("policies",)),
    "policies_range_test": Table("05_policies", ("policies_range_test",), always=False, compared=False),
    "ablation": Table("05_policies", ("ablation",), always=False),
    "best_lr": Table("06_best_lr", ("best_lr_sweep", "best_lr")),
    "mlp": Table("07_mlp_mnist", ("mlp",)),
    "tournament_2": Table("08_tournament", ("tournament_2", "tournament_2_untuned"), always=False, counts_runs=False),
    # Of hundreds of rows the means over tasks of what this project advises.
    "rate_finders_summary": Table(
        "09_rate_finders", ("rate_finders_*",), judged=r"(find_rate|suggest_rate) \w+$", counts_runs=False
    ),
    # A user's own, with few runs.
    "your_data": Table("10_your_data", ("your_data_ramps", "your_data_tries", "your_data"), compared=False),
}

#: What a comparison may say of a number, the reassuring first.
VERDICTS = ("same bytes", "equivalent", "not resolved", "differs", "other settings", "not published", "itself")
REPRODUCED = VERDICTS[:2]
COMPARED = VERDICTS[:4]
COLUMNS = (
    *("table", "quantity", "policy", "value", "low", "high", "published", "published_low", "published_high"),
    *("difference", "difference_low", "difference_high", "verdict", "seeds"),
)


class Judged(NamedTuple):
    """A difference with its 95 % interval (of rates a factor), what it says, and how many runs an arm would say it."""

    difference: float = math.nan
    difference_low: float = math.nan
    difference_high: float = math.nan
    verdict: str = "not resolved"
    seeds: float = math.nan


def compare(ours: str | Path, published: str | Path, tables: Iterable[str] = tuple(TABLES)) -> pd.DataFrame:
    """Set the tables of two results folders side by side.

    Args:
        ours, published: results folders.
        tables: of `TABLES`, those to compare, where we have them.

    Returns:
        One row a number whose quantity has a margin in `QUANTITIES`, with the columns `COLUMNS`. `difference` is ours
        less the published one (of rates ours over it), with its 95 % interval. `verdict` is one of `VERDICTS`:

        * `same bytes`: the run CSVs behind both are identical, and so are the numbers (if they are not: `differs`);
        * `equivalent`: the 90 % interval of the difference lies inside the margin;
        * `differs`: the 95 % interval excludes no difference, and the estimate exceeds the margin;
        * `not resolved`: anything else; `seeds` runs an arm would find two equal arms equivalent four times in five
          (NaN where nothing says how much such runs vary);
        * `other settings`: the runs behind both were asked for with other settings, whatever came out;
        * `not published`: there is nothing to compare with; `itself`: both folders are one.
    """
    rows = []
    itself = Path(ours).resolve() == Path(published).resolve()
    for name in tables:
        mine, theirs = (Path(folder) / "tables" / f"{name}.csv" for folder in (ours, published))
        if not (TABLES[name].compared and mine.exists()):
            continue
        keys = ["quantity", "policy"]
        table = read_table(mine)
        table = table[[known(quantity).margin is not None for quantity in table.quantity]]
        table = table[table.policy.str.match(TABLES[name].judged)]
        other = read_table(theirs) if theirs.exists() else table.iloc[:0]
        runs = _runs(ours, TABLES[name].experiments)
        same_runs = bool(runs) and runs == _runs(published, TABLES[name].experiments)
        sets = [_set(folder) for folder in (ours, published)]
        others = set() if same_runs or itself else _other_settings(ours, published, TABLES[name].experiments)
        for row in table.merge(other.assign(found=True), on=keys, how="left", suffixes=("", "_published")).to_dict(
            "records"
        ):
            if pd.isna(row["found"]) or itself:
                judged = Judged(verdict="itself" if itself else "not published")
            elif same_runs:
                judged = _same_runs(row)
            elif others and (row["policy"] == "-" or others.intersection(row["policy"].split(" - "))):
                judged = Judged(verdict="other settings")
            else:
                judged = _judged(known(row["quantity"]), row, sets)
            numbers = {"table": name} | {key: row[key] for key in (*keys, "value", "low", "high")}
            numbers |= {"published": row["value_published"]}
            numbers |= {f"published_{end}": row[f"{end}_published"] for end in ("low", "high")}
            rows.append(numbers | judged._asdict())
    return pd.DataFrame(rows, columns=COLUMNS)


def counts(comparison: pd.DataFrame) -> str:
    """How often each verdict came out: `12 same bytes, 3 equivalent`."""
    found = comparison.verdict.value_counts()
    return ", ".join(f"{found[verdict]} {verdict}" for verdict in VERDICTS if verdict in found) or "nothing to compare"


def _runs(results: str | Path, experiments: Iterable[str]) -> dict[str, bytes]:
    """The CSVs of all runs of some experiments, by experiment and name."""
    folders = [folder for pattern in experiments for folder in Path(results).glob(pattern)]
    return {f"{folder.name}/{run.name}": run.table() for folder in folders for run in complete_runs(folder)}


def _other_settings(ours: str | Path, published: str | Path, experiments: Iterable[str]) -> set[str]:
    """The policies whose runs were asked for with other settings in one folder than in the other; seeds are none.

    What is a table's name for something else, such as a sweep, is among them as soon as one policy is.
    """
    mine, theirs = (_settings(folder, experiments) for folder in (ours, published))
    differing = {policy for policy in mine.keys() & theirs.keys() if not mine[policy] & theirs[policy]}
    return differing and differing | {"sweep"}


def _settings(results: str | Path, experiments: Iterable[str]) -> dict[str, set[Spec]]:
    """By policy or variant, the settings of its runs but for their seeds.

    Not as records have them: one from before a setting existed lacks that.
    """
    found: dict[str, set[Spec]] = {}
    for folder in (folder for pattern in experiments for folder in Path(results).glob(pattern)):
        for run in complete_runs(folder):
            try:
                asked = recorded(run.read()[1])
            except RunError:  # said where the runs are read
                continue
            same = asked.model_copy(update={"seed": 0, "registration": None})
            found.setdefault(run.name.rpartition("-seed")[0], set()).add(same)
    return found


def _set(results: str | Path) -> pd.DataFrame | None:
    """The crossing of a results folder as a set with shares, where it has one."""
    path = Path(results) / "tables" / "crossing.csv"
    return pd.read_csv(path) if path.exists() else None


def _same_runs(row: dict) -> Judged:
    # Two versions of a library may round an average differently.
    ours, theirs = ([row[key + end] for key in ("value", "low", "high")] for end in ("", "_published"))
    same = np.allclose(ours, theirs, rtol=1e-9, atol=1e-12, equal_nan=True)
    value, before = row["value"], row["value_published"]
    apart = value / before if known(row["quantity"]).measure == "factor" else value - before
    return Judged(apart, verdict="same bytes" if same else "differs")


def _judged(about: Quantity, row: dict, sets: Sequence[pd.DataFrame | None]) -> Judged:
    """What two measurements of one quantity, by other runs, say of each other."""
    if about.measure == "steps":
        return _steps(about.margin, row, sets)
    if about.measure == "asked":
        difference = row["value"] - row["value_published"]
        return Judged(difference, verdict="equivalent" if difference == 0 else "differs")
    ours, theirs = (_estimate(about, row, end) for end in ("", "_published"))
    found, margin = statistics.difference_of_estimates(ours, theirs), about.margin
    factor = about.measure == "factor"
    if factor:
        margin = math.log(margin)
    verdict = statistics.verdict(found, margin)
    shown = [found.value, *found.interval()]
    return Judged(*(np.exp(shown).tolist() if factor else shown), verdict, _seeds(verdict, row, ours, theirs, margin))


def _estimate(about: Quantity, row: dict, end: str) -> Estimate:
    """A row's number with its standard error; that of a rate, in logarithms, from its resamples' interval."""
    value, low, high = (row[key + end] for key in ("value", "low", "high"))
    if about.measure == "factor":
        if not low > 0:
            return Estimate(math.log(value), math.nan, 0)
        return Estimate(math.log(value), statistics.error_of(math.log(low), math.log(high)), math.inf)
    error, df = (row.get(key + end, math.nan) for key in ("error", "df"))
    return Estimate(value, error, df) if df > 0 else Estimate(value, math.nan, 0)


def _seeds(verdict: str, row: dict, ours: Estimate, theirs: Estimate, margin: float) -> float:
    """Runs an arm that would resolve it; NaN for what is resolved, and where no spread is known."""
    spreads = [some.error * math.sqrt(row["runs" + end]) for some, end in ((ours, ""), (theirs, "_published"))]
    if verdict != "not resolved" or not all(map(math.isfinite, spreads)):
        return math.nan
    return statistics.runs_to_resolve(*spreads, margin)


def _steps(margin: float, row: dict, sets: Sequence[pd.DataFrame | None]) -> Judged:
    """Crossings, by the exact distribution of the difference of two, in steps of the challenger's evaluations."""
    if any(some is None or some.share.isna().any() or some.empty for some in sets):
        return Judged(row["value"] - row["value_published"])
    (ours, theirs), (mine, others) = ([some[key].to_numpy(float) for some in sets] for key in ("iteration", "share"))
    apart = np.where(
        np.isinf(ours)[:, None] & np.isinf(theirs), 0, ours[:, None] - np.where(np.isinf(theirs), 0, theirs)
    )
    apart = np.where(np.isinf(theirs) & np.isfinite(ours)[:, None], -math.inf, apart).ravel()
    weights = np.outer(mine, others).ravel()
    both_never = math.isnan(row["value"]) and math.isnan(row["value_published"])
    value = 0.0 if both_never else row["value"] - row["value_published"]
    low, high = statistics.quantiles(apart, weights, 0.90)
    width = margin * max(some.step.iloc[0] for some in sets)
    ends = statistics.quantiles(apart, weights)
    if -width <= low and high <= width:
        return Judged(value, *ends, "equivalent")
    if (ends[0] > 0 or ends[1] < 0) and not abs(value) <= width:
        return Judged(value, *ends, "differs")
    spreads = [
        math.sqrt(np.cov(some, aweights=share, ddof=0) * row["runs" + end])
        for some, share, end in ((ours, mine, ""), (theirs, others, "_published"))
        if np.isfinite(some).all()
    ]
    return Judged(
        value, *ends, "not resolved", statistics.runs_to_resolve(*spreads, width) if len(spreads) == 2 else math.nan
    )


#: What of a curve `[iterations, seeds]` a published accuracy is of.
ENDS = {"final_accuracy": lambda curve: curve.iloc[-1], "best_accuracy": lambda curve: curve.max()}
REFERENCE_COLUMNS = (
    *("source", "quantity", "policy", "published", "value", "gap", "runs", "low", "high"),
    *("pooled_low", "pooled_high", "reproduced", "pooled_reproduced"),
)


def beside(
    table: pd.DataFrame, reference: str | Path, runs: pd.DataFrame | None = None, pooled: Sequence[str] = ()
) -> pd.DataFrame:
    """Single numbers of others beside ours: would one further run of ours be expected where theirs lies?

    Args:
        table: of ours, as `tables.by_policy` gives it.
        reference: CSV as `read_reference` takes it.
        runs: of ours, as `read_runs` gives them; needed for `pooled`.
        pooled: arms whose variance is taken together.

    Returns:
        One row for each of their numbers, with the columns `REFERENCE_COLUMNS`: theirs (`published`), our mean
        (`value`), `gap`, theirs less ours, the 95 % prediction interval `low`, `high` by the arm's own standard
        deviation, whether that holds theirs (`reproduced`: yes or no; empty without an interval), and both with the
        standard deviation of the `pooled` arms, for the rows that are among them.
    """
    others = read_reference(reference).rename(columns={"value": "published"})
    merged = others.merge(table, on=["quantity", "policy"], how="left")
    rows = []
    for row in merged.to_dict("records"):
        about, count = known(row["quantity"]), row["runs"]
        out = {key: row[key] for key in ("source", "quantity", "policy", "published", "value", "runs")}
        out["gap"] = row["published"] - row["value"]
        if about.margin and not pd.isna(row["std"]):
            out |= _predicted("", row, row["std"], count - 1, about)
        if runs is not None and row["policy"] in pooled and row["quantity"] in ENDS:
            arms = [ENDS[row["quantity"]](curves(runs, arm)) for arm in pooled]
            out |= _predicted("pooled_", row, *statistics.pooled_sd(arms), about)
        rows.append(out)
    return pd.DataFrame(rows, columns=REFERENCE_COLUMNS)


def _predicted(prefix: str, row: dict, sd: float, df: float, about: Quantity) -> dict[str, object]:
    low, high = Estimate(row["value"], sd * math.sqrt(1 + 1 / row["runs"]), df).interval()
    if about is ACCURACY:
        low, high = max(low, 0.0), min(high, 1.0)
    holds = "yes" if low <= row["published"] <= high else "no"
    return {f"{prefix}low": low, f"{prefix}high": high, f"{prefix}reproduced": holds}


def differences_beside(
    reference: str | Path, runs: pd.DataFrame, pairs: Iterable[tuple[str, str]], pooled: Sequence[str] = ()
) -> pd.DataFrame:
    """Differences between rows of others' tables beside ours: what all rows share, such as the images, is not in them.

    Args:
        reference: CSV as `read_reference` takes it; final or best accuracies of single runs.
        runs: of ours, as `read_runs` gives them.
        pairs: arms of ours; those of which one source has both are taken. A source's parts, in brackets behind its
            name, are one source here.
        pooled: arms whose variance is taken together, for pairs that are both among them; else each arm's own.

    Returns:
        Columns `source`, `quantity`, `policy` (`a - b`), `published`, the difference of our means (`value`, `low`,
        `high`), the 95 % interval of the difference of two further runs (`single_low`, `single_high`), whether that
        holds theirs (`reproduced`), and `method`.
    """
    others = read_reference(reference)
    others = others[others.quantity.isin(ENDS)]
    said = {(row.source.split(" (")[0], row.policy): row.value for row in others.itertuples()}
    arms = {arm: curves(runs, arm).iloc[-1] for pair in pairs for arm in (*pair, *pooled)}
    rows = []
    for source in dict.fromkeys(name for name, _ in said):
        for a, b in pairs:
            if not ((source, a) in said and (source, b) in said):
                continue
            shared = a in pooled and b in pooled
            sd = statistics.pooled_sd([arms[arm] for arm in pooled]) if shared else None
            found = statistics.difference(arms[a], arms[b], sd)
            single = statistics.prediction_of_difference(arms[a], arms[b], sd).interval()
            row = {"source": source, "quantity": "final_accuracy_difference", "policy": f"{a} - {b}"}
            row |= {"published": said[source, a] - said[source, b], "value": found.value}
            row |= dict(zip(("low", "high", "single_low", "single_high"), (*found.interval(), *single), strict=True))
            holds = "yes" if single[0] <= row["published"] <= single[1] else "no"
            rows.append({**row, "reproduced": holds, "method": "pooled" if shared else "Welch"})
    columns = ["source", "quantity", "policy", "published", "value", "low", "high", "single_low", "single_high"]
    return pd.DataFrame(rows, columns=[*columns, "reproduced", "method"])


def readable_beside(table: pd.DataFrame) -> pd.DataFrame:
    """A table of `beside`, or of `differences_beside`, for the eye."""
    out = table[["source", "quantity", "policy"]].copy()
    if "single_low" in table:
        shown = {
            "this study, difference [95 %]": ("value", "low", "high", "all"),
            "two further runs of ours [95 %]": ("value", "single_low", "single_high", "interval"),
        }
    else:
        shown = {
            "this study": ("value", "value", "value", "value"),
            "a further run of ours [95 %]": ("value", "low", "high", "interval"),
        }
        if table.pooled_low.notna().any():
            shown["by the pooled deviation [95 %]"] = ("value", "pooled_low", "pooled_high", "interval")
    for name, (value, low, high, form) in {"published": ("published",) * 3 + ("value",), **shown}.items():
        rows = zip(table.quantity, table[value], table[low], table[high], strict=True)
        out[name] = ["-" if any(map(math.isnan, row[1:])) else show(*row, form=form) for row in rows]
    for name in ("reproduced", "pooled_reproduced"):
        if name in table and table[name].notna().any():
            out[name.replace("_", ": ")] = table[name].fillna("")
    return out
