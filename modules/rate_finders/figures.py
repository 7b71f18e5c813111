"""Pictures of a race and of the benchmark. Each function draws one message on new axes and returns the figure."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from ..palette import BASELINE, CHALLENGER, COLOURS, DASHES
from .bracket import Tried
from .race import FoundRate

if TYPE_CHECKING:
    from .regret import Landscape


def regret_profile(shares: pd.DataFrame) -> Figure:
    """For each schedule, the share of tasks and repeats on which a rule costs at most x points.

    In colour: those that the pages compare, and the best of the others.

    Args:
        shares: as `regret.profile` gives it.
    """
    from .regret import COMPARED, OF_RANGE_TEST  # not at the top: `find_rate`'s picture does without it

    schedules, areas = list(dict.fromkeys(shares.schedule)), shares.groupby("rule").share.mean()
    rules = areas.sort_values().index  # the best last: on top
    room = len(DASHES) - len(rules.intersection(COMPARED))
    others = [rule for rule in rules if rule not in COMPARED][-room:]
    best = [rule for rule in reversed(rules) if rule in COMPARED or rule in others]
    figure, panels = plt.subplots(1, len(schedules), sharey=True, figsize=(4 * len(schedules), 4.5), squeeze=False)
    for axes, schedule in zip(panels[0], schedules, strict=True):
        for rule in rules:
            found = shares[(shares.schedule == schedule) & (shares.rule == rule)]
            look = dict(color="0.75", linewidth=0.8, label="the others", zorder=1)
            if rule in best:
                number = best.index(rule)
                look = dict(color=COLOURS[number], linestyle=DASHES[number], label=rule)
                look |= dict(linewidth=2.4, zorder=2) if rule == OF_RANGE_TEST else dict(zorder=3)
            axes.plot(found.regret, found.share, **look)
        axes.set(xlabel="regret in points, at most", title=schedule, ylim=(0, 1.02), xlim=(0, shares.regret.max()))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panels[0, 0].set_ylabel("share of tasks and repeats")
    figure.suptitle("Who finds a good rate", fontsize="medium")
    drawn = {line.get_label(): line for axes in panels[0] for line in axes.lines}
    names = [*best, "the others"][: len(drawn)]
    figure.legend(
        [drawn[name] for name in names],
        names,
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        ncols=3,
        frameon=False,
        fontsize="small",
    )
    figure.tight_layout()
    return figure


def rate_strips(landscapes: Mapping[str, "Landscape"], suggestions: pd.DataFrame, title: str) -> Figure:
    """A task's accuracy at every rate, one line a schedule, and below it what each rule answered, one dot a repeat.

    Args:
        landscapes: by schedule.
        suggestions: of this task: `rule`, `rate`, `only`: the schedule that it is for, NaN where it is for all.
        title: the figure's title.
    """
    rules = list(dict.fromkeys(suggestions.rule))
    figure, (top, below) = plt.subplots(
        2, 1, sharex=True, figsize=(8, 3 + 0.25 * len(rules)), height_ratios=(3, 0.25 * len(rules))
    )
    colours = dict(zip(landscapes, COLOURS, strict=False))
    for number, (schedule, landscape) in enumerate(landscapes.items()):
        look = dict(color=COLOURS[number], linestyle=DASHES[number])
        top.plot(landscape.rates, landscape.mean, label=f"{schedule} (best at {landscape.best:.2g})", **look)
        low, high = landscape.accuracies.min(axis=1), landscape.accuracies.max(axis=1)
        top.fill_between(landscape.rates, low, high, color=COLOURS[number], alpha=0.15, linewidth=0)
        for axes in (top, below):
            axes.axvline(landscape.best, color=COLOURS[number], linewidth=0.8, linestyle=DASHES[number])
    top.set(ylabel="test accuracy", title=title)
    below.plot([], [], ".", color="0.35", alpha=0.6, markersize=8, label="an answer for all schedules")
    handles = [*top.get_legend_handles_labels()[0], *below.get_legend_handles_labels()[0]]
    look = dict(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, frameon=False, fontsize="small")
    figure.legend(handles=handles, **look)  # below: it hides no curve
    top.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for number, rule in enumerate(rules):
        answers = suggestions[suggestions.rule == rule]
        rates = answers.rate
        for schedule, its in answers.groupby("only", dropna=False):
            colour = colours.get(schedule, "0.35")
            below.plot(its.rate, np.full(len(its), number), ".", color=colour, alpha=0.6, markersize=8)
        if missing := int(rates.isna().sum()):
            note = f"{missing} of {len(rates)}: no answer"
            below.annotate(note, (1.01, number), xycoords=("axes fraction", "data"), va="center", fontsize="x-small")
    below.set_yticks(range(len(rules)), rules, fontsize="small")
    below.set(ylim=(len(rules) - 0.5, -0.5), xscale="log", xlabel="learning rate")
    figure.tight_layout()
    return figure


def _ramp(axes: Axes, ramp: pd.DataFrame, colour: str) -> None:
    """The training loss of a ramp; a divergence is cut off above."""
    axes.plot(ramp.lr, ramp.train_loss, color=colour, linewidth=0.8)
    start, lowest = ramp.train_loss[: max(3, len(ramp) // 3)].mean(), ramp.train_loss.min()
    axes.set(xscale="log", ylim=(lowest - 0.1 * abs(start - lowest), start + 0.6 * abs(start - lowest)))
    axes.set(xlabel="learning rate of the ramp", ylabel="training loss", title=f"a ramp of {len(ramp)} iterations")


def _rates(axes: Axes, rates: set[float]) -> None:
    """Some of the rates themselves as an axis's marks."""
    marks = sorted(rates)
    marks = marks[:: 1 + len(marks) // 8]
    axes.set_xticks(marks, [f"{rate:.2g}" for rate in marks], rotation=45)
    axes.xaxis.set_minor_locator(NullLocator())


def race(found: FoundRate) -> Figure:
    """The ramp and its edge; beside it the validation loss of every race, one line a round, and the rate found.

    Args:
        found: as `find_rate` gives it.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8))
    _ramp(left, found.ramp, BASELINE)
    if found.edge is not None:
        left.axvline(found.edge, color=CHALLENGER, linestyle="--", label=f"too large from {found.edge:.2g} on")
        left.legend(frameon=False, fontsize="small", loc="upper left")
    for number, (_, tried) in enumerate(found.tried.groupby("round")):
        tried, look = tried.sort_values("rate"), dict(color=COLOURS[number], linestyle=DASHES[number])
        label = f"{len(tried)} races of {tried.iterations.iloc[0]:,} iterations"
        right.plot(tried.rate, tried.val_loss, marker="o", label=label, **look)
        for rate in tried.rate[tried.val_loss.isna()]:
            # In its round's colour: the next round may race this rate again, at a lower one, as its races are longer.
            right.axvline(rate, color=COLOURS[number], linestyle=":", linewidth=1)
            right.annotate(
                "diverged",
                (rate, 0.98),
                xycoords=("data", "axes fraction"),
                rotation=90,
                va="top",
                ha="right",
                color=COLOURS[number],
            )
    right.axvline(found.rate, color="0.1", linewidth=1, label=f"rate {found.rate:.2g}")
    right.set_xscale("log")
    left_end, right_end = right.get_xlim()
    open_ended = max(found.low, left_end), min(found.high, right_end)
    right.axvspan(*open_ended, color="0.1", alpha=0.08, linewidth=0, label=f"the best is probably {found.where}")
    right.set_xlim(left_end, right_end)  # what reaches beyond ends at the edge, and not before it
    right.set(xlabel=f"learning rate for {found.iterations:,} iterations", ylabel="validation loss")
    _rates(right, set(found.tried.rate) or {found.rate})
    right.set(title=f"races, {found.schedule}")
    # Below: above a race that diverged stands a word. And of the figure: that of an axis would lie on its label.
    look = dict(loc="upper right", bbox_to_anchor=(1, 0), ncols=2, frameon=False, fontsize="small")
    figure.legend(*right.get_legend_handles_labels(), **look)
    figure.tight_layout()
    return figure


def tries(ramp: pd.DataFrame, starts: Mapping[str, float], found: Mapping[str, Tried]) -> Figure:
    """A ramp with the rates that were tried first; beside it the accuracy of every full training, one line a schedule.

    Args:
        ramp: `lr`, `train_loss`.
        starts: the first guess of each schedule.
        found: by schedule.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8))
    _ramp(left, ramp, "0.5")  # schedules have the colours
    for number, (schedule, each) in enumerate(found.items()):
        look = dict(color=COLOURS[number], linestyle=DASHES[number])
        left.axvline(starts[schedule], linewidth=1, label=f"first guess, {schedule}", **look)
        right.plot(each.tried.rate, each.tried.accuracy, marker="o", markersize=4, label=schedule, **look)
        for rate in each.tried.rate[each.tried.accuracy.isna()]:
            right.plot(rate, 0.02 + 0.04 * number, "x", color=COLOURS[number], transform=right.get_xaxis_transform())
        best = each.tried.set_index("rate").accuracy[each.rate]
        right.plot(each.rate, best, "*", color=COLOURS[number], markersize=14)
    right.plot([], [], "*", color="0.1", markersize=10, label="taken")
    if any(each.tried.accuracy.isna().any() for each in found.values()):
        right.plot([], [], "x", color="0.1", label="diverged")
    right.set(xscale="log", xlabel="learning rate", ylabel="validation accuracy", title="full trainings")
    right.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _rates(right, {rate for each in found.values() for rate in each.tried.rate})
    for axes, columns, at in ((left, 1, 0.3), (right, 3, 0.75)):  # below: they hide no curve
        look = dict(loc="upper center", bbox_to_anchor=(at, 0), ncols=columns, frameon=False, fontsize="small")
        figure.legend(*axes.get_legend_handles_labels(), **look)
    figure.tight_layout()
    return figure
