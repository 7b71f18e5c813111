"""Pictures from tables. Each function draws one message on new axes and returns the figure."""

import io
import math
from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from modules.analysis import LEAST_BOOTSTRAP
from modules.files import atomic_write
from modules.headline import Crossing

COLOURS = sns.color_palette("colorblind")
BASELINE, CHALLENGER = COLOURS[0], COLOURS[1]
DASHES = ("-", (0, (6, 2)), (0, (2, 1)), (0, (8, 2, 2, 2)), (0, (1, 2)))  # told apart without colours, too
POLICY_NAMES = {"fixed": "fixed", "triangular": "CLR (triangular)"}


def style() -> None:
    """The look of every figure: light background, sizes that stay readable at a README's width."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update({"figure.figsize": (8, 4.5), "figure.dpi": 110, "savefig.dpi": 150, "savefig.bbox": "tight"})


def policy_name(policy: str) -> str:
    """What a policy is called in legends."""
    return POLICY_NAMES.get(policy, f"CLR ({policy})")


def _legend_below(axes: Axes, columns: int, title: str | None = None) -> None:
    """A legend under the axes, where it hides no curve."""
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),
        ncols=columns,
        frameon=False,
        fontsize="small",
        title=title,
        title_fontsize="small",
    )


def policies(schedules: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """Learning rate against iteration, one line a schedule.

    Args:
        schedules: by legend name, tables with columns `iteration` and `lr`.
        title: the figure's title.
    """
    figure, axes = plt.subplots()
    for name, table in schedules.items():
        axes.plot(table.iteration, table.lr, label=name)
    axes.set(xlabel="iteration", ylabel="learning rate", title=title)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if len(schedules) > 1:
        _legend_below(axes, len(schedules))
    figure.tight_layout()
    return figure


def accuracy(runs: pd.DataFrame, cross: Crossing, baseline: str, challenger: str) -> Figure:
    """Test accuracy against iteration for two policies: mean, range over runs, and where the challenger catches up.

    Args:
        runs: as `analysis.read_runs` gives them; diverged runs are left out and counted in the legend.
        cross: as `headline.crossing` gives it.
        baseline, challenger: names of two policies.
    """
    figure, axes = plt.subplots()
    for policy, colour in ((baseline, BASELINE), (challenger, CHALLENGER)):
        table = runs[(runs.policy == policy) & ~runs.diverged]
        lost = runs[(runs.policy == policy) & runs.diverged].seed.nunique()
        count = table.seed.nunique()
        if not count:
            axes.plot([], [], color=colour, label=f"{policy_name(policy)}: all {lost} runs diverged")
            continue
        name = f"{policy_name(policy)}, mean of {count} run{'s' * (count > 1)}" + (
            f" ({lost} diverged)" if lost else ""
        )
        sns.lineplot(table, x="iteration", y="val_acc", errorbar=("pi", 100), color=colour, label=name, ax=axes)
    right = runs.iteration.max()
    if cross.target == cross.target:
        axes.axhline(cross.target, color="0.35", linestyle="--", linewidth=1)
        axes.annotate(
            f"best mean of {policy_name(baseline)}: {cross.target:.1%}",
            (right, cross.target),
            xytext=(0, 4),
            textcoords="offset points",
            ha="right",
            fontsize="small",
        )
    if cross.iteration == cross.iteration:
        axes.axvline(cross.iteration, color="0.35", linestyle="--", linewidth=1)
        axes.annotate(
            f"reached at {cross.iteration:,.0f}",
            (cross.iteration, axes.get_ylim()[0]),
            xytext=(5, 8),
            textcoords="offset points",
            fontsize="small",
        )
    axes.set(xlabel="iteration", ylabel="test accuracy", title=f"{runs.label.iloc[0]}: fixed learning rate and CLR")
    axes.set_xlim(0, right)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _legend_below(axes, 2, "bands: lowest to highest run")
    figure.tight_layout()
    return figure


def accuracies(runs: pd.DataFrame, title: str, x: str = "iteration") -> Figure:
    """Test accuracy of any number of policies: means, with their range over runs, or single runs where they are few.

    Args:
        runs: as `analysis.read_runs` gives them; diverged runs are left out and counted in the legend.
        title: the figure's title.
        x: the column to draw it against.
    """
    policies = runs.policy.unique()
    most = runs.groupby("policy").seed.nunique().max()
    many = most >= LEAST_BOOTSTRAP
    figure, axes = plt.subplots(figsize=(8, 4.3 + 0.3 * math.ceil(len(policies) / 2)))  # the legend takes no axes
    for index, policy in enumerate(policies):
        found = runs[runs.policy == policy]
        kept = found[~found.diverged]
        lost = found[found.diverged].seed.nunique()
        name = policy.replace("_", " ") + (f" ({lost} of {found.seed.nunique()} diverged)" if lost else "")
        colour = COLOURS[index % len(COLOURS)]
        look = dict(color=colour, linestyle=DASHES[index % len(DASHES)], label=name)
        if kept.empty:
            axes.plot([], [], **look)
            continue
        sns.lineplot(kept, x=x, y="val_acc", errorbar=("pi", 100) if many else None, ax=axes, **look)
        if not many and kept.seed.nunique() > 1:
            for _, run in kept.groupby("seed"):
                axes.plot(run[x], run.val_acc, color=colour, linewidth=0.6, alpha=0.5)
    axes.set(xlabel=x, ylabel="test accuracy", title=title)
    axes.set_xlim(0, runs[x].max())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    legend = "lines: means, bands: lowest to highest run" if many else "thick lines: means, thin ones: single runs"
    _legend_below(axes, 2, legend if most > 1 else None)
    figure.tight_layout()
    return figure


def sweep(curve: pd.DataFrame, best: float, low: float, high: float, title: str) -> Figure:
    """Training loss against learning rate, with the rate of its least.

    Args:
        curve: columns `lr`, `loss` (smoothed mean over runs).
        best, low, high: the rate and its interval (NaN where there is none).
        title: the figure's title.
    """
    figure, axes = plt.subplots()
    axes.plot(curve.lr, curve.loss, color=BASELINE, label="training loss, smoothed")
    axes.axvline(best, color=COLOURS[3], linestyle="--", label=f"least loss: {best:.3g}")
    if low == low:
        axes.axvspan(low, high, color=COLOURS[3], alpha=0.12, linewidth=0, label="its 95 % interval")
    axes.set(xlabel="learning rate", ylabel="training loss", title=title, xscale="log")
    _legend_below(axes, 3)
    figure.tight_layout()
    return figure


def range_test(curve: pd.DataFrame, bounds: pd.DataFrame | None, label: str, runs: int, log: bool = False) -> Figure:
    """Test accuracy against learning rate with the suggested bounds and their intervals.

    Args:
        curve, bounds: as `bounds.bounds_table` gives them; None for the curve alone.
        label: the data set's.
        runs: how many runs the curve averages.
        log: draw the learning rate on a logarithmic axis.
    """
    figure, axes = plt.subplots()
    name = f"mean of {runs} runs (band: lowest to highest)" if runs > 1 else "one run"
    axes.plot(curve.lr, curve["mean"], color=BASELINE, label=name)
    axes.fill_between(curve.lr, curve["low"], curve["high"], color=BASELINE, alpha=0.2, linewidth=0)
    suggested = bounds.itertuples() if bounds is not None else ()
    stripes = None
    for row, colour in zip(suggested, (COLOURS[2], COLOURS[3]), strict=False):
        axes.axvline(row.value, color=colour, linestyle="--", label=f"suggested {row.bound}: {row.value:.2g}")
        if row.low == row.low:
            axes.axvspan(row.low, row.high, color=colour, alpha=0.12, linewidth=0)
            stripes = "stripes around the bounds: their 95 % intervals"
    axes.set(xlabel="learning rate", ylabel="test accuracy", title=f"{label}: learning rate range test")
    if log:
        axes.set_xscale("log")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _legend_below(axes, 3, stripes)
    figure.tight_layout()
    return figure


def save(figure: Figure, path: str | Path) -> Image:
    """Write a figure as PNG, without the date and versions that would change its bytes, and close it.

    Returns:
        The picture as written, for a notebook to show: nothing is drawn twice.
    """
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    plt.close(figure)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    atomic_write(Path(path), picture.getvalue())
    return Image(picture.getvalue(), width=760)
