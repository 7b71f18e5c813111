"""Pictures from tables. Each function draws one message on new axes and returns the figure."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from modules.checks import short
from modules.palette import BASELINE, CHALLENGER, COLOURS, DASHES
from modules.policies import label
from modules.range_test import BestRate, best_rate, suggest_bounds
from modules.range_test.reading import exponential
from modules.report.crossing import Crossing
from modules.runs.files import atomic_write
from modules.statistics import AnalysisError

#: The formats that a figure is written in, and what is left out of each: dates and versions.
WITHOUT_DATE = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    ".svg": {"Date": None, "Creator": None},
}


def style() -> None:
    """The look of every figure: light background, sizes that stay readable at a README's width.

    A matplotlibrc of the user's has no part in it.
    """
    plt.rcdefaults()
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update({"figure.figsize": (8, 4.5), "figure.dpi": 110, "savefig.dpi": 150, "savefig.bbox": "tight"})


def legend_below(axes: Axes, columns: int, title: str | None = None) -> None:
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


def policies(schedules: Mapping[str, pd.DataFrame | Sequence[float]], title: str) -> Figure:
    """Learning rate against iteration, one line a schedule.

    Args:
        schedules: by legend name, the rate of each iteration, or tables with columns `iteration` and `lr`.
        title: the figure's title.
    """
    figure, axes = plt.subplots()
    for index, (name, rates) in enumerate(schedules.items()):
        if not isinstance(rates, pd.DataFrame):
            rates = pd.DataFrame({"iteration": range(len(rates)), "lr": rates})
        axes.plot(rates.iteration, rates.lr, linestyle=DASHES[index % len(DASHES)], label=name)
    axes.set(xlabel="iteration", ylabel="learning rate", title=title)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if len(schedules) > 1:
        legend_below(axes, len(schedules))
    figure.tight_layout()
    return figure


def accuracy(runs: pd.DataFrame, cross: Crossing, baseline: str, challenger: str) -> Figure:
    """Test accuracy against iteration for two policies, and beside it, enlarged, where the challenger catches up.

    Args:
        runs: as `tables.read_runs` gives them; diverged runs are left out and counted in the legend.
        cross: as `crossing.crossing` gives it.
        baseline, challenger: names of two policies.
    """
    crosses = not math.isnan(cross.iteration)
    figure, panels = plt.subplots(
        1, 1 + crosses, figsize=(11, 4.5) if crosses else (8, 4.5), width_ratios=(5, 4)[: 1 + crosses], squeeze=False
    )
    for axes in panels[0]:
        for policy, colour, dashes in ((baseline, BASELINE, DASHES[1]), (challenger, CHALLENGER, "-")):
            found = runs[runs.policy == policy]
            name = _counted(label(policy), found)
            look = dict(color=colour, linestyle=dashes, label=name, marker="o" if axes is not panels[0, 0] else None)
            _means(axes, found, "iteration", bands=True, **look)
        if not math.isnan(cross.target):
            axes.axhline(cross.target, color="0.35", linestyle=":", linewidth=1.2)
        axes.set(xlabel="iteration", ylabel="test accuracy", xlim=(0, runs.iteration.max()))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    whole = panels[0, 0]
    whole.set_title(f"{runs.label.iloc[0]}: {label(baseline)} and {label(challenger)}")
    if not math.isnan(cross.target):
        place = (runs.iteration.max(), cross.target)
        text = f"best mean of {label(baseline)}: {cross.target:.1%}"
        whole.annotate(text, place, xytext=(-4, 4), textcoords="offset points", ha="right", fontsize="small")
    if crosses:
        near = panels[0, 1]
        kept = runs[(runs.policy == challenger) & ~runs.diverged & (runs.iteration >= cross.iteration / 2)]
        left, right = kept.iteration.min(), kept.iteration.max()
        title = f"CLR's mean first has it at {cross.iteration:,.0f} (stripe: 95 %)"
        near.set(xlim=(left if left < right else 0, right), title=title)
        low, high = min(kept.val_acc.min(), cross.target), max(kept.val_acc.max(), cross.target)
        margin = 0.05 * (high - low) or 0.01  # one evaluation of one run may have no height
        near.set_ylim(low - margin, high + margin)
        near.axvline(cross.iteration, color=COLOURS[3], linestyle="--", linewidth=1.2)
        if not math.isnan(cross.low):
            near.axvspan(cross.low, min(cross.high, right), color=COLOURS[3], alpha=0.12, linewidth=0)
    stripe = "; stripe: the crossing's 95 % confidence set" if crosses and not math.isnan(cross.low) else ""
    legend_below(whole, 2, f"bands: lowest to highest run{stripe}")
    figure.tight_layout()
    return figure


def factors(curve: pd.DataFrame, label: str) -> Figure:
    """How many times fewer iterations the challenger needs, against the accuracy asked for.

    Args:
        curve: as `crossing.factor_curve` gives it, with a row or more.
        label: the data set's.
    """
    figure, axes = plt.subplots()
    most = 1.3 * curve[["factor", "low"]].max().max() or 1.0
    high = curve.high.clip(upper=most)
    axes.fill_between(curve.target, curve.low, high, color=CHALLENGER, alpha=0.2, linewidth=0, step="mid")
    for target in curve.target[np.isinf(curve.high)]:
        axes.annotate("", (target, 1.08 * most), (target, most), arrowprops=dict(arrowstyle="->", color=CHALLENGER))
    axes.step(
        curve.target, curve.factor, where="mid", color=CHALLENGER, label="both sides' first evaluation that has it"
    )
    axes.plot(curve.target.iloc[-1], curve.factor.iloc[-1], "o", color=CHALLENGER, label="best mean of the baseline")
    axes.axhline(1, color="0.35", linestyle=":", linewidth=1.2)
    axes.set(xlabel="test accuracy asked for", ylabel="times fewer iterations", ylim=(0, 1.12 * most))
    axes.set_title(f"{label}: the factor depends on the target")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))  # whole per cents
    bands = "band: 95 % of the resamples of runs" if curve.low.notna().any() else None
    legend_below(axes, 2, f"{bands}; arrow: no upper end" if np.isinf(curve.high).any() else bands)
    figure.tight_layout()
    return figure


def _counted(name: str, found: pd.DataFrame) -> str:
    """A policy's name with the number of its runs, and of those that diverged."""
    lost, count = found[found.diverged].seed.nunique(), found[~found.diverged].seed.nunique()
    if not count:
        return f"{name}: all {lost} runs diverged"
    return f"{name}, mean of {count} run{'s' * (count > 1)}" + (f" ({lost} diverged)" if lost else "")


def _means(axes: Axes, found: pd.DataFrame, x: str, bands: bool, **look: object) -> None:
    """The mean of one policy's runs, those that diverged left out, and the range from the lowest to the highest."""
    kept = found[~found.diverged]
    if kept.empty:
        axes.plot([], [], **look)
    else:
        sns.lineplot(kept, x=x, y="val_acc", errorbar=("pi", 100) if bands else None, ax=axes, legend=False, **look)


def accuracies(runs: pd.DataFrame, title: str, x: str = "iteration", of: str | None = None) -> Figure:
    """Accuracy of any number of policies: means over their runs, and beside them where every run ended.

    The lowest tenth of the evaluations is cut off where it is the first climb of all of them; the legend says so.

    Args:
        runs: as `tables.read_runs` gives them; diverged runs are left out and counted in the legend.
        title: the figure's title.
        x: the column to draw it against.
        of: which images accuracies are of, for the labels, where the runs do not say it rightly.
    """
    of = of or runs["images"].iloc[0]
    policies = list(runs.policy.unique())
    several = len(policies) > 1
    # The legend takes no axes.
    size = (11 if several else 8, 4.3 + 0.3 * math.ceil(len(policies) / 2))
    figure, panels = plt.subplots(1, 1 + several, figsize=size, width_ratios=(5, 4)[: 1 + several], squeeze=False)
    curves = panels[0, 0]
    for index, policy in enumerate(policies):
        found = runs[runs.policy == policy]
        lost = found[found.diverged].seed.nunique()
        name = policy.replace("_", " ") + (f" ({lost} of {found.seed.nunique()} diverged)" if lost else "")
        look = dict(color=COLOURS[index % len(COLOURS)], label=name)
        _means(curves, found, x, bands=not several, linestyle=DASHES[index % len(DASHES)], **look)
        if several:
            ends = found[~found.diverged].groupby("seed").val_acc.last()
            panels[0, 1].plot(ends, [index] * len(ends), "o", color=look["color"], alpha=0.7)
            panels[0, 1].plot([ends.mean()], [index], "|", color="0.1", markersize=18, markeredgewidth=2)
    curves.set(xlabel=x, ylabel=f"{of} accuracy", xlim=(0, runs[x].max()))
    curves.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    curves.xaxis.set_major_formatter("{x:,.0f}")
    curves.yaxis.set_major_formatter(PercentFormatter(1))
    many = bool(runs.groupby("policy").seed.nunique().max() > 1)
    if several:
        ends = panels[0, 1]
        ends.set(xlabel=f"{of} accuracy at each run's end (bar: mean)", ylim=(len(policies) - 0.5, -0.5))
        lengths = runs.groupby("policy")[x].max()
        names = [policy.replace("_", " ") for policy in policies]
        if lengths.nunique() > 1:
            names = [f"{name}\n{lengths[policy]:,.0f} {x}s" for name, policy in zip(names, policies, strict=True)]
        ends.set_yticks(range(len(policies)), names, fontsize="small")
        ends.xaxis.set_major_locator(MaxNLocator(5))
        ends.xaxis.set_major_formatter(PercentFormatter(1))
        # A first climb that all have in common would leave little room for what sets them apart.
        kept = runs[~runs.diverged]
        low = kept.val_acc.quantile(0.1)
        cut = bool(kept[kept.val_acc < low][x].max() <= 0.2 * runs[x].max())
        if cut:
            curves.set_ylim(bottom=low)
        notes = many * ["lines: means over runs"] + cut * ["the lowest tenth of the evaluations is cut off"]
        legend_below(curves, 2, "; ".join(notes) or None)
    else:
        legend_below(curves, 2, "line: mean, band: lowest to highest run" if many else None)
    figure.suptitle(title, fontsize="medium")
    figure.tight_layout()
    return figure


def sweep(losses: pd.DataFrame, best: BestRate, title: str) -> Figure:
    """Training loss against learning rate, with the rate of the lowest.

    Args:
        losses: training loss by learning rate (the index), one column a run; NaN from where a run had ended.
        best: what `range_test.best_rate` reads off it.
        title: the figure's title.

    Raises:
        AnalysisError: a range test's own table, whose columns are no runs.
    """
    if "train_loss" in losses:
        raise AnalysisError(
            "sweep draws losses by rate, one column a run: a single range test is for range_test(curve)"
        )
    figure, axes = plt.subplots()
    runs = len(losses.columns)
    if runs > 1:
        for seed in losses:
            axes.plot(losses.index, losses[seed], color=BASELINE, linewidth=0.6, alpha=0.5)
    name = f"mean of {runs} runs, smoothed (thin: single runs)" if runs > 1 else "one run, smoothed"
    axes.plot(losses.index, best.smoothed, color=BASELINE, label=name)
    axes.axvline(best.lr, color=COLOURS[3], linestyle="--", label=f"lowest loss at {best.lr:.3g}")
    if not math.isnan(best.low):
        axes.axvspan(best.low, best.high, color=COLOURS[3], alpha=0.12, linewidth=0, label="95 % interval of that rate")
    axes.set(xlabel="learning rate", ylabel="training loss", title=title, xscale="log", yscale="log")
    axes.set_ylim(losses.min().min() / 1.3, 1.5 * np.nanmax(best.smoothed))  # no matter how far a run diverged
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    legend_below(axes, 2)
    figure.tight_layout()
    return figure


def range_test(
    curve: pd.DataFrame,
    bounds: pd.DataFrame | None = None,
    label: str = "",
    runs: int = 1,
    log: bool | None = None,
    rate: float | None = None,
) -> Figure:
    """Test accuracy against learning rate with the suggested bounds and their intervals.

    `range_test(curve)` draws a curve of your own, as `modules.range_test.range_test` returns it: loss, accuracy where
    it was measured, and what `best_rate` and `suggest_bounds` read off it, or why they read nothing.

    Args:
        curve, bounds: as `tables.bounds_table` gives them; None for the curve alone.
        label: the data set's.
        runs: how many runs the curve averages.
        log: draw the learning rate on a logarithmic axis; None does so where an own curve's ramp was exponential.
        rate: a rate to mark on a curve of your own, such as `suggest_rate`'s.

    Raises:
        AnalysisError: a curve without numbers.
    """
    measured = "train_loss" if "train_loss" in curve else "mean"
    if not (len(curve) and np.isfinite(curve["lr"]).all() and np.isfinite(curve[measured]).any()):
        raise AnalysisError(f"the curve has no numbers to draw: its {measured} is empty, or a learning rate is none")
    if "train_loss" in curve:
        return _own_range_test(curve, label, log, rate)
    figure, axes = plt.subplots()
    name = f"mean of {runs} runs (band: lowest to highest)" if runs > 1 else "one run"
    axes.plot(curve.lr, curve["mean"], color=BASELINE, label=name)
    axes.fill_between(curve.lr, curve["low"], curve["high"], color=BASELINE, alpha=0.2, linewidth=0)
    if "fitted" in curve:
        axes.plot(curve.lr, curve.fitted, color="0.1", linewidth=1, label="piecewise linear fit, four segments")
    suggested = bounds.itertuples() if bounds is not None else ()
    stripes = None
    for row, colour in zip(suggested, (COLOURS[2], COLOURS[3]), strict=False):
        axes.axvline(row.value, color=colour, linestyle="--", label=f"suggested {row.bound}: {row.value:.2g}")
        if not math.isnan(row.low):
            axes.axvspan(row.low, row.high, color=colour, alpha=0.12, linewidth=0)
            stripes = "stripes around the bounds: their 95 % intervals"
    images = curve.attrs.get("images", "test")
    axes.set(xlabel="learning rate", ylabel=f"{images} accuracy", title=f"{label}: learning rate range test")
    if log:
        axes.set_xscale("log")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    legend_below(axes, 2, stripes)
    figure.tight_layout()
    return figure


def _own_range_test(curve: pd.DataFrame, label: str, log: bool | None, rate: float | None) -> Figure:
    """One curve of a user's: the loss above, the accuracy below it where it was measured."""
    log = exponential(curve.lr) if log is None else log
    quantities = ["train_loss"] + ["accuracy"] * bool("accuracy" in curve and curve.accuracy.notna().any())
    figure, panels = plt.subplots(len(quantities), 1, sharex=True, figsize=(8, 3.2 * len(quantities)), squeeze=False)
    notes = []
    for axes, quantity in zip(panels[:, 0], quantities, strict=True):
        found = curve[curve[quantity].notna()]
        axes.plot(found.lr, found[quantity], color=BASELINE, linewidth=0.8, alpha=0.6, label=quantity.replace("_", " "))
        if rate is not None:
            axes.axvline(rate, color=COLOURS[4], label=f"suggested: {rate:.2g}")
        try:
            if quantity == "train_loss":
                best = best_rate(curve.lr, curve.train_loss)
                axes.plot(curve.lr, best.smoothed, color=BASELINE, label="smoothed")
                axes.axvline(best.lr, color=COLOURS[3], linestyle="--", label=f"lowest loss at {best.lr:.2g}")
            else:
                bounds = suggest_bounds(curve.lr, curve.accuracy, log)
                axes.plot(curve.lr, bounds.fitted, color="0.1", linewidth=1, label="four segments")
                for name, colour in (("base_lr", COLOURS[2]), ("max_lr", COLOURS[3])):
                    value = getattr(bounds, name)
                    axes.axvline(value, color=colour, linestyle="--", label=f"{name} {value:.2g}")
        except AnalysisError as error:
            notes.append(f"{quantity.replace('_', ' ')}: {error}")
        axes.set_ylabel(quantity.replace("_", " "))
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize="small")
    losses = curve.train_loss[np.isfinite(curve.train_loss)]
    start, lowest = losses.iloc[0], losses.min()
    margin = 0.1 * (start - lowest) or 0.1
    panels[0, 0].set_ylim(lowest - margin, start + 3 * margin)  # no matter how far it diverged
    if len(quantities) > 1:
        panels[1, 0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set(xlabel="\n".join(["learning rate", *notes]))
    if len(curve) > 1:
        axes.set_xlim(curve.lr.iloc[0], curve.lr.iloc[-1])
    if log:
        axes.set_xscale("log")
    figure.suptitle(": ".join([*filter(None, [label]), "learning rate range test"]), fontsize="medium")
    figure.tight_layout()
    return figure


def save(figure: Figure, path: str | Path) -> Image:
    """Write a figure, without the date and versions that would change its bytes, and close it.

    Args:
        figure: what to write.
        path: its ending says the format: `.png`, or `.pdf` and `.svg` for a paper.

    Returns:
        The picture as PNG, for a notebook to show.

    Raises:
        AnalysisError: another ending; nothing is written.
    """
    path = Path(path)
    if path.suffix not in WITHOUT_DATE:
        raise AnalysisError(f"{short(path.name)}: an ending of {', '.join(WITHOUT_DATE)} is needed")
    # An SVG's parts are called by chance where it has no salt.
    with plt.rc_context({"svg.hashsalt": "figure"}):
        drawn = {ending: _drawn(figure, ending) for ending in {".png", path.suffix}}
    plt.close(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, drawn[path.suffix])
    return Image(drawn[".png"], width=760)


def _drawn(figure: Figure, ending: str) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format=ending[1:], metadata=WITHOUT_DATE[ending])
    return picture.getvalue()
