"""Regret: what a suggested learning rate costs in accuracy, beside the best rate that hindsight knows.

The accuracy at every rate is known from a grid of trainings with several seeds. The best rate of the same runs would be
a winner's: so it is chosen on half of the seeds, where accuracy is smoothed over neighbouring rates, and valued on the
other half.
"""

import math
import re
from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd

from modules.report.tables import table_of
from modules.statistics import AnalysisError, error_of, quantiles

DRAWS = 2000
CATASTROPHE = 0.05  # of accuracy
MOST_SPLITS = 500
TRAINED = ("suggest_bounds, both",)  # rules whose suggestions, two numbers, were trained with themselves
#: This project's own, without and with accuracies; chosen on some of the tasks, where their regret flatters them.
CHOSEN_HERE = ("suggest_rate", "suggest_rate, accuracy too")
FEW = 0.1  # of the ramps may be without an answer for a rule that is advised
KEYS = ["task", "schedule", "ramp", "rule"]


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
            raise AnalysisError(f"accuracies [rates, seeds] of two seeds or more are needed, not {accuracies.shape}")
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

    def resampled(self, draws: int = DRAWS) -> tuple[np.ndarray, np.ndarray]:
        """Oracles `[draws]` and curves `[draws, rates]` of resampled seeds.

        A seed drawn twice must not lie in both halves, where it would choose the rate that it values: the seeds are
        halved first, and each half is resampled by itself.
        """
        rng, count = np.random.default_rng(0), self.accuracies.shape[1]
        found = []
        for _ in range(draws):
            order = rng.permutation(count)
            halves = order[: count // 2], order[count // 2 :]
            found.append(self._crossed(*(rng.choice(half, len(half)) for half in halves)))
        oracles, curves = zip(*found, strict=True)
        return np.array(oracles), np.array(curves)


def _smooth(curve: np.ndarray) -> np.ndarray:
    """A mean over neighbouring rates, weights 1, 2, 1; at the ends over two."""
    padded = np.pad(curve, 1, mode="edge")
    return (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4


def regrets(suggestions: pd.DataFrame, landscapes: Mapping[tuple[str, str], Landscape]) -> pd.DataFrame:
    """The regret of each suggestion, for each schedule.

    Args:
        suggestions: `task`, `rule`, `ramp` (iterations it may use), `seed`, `rate` (NaN for no answer), `only`: the
            schedule that a rate is for, where it is not for all.
        landscapes: by task and schedule.

    Returns:
        The suggestions with `schedule` and `regret`, a share of accuracy.
    """
    parts = []
    for (task, schedule), landscape in landscapes.items():
        meant = suggestions.only.isna() | (suggestions.only == schedule)
        found = suggestions[meant & (suggestions.task == task)].assign(schedule=schedule, regret=np.nan)
        answered = found.rate.notna()
        found.loc[answered, "regret"] = landscape.regret(found.rate[answered].to_numpy())
        parts.append(found)
    return pd.concat(parts, ignore_index=True)


def regret_table(found: pd.DataFrame, landscapes: Mapping[tuple[str, str], Landscape]) -> pd.DataFrame:
    """Mean regret of every rule with its 95 % interval, over ramps and the grid's seeds, which are both resampled.

    Args:
        found: as `regrets` gives it.
        landscapes: the same.

    Returns:
        `task` (and `all`: the mean over tasks, where a rule answered in each), `schedule`, `ramp`, `rule`, `value`,
        `low`, `high` (points), `worst` (ramp, points), `catastrophes`, `no_answer` (shares of ramps), `rate` (median),
        `spread` (standard deviation of the rates as a factor), `ramps`.
    """
    rows, draws = [], {}
    for (task, schedule), landscape in landscapes.items():
        oracles, curves = landscape.resampled()
        here = found[(found.task == task) & (found.schedule == schedule)]
        for (ramp, rule), group in here.groupby(["ramp", "rule"], sort=False):
            rates = group.rate.dropna().to_numpy()
            row = {"task": task, "schedule": schedule, "ramp": ramp, "rule": rule, "ramps": len(group)}
            row["no_answer"] = group.rate.isna().mean()
            if len(rates):
                counts = np.random.default_rng(1).multinomial(len(rates), np.full(len(rates), 1 / len(rates)), DRAWS)
                if rule in TRAINED:
                    accuracies = landscape.oracle - group.regret.dropna().to_numpy()
                    each = oracles[:, None] - accuracies
                else:
                    each = oracles[:, None] - curves @ landscape.weights(rates).T
                draws[task, schedule, ramp, rule] = resampled = (each * counts).sum(axis=1) / len(rates)
                row |= _points(group.regret.mean(), resampled)
                row["worst"] = 100 * group.regret.max()
                row["catastrophes"] = (group.regret > CATASTROPHE).mean()
                row |= {"rate": float(np.median(rates)), "spread": math.exp(np.log(rates).std())}
            rows.append(row)
    table = pd.DataFrame(rows)
    tasks = list(dict.fromkeys(table.task))
    for (schedule, ramp, rule), group in table.groupby(["schedule", "ramp", "rule"], sort=False):
        row = {"task": "all", "schedule": schedule, "ramp": ramp, "rule": rule, "ramps": group.ramps.sum()}
        row["no_answer"] = group.no_answer.mean()
        keys = [(task, schedule, ramp, rule) for task in tasks]
        if all(key in draws for key in keys):
            row |= _points(group.value.mean() / 100, np.mean([draws[key] for key in keys], axis=0))
            row |= {"worst": group.worst.max(), "catastrophes": group.catastrophes.mean()}
        rows.append(row)
    columns = [*KEYS, "value", "low", "high", "worst", "catastrophes", "no_answer", "rate", "spread", "ramps"]
    return pd.DataFrame(rows, columns=columns)


def _points(value: float, resampled: np.ndarray) -> dict[str, float]:
    low, high = quantiles(resampled, np.full(len(resampled), 1 / len(resampled)))
    return {"value": 100 * value, "low": 100 * low, "high": 100 * high}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """The same in the form of every other table, 0 to 1: `regret` of `<rule> <schedule> <ramp>`, or of that and a task.

    Args:
        table: as `regret_table` gives it.
    """
    rows = []
    for row in table[table.value.notna()].itertuples():
        words = [row.rule.replace(" / ", " over "), row.schedule, row.ramp] + [row.task] * (row.task != "all")
        rows.append(
            {
                "quantity": "regret",
                "policy": re.sub(r"[^\w .-]+", "", " ".join(words)),
                "runs": row.ramps,
                **{key: getattr(row, key) / 100 for key in ("value", "low", "high")},
                "error": error_of(row.low, row.high) / 100,
                "df": math.inf,
                "method": "resampled",
            }
        )
    return table_of(rows)


def side_by_side(table: pd.DataFrame, schedule: str) -> pd.DataFrame:
    """Rules down, tasks across, one block a ramp, for a schedule: regret with its interval, and the shares behind it.

    Args:
        table: as `regret_table` gives it.
    """
    here = table[table.schedule == schedule]
    texts = [
        f"{row.value:.2f} [{row.low:.2f}, {row.high:.2f}]" if row.value == row.value else None
        for row in here.itertuples()
    ]
    wide = here.assign(text=texts).pivot(index=["ramp", "rule"], columns="task", values="text")
    whole = here[here.task == "all"].set_index(["ramp", "rule"])
    order = whole.sort_values(["ramp", "value"], kind="stable").index
    wide = wide[[*dict.fromkeys(table.task)]]
    for name, column in (("over 5 points", whole.catastrophes), ("no answer", whole.no_answer)):
        wide[name] = column.map("{:.0%}".format)
    return wide.loc[order].rename_axis(columns=None)


def profile(found: pd.DataFrame, most: float = 0.1, steps: int = 201) -> pd.DataFrame:
    """The share of tasks and ramps whose regret is at most x; no answer is in no share.

    Returns:
        `schedule`, `ramp`, `rule`, `regret` (points), `share`; tasks weigh the same.
    """
    x, rows = np.linspace(0, most, steps), []
    for (schedule, ramp, rule), group in found.groupby(["schedule", "ramp", "rule"], sort=False):
        shares = [
            (part.regret.to_numpy()[:, None] <= x + 1e-12).mean(axis=0) for _, part in group.groupby("task", sort=False)
        ]
        share = np.mean(shares, axis=0)
        rows.append(pd.DataFrame(dict(schedule=schedule, ramp=ramp, rule=rule, regret=100 * x, share=share)))
    return pd.concat(rows, ignore_index=True)


def advice(table: pd.DataFrame, schedule: str) -> str:
    """One line: the rule and the ramp of the least mean regret over all tasks, and which others may be as good.

    Of the rules that answered on nine ramps of ten; `CHOSEN_HERE` are left out: some tasks chose them.

    Args:
        table: as `regret_table` gives it.
        schedule: of the trainings.
    """
    whole = table[(table.task == "all") & (table.schedule == schedule) & table.value.notna()]
    whole = whole[(whole.no_answer <= FEW) & ~whole.rule.isin(CHOSEN_HERE)]
    if whole.empty:
        return f"{schedule}: no rule answered on nine ramps of ten."
    best = whole.loc[whole.value.idxmin()]
    near = whole[(whole.low <= best.high) & (whole.index != best.name)].sort_values("value")
    others = [f"{row.rule} ({row.ramp}, {row.value:.2f})" for row in near.itertuples()][:4]
    tasks = table.task[table.task != "all"].nunique()
    text = (
        f"{schedule}: {best.rule} on a ramp of {best.ramp} costs {best.value:.2f} points "
        f"[{best.low:.2f}, {best.high:.2f}] on average over {tasks} tasks, {best.worst:.1f} at worst"
    )
    if best.no_answer:
        text += f", and gives no answer on {best.no_answer:.0%} of the ramps"
    return text + (f"; not told apart from it: {', '.join(others)}." if others else "; every other rule costs more.")
