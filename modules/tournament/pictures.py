"""Pictures of the second tournament. Each function draws one message on new axes and returns the figure."""

import math
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from modules.palette import BASELINE, CHALLENGER, COLOURS, DASHES
from modules.report.figures import legend_below
from modules.tournament.analysis import at, top_of
from modules.tournament.design import Tournament

PANEL = 2.2  # inches
CONSTANT, CYCLE, BRANCH, AVERAGE = (BASELINE, DASHES[1]), (CHALLENGER, DASHES[0]), COLOURS[2], COLOURS[3]
#: Name, colour and dashes of the arms that are asked what they forgive; constant and CLR look alike in all pictures.
FORGIVING = {
    "constant_drop": ("constant rate, drop", *CONSTANT),
    "warm_drop": ("climb, constant rate, drop", COLOURS[3], DASHES[3]),
    "warm58_drop": ("climb, CLR's mean rate, drop", COLOURS[2], DASHES[2]),
    "warm_linear": ("climb, line to zero", COLOURS[4], DASHES[4]),
    "cycle_drop": ("CLR, drop", *CYCLE),
}
SHOWN = 0.15  # below the best accuracy: what lies further down is told by the collapses


def shape(tournament: Tournament, arm: str) -> np.ndarray:
    """An arm's rates over the registration's rate, `[iterations]`."""
    policy = tournament.spec(arm, 0, 1).policy
    return np.array(policy.rates(tournament.design.iterations)) / tournament.rate(0)


def schedules(tournament: Tournament) -> Figure:
    """Every arm's rate over the registration's against the iteration, one panel an arm."""
    arms, across = tournament.design.arms, 4
    down = math.ceil(len(arms) / across)
    size = (PANEL * across, 0.75 * PANEL * down)
    figure, panels = plt.subplots(down, across, figsize=size, sharex=True, sharey=True, squeeze=False)
    for axes, arm in zip(panels.flat, arms, strict=False):
        axes.plot(shape(tournament, arm), color=COLOURS[0], linewidth=1.2)
        axes.set_title(textwrap.fill(arms[arm].label, 24), fontsize="x-small")
        axes.tick_params(labelsize="x-small")
    for axes in list(panels.flat)[len(arms) :]:
        axes.set_axis_off()
    figure.supxlabel("iteration", fontsize="small")
    figure.supylabel("rate over R", fontsize="small")
    figure.tight_layout()
    return figure


def accuracy_and_forgiveness(tournament: Tournament, runs: dict[str, pd.DataFrame], title: str) -> Figure:
    """What the drop buys, and what the swing forgives: the two-by-two, and accuracy against the mean rate.

    Args:
        tournament: whose runs these are.
        runs: by question, those of `accuracy` and of `forgiveness`; a panel whose runs are missing says so.
        title: the figure's title.
    """
    figure = plt.figure(figsize=(11, 5.2), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(4, 6), height_ratios=(5, 2))
    left, right = figure.add_subplot(grid[:, 0]), figure.add_subplot(grid[0, 1])
    below = figure.add_subplot(grid[1, 1], sharex=right)
    left.set_title("at its own best rate", fontsize="medium")
    right.set_title("at rates too low and too high", fontsize="medium")
    if "accuracy" in runs:
        _two_by_two(left, runs["accuracy"], tournament.design.iterations)
    else:
        _not_yet(left)
    if "forgiveness" in runs:
        _mean_rates(right, below, tournament, runs)
    else:
        _not_yet(right)
        below.set_axis_off()
    figure.suptitle(title, fontsize="medium")
    return figure


def _not_yet(axes: Axes) -> None:
    axes.text(0.5, 0.5, "not trained yet", ha="center", va="center", transform=axes.transAxes)
    axes.set_axis_off()


def _two_by_two(axes: Axes, runs: pd.DataFrame, iterations: int) -> None:
    arms, hollow = {"constant": ("constant rate", CONSTANT), "cycle": ("CLR", CYCLE)}, False
    for number, (arm, (name, (colour, dashes))) in enumerate(arms.items()):
        tops = [top_of(runs, f"{arm}{end}", iterations) for end in ("", "_drop")]
        values = np.array([found.accuracy.value for found in tops])
        errors = np.array([np.subtract(found.accuracy.interval()[1], found.accuracy.value) for found in tops])
        places = np.arange(2) + 0.04 * (2 * number - 1)
        look = dict(marker="o", capsize=4, label=name, color=colour, linestyle=dashes)
        axes.errorbar(places, values, yerr=errors, **look)
        outside = [place for place, found in enumerate(tops) if not found.inside]
        axes.plot(places[outside], values[outside], "o", color=colour, markerfacecolor="white", zorder=5)
        hollow = hollow or bool(outside)
    axes.set(ylabel="test accuracy at its best rate", xlim=(-0.4, 1.4))
    axes.set_xticks([0, 1], ["no drop", "last quarter\nramped to zero"])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    legend_below(axes, 2, "bars: 95 %" + ("; hollow: the best rate lies outside the ladder" if hollow else ""))


def _mean_rates(axes: Axes, below: Axes, tournament: Tournament, runs: dict[str, pd.DataFrame]) -> None:
    """Accuracy against the mean rate, and below it the share of runs that collapsed.

    The means are of the others; there are none where more than half collapsed.
    """
    whole = pd.concat([found for name, found in runs.items() if name in ("accuracy", "forgiveness")])
    whole = whole[whole.budget == tournament.design.iterations].drop_duplicates(["arm", "octave", "seed"])
    best, judged = 0.0, tournament.design.questions["forgiveness"].primary["F"].octave
    ringed = {axes: [], below: []}
    for arm in [arm for arm in FORGIVING if arm in set(whole.arm)]:
        name, colour, dashes = FORGIVING[arm]
        found, mean = whole[whole.arm == arm], tournament.rate(0) * shape(tournament, arm).mean()
        lost = found.groupby("octave").collapsed.mean()
        kept = found[~found.collapsed].groupby("octave").test.mean()[lost[lost <= 0.5].index]
        best = max(best, kept.max())
        look = dict(color=colour, linestyle=dashes, marker="o", markersize=4)
        axes.plot(mean * 2.0**kept.index, kept, label=name, **look)
        below.plot(mean * 2.0**lost.index, lost, **look)
        for panel, shown in ((axes, kept), (below, lost)):
            ringed[panel] += [(mean * 2.0**judged, shown[judged])] if judged in shown.index else []
    for panel, points in ringed.items():
        x, y = np.reshape(points, (-1, 2)).T
        panel.scatter(x, y, s=110, facecolors="none", edgecolors="0.35", label=f"at {2**judged:g} R")
    axes.set_xscale("log", base=2)
    octaves = np.arange(math.floor(whole.octave.min()), math.ceil(whole.octave.max()))
    axes.set_xticks(tournament.rate(0) * 2.0**octaves)
    axes.set_ylim(bottom=max(axes.get_ylim()[0], best - SHOWN))
    axes.tick_params(labelbottom=False)
    axes.set_ylabel("test accuracy, without\nruns that collapsed")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    below.set(xlabel="mean learning rate of the run", ylabel="runs that\ncollapsed", ylim=(-0.05, 1.05))
    below.xaxis.set_major_formatter("{x:.2g}")
    below.yaxis.set_major_formatter(PercentFormatter(1))
    handles, labels = axes.get_legend_handles_labels()
    below.legend(
        handles, labels, ncols=2, frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.6)
    )


def saw_tooth(tournament: Tournament, runs: pd.DataFrame, title: str) -> Figure:
    """One cyclic run on its way, and beside it a constant trunk with the drops branched off it, at every budget.

    Args:
        tournament: whose runs these are.
        runs: those of `any_time`.
        title: the figure's title.
    """
    budgets = sorted(runs.budget[(runs.arm == "cycle") & (runs.octave == 0)].unique().tolist())
    figure, axes = plt.subplots(figsize=(9, 5))
    lines = {}
    looks = {"cycle": ("CLR, never restarted", *CYCLE), "constant": ("constant rate", *CONSTANT)}
    for arm, (name, colour, dashes) in looks.items():
        lines[arm] = tournament.curves(arm, 0).groupby("iteration").val_acc.mean()
        axes.plot(lines[arm], color=colour, linestyle=dashes, linewidth=1.4, label=name)
    ends = [at(runs, "cycle", 0, budget, "validation").mean() for budget in budgets]
    axes.plot(budgets, ends, "o", color=CHALLENGER, label="CLR at a cycle's end")
    for number, budget in enumerate(budgets):
        start = tournament.spec("constant_drop", 0, 1, budget).policy.anneal_start(budget)
        end = at(runs, "constant_drop", 0, budget, "validation").mean()
        name = dict(label="constant rate, then a drop") if not number else {}
        path = ([start, budget], [lines["constant"][start], end])
        axes.plot(*path, color=BRANCH, linewidth=1.2, marker="s", markevery=[1], **name)
    if runs.average_validation.notna().any():
        averages = [at(runs, "constant", 0, budget, "average_validation").mean() for budget in budgets]
        axes.plot(
            budgets, averages, "D", color=AVERAGE, markersize=5, label="moving average of the constant rate's weights"
        )
    low = min(lines[arm][lines[arm].index >= 0.75 * budgets[0]].min() for arm in lines)
    axes.set(xlabel="iteration", ylabel="validation accuracy, means of all runs", title=title)
    axes.set_ylim(bottom=low - 0.01)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(frameon=False, fontsize="small", loc="lower right")
    figure.tight_layout()
    return figure
