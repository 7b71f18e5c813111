"""Verdicts, and how numbers are printed."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from modules.report.comparison import TABLES, compare
from modules.report.formatting import beside, read_reference, readable, readable_beside, show
from modules.statistics import AnalysisError

COLUMNS = ["quantity", "policy", "runs", "value", "low", "high"]


def results(folder, rows, run="1,0.5\n"):
    (folder / "tables").mkdir(parents=True)
    (folder / "headline").mkdir()
    (folder / "headline" / "fixed-seed1.csv").write_text(run)
    pd.DataFrame(rows, columns=COLUMNS).to_csv(folder / "tables" / "headline.csv", index=False)
    return folder


OURS = [
    ("final_accuracy", "fixed", 5, 0.75, 0.74, 0.76),
    ("best_accuracy", "fixed", 5, 0.80, 0.79, 0.81),
    ("iterations", "fixed", 5, 70000, np.nan, np.nan),
    ("crossing_iteration", "triangular", 5, np.nan, 10000, np.inf),
]
THEIRS = [
    ("final_accuracy", "fixed", 5, 0.765, 0.755, 0.775),
    ("best_accuracy", "fixed", 5, 0.85, 0.84, 0.86),
    ("iterations", "fixed", 5, 70000, np.nan, np.nan),
    ("crossing_iteration", "triangular", 5, 20000, 18000, 24000),
]


def test_verdicts_by_overlap(tmp_path):
    table = compare(results(tmp_path / "a", OURS), results(tmp_path / "b", THEIRS, "1,0.6\n"))
    assert table.verdict.tolist() == ["agrees", "differs", "agrees", "differs"]
    assert table.published.tolist() == [0.765, 0.85, 70000, 20000]


def test_numbers_without_intervals_are_not_judged(tmp_path):
    """Another processor gives other runs; of a mean without an interval nothing says how far off it may be."""
    ours = [("best_mean_accuracy", "fixed", 5, 0.75, np.nan, np.nan), ("iterations", "fixed", 5, 70000, np.nan, np.nan)]
    theirs = [("best_mean_accuracy", "fixed", 5, 0.76, np.nan, np.nan), ("iterations", "fixed", 5, 700, np.nan, np.nan)]
    table = compare(results(tmp_path / "a", ours), results(tmp_path / "b", theirs, "1,0.6\n"))
    assert table.verdict.tolist() == ["no interval", "differs"]
    exact = [("best_mean_accuracy", "fixed", 5, 0.76, 0.76, 0.76), *theirs[1:]]
    table = compare(results(tmp_path / "c", ours), results(tmp_path / "d", exact, "1,0.6\n"))
    assert table.verdict.tolist() == ["differs", "differs"]


def test_every_notebook_that_trains_has_a_table():
    """One that is not known here would be published with unfinished runs."""
    source = {path.stem: path.read_text() for path in Path("notebooks").glob("*.ipynb")}
    for name, table in TABLES.items():
        assert f"/{name}.csv" in source[table.notebook]
    trained = {
        part
        for text in source.values()
        if "run_all(" in text
        for part in re.findall(r"\{results_dir\}/(\w+)", text)
        if part not in ("tables", "figures")
    }
    assert trained == {experiment for table in TABLES.values() for experiment in table.experiments}


def test_same_runs_are_the_same_bytes(tmp_path):
    table = compare(results(tmp_path / "a", OURS), results(tmp_path / "b", OURS))
    assert set(table.verdict) == {"same bytes"}


def test_same_runs_with_other_numbers_differ(tmp_path):
    table = compare(results(tmp_path / "a", OURS), results(tmp_path / "b", THEIRS))
    assert table.verdict.tolist() == ["differs", "differs", "same bytes", "differs"]


def test_numbers_without_their_runs_are_not_the_same_bytes(tmp_path):
    for name in "ab":
        shutil.rmtree(results(tmp_path / name, OURS) / "headline")
    assert set(compare(tmp_path / "a", tmp_path / "b").verdict) == {"agrees"}


def test_a_best_rate_is_judged_by_its_sweeps(tmp_path):
    rows = [("best_lr", "sweep", 5, 0.02, 0.01, 0.03), ("final_accuracy", "cycle", 5, 0.9, 0.89, 0.91)]
    for name in "ab":
        (tmp_path / name / "tables").mkdir(parents=True)
        pd.DataFrame(rows, columns=COLUMNS).to_csv(tmp_path / name / "tables" / "best_lr.csv", index=False)
        for experiment, run in (("best_lr", "1,0.5\n"), ("best_lr_sweep", f"1,{name}\n")):
            (tmp_path / name / experiment).mkdir()
            (tmp_path / name / experiment / "sweep-seed1.csv").write_text(run)
    assert set(compare(tmp_path / "a", tmp_path / "b").verdict) == {"agrees"}
    assert compare(tmp_path / "a", tmp_path / "b", ["headline"]).empty


def test_a_reference_needs_its_columns_and_numbers(tmp_path):
    path = tmp_path / "reference.csv"
    for text in ("a,b\n1,2\n", "source,quantity,policy,value\nthe paper,final_accuracy,fixed,most\n", ""):
        path.write_text(text)
        with pytest.raises(AnalysisError, match="reference=.*reference.csv: a CSV with columns source"):
            read_reference(path)


def test_a_reference_speaks_once_and_for_others(tmp_path):
    path = tmp_path / "reference.csv"
    rows = "source,quantity,policy,value\nthe paper,final_accuracy,fixed,0.8\n"
    for row, message in (
        ("the paper,final_accuracy,fixed,0.7", "two values of final_accuracy fixed from the paper"),
        ("this study,final_accuracy,fixed,0.7", "only this study's own column is called 'this study'"),
    ):
        path.write_text(f"{rows}{row}\n")
        with pytest.raises(AnalysisError, match=message):
            read_reference(path)


@pytest.mark.parametrize("rows", ["", "the paper,final_accuracy,decay,0.8\n"])
def test_a_reference_to_nothing_of_ours(tmp_path, rows):
    path = tmp_path / "reference.csv"
    path.write_text(f"source,quantity,policy,value\n{rows}")
    ours = pd.DataFrame({"quantity": ["final_accuracy"], "policy": ["fixed"], "value": [0.7]})
    table = readable_beside(beside(ours, path, "this study"))
    assert (table["this study"] == "-").all()
    assert len(table) == rows.count("\n")


def test_nothing_published_and_itself(tmp_path):
    ours = results(tmp_path / "a", OURS)
    assert set(compare(ours, tmp_path / "none").verdict) == {"not published"}
    assert set(compare(ours, ours).verdict) == {"itself"}
    assert set(readable(compare(ours, tmp_path / "none")).published) == {"-"}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("final_accuracy", 0.7512, 0.74, 0.7625), "75.12 % [74.00, 76.25]"),
        (("final_accuracy_difference", 0.0123, -0.01, 0.03), "+1.23 points [-1.00, +3.00]"),
        (("crossing_iteration", 20000.0, 18000.0, float("inf")), "20,000 [18,000, more]"),
        (("crossing_iteration", float("nan"), 18000.0, float("inf")), "never [18,000, more]"),
        (("crossing_ratio", 3.5, float("nan"), float("nan")), "3.50"),
        (("base_lr", 0.0025, 0.002, 0.003), "0.00250 [0.00200, 0.00300]"),
        (("best_lr", 3.2e-5, 4e-6, 0.001), "3.2e-05 [4e-06, 0.00100]"),
        (("iterations low_accuracy", 40.0, float("nan"), float("nan")), "40"),
    ],
)
def test_numbers_as_printed(arguments, text):
    assert show(*arguments) == text


def test_others_numbers_stand_beside_ours_with_their_units(tmp_path):
    ours = pd.DataFrame(
        {
            "quantity": ["iterations", "final_accuracy", "crossing_iteration", "best_accuracy"],
            "policy": ["fixed", "fixed", "triangular", "fixed"],
            "value": [70_000.0, 0.7444, 20_000.0, 0.8],
        }
    )
    path = tmp_path / "reference.csv"
    path.write_text(
        "source,quantity,policy,value\none,iterations,fixed,70000\none,final_accuracy,fixed,0.76\n"
        "two,crossing_iteration,triangular,25000\n"
    )
    table = readable_beside(beside(ours, path, "this study")).set_index("quantity")
    assert table.loc["iterations"].tolist() == ["fixed", "70,000", "70,000", "-"]
    assert table.loc["final_accuracy"].tolist() == ["fixed", "74.44 %", "76.00 %", "-"]
    assert table.loc["crossing_iteration"].tolist() == ["triangular", "20,000", "-", "25,000"]
    assert len(table) == 3
