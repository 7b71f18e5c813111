"""Verdicts, and how numbers are printed."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from toys import FIXED, ROWS, TRIANGULAR, a_record, every, small

from modules.report.comparison import TABLES, beside, compare, counts, differences_beside, readable_beside
from modules.report.formatting import ACCURACY, known, latex, read_reference, readable, show
from modules.report.tables import by_policy, table_of, write
from modules.runs.files import RunFiles
from modules.runs.training import train
from modules.statistics import AnalysisError, Estimate
from modules.study import parameters

COLUMNS = ["quantity", "policy", "runs", "value", "error", "df", "low", "high"]


def results(folder, rows, run="1,0.5\n"):
    (folder / "tables").mkdir(parents=True)
    (folder / "headline").mkdir()
    if run:
        (folder / "headline" / "fixed-seed1.csv").write_text(run)
    pd.DataFrame(rows, columns=COLUMNS).to_csv(folder / "tables" / "headline.csv", index=False)
    return folder


def row(quantity, policy, value, error=np.nan, runs=5):
    """A row of a table, with Student's interval where it has an error."""
    df = runs - 1 if error == error else np.nan
    low, high = Estimate(value, error, df).interval() if df > 0 else (np.nan, np.nan)
    return quantity, policy, runs, value, error, df, low, high


OURS = [
    row("final_accuracy", "fixed", 0.75, 0.0008),
    row("best_accuracy", "fixed", 0.80, 0.0008),
    row("final_accuracy_difference", "triangular - fixed", 0.01, 0.001),
    row("iterations", "fixed", 70000),
]


def shifted(rows, shift):
    return [
        row(name, policy, value + shift * (name != "iterations"), error) for name, policy, _, value, error, *_ in rows
    ]


def verdicts(tmp_path, ours, theirs):
    return compare(results(tmp_path / "a", ours), results(tmp_path / "b", theirs, "1,0.6\n"))


def test_a_small_shift_is_equivalent(tmp_path):
    assert set(verdicts(tmp_path, OURS, shifted(OURS, 0.001)).verdict) == {"equivalent"}


@pytest.mark.parametrize("sign", [1, -1])
def test_published_numbers_shifted_by_two_margins_differ(tmp_path, sign):
    table = verdicts(tmp_path, OURS, shifted(OURS, sign * 2 * ACCURACY.margin)).set_index("quantity")
    assert table.verdict.to_dict() == dict.fromkeys(table.index[:3], "differs") | {"iterations": "equivalent"}
    assert table.difference["final_accuracy"] == pytest.approx(-sign * 0.01)
    ends = table[["difference_low", "difference_high"]].loc["final_accuracy"]
    assert ends.mean() == pytest.approx(-sign * 0.01)


@pytest.mark.parametrize("shift", [0, 2 * ACCURACY.margin])
def test_widened_intervals_resolve_nothing_and_say_how_many_seeds_would(tmp_path, shift):
    wide = [row(name, policy, value, 20 * error) for name, policy, _, value, error, *_ in OURS[:3]]
    table = verdicts(tmp_path, wide, shifted(wide, shift))
    assert set(table.verdict) == {"not resolved"}
    assert (table.seeds > 5).all()
    assert "seeds would)" in readable(table).verdict[0]
    more = round(table.seeds[0])
    narrow = [row(*wide[0][:2], wide[0][3], wide[0][4] * (5 / more) ** 0.5, more)]
    if not shift:
        assert verdicts(tmp_path / "more", narrow, narrow).verdict.tolist() == ["equivalent"]


def test_one_run_resolves_nothing(tmp_path):
    table = verdicts(tmp_path, [row("final_accuracy", "fixed", 0.75)], OURS)
    assert table.verdict.tolist() == ["not resolved"]
    assert table.seeds.isna().all()


def test_what_was_asked_for_is_equal_or_not(tmp_path):
    table = verdicts(tmp_path, [row("iterations", "fixed", 700)], OURS)
    assert table.verdict.tolist() == ["differs"]


@pytest.mark.parametrize(
    ("factor", "width", "verdict"), [(1.05, 1.02, "equivalent"), (1.5, 1.05, "differs"), (1.5, 2, "not resolved")]
)
def test_rates_are_compared_by_their_factor(tmp_path, factor, width, verdict):
    ours = [("best_lr", "sweep", 5, 0.01, np.nan, np.nan, 0.01 / width, 0.01 * width)]
    theirs = [("best_lr", "sweep", 5, 0.01 / factor, np.nan, np.nan, 0.01 / factor / width, 0.01 / factor * width)]
    table = verdicts(tmp_path, ours, theirs)
    assert table.verdict.tolist() == [verdict]
    assert table.difference[0] == pytest.approx(factor)
    assert readable(table)["difference [95 %]"][0].startswith(f"x {factor:.2f} [")


def test_equal_rates_are_a_factor_of_one(tmp_path):
    rate = [("best_lr", "sweep", 5, 0.01, np.nan, np.nan, 0.009, 0.011)]
    table = compare(results(tmp_path / "a", rate), results(tmp_path / "b", rate))
    assert table.verdict.tolist() == ["same bytes"]
    assert readable(table)["difference [95 %]"].tolist() == ["x 1.00"]


def test_runs_of_other_settings_are_not_compared(tmp_path):
    """Row by row: `fixed` is the same in both, `triangular` has another rate."""
    other = {**TRIANGULAR, "max_lr": 0.2}
    for name, policies in (("a", (FIXED, TRIANGULAR)), ("b", (FIXED, other))):
        folder = results(tmp_path / name, OURS, run=None)
        for policy in policies:
            train(small(policy, iterations=6), folder / "headline")
    rows = [*OURS, row("final_accuracy", "triangular", 0.75, 0.0008)]
    for name in "ab":
        pd.DataFrame(rows, columns=COLUMNS).to_csv(tmp_path / name / "tables" / "headline.csv", index=False)
    table = compare(tmp_path / "a", tmp_path / "b").set_index(["quantity", "policy"]).verdict
    assert table["final_accuracy", "fixed"] == "equivalent"
    assert table["final_accuracy", "triangular"] == "other settings"
    assert table["final_accuracy_difference", "triangular - fixed"] == "other settings"


def test_runs_from_before_a_setting_existed_have_its_default(tmp_path):
    run = small(FIXED)
    record = a_record(run)
    older = run.model_dump(mode="json", exclude_defaults=True)
    older["policy"]["name"] = "fixed"
    assert set(record["spec"]) - set(older) >= {"ema", "split", "registration"}
    for name, spec, rows in (("a", record["spec"], ROWS), ("b", older, ROWS[:1])):
        RunFiles(results(tmp_path / name, OURS, run=None) / "headline", run.name).finish(rows, record | {"spec": spec})
    assert set(compare(tmp_path / "a", tmp_path / "b").verdict) == {"equivalent"}


def crossed(folder, rows, run, shares):
    (results(folder, rows, run) / "tables" / "crossing.csv").write_text(
        "iteration,share,step\n" + "".join(f"{iteration},{share},1000\n" for iteration, share in shares.items())
    )
    return folder


@every(
    ("shares", "value", "verdict"),
    [
        ({19000: 0.01, 20000: 0.98, 21000: 0.01}, 20000, "equivalent"),
        ({21000: 1.0}, 21000, "equivalent"),  # one evaluation is the margin
        ({22000: 1.0}, 22000, "differs"),
        ({18000: 1.0}, 18000, "differs"),
        ({24000: 0.5, 25000: 0.5}, 24000, "differs"),
        ({16000: 0.3, 20000: 0.4, 24000: 0.3}, 20000, "not resolved"),
        ({"inf": 1.0}, np.nan, "differs"),
    ],
)
def test_crossings_are_compared_by_their_shares(tmp_path, shares, value, verdict):
    ours = crossed(tmp_path / "a", [row("crossing_iteration", "triangular", 20000)], "1\n", {20000: 1.0})
    theirs = crossed(tmp_path / "b", [row("crossing_iteration", "triangular", value)], "2\n", shares)
    table = compare(ours, theirs)
    assert table.verdict.tolist() == [verdict]
    assert (table.seeds > 0).tolist() == [verdict == "not resolved"]
    readable(table)


def test_two_that_never_cross_are_equivalent(tmp_path):
    rows = [row("crossing_iteration", "triangular", np.nan)]
    folders = [crossed(tmp_path / name, rows, name, {"inf": 1.0}) for name in "ab"]
    assert compare(*folders).verdict.tolist() == ["equivalent"]


def test_what_only_describes_is_not_judged(tmp_path):
    rows = [row("seconds", "fixed", 5), row("never_crossed_share", "triangular", 0.1), OURS[0]]
    assert verdicts(tmp_path, rows, rows).quantity.tolist() == ["final_accuracy"]


def test_verdicts_are_counted(tmp_path):
    table = verdicts(tmp_path, OURS, shifted(OURS, 0.01))
    assert counts(table) == "1 equivalent, 3 differs"
    assert counts(table.iloc[:0]) == "nothing to compare"


def test_every_quantity_of_published_tables_is_known():
    for path in parameters.PUBLISHED.glob("*/tables/*.csv"):
        table = pd.read_csv(path)
        name = "quantity" if "quantity" in table else "bound"
        for quantity in set(table.get(name, [])):
            known(quantity)
    with pytest.raises(AnalysisError, match="unknown quantity 'height'"):
        known("height")


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
    named = [table for table in TABLES.values() if not table.notebook.startswith(("08", "09"))]
    assert trained == {experiment for table in named for experiment in table.experiments}


def test_of_the_rate_finders_the_means_of_what_is_advised_are_judged(tmp_path):
    rules = ["find_rate linear", "suggest_rate cycle", "find_rate cycle digits", "fastai valley linear"]
    for name, shift in (("a", 0.0), ("b", 0.0), ("c", 0.02)):
        rows = [
            dict(quantity="regret", policy=rule, runs=30, low=shift, high=0.02 + shift, error=1e-3, df=np.inf)
            | dict(value=0.01 + shift)
            for rule in rules
        ]
        write(table_of(rows), tmp_path / name / "tables" / "rate_finders_summary.csv")
        folder = tmp_path / name / "rate_finders_a"
        folder.mkdir()
        (folder / "x-seed1.csv").write_text(f"{shift}")
    same = compare(tmp_path / "a", tmp_path / "b")
    assert same.policy.tolist() == rules[:2]
    assert set(same.verdict) == {"same bytes"}
    (tmp_path / "b" / "rate_finders_a" / "x-seed1.csv").write_text("another run")
    assert set(compare(tmp_path / "a", tmp_path / "b").verdict) == {"equivalent"}
    assert set(compare(tmp_path / "a", tmp_path / "c").verdict) == {"differs"}


def test_same_runs_with_other_numbers_differ(tmp_path):
    table = compare(results(tmp_path / "a", OURS), results(tmp_path / "b", shifted(OURS, 0.001)))
    assert table.verdict.tolist() == ["differs", "differs", "differs", "same bytes"]


def test_numbers_without_their_runs_are_not_the_same_bytes(tmp_path):
    for name in "ab":
        shutil.rmtree(results(tmp_path / name, OURS) / "headline")
    assert set(compare(tmp_path / "a", tmp_path / "b").verdict) == {"equivalent"}


def test_a_best_rate_is_judged_by_its_sweeps(tmp_path):
    rows = [("best_lr", "sweep", 5, 0.02, np.nan, np.nan, 0.0199, 0.0201), row("final_accuracy", "cycle", 0.9, 0.001)]
    for name in "ab":
        (tmp_path / name / "tables").mkdir(parents=True)
        pd.DataFrame(rows, columns=COLUMNS).to_csv(tmp_path / name / "tables" / "best_lr.csv", index=False)
        for experiment, run in (("best_lr", "1,0.5\n"), ("best_lr_sweep", f"1,{name}\n")):
            (tmp_path / name / experiment).mkdir()
            (tmp_path / name / experiment / "sweep-seed1.csv").write_text(run)
    assert set(compare(tmp_path / "a", tmp_path / "b").verdict) == {"equivalent"}
    assert compare(tmp_path / "a", tmp_path / "b", ["headline"]).empty


@pytest.fixture
def reference(tmp_path):
    """A function that writes lines of a reference and gives the file."""

    def write(*lines):
        (tmp_path / "reference.csv").write_text("\n".join(["source,quantity,policy,value", *lines]) + "\n")
        return tmp_path / "reference.csv"

    return write


def test_a_reference_has_its_columns_and_numbers_and_speaks_once_and_for_others(reference):
    for row, message in (
        ("the paper,final_accuracy,fixed,most", "reference=.*reference.csv: a CSV with columns source"),
        ("the paper,final_accuracy,fixed,0.7", "two values of final_accuracy fixed from the paper"),
        ("this study,final_accuracy,fixed,0.7", "only this study's own column is called 'this study'"),
    ):
        with pytest.raises(AnalysisError, match=message):
            read_reference(path := reference("the paper,final_accuracy,fixed,0.8", row))
    for text in ("a,b\n1,2\n", ""):
        path.write_text(text)
        with pytest.raises(AnalysisError, match="reference=.*reference.csv: a CSV with columns source"):
            read_reference(path)


def ends(**arms):
    """Runs of one evaluation each, by arm."""
    rows = [(arm, seed, False, 10, value) for arm, values in arms.items() for seed, value in enumerate(values, 1)]
    return pd.DataFrame(rows, columns=["policy", "seed", "diverged", "iteration", "val_acc"])


RUNS = ends(a=[0.80, 0.81, 0.82], b=[0.70, 0.72, 0.71], c=[0.50, 0.60, 0.70])


@pytest.mark.parametrize(("value", "reproduced"), [(0.80, "yes"), (0.855, "yes"), (0.865, "no")])
def test_a_single_number_of_others_is_held_against_a_further_run_of_ours(reference, value, reproduced):
    path = reference(f"the paper,final_accuracy,a,{value}")
    (found,) = beside(by_policy(RUNS, ("final_accuracy",)), path).to_dict("records")
    half = stats.t.ppf(0.975, 2) * 0.01 * np.sqrt(1 + 1 / 3)
    assert (found["low"], found["high"]) == pytest.approx((0.81 - half, 0.81 + half))
    assert (found["reproduced"], found["gap"]) == (reproduced, pytest.approx(value - 0.81))


def test_seconds_of_another_machine_are_not_held_against_ours(reference):
    path = reference("the paper,seconds,a,5")
    table = beside(by_policy(RUNS.assign(seconds=RUNS.seed / 2), ("seconds",)), path)
    assert table[["low", "reproduced"]].isna().all(axis=None)
    assert table.value[0] == 1


def test_the_pooled_deviation_is_that_of_the_arms_that_were_named(reference):
    path = reference("the paper,final_accuracy,a,0.84", "the paper,final_accuracy,c,0.6")
    table = beside(by_policy(RUNS, ("final_accuracy",)), path, RUNS, ["a", "b"]).set_index("policy")
    half = stats.t.ppf(0.975, 4) * 0.01 * np.sqrt(1 + 1 / 3)
    assert (table.pooled_low["a"], table.pooled_high["a"]) == pytest.approx((0.81 - half, 0.81 + half))
    assert (table.pooled_reproduced["a"], table.reproduced["a"]) == ("yes", "yes")
    assert np.isnan(table.pooled_low["c"])
    readable_beside(table.reset_index())


def test_differences_between_rows_of_others_are_held_against_two_further_runs(reference):
    path = reference("the paper (1),final_accuracy,a,0.9", "the paper (2),best_accuracy,b,0.7", "x,final_accuracy,c,1")
    table = differences_beside(path, RUNS, [("a", "b"), ("a", "c")], ["a", "b"])
    (found,) = table.to_dict("records")
    assert (found["policy"], found["source"], found["published"]) == ("a - b", "the paper", pytest.approx(0.2))
    half = stats.t.ppf(0.975, 4) * 0.01 * np.sqrt(2 * (1 + 1 / 3))
    assert (found["single_low"], found["single_high"]) == pytest.approx((0.1 - half, 0.1 + half))
    assert (found["reproduced"], found["method"]) == ("no", "pooled")
    assert readable_beside(table)["two further runs of ours [95 %]"][0].startswith("[")


@pytest.mark.parametrize("rows", [[], ["the paper,final_accuracy,decay,0.8"]])
def test_a_reference_to_nothing_of_ours(reference, rows):
    table = readable_beside(beside(by_policy(RUNS, ("final_accuracy",)), reference(*rows)))
    assert (table["this study"] == "-").all()
    assert len(table) == len(rows)


def test_nothing_published_and_itself(tmp_path):
    ours = results(tmp_path / "a", OURS)
    assert set(compare(ours, tmp_path / "none").verdict) == {"not published"}
    assert set(compare(ours, ours).verdict) == {"itself"}
    assert set(readable(compare(ours, tmp_path / "none")).published) == {"-"}


@every(
    ("arguments", "text"),
    [
        (("final_accuracy", 0.7512, 0.74, 0.7625), "75.12 % [74.00, 76.25]"),
        (("final_accuracy_difference", 0.0123, -0.01, 0.03), "+1.23 points [-1.00, +3.00]"),
        (("crossing_iteration", 20000.0, 18000.0, float("inf")), "20,000 [18,000, more]"),
        (("crossing_iteration", float("nan"), 18000.0, float("inf")), "never [18,000, more]"),
        (("crossing_ratio", 3.5), "3.50"),
        (("base_lr", 0.0025, 0.002, 0.003), "0.00250 [0.00200, 0.00300]"),
        (("best_lr", 3.2e-5, 4e-6, 0.001), "3.20e-05 [4.00e-06, 0.00100]"),
        (("final_accuracy", 0.9615, 0.9615, 0.9615), "96.15 % (all runs equal)"),
        (("final_accuracy_difference", 0.0, -1e-17, 1e-17), "+0.00 points (all runs equal)"),
        (("base_lr", 0.0197125, 0.0197125, 0.0197125), "0.0197 (one of the rates tried)"),
        (("base_lr", 0.0197125, 0.0197125, 0.0197125, "interval"), "(one of the rates tried)"),
        (("crossing_iteration", 400.0, 400.0, 400.0), "400 [400, 400]"),
        (("final_accuracy", 0.75, 0.74, 0.76, "value"), "75.00 %"),
        (("final_accuracy", 0.75, 0.74, 0.76, "interval"), "[74.00, 76.00] %"),
        (("final_accuracy_difference", 0.01, -0.02, 0.03, "low"), "-2.00 points"),
        (("final_accuracy_difference", 0.01, -0.02, 0.03, "high"), "+3.00 points"),
    ],
)
def test_numbers_as_printed(arguments, text):
    assert show(*arguments) == text


def test_a_table_for_the_eye_is_latex_that_can_be_set():
    """What LaTeX takes for a comment or an index is escaped."""
    text = latex(readable(pd.DataFrame([row("final_accuracy", "mean_rate", 0.75, 0.0008)], columns=COLUMNS)))
    assert r"value [95 \% interval]" in text
    assert r"mean\_rate" in text
    assert not re.search(r"(?<!\\)[%_]", text)
