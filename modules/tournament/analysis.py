"""The second tournament's rule: the accuracy at an arm's best rate, read off a curve, and what a difference says.

Tables of runs are those of `design.Tournament.table`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from modules.report.tables import mean_row, row_of, table_of
from modules.statistics import AnalysisError, Estimate, difference, difference_of_estimates, mean
from modules.tournament.design import Contrast, Design

OUTSIDE = "no top inside the ladder"


class Top(NamedTuple):
    """An arm at its own best rate.

    Attributes:
        octave: log2 of the best rate over the registration's.
        placed: the standard error of `octave`.
        accuracy: on the test images there; its error counts that of the place, too.
        inside: whether the curve has its top between the lowest and the highest rate. Else `octave` is the end, or the
            rate, with the best validation accuracy, and no verdict is read off it.
    """

    octave: float
    placed: float
    accuracy: Estimate
    inside: bool


def top(validation: Mapping[float, Sequence[float]], test: Mapping[float, Sequence[float]]) -> Top:
    """The top of a parabola in the octave: placed on validation accuracies, valued on test accuracies.

    Both parabolas are least squares over the runs. The error is that of the first-order change of the value with each
    run's two accuracies: what the test parabola is worth at the place, and its slope there times the change of place.

    Args:
        validation, test: accuracies `[runs]` by octave, of the same runs in the same order; three octaves or more with
            two runs or more each.

    Raises:
        AnalysisError: fewer octaves or runs, or other runs in one than in the other.
    """
    octaves = sorted(validation)
    counts = np.array([len(validation[octave]) for octave in octaves])
    if len(octaves) < 3 or counts.min() < 2:
        raise AnalysisError(f"three rates with two runs each are needed for a curve, not {octaves}, {counts}")
    if sorted(test) != octaves or [len(test[octave]) for octave in octaves] != counts.tolist():
        raise AnalysisError("validation and test accuracies must be of the same runs")
    chosen, valued = ([np.asarray(values[octave], dtype=float) for octave in octaves] for values in (validation, test))
    x = np.array(octaves, dtype=float)
    powers = np.vander(x, 3)
    fit = np.linalg.solve((powers.T * counts) @ powers, powers.T * counts)  # from means at the rates to coefficients
    means, values = (np.array([runs.mean() for runs in all_runs]) for all_runs in (chosen, valued))
    square, slope, _ = fit @ means
    at, moves = _place(x, means, fit, square, slope)
    inside = bool(moves.any())
    weights = np.array([at**2, at, 1.0]) @ fit
    steepness = np.array([2 * at, 1.0, 0.0]) @ fit @ values
    parts, places = np.zeros(len(x)), np.zeros(len(x))
    for number, (a, b) in enumerate(zip(chosen, valued, strict=True)):
        effect = weights[number] * (b - b.mean()) + steepness * moves[number] * (a - a.mean())
        parts[number] = (effect**2).sum() / (len(a) - 1) / len(a)
        places[number] = moves[number] ** 2 * a.var(ddof=1) / len(a)
    total = parts.sum()
    df = total**2 / (parts**2 / (counts - 1)).sum() if total else counts.sum() - len(x)
    accuracy = Estimate(float(weights @ values), math.sqrt(total), float(df))
    return Top(float(at), math.sqrt(places.sum()) if inside else math.nan, accuracy, inside)


def _place(x: np.ndarray, means: np.ndarray, fit: np.ndarray, square: float, slope: float) -> tuple[float, np.ndarray]:
    """Where the top is, and by how much it moves with each rate's mean; not at all where it is not inside."""
    if square < 0 and x[0] < -slope / (2 * square) < x[-1]:
        return -slope / (2 * square), -fit[1] / (2 * square) + slope * fit[0] / (2 * square**2)
    if square < 0:
        return float(np.clip(-slope / (2 * square), x[0], x[-1])), np.zeros(len(x))
    return float(x[means.argmax()]), np.zeros(len(x))


def verdict(found: Estimate, margin: float, level: float) -> str:
    """What a difference says: `not needed`, `helps`, `harms` or `not resolved`.

    * `not needed`: the interval lies within the margin;
    * `helps`: it lies above 0, and the estimate is the margin or more;
    * `harms`: it lies below 0, and the estimate is minus the margin or less;
    * `not resolved`: anything else.

    Args:
        found: the difference.
        margin: below which a difference does not matter, in the same unit.
        level: of the interval, 0 to 1.
    """
    low, high = found.interval(level)
    if -margin < low and high < margin:
        return "not needed"
    if low > 0 and found.value >= margin:
        return "helps"
    if high < 0 and found.value <= -margin:
        return "harms"
    return "not resolved"


def level(alpha: float, verdicts: int) -> float:
    """The level of the intervals that verdicts are read off: each claim of each verdict has an equal share of `alpha`.

    Args:
        alpha: the probability of any false claim.
        verdicts: how many there are.
    """
    return 1 - 2 * alpha / verdicts


def at_most(collapsed: int, runs: int) -> float:
    """The largest share of collapses that so many of so many runs leave possible: an exact upper limit of 95 %."""
    from scipy import stats

    return float(stats.binomtest(collapsed, runs, alternative="less").proportion_ci(0.95).high)


def share(collapsed: int, runs: int, others_collapsed: int, others: int) -> float:
    """Fisher's exact two-sided p of two shares of collapsed runs being the same."""
    from scipy import stats

    counts = [[collapsed, runs - collapsed], [others_collapsed, others - others_collapsed]]
    return float(stats.fisher_exact(counts).pvalue)


def top_of(runs: pd.DataFrame, arm: str, budget: int) -> Top:
    """`top` of an arm's runs of one length, among a question's."""
    found = runs[(runs.arm == arm) & (runs.budget == budget)].groupby("octave")
    validation, test = ({octave: group[column] for octave, group in found} for column in ("validation", "test"))
    return top(validation, test)


def at(runs: pd.DataFrame, arm: str, octave: float, budget: int, column: str = "test") -> pd.Series:
    """What an arm's runs at one rate and of one length ended with, by seed.

    Raises:
        AnalysisError: there are none.
    """
    found = runs[(runs.arm == arm) & (runs.octave == octave) & (runs.budget == budget)].set_index("seed")[column]
    if found.empty or found.isna().any():
        raise AnalysisError(f"no {column} of {arm} {octave:g} octaves above the registered rate, {budget} iterations")
    return found


def estimate(contrast: Contrast, runs: pd.DataFrame, iterations: int) -> tuple[Estimate, bool]:
    """A difference, and whether every curve it is read off has its top inside.

    Args:
        contrast: which.
        runs: its question's.
        iterations: the registration's.
    """
    (first, second), budget = contrast.arms, contrast.budget or iterations
    if contrast.octave is None:
        tops = [top_of(runs, arm, budget) for arm in contrast.arms]
        return difference_of_estimates(*(arm.accuracy for arm in tops)), all(arm.inside for arm in tops)
    one = at(runs, first, contrast.octave, budget)
    if contrast.against == "tuned":
        best = top_of(runs, second, budget)
        return difference_of_estimates(mean(one), best.accuracy), best.inside
    column = "average" if contrast.against == "averaged" else "test"
    return difference(one, at(runs, second, contrast.octave, budget, column)), True


def name_of(contrast: Contrast) -> str:
    """What tables call a difference: `cycle - linear`, `cycle_drop - warm58_drop at 8`, `cycle - constant 1800`."""
    first, second = contrast.arms
    second += "" if contrast.against == "plain" else f" {contrast.against}"
    budget = f" {contrast.budget}" if contrast.budget else ""
    return f"{first} - {second}{_factor(contrast.octave)}{budget}"


def _factor(octave: float | None) -> str:
    return "" if not octave else f" at {2**octave:.3g}"


def differences(design: Design, question: str, runs: pd.DataFrame) -> pd.DataFrame:
    """A question's differences with their verdicts.

    Args:
        design: the registration.
        question: its name.
        runs: its runs.

    Returns:
        A table with `tables.TABLE_COLUMNS`. Of primary differences (`registered_difference`) the interval is the
        rule's, at the level of `level`, and the note is the name and the verdict; of others (`described_difference`) it
        is of 95 %. At rates above the registered one the note says how many runs collapsed, and how large a share could
        (an interval over accuracies knows nothing of a collapse that is rare); with Fisher's p, where some did. Then a
        row more has the difference `without collapsed` runs, a description.
    """
    asked, high, rows = design.questions[question], level(design.alpha, len(design.primary)), []
    named = [*asked.primary.items(), *((None, contrast) for contrast in asked.described)]
    for name, contrast in named:
        found, inside = estimate(contrast, runs, design.iterations)
        row = row_of(found, "Welch")
        notes = [] if inside else [OUTSIDE]
        if name:
            row["low"], row["high"] = found.interval(high)
            row["method"] = f"Welch, {high:.2%}"
            said = verdict(found, asked.margin, high) if inside else "not resolved"
            notes.insert(0, f"{name}: {said}")
        if contrast.octave is not None and contrast.against == "plain":
            budget = contrast.budget or design.iterations
            lost = [at(runs, arm, contrast.octave, budget, "collapsed") for arm in contrast.arms]
            counts = [(int(some.sum()), len(some)) for some in lost]
            collapsed = any(count for count, _ in counts)
            if contrast.octave > 0 or collapsed:
                shares = ", ".join(f"{n} of {of} (at most {100 * at_most(n, of):.0f} %)" for n, of in counts)
                if collapsed:
                    p = share(*counts[0], *counts[1])
                    shares += f", Fisher's p {'below 0.001' if p < 0.001 else f'{p:.2g}'}"
                notes.append(f"collapsed: {shares}")
        quantity = "registered_difference" if name else "described_difference"
        count = min(_count(runs, arm, contrast, design.iterations) for arm in contrast.arms)
        about = {"quantity": quantity, "policy": name_of(contrast), "runs": count, "note": "; ".join(notes) or None}
        rows.append(about | row)
        if contrast.octave is not None and contrast.against == "plain":
            rows += _survivors(contrast, runs, design.iterations)
    return table_of(rows)


def _survivors(contrast: Contrast, runs: pd.DataFrame, iterations: int) -> list[dict]:
    """A difference without the runs that collapsed, as a row; none where none collapsed, or all but one did."""
    where = contrast.octave, contrast.budget or iterations
    lost = [at(runs, arm, *where, "collapsed") for arm in contrast.arms]
    tests = [at(runs, arm, *where)[~gone] for arm, gone in zip(contrast.arms, lost, strict=True)]
    if not any(gone.any() for gone in lost) or min(map(len, tests)) < 2:
        return []
    about = {"quantity": "described_difference", "policy": f"{name_of(contrast)} without collapsed"}
    return [{**about, "runs": min(map(len, tests)), **row_of(difference(*tests), "Welch")}]


def _count(runs: pd.DataFrame, arm: str, contrast: Contrast, iterations: int) -> int:
    found = runs[(runs.arm == arm) & (runs.budget == (contrast.budget or iterations))]
    return len(found if contrast.octave is None else found[found.octave == contrast.octave])


def any_time(design: Design, found: Mapping[str, str]) -> pd.DataFrame:
    """What the verdicts of the differences at a budget say together: whether one run is a good model at any of them.

    As registered: it is, where none of them says `harms` or `not resolved`.

    Args:
        design: the registration.
        found: verdicts by difference.

    Returns:
        A row of `tables.TABLE_COLUMNS`, the share of the budgets at which it is, with the conclusion as its note; none
        where a verdict is missing.
    """
    asked = [name for name, (_, contrast) in design.primary.items() if contrast.budget]
    if not asked or not set(asked) <= set(found):
        return table_of([])
    good = [found[name] in ("not needed", "helps") for name in asked]
    note = "a good any-time schedule" if all(good) else "not shown to be a good any-time schedule"
    arm = design.primary[asked[0]][1].arms[0]
    return table_of([{"quantity": "share", "policy": f"{arm} any time", "value": float(np.mean(good)), "note": note}])


def verdicts(table: pd.DataFrame) -> dict[str, str]:
    """The verdicts of a table of `differences`, by the differences' names."""
    notes = table.note[table.quantity == "registered_difference"]
    return dict(note.split("; ")[0].split(": ") for note in notes)


def arms(design: Design, runs: pd.DataFrame) -> pd.DataFrame:
    """Every arm at its own best rate: accuracy, and that rate with the 95 % interval of its place.

    Args:
        design: the registration.
        runs: of a question whose arms have ladders; an arm with one rate is taken there.

    Returns:
        A table with `tables.TABLE_COLUMNS`: `final_accuracy` and `lr`.
    """
    rows = []
    for arm, found in runs[runs.budget == design.iterations].groupby("arm", sort=False):
        about = {"policy": arm, "runs": len(found)}
        if found.octave.nunique() == 1:
            about["note"] = "rate given"
            accuracy, octave, placed = mean_row(found.test, 0, 1), found.octave.iloc[0], math.nan
        else:
            best = top_of(runs, arm, design.iterations)
            about["note"] = None if best.inside else OUTSIDE
            accuracy, octave, placed = row_of(best.accuracy, "curve", 0, 1), best.octave, best.placed
        rows.append({**about, "quantity": "final_accuracy", **accuracy})
        low, high = (design.rate * 2.0 ** (octave + sign * 1.96 * placed) for sign in (-1, 1))
        rate = {"value": design.rate * 2.0**octave, "low": low, "high": high}
        rows.append({**about, "quantity": "lr", **rate})
    return table_of(rows)


def ends(runs: pd.DataFrame, iterations: int) -> pd.DataFrame:
    """Mean test accuracy of every arm at every rate and length, and of its moving average; shares of collapsed runs.

    Args:
        runs: a question's.
        iterations: the registration's length, which names leave out.

    Returns:
        A table with `tables.TABLE_COLUMNS`: `accuracy`, and `share` where a run collapsed.
    """
    rows = []
    for (arm, octave, budget), found in runs.groupby(["arm", "octave", "budget"], sort=False):
        name = _factor(octave) + ("" if budget == iterations else f" {budget}")
        rows.append({"quantity": "accuracy", "policy": arm + name, "runs": len(found), **mean_row(found.test, 0, 1)})
        if found.average.notna().all():
            row = {"quantity": "accuracy", "policy": f"{arm} averaged{name}", "runs": len(found)}
            rows.append(row | mean_row(found.average, 0, 1))
        if found.collapsed.any():
            row = {"quantity": "share", "policy": f"{arm}{name}", "runs": len(found), "value": found.collapsed.mean()}
            rows.append({**row, "note": "collapsed"})
    return table_of(rows)


def untuned(runs: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Without tuning: every arm's mean accuracy by rule, and less a reference arm's; nothing in it is judged.

    Args:
        runs: as `design.Tournament.untuned_table` gives them.
        reference: an arm.

    Returns:
        A table with `tables.TABLE_COLUMNS`; notes say of how many runs the range test gave no rate, or how many
        collapsed.
    """
    rows = []
    for rule, of_rule in runs.groupby("rule", sort=False):
        kept = {arm: found.dropna(subset="test") for arm, found in of_rule.groupby("arm", sort=False)}
        asked = of_rule.groupby("arm").size()
        for arm, found in kept.items():
            counts = {"without a rate": asked[arm] - len(found), "collapsed": int(found.collapsed.sum())}
            note = ", ".join(f"{count} {what}" for what, count in counts.items() if count) or None
            about = {"policy": f"{arm} {rule}", "runs": len(found), "note": note}
            rows.append({**about, "quantity": "accuracy", **mean_row(found.test, 0, 1)})
            middle = {"value": found.rate.median(), "low": found.rate.min(), "high": found.rate.max()}
            rows.append({**about, "quantity": "lr", **middle, "note": "median, lowest and highest"})
        for arm, found in kept.items():
            if arm != reference and reference in kept:
                row = row_of(difference(found.test, kept[reference].test), "Welch", -1, 1)
                about = {"quantity": "described_difference", "policy": f"{arm} - {reference} {rule}"}
                rows.append({**about, "runs": min(len(found), len(kept[reference])), **row})
    return table_of(rows)


def predicted(
    design: Design, accuracies: Mapping[str, float], before: Sequence[str], best: Sequence[str]
) -> pd.DataFrame:
    """What theory predicted beside what was measured.

    Args:
        design: the registration.
        accuracies: at each arm's own best rate, by arm.
        before: arms that had been trained when the prediction was made.
        best: arms whose best rate lies inside their ladder.

    Returns:
        A table with `tables.TABLE_COLUMNS`: each arm's `bound` over the constant rate's, and `tau`, Kendall's, of the
        bounds' order and the accuracies': 1 where the smallest bound has the highest accuracy and so on; over `all`
        arms, over `new` ones, and over those that are `at their best`, as the bound supposes.
    """
    from scipy import stats

    rows = [{"quantity": "bound", "policy": arm, "value": bound} for arm, bound in design.predicted.items()]
    known = [arm for arm in design.predicted if arm in accuracies]
    new, inside = ([arm for arm in known if arm not in before], [arm for arm in known if arm in best])
    for name, kept in {"all": known, "new": new, "at their best": inside}.items():
        if len(kept) > 2:
            tau = stats.kendalltau(
                [-design.predicted[arm] for arm in kept], [accuracies[arm] for arm in kept]
            ).statistic
            rows.append({"quantity": "tau", "policy": name, "runs": len(kept), "value": float(tau)})
    return table_of(rows)
