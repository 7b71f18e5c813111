"""The tournament's analysis: rates chosen on validation images, differences, and the registered rule's verdicts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from modules.report.tables import blocks, difference_of, mean_of, mean_row, table_of
from modules.statistics import AnalysisError, Estimate, difference, holm

AVERAGED = "_averaged"  # ends the name of an arm that is another's runs, tested with the average of their weights
FITTED = 5  # rates nearest the best that the parabola is fitted to ...
CLOSE = 0.02  # ... where their mean accuracy is that close to the best's: a collapse says nothing of the top
ROBUST = 4  # a factor: rates within it of the best one count for robustness
CHANCE = 0.1  # what a run counts as that diverged, with ten classes


@dataclass(frozen=True)
class Choice:
    """An arm's rate, chosen on validation images.

    Attributes:
        rate: the chosen one.
        best: the tested rate with the best mean validation accuracy.
        edge: -1 or 1 where `best` is the lowest or the highest rate tested, else 0.
        error: root mean square of what other choices, from resampled tuning seeds, would have cost, by straight lines
            between the tested rates' mean accuracies.
        robustness: mean validation accuracy over the tested rates within a factor of `ROBUST` of the best, less that
            at the best.
    """

    rate: float
    best: float
    edge: int
    error: float
    robustness: float


def choose(accuracies: Mapping[float, Sequence[float]], folds: Sequence[int] | None = None) -> Choice:
    """The rate that the registered rule chooses.

    Args:
        accuracies: validation accuracies of the tuning runs `[seeds]`, 0 to 1, by their rate; the same number of seeds
            at every rate.
        folds: the fold of each seed, where runs have folds. All rates share them, so what a fold adds is no noise.

    Raises:
        AnalysisError: fewer than three rates, or another number of seeds at one of them.
    """
    rates = np.array(sorted(accuracies))
    if len(rates) < 3 or len({len(accuracies[rate]) for rate in rates}) != 1:
        raise AnalysisError(f"three rates or more, with as many seeds each, are needed to choose one, not {rates}")
    values = np.array([accuracies[rate] for rate in rates])
    means = values.mean(axis=1)
    chosen, best = _top(rates, means)
    drawn, costs = np.random.default_rng(0), []
    noise = values - _fold_effects(values, means, folds) if folds is not None else values
    for _ in range(400 if values.shape[1] > 1 else 0):
        # Seeds are drawn anew at every rate: they are runs of their own.
        picks = drawn.integers(values.shape[1], size=values.shape)
        other = _top(rates, np.take_along_axis(noise, picks, axis=1).mean(axis=1))[0]
        costs.append(_between(rates, means, chosen) - _between(rates, means, other))
    near = (rates <= best * ROBUST * (1 + 1e-9)) & (rates >= best / ROBUST * (1 - 1e-9))
    return Choice(
        rate=chosen,
        best=best,
        edge=int(best == rates[-1]) - int(best == rates[0]),
        error=math.sqrt(np.mean(np.square(costs))) if costs else math.nan,
        robustness=float(means[near].mean() - means.max()),
    )


def _fold_effects(values: np.ndarray, means: np.ndarray, folds: Sequence[int]) -> np.ndarray:
    """What each seed's fold adds to its accuracies `[rates, seeds]`, by the rates close to the best: `[seeds]`."""
    close = values[means >= means.max() - CLOSE].mean(axis=0)
    folds = np.asarray(folds)
    effects = np.array([close[folds == fold].mean() for fold in folds])
    return effects - effects.mean()


def _top(rates: np.ndarray, means: np.ndarray) -> tuple[float, float]:
    """The chosen rate, the top of the parabola through the rates nearest the best tested one, and that one."""
    best = float(rates[means.argmax()])
    distance = np.abs(np.log2(rates) - math.log2(best))
    # Of two rates as far off the lower one is taken: the registration does not say which.
    near = np.sort(np.argsort(distance, kind="stable")[:FITTED])
    near = near[means[near] >= means.max() - CLOSE]
    if len(near) < 3:
        return best, best
    x = np.log2(rates[near])
    square, slope, _ = np.polyfit(x, means[near], 2)
    if not square < 0:
        return best, best
    top = float(np.clip(-slope / (2 * square), x[0], x[-1]))
    return 2**top, best


def _between(rates: np.ndarray, means: np.ndarray, rate: float) -> float:
    """The mean accuracy at a rate, on straight lines between those of the tested rates."""
    return float(np.interp(math.log2(rate), np.log2(rates), means))


def contrast(a: Sequence[float], b: Sequence[float], a_error: float = 0.0, b_error: float = 0.0) -> Estimate:
    """The difference of two arms, its standard error Welch's, or by blocks, with the tuning's added.

    Args:
        a, b: test accuracies `[seeds]`; where runs are tested on folds, as `Tournament.accuracies` gives them.
        a_error, b_error: of the arms' `Choice`.
    """
    found = difference(a, b) if blocks(a) is None else difference_of(a, b, "blocks")[1]
    return found._replace(error=math.sqrt(found.error**2 + a_error**2 + b_error**2))


def verdicts(primary: Mapping[str, Estimate], margin: float, alpha: float) -> dict[str, str]:
    """What the registered rule says of the primary differences: `not needed`, `helps`, `harms` or `not resolved`.

    Args:
        primary: the differences, by name.
        margin: below which a difference does not matter.
        alpha: of this look.
    """
    adjusted = holm([found.p_value() for found in primary.values()])
    out = {}
    for (name, found), p in zip(primary.items(), adjusted, strict=True):
        low, high = found.interval(1 - 2 * alpha)
        if -margin < low and high < margin:
            out[name] = "not needed"
        elif p < alpha and abs(found.value) >= margin:
            out[name] = "helps" if found.value > 0 else "harms"
        else:
            out[name] = "not resolved"
    return out


def two_by_two(cells: Mapping[tuple[bool, bool], Sequence[float]]) -> dict[str, Estimate]:
    """Main effects and interaction of swing and anneal.

    Args:
        cells: test accuracies `[seeds]` by (swing, anneal).

    Returns:
        `swing` and `anneal`, each averaged over the other, and `interaction`: the swing's effect with the anneal less
        that without.
    """
    signs = {
        "swing": lambda swing, anneal: (1 if swing else -1) / 2,
        "anneal": lambda swing, anneal: (1 if anneal else -1) / 2,
        "interaction": lambda swing, anneal: 1 if swing == anneal else -1,
    }
    return {
        name: _combined([(sign(*cell), mean_of(values)[0]) for cell, values in cells.items()])
        for name, sign in signs.items()
    }


def _combined(parts: list[tuple[float, Estimate]]) -> Estimate:
    """A weighted sum of means with Welch's and Satterthwaite's error and degrees of freedom."""
    value = sum(weight * found.value for weight, found in parts)
    variances = [(weight * found.error) ** 2 for weight, found in parts]
    total = sum(variances)
    spread = sum(part**2 / found.df for part, (_, found) in zip(variances, parts, strict=True))
    return Estimate(float(value), math.sqrt(total), total**2 / spread if spread else sum(e.df for _, e in parts))


def arms_table(accuracies: Mapping[str, Sequence[float]], choices: Mapping[str, Choice]) -> pd.DataFrame:
    """One row an arm: its rate, its mean test accuracy with its interval, and how robust it was to the rate.

    Args:
        accuracies: test accuracies of the final runs `[seeds]`, by arm.
        choices: of the tuned arms.

    Returns:
        Columns `arm`, `rate` (NaN where it was given), `edge`, `runs`, `value`, `std`, `error`, `df`, `low`, `high`,
        `method`, `robustness`.
    """
    rows = []
    for arm, values in accuracies.items():
        choice = choices.get(arm)
        rate, edge, robustness = (choice.rate, choice.edge, choice.robustness) if choice else (math.nan, 0, math.nan)
        about = {"arm": arm, "rate": rate, "edge": edge, "runs": len(values), "robustness": robustness}
        rows.append(about | mean_row(values, 0, 1))
    columns = ["arm", "rate", "edge", "runs", "value", "std", "error", "df", "low", "high", "method", "robustness"]
    return pd.DataFrame(rows, columns=columns)


def differences_table(
    accuracies: Mapping[str, Sequence[float]],
    choices: Mapping[str, Choice],
    primary: Mapping[str, Sequence[str]],
    reference: str,
    margin: float,
    alpha: float,
) -> pd.DataFrame:
    """The primary differences with their verdicts, the effects of the two-by-two, and every arm against a reference.

    Args:
        accuracies, choices: as for `arms_table`.
        primary: two arms' names, by the difference's name.
        reference: the arm that the others are set beside.
        margin, alpha: as for `verdicts`.

    Returns:
        Columns `kind`, `name`, `value`, `error`, `df`, `low`, `high` (95 %), `p`, `verdict`, and of primary differences
        `rule_low`, `rule_high`: the interval that the rule reads. Kinds are `primary`; `seeds`, the same without the
        tuning's error; `effect`; `arm`.
    """

    def against(a: str, b: str) -> Estimate:
        # An average of weights has the rate of the runs it is of, and that choice's error.
        of = [choices.get(arm.removesuffix(AVERAGED)) for arm in (a, b)]
        errors = (choice.error if choice else 0.0 for choice in of)
        return contrast(accuracies[a], accuracies[b], *errors)

    found = {name: against(*pair) for name, pair in primary.items() if all(len(accuracies[a]) > 1 for a in pair)}
    said = verdicts(found, margin, alpha) if found else {}
    rows = [["primary", name, estimate, said[name]] for name, estimate in found.items()]
    rows += [["seeds", name, contrast(*(accuracies[arm] for arm in primary[name])), ""] for name in found]
    cells = {
        (swing, anneal): accuracies.get(("cycle" if swing else "constant") + ("_anneal" if anneal else ""), ())
        for swing in (False, True)
        for anneal in (False, True)
    }
    if all(len(values) > 1 for values in cells.values()):
        rows += [["effect", name, estimate, ""] for name, estimate in two_by_two(cells).items()]
    if len(accuracies.get(reference, ())) > 1:
        others = (arm for arm, values in accuracies.items() if arm != reference and len(values) > 1)
        rows += [["arm", arm, against(arm, reference), ""] for arm in others]
    nothing = (math.nan, math.nan)
    return pd.DataFrame(
        [
            [kind, name, *e, *e.interval(), *(e.interval(1 - 2 * alpha) if verdict else nothing), e.p_value(), verdict]
            for kind, name, e, verdict in rows
        ],
        columns=["kind", "name", "value", "error", "df", "low", "high", "rule_low", "rule_high", "p", "verdict"],
    )


#: What a table of results calls the effects of the two-by-two; of each arm with and without.
EFFECTS = {"swing": "swing - none", "anneal": "anneal - none", "interaction": "swing with anneal - swing without"}


def results_table(
    arms: pd.DataFrame, differences: pd.DataFrame, primary: Mapping, reference: str, alpha: float
) -> pd.DataFrame:
    """A tournament's numbers in the form of every other table: accuracies, differences, rates and their robustness.

    Args:
        arms: of `arms_table`.
        differences: of `differences_table`.
        primary, reference, alpha: as there.

    Returns:
        A table with `tables.TABLE_COLUMNS`; a primary difference has its verdict in the note, with the interval that
        the rule read, a rate whether it lies at an edge of the grid.
    """
    rows = [{**row, "quantity": "final_accuracy", "policy": row["arm"]} for row in arms.to_dict("records")]
    runs, method = arms.set_index("arm").runs, "blocks" if (arms.method == "blocks").any() else "Welch"
    for row in differences.to_dict("records"):
        name, pair = row["name"], primary.get(row["name"], (row["name"], reference))
        if row["kind"] == "arm" and list(pair) in list(map(list, primary.values())):
            continue  # it is a primary one
        effect = row["kind"] == "effect"
        quantity = "final_accuracy_difference" if row["kind"] == "primary" else "described_difference"
        policy = " - ".join(pair) + (" at these rates" if row["kind"] == "seeds" else "")
        about = {"quantity": quantity, "policy": EFFECTS[name] if effect else policy}
        about |= {"runs": None if effect else runs[list(pair)].min(), "method": method}
        note = f"{name}: {row['verdict']}, {_rule_in_words(row, alpha)}" if row["kind"] == "primary" else None
        rows.append(row | about | {"note": note})
    edges = {-1: "the lowest rate tested", 1: "the highest rate tested"}
    for row in arms[arms.rate.notna()].itertuples():
        rows.append({"quantity": "lr", "policy": row.arm, "value": row.rate, "note": edges.get(row.edge)})
        rows.append({"quantity": "robustness", "policy": row.arm, "value": row.robustness})
    return table_of(rows)


SAID = {
    "not needed": "is not needed: what it changes lies within the margin",
    "helps": "helps, by the margin or more",
    "harms": "harms, by the margin or more",
    "not resolved": "is not resolved: its interval leaves the question open",
}


def _rule_in_words(row: Mapping, alpha: float) -> str:
    """The interval that the rule read, in points."""
    low, high = 100 * row["rule_low"], 100 * row["rule_high"]
    return f"by its {100 * (1 - 2 * alpha):.0f} % interval [{low:+.2f}, {high:+.2f}]"


def in_words(table: pd.DataFrame, primary: Mapping[str, Sequence[str]], margin: float, alpha: float) -> str:
    """What the rule says of the primary differences, one line each.

    Args:
        table: of `differences_table`.
        primary, margin, alpha: as there.
    """
    lines = []
    for row in table[table.kind == "primary"].to_dict("records"):
        first, second = primary[row["name"]]
        lines.append(
            f"**{row['name']}**, *{first}* less *{second}*: {100 * row['value']:+.2f} points "
            f"[{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]. The rule decides at a margin of "
            f"{100 * margin:.1f} points, {_rule_in_words(row, alpha)}: the cycle {SAID[row['verdict']]}."
        )
    return "\n\n".join(lines) or "The runs that the rule needs are not all made yet."
