"""Regret: what a suggested learning rate costs in accuracy, beside the best rate that hindsight knows.

The accuracy at every rate is known from a grid of trainings with several seeds. The best rate of the same runs would be
a winner's: so it is chosen on half of the seeds, where accuracy is smoothed over neighbouring rates, and valued on the
other half.
"""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from modules.report.tables import table_of
from modules.statistics import AnalysisError, error_of, quantiles

DRAWS = 2000
CATASTROPHE = 0.05  # of accuracy
MOST_SPLITS = 500
BOUNDS = "suggest_bounds, both"  # a cycle between both bounds, which is trained itself
#: This project's own, without and with accuracies; chosen on some of the tasks, where their regret flatters them.
CHOSEN_HERE = ("suggest_rate", "suggest_rate, accuracy too")
OF_RANGE_TEST = "range_test, suggest_rate"  # the last, where `range_test` measures the accuracies: for users to copy
#: What the pages compare: their advice, the race, what two libraries do.
COMPARED = (OF_RANGE_TEST, "find_rate", "fastai minimum", "pytorch-lr-finder")
FEW = 0.1  # of the repeats may be without an answer for a rule that is advised
KEYS = ["task", "schedule", "rule"]


class Landscape:
    """The accuracy that each rate of a grid leads to, by seed.

    Args:
        rates: increasing, `[rates]`.
        accuracies: 0 to 1, `[rates, seeds]`; a run that diverged counts as chance. Two seeds or more.

    Attributes:
        best: the rate of the highest smoothed mean.
        oracle: mean accuracy at the rate chosen on one half of the seeds, on the other; over all halves.
        at_edge: whether `best` is the lowest or the highest rate: then the grid is too narrow.
    """

    def __init__(self, rates: np.ndarray, accuracies: np.ndarray) -> None:
        rates, accuracies = np.asarray(rates, dtype=float), np.asarray(accuracies, dtype=float)
        if accuracies.ndim != 2 or accuracies.shape[1] < 2 or len(rates) != len(accuracies) or len(rates) < 3:
            raise AnalysisError(f"accuracies of three rates and two seeds or more are needed, not {accuracies.shape}")
        if not np.isfinite(accuracies).all():
            raise AnalysisError("a grid needs an accuracy of every rate and seed")
        self.rates, self.accuracies, self.mean = rates, accuracies, accuracies.mean(axis=1)
        top = int(_smooth(self.mean).argmax())
        self.best, self.at_edge = float(rates[top]), top in (0, len(rates) - 1)
        self.oracle = float(np.mean([self._crossed(*halves)[0] for halves in self._halves()]))

    def _halves(self) -> list[tuple[np.ndarray, np.ndarray]]:
        seeds = np.arange(self.accuracies.shape[1])
        some = [np.array(half) for half in combinations(seeds, len(seeds) // 2)]
        some = [some[i] for i in np.random.default_rng(0).permutation(len(some))[:MOST_SPLITS]]
        return [(half, np.setdiff1d(seeds, half)) for half in some]

    def _crossed(self, a: np.ndarray, b: np.ndarray) -> tuple[float, np.ndarray]:
        """The oracle's accuracy and the curve `[rates]`, of two lists of seeds that share none."""
        first, second = self.accuracies[:, a].mean(axis=1), self.accuracies[:, b].mean(axis=1)
        oracle = (second[_smooth(first).argmax()] + first[_smooth(second).argmax()]) / 2
        return oracle, (first + second) / 2

    def weights(self, rates: np.ndarray) -> np.ndarray:
        """What to multiply the curve with for the accuracy at some rates `[n]`: `[n, rates]`.

        Straight lines over log rate; beyond the grid its ends.
        """
        x, grid = np.log(rates), np.log(self.rates)
        return np.stack([np.interp(x, grid, unit) for unit in np.eye(len(grid))], axis=1)

    def regret(self, rates: np.ndarray) -> np.ndarray:
        """The oracle's accuracy less that at each of `rates` `[n]`."""
        return self.oracle - self.weights(rates) @ self.mean

    def resampled(self) -> tuple[np.ndarray, np.ndarray]:
        """Oracles `[DRAWS]` and curves `[DRAWS, rates]` of resampled seeds.

        A seed drawn twice must not lie in both halves, where it would choose the rate that it values: the seeds are
        halved first, and each half is resampled by itself.
        """
        rng, count = np.random.default_rng(0), self.accuracies.shape[1]
        found = []
        for _ in range(DRAWS):
            order = rng.permutation(count)
            halves = order[: count // 2], order[count // 2 :]
            found.append(self._crossed(*(rng.choice(half, len(half)) for half in halves)))
        oracles, curves = zip(*found, strict=True)
        return np.array(oracles), np.array(curves)


def _smooth(curve: np.ndarray) -> np.ndarray:
    """A mean over neighbouring rates, weights 1, 2, 1; at the ends over two."""
    padded = np.pad(curve, 1, mode="edge")
    return (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4


def regrets(answers: pd.DataFrame, landscapes: Mapping[tuple[str, str], Landscape]) -> pd.DataFrame:
    """The regret of each answer, for each schedule.

    Args:
        answers: `task`, `rule`, `seed`, `rate` (NaN for no answer), `accuracy` (of what was trained itself, whose rate
            need not be on the grid; else NaN), `only`: the schedule that it is for, where it is not for all.
        landscapes: by task and schedule.

    Returns:
        The answers with `schedule` and `regret`, a share of accuracy.
    """
    parts = []
    for (task, schedule), landscape in landscapes.items():
        meant = answers.only.isna() | (answers.only == schedule)
        found = answers[meant & (answers.task == task)].assign(schedule=schedule)
        rated = found.accuracy.isna() & found.rate.notna()
        found["regret"] = landscape.oracle - found.accuracy
        found.loc[rated, "regret"] = landscape.regret(found.rate[rated].to_numpy())
        parts.append(found)
    return pd.concat(parts, ignore_index=True)


def regret_table(
    found: pd.DataFrame, landscapes: Mapping[tuple[str, str], Landscape], over: Sequence[str]
) -> pd.DataFrame:
    """Mean regret of everybody with its 95 % interval, over repeats and the grid's seeds, which are both resampled.

    Args:
        found: as `regrets` gives it.
        landscapes: the same.
        over: the tasks that a mean over tasks is of.

    Returns:
        `task` (and `all`: the mean over the tasks `over`, where there was an answer in each), `schedule`, `rule`,
        `value`, `low`, `high` (points), `worst` (of the repeats, points), `catastrophes`, `no_answer` (shares of
        repeats), `rate` (median), `spread` (standard deviation of the rates as a factor), `repeats`.
    """
    rows, draws = [], {}
    for (task, schedule), landscape in landscapes.items():
        oracles, curves = landscape.resampled()
        here = found[(found.task == task) & (found.schedule == schedule)]
        for rule, group in here.groupby("rule", sort=False):
            answered = group[group.regret.notna()]
            row = {"task": task, "schedule": schedule, "rule": rule, "repeats": len(group)}
            row["no_answer"] = group.regret.isna().mean()
            if count := len(answered):
                if answered.accuracy.notna().all():
                    each = oracles[:, None] - answered.accuracy.to_numpy()
                else:
                    each = oracles[:, None] - curves @ landscape.weights(answered.rate.to_numpy()).T
                counts = np.random.default_rng(1).multinomial(count, np.full(count, 1 / count), DRAWS)
                draws[task, schedule, rule] = resampled = (each * counts).sum(axis=1) / count
                row |= _points(answered.regret.mean(), resampled)
                row["worst"] = 100 * answered.regret.max()
                row["catastrophes"] = (group.regret > CATASTROPHE).mean()
                rates = answered.rate.dropna()
                row |= {"rate": rates.median(), "spread": math.exp(np.log(rates).std(ddof=0))} if len(rates) else {}
            rows.append(row)
    table = pd.DataFrame(rows)
    for (schedule, rule), group in table[table.task.isin(over)].groupby(["schedule", "rule"], sort=False):
        row = {"task": "all", "schedule": schedule, "rule": rule, "repeats": group.repeats.sum()}
        row["no_answer"] = group.no_answer.mean()
        keys = [(task, schedule, rule) for task in over]
        if all(key in draws for key in keys):
            row |= _points(group.value.mean() / 100, np.mean([draws[key] for key in keys], axis=0))
            row |= {"worst": group.worst.max(), "catastrophes": group.catastrophes.mean()}
        rows.append(row)
    columns = [*KEYS, "value", "low", "high", "worst", "catastrophes", "no_answer", "rate", "spread", "repeats"]
    return pd.DataFrame(rows, columns=columns)


def _points(value: float, resampled: np.ndarray) -> dict[str, float]:
    low, high = quantiles(resampled, np.full(len(resampled), 1 / len(resampled)))
    return {"value": 100 * value, "low": 100 * low, "high": 100 * high}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """The same in the form of every other table, 0 to 1: `regret` of `<rule> <schedule>`, or of that and a task.

    Args:
        table: as `regret_table` gives it.
    """
    rows = []
    for row in table[table.value.notna()].itertuples():
        words = [row.rule.replace(" / ", " over "), row.schedule] + [row.task] * (row.task != "all")
        rows.append(
            {
                "quantity": "regret",
                "policy": re.sub(r"[^\w .-]+", "", " ".join(words)),
                "runs": row.repeats,
                **{key: getattr(row, key) / 100 for key in ("value", "low", "high")},
                "error": error_of(row.low, row.high) / 100,
                "df": math.inf,
                "method": "resampled",
            }
        )
    return table_of(rows)


def side_by_side(table: pd.DataFrame, schedule: str) -> pd.DataFrame:
    """Rules down, tasks across, for a schedule: regret with its interval, and the shares behind it.

    Args:
        table: as `regret_table` gives it.
    """
    here = table[table.schedule == schedule]
    texts = [
        f"{row.value:.2f} [{row.low:.2f}, {row.high:.2f}]" if row.value == row.value else None
        for row in here.itertuples()
    ]
    wide = here.assign(text=texts).pivot(index="rule", columns="task", values="text")
    whole = here[here.task == "all"].set_index("rule")
    wide = wide[[*dict.fromkeys(table.task)]]
    for name, column in (("over 5 points", whole.catastrophes), ("no answer", whole.no_answer)):
        wide[name] = column.map("{:.0%}".format)
    return wide.loc[whole.sort_values("value", kind="stable").index].rename_axis(columns=None)


def profile(found: pd.DataFrame, most: float = 0.1, steps: int = 201) -> pd.DataFrame:
    """The share of tasks and repeats whose regret is at most x; no answer is in no share.

    Returns:
        `schedule`, `rule`, `regret` (points), `share`; tasks weigh the same.
    """
    x, rows = np.linspace(0, most, steps), []
    for (schedule, rule), group in found.groupby(["schedule", "rule"], sort=False):
        shares = [
            (part.regret.to_numpy()[:, None] <= x + 1e-12).mean(axis=0) for _, part in group.groupby("task", sort=False)
        ]
        rows.append(pd.DataFrame(dict(schedule=schedule, rule=rule, regret=100 * x, share=np.mean(shares, axis=0))))
    return pd.concat(rows, ignore_index=True)


def advice(table: pd.DataFrame, schedule: str) -> str:
    """One line: who has the least mean regret over tasks, and who may be as good.

    Of those that answered nine times of ten.

    Args:
        table: as `regret_table` gives it.
        schedule: of the trainings.
    """
    whole = table[(table.task == "all") & (table.schedule == schedule) & table.value.notna()]
    whole = whole[whole.no_answer <= FEW]
    if whole.empty:
        return f"{schedule}: nobody answered nine times of ten."
    best = whole.loc[whole.value.idxmin()]
    near = whole[(whole.low <= best.high) & (whole.index != best.name)].sort_values("value")
    others = [f"{row.rule} ({row.value:.2f})" for row in near.itertuples()]
    others[4:] = [f"and {len(others) - 4} more"] * (len(others) > 4)
    text = (
        f"{schedule}: {best.rule} costs {best.value:.2f} points [{best.low:.2f}, {best.high:.2f}] on average, "
        f"{best.worst:.1f} at worst"
    )
    if best.no_answer:
        text += f", and gives no answer in {best.no_answer:.0%} of the repeats"
    return text + (f"; not told apart from it: {'; '.join(others)}." if others else "; everybody else costs more.")
