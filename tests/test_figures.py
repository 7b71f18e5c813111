"""Pictures of awkward results: drawn without a warning, which a notebook would show its readers."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from modules.range_test import best_rate
from modules.rate_finders import figures as finders
from modules.rate_finders.bracket import Bracket
from modules.rate_finders.race import FoundRate
from modules.rate_finders.regret import Landscape
from modules.report import figures
from modules.report.crossing import crossing, factor_curve
from modules.report.tables import curves, range_test_curve
from modules.statistics import AnalysisError

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def runs(seeds=(1, 2), diverged=(), **by_policy):
    """Rows as `tables.read_runs` gives them, the same accuracies for every seed; (policy, seed) pairs may diverge."""
    rows = [
        (policy, seed, (policy, seed) in diverged, "toy", 10 * index, accuracy)
        for policy, accuracies in by_policy.items()
        for seed in seeds
        for index, accuracy in enumerate(accuracies, start=1)
    ]
    columns = ["policy", "seed", "diverged", "label", "iteration", "val_acc"]
    return pd.DataFrame(rows, columns=columns).assign(images="test")


CASES = {
    "crosses late": (runs(fixed=[0.1, 0.3, 0.5], clr=[0.2, 0.4, 0.6]), 2),
    "crosses at its only evaluation": (runs(seeds=(1,), fixed=[0.1, 0.3], clr=[0.4]), 2),
    "never crosses": (runs(fixed=[0.1, 0.5], clr=[0.2, 0.3]), 1),
    "lost all runs": (runs(fixed=[0.1, 0.5], clr=[0.2, 0.6], diverged=[("clr", 1), ("clr", 2)]), 1),
}


@pytest.mark.parametrize("case", CASES)
def test_two_policies(case):
    table, panels = CASES[case]
    cross = crossing(curves(table, "fixed"), curves(table, "clr"))
    figure = figures.accuracy(table, cross, "fixed", "clr")
    assert len(figure.axes) == panels
    if panels == 2:  # the crossing is inside what is enlarged
        left, right = figure.axes[1].get_xlim()
        low, high = figure.axes[1].get_ylim()
        assert left < cross.iteration <= right
        assert low < cross.target < high
    figure = figures.accuracies(table, "toy")
    ends = [line.get_xdata().tolist() for line in figure.axes[1].lines if line.get_marker() == "o"]
    kept = table[~table.diverged].groupby(["policy", "seed"]).val_acc.last()
    assert sum(map(len, ends)) == len(kept)


def test_one_policy_has_no_second_panel():
    figure = figures.accuracies(runs(clr=[0.2, 0.6]), "toy")
    assert len(figure.axes) == 1


def test_axes_say_which_images_accuracies_are_of():
    figure = figures.accuracies(runs(clr=[0.2, 0.6]).assign(images="validation"), "toy")
    assert figure.axes[0].get_ylabel() == "validation accuracy"
    climb = runs(range_test=np.linspace(0.1, 0.6, 20)).assign(
        images="validation", lr=lambda found: found.iteration / 100
    )
    figure = figures.range_test(range_test_curve(climb))
    assert figure.axes[0].get_ylabel() == "validation accuracy"


def test_runs_of_different_length_are_named_with_it():
    figure = figures.accuracies(runs(one=[0.2, 0.6], two=[0.3]), "toy")
    names = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert names == ["one\n20 iterations", "two\n10 iterations"]
    figure = figures.accuracies(runs(one=[0.2, 0.6], two=[0.3, 0.5]), "toy")
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == ["one", "two"]


def test_a_common_climb_is_cut_off_and_a_later_one_is_not():
    climb, top = [0.1, 0.5], [0.70 + 0.01 * k for k in range(20)]
    late = [0.2 - 0.01 * k for k in range(8)]
    for slow, cut in ((climb, True), (late, False)):
        figure = figures.accuracies(runs(one=[*climb, *top], two=[*slow, *top]), "toy")
        assert ("cut off" in figure.axes[0].get_legend().get_title().get_text()) == cut
        assert (figure.axes[0].get_ylim()[0] > 0.2) == cut


def test_a_factor_over_its_target():
    table = runs(fixed=[0.1, 0.3, 0.5], clr=[0.2, 0.4, 0.6])
    curve = factor_curve(curves(table, "fixed"), curves(table, "clr"))
    figure = figures.factors(curve, "toy")
    assert figure.axes[0].lines[1].get_xydata().tolist() == [[0.5, 1.0]]


def own_curve(points=50):
    """A table as `range_test` returns it: the loss falls, and rises again where accuracy falls."""
    lr = np.geomspace(1e-6, 10, points)
    x = np.log10(lr)
    accuracy = np.interp(x, [-6, -3, -1, 0, 1], [0.1, 0.1, 0.9, 0.3, 0.1])
    empty = np.full(points, np.nan)
    return pd.DataFrame(
        dict(iteration=range(points), lr=lr, train_loss=2.5 - 2 * accuracy, val_loss=empty, accuracy=accuracy)
    )


def test_a_curve_of_one_s_own_is_drawn_in_one_call_with_what_is_read_off_it():
    figure = figures.range_test(own_curve())
    loss, accuracy = figure.axes
    labels = [text.get_text() for axes in (loss, accuracy) for text in axes.get_legend().get_texts()]
    assert any(label.startswith("lowest loss at 0.") for label in labels)
    assert {label.split()[0] for label in labels} >= {"base_lr", "max_lr"}
    assert loss.get_xscale() == "log"


def test_a_curve_without_an_answer_says_why():
    curve = own_curve().assign(train_loss=1.0, accuracy=0.1)
    figure = figures.range_test(curve.assign(lr=np.linspace(0.001, 0.04, 50)), label="mine")
    assert figure.axes[0].get_xscale() == "linear"
    assert "the loss does not fall clear of its noise" in figure.axes[-1].get_xlabel()
    assert "accuracy does not rise" in figure.axes[-1].get_xlabel()
    assert len(figures.range_test(own_curve().assign(accuracy=np.nan)).axes) == 1


@pytest.mark.parametrize("every", [1, 8], ids=["each row", "every eighth"])
def test_a_rate_is_marked_where_one_is_given(every):
    curve = own_curve(400)
    curve["accuracy"] = curve.accuracy.where(curve.index % every == every - 1)
    figure = figures.range_test(curve, rate=0.0123)
    for axes in figure.axes:
        assert "suggested: 0.012" in [text.get_text() for text in axes.get_legend().get_texts()]
        assert [0.0123, 0.0123] in [list(line.get_xdata()) for line in axes.lines]
    assert sum(figure.axes[1].lines[0].get_xdata() > 0) == 400 // every


@pytest.mark.parametrize(
    "curve",
    [
        own_curve().assign(train_loss=np.nan),
        own_curve().assign(train_loss=np.inf),
        own_curve().assign(lr=np.nan),
        own_curve()[:0],
        pd.DataFrame(dict(lr=[0.1, 0.2], mean=[np.nan] * 2, low=[np.nan] * 2, high=[np.nan] * 2)),
    ],
    ids=["no loss", "infinite", "no rates", "no rows", "no accuracy"],
)
def test_a_curve_without_numbers_is_refused_in_a_line(curve):
    with pytest.raises(AnalysisError, match="the curve has no numbers to draw"):
        figures.range_test(curve)


@pytest.mark.parametrize("points", [1, 2, 3])
def test_a_curve_of_few_points_is_drawn(points):
    figure = figures.range_test(own_curve()[:points].drop(columns="accuracy"))
    figure.canvas.draw()
    assert len(figure.axes) == 1


def test_sweep_does_not_take_a_table_for_three_runs():
    curve = own_curve()
    with pytest.raises(AnalysisError, match="range_test\\(curve\\)"):
        figures.sweep(curve.set_index("lr"), best_rate(curve.lr, curve.train_loss), "")


@pytest.mark.parametrize(("ending", "magic"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")])
def test_a_figure_is_of_the_format_that_its_ending_says_and_the_same_bytes_again(tmp_path, ending, magic):
    written = []
    for folder in ("first", "second"):
        path = tmp_path / folder / f"run{ending}"
        shown = figures.save(figures.policies({"fixed": [0.1, 0.2]}, "A title"), path)
        assert shown.data.startswith(b"\x89PNG")
        written.append(path.read_bytes())
    assert written[0] == written[1]
    assert written[0].startswith(magic)


def test_other_endings_of_figures_are_refused_and_nothing_is_written(tmp_path):
    figure = figures.policies({"fixed": [0.1, 0.2]}, "A title")
    for name in ("run", "run.jpg", "run.pdf.txt"):
        with pytest.raises(AnalysisError, match=f"{name}': an ending of .png, .pdf, .svg is needed"):
            figures.save(figure, tmp_path / "new" / name)
    assert list(tmp_path.iterdir()) == []


def found():
    """A race's result: validation losses by rate, in two rounds of which the first diverged at the highest."""
    rounds = [(1, 66, 0.01, 1.0), (1, 66, 0.02, 0.5), (1, 66, 0.04, np.nan), (2, 135, 0.01, 0.4), (2, 135, 0.02, 0.3)]
    tried = pd.DataFrame(rounds, columns=["round", "iterations", "rate", "val_loss"])
    ramp = pd.DataFrame({"lr": np.geomspace(1e-6, 10, 30), "train_loss": np.linspace(2, 1, 30)})
    shared = dict(start_loss=2.3, edge=0.2, cost=1000, budget=1000, iterations=720, schedule="linear", note="")
    return FoundRate(rate=0.02, low=0.01, high=0.05, tried=tried, ramp=ramp, **shared)


def test_the_picture_of_a_race_shows_the_rate_that_diverged_and_its_legend_lies_on_no_label():
    figure = finders.race(found())
    figure.canvas.draw()
    races = figure.axes[1]
    left, right = races.get_xlim()
    assert left < 0.04 < right
    (legend,) = figure.legends
    assert "rate 0.02" in [text.get_text() for text in legend.get_texts()]
    written = [axes.xaxis.get_tightbbox() for axes in figure.axes]  # an axis with its label and its rates
    assert not any(legend.get_window_extent().overlaps(box) for box in written)


def test_the_picture_of_full_trainings_marks_what_is_taken_and_what_diverged():
    bracket = Bracket(0.02)
    bracket.tell([(0.01, 0.7, 1.0), (0.02, 0.8, 0.9), (0.04, np.nan, np.nan)])
    curve = found().ramp
    figure = finders.tries(curve, {"linear": 0.02}, {"linear": bracket.found()})
    left, right = figure.axes
    (guess,) = (line for line in left.lines if line.get_label().startswith("first guess"))
    assert guess.get_xdata()[0] == 0.02
    marks = {mark: [line for line in right.lines if line.get_marker() == mark] for mark in ("*", "x")}
    assert marks["*"][0].get_xydata().tolist() == [[0.02, 0.8]]
    assert marks["x"][0].get_xdata() == [0.04]
    figure.canvas.draw()
    written = [axes.xaxis.get_tightbbox() for axes in figure.axes]
    assert not any(legend.get_window_extent().overlaps(box) for legend in figure.legends for box in written)


def test_an_answer_for_one_schedule_has_its_colour_and_one_for_all_is_grey():
    landscape = Landscape(np.array([0.01, 0.02, 0.04]), np.array([[0.5, 0.6], [0.8, 0.9], [0.4, 0.5]]))
    answers = pd.DataFrame({"rule": ["a", "a", "b"], "rate": [0.01, 0.02, np.nan], "only": ["x", "y", np.nan]})
    figure = finders.rate_strips({"x": landscape, "y": landscape}, answers, "toy")
    lines, dots = figure.axes[0].lines, [line for line in figure.axes[1].lines if line.get_marker() == "."]
    drawn = {(line.get_xdata()[0], line.get_color()) for line in dots if len(line.get_xdata())}
    colours = {line.get_label().split()[0]: line.get_color() for line in lines}
    assert {(0.01, colours["x"]), (0.02, colours["y"])} <= drawn
    assert len({line.get_color() for line in dots}) == 3
    assert [text.get_text() for text in figure.axes[1].texts] == ["1 of 1: no answer"]
