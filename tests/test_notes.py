"""Numbers that texts quote: every function against numbers worked out by hand, and the published ones found again."""

import shutil
from contextlib import nullcontext

import nbformat
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from toys import FIXED, a_record, every, small

from modules.report import notes, quoted
from modules.report.formatting import known
from modules.report.notes import Experiment, Theirs
from modules.report.tables import table_of
from modules.runs.files import RunFiles
from modules.study import publishing
from modules.study.design import StudyError
from modules.study.parameters import PUBLISHED, read_study

CURVES = {
    "slow": [[0.10, 0.20, 0.30, 0.40], [0.14, 0.22, 0.36, 0.44], [0.12, 0.27, 0.30, 0.48]],
    "fast": [[0.20, 0.36, 0.50, 0.54], [0.22, 0.40, 0.54, 0.60], [0.27, 0.41, 0.52, 0.63]],
    "third": [[0.15, 0.25, 0.40, 0.50], [0.15, 0.29, 0.40, 0.52], [0.15, 0.27, 0.40, 0.57]],
}
CYCLE = {"name": "triangular", "base_lr": 0.002, "max_lr": 0.004, "step_size": 5}
END = {arm: np.array(runs)[:, -1] for arm, runs in CURVES.items()}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder with three arms of three runs, evaluated at 5, 10, 15 and 20."""
    folder = tmp_path_factory.mktemp("results")
    for arm, runs in CURVES.items():
        for seed, values in enumerate(runs, 1):
            run = small(CYCLE if arm == "fast" else FIXED, variant=arm, seed=seed, iterations=20, evaluate_every=5)
            rows = [(5 * index, 0.1, 1.0, 1.0, value) for index, value in enumerate(values, 1)]
            RunFiles(folder / "headline", run.name).finish(rows, a_record(run, seconds=1800.0))
    others = [("slow", run, 20, value) for run, value in enumerate((0.5, 0.52, 0.54), 1)]
    pd.DataFrame(others, columns=["policy", "run", "iteration", "val_acc"]).to_csv(folder / "others.csv", index=False)
    return folder


@pytest.fixture
def arms(results):
    """The three arms, by name."""
    found = Experiment(results / "headline").arms("slow", "fast", "third")
    return {arm.name: arm for arm in found}


@pytest.mark.parametrize(
    ("taken", "values"),
    [
        (lambda arm: arm, END["slow"]),
        (lambda arm: arm.at_best(), END["slow"]),
        (lambda arm: arm.at(10), [0.20, 0.22, 0.27]),
        (lambda arm: arm.at(5, 15), [0.20, 0.25, 0.21]),
        (lambda arm: arm.last(2), [0.35, 0.40, 0.39]),
    ],
    ids=["end", "best", "one", "two", "last"],
)
def test_an_accuracy_is_taken_where_it_is_asked_for(arms, taken, values):
    row = notes.accuracy("x", taken(arms["slow"]))
    assert (row["value"], row["error"]) == pytest.approx((np.mean(values), stats.sem(values)))
    assert (row["method"], row["runs"]) == ("Student", 3)


def test_differences_by_each_method(arms):
    slow, fast, third = (arms[name] for name in ("slow", "fast", "third"))
    found = notes.difference("x", fast, slow)
    expected = stats.ttest_ind(END["fast"], END["slow"], equal_var=False).confidence_interval()
    assert (found["low"], found["high"]) == pytest.approx(tuple(expected))
    pairs = notes.difference("x", fast.at(20), fast.at(15), "pairs")
    assert pairs["value"] == pytest.approx(np.mean([0.04, 0.06, 0.11]))
    assert pairs["df"] == 2
    several = notes.difference_from_mean("x", fast, [slow, third], pooled=[slow, fast, third])
    sd = np.sqrt(np.mean([np.var(end, ddof=1) for end in END.values()]))
    assert several["value"] == pytest.approx(END["fast"].mean() - (END["slow"].mean() + END["third"].mean()) / 2)
    assert (several["error"], several["df"]) == (pytest.approx(sd * np.sqrt(1 / 3 + 1 / 6)), 6)


def test_runs_of_others_are_an_arm_like_any(results, arms):
    (theirs,) = Theirs(results / "others.csv").arms("slow")
    assert notes.difference("x", arms["slow"], theirs)["value"] == pytest.approx(0.44 - 0.52)


@every(
    ("find", "value"),
    [
        (lambda slow, fast, third: notes.lowest_run("x", slow.at(5)), 0.10),
        (lambda slow, fast, third: notes.prediction("x", slow), 0.44),
        (lambda slow, fast, third: notes.deviation("x", slow.last(2)), np.sqrt((0.0012 + 0.0016) / 2)),
        (lambda slow, fast, third: notes.reaches("x", fast, lambda: 0.5), 15),
        (lambda slow, fast, third: notes.best_mean("x", slow, until=10), 0.23),
        (lambda slow, fast, third: notes.best_mean_at("x", slow), 20),
        (lambda slow, fast, third: notes.crossing("x", fast, slow), 15),
        (lambda slow, fast, third: notes.factor("x", fast, slow, 0.3), 1.5),
        (lambda slow, fast, third: notes.factor_counting("x", fast, slow, slow.experiment, 2), 20 / (15 + 40)),
        (lambda slow, fast, third: notes.ratio("x", fast, "mean", slow, "lr"), 0.003 / FIXED["lr"]),
        (lambda slow, fast, third: notes.falls("x", slow), 0),
        (lambda slow, fast, third: notes.roughness("x", third, first=10, last=10), np.mean([0.025, 0.015, 0.005])),
        (lambda slow, fast, third: notes.hours("x", [slow.experiment], workers=2), 9 / 4),
        (lambda slow, fast, third: notes.minutes("x", [slow.experiment]), 270),
        (lambda slow, fast, third: notes.epochs("x", slow.experiment, sum), 9 * 20 * small(FIXED).batch_size / 1000),
        (lambda slow, fast, third: notes.epochs("x", slow.experiment, max), 20 * small(FIXED).batch_size / 1000),
    ],
)
def test_the_value_of_each_function(arms, find, value):
    assert find(**arms)["value"] == pytest.approx(value)


def test_a_published_number_is_read_where_it_stands(tmp_path, arms):
    file = tmp_path / "theirs.csv"
    file.write_text("source,quantity,policy,value\nthe paper,final_accuracy,slow,0.5\nthe paper,seconds,slow,9\n")
    found = notes.theirs_less_ours("x", arms["slow"], file, "the paper")
    assert (found["value"], found["note"]) == (pytest.approx(0.06), "the paper")
    row = notes.theirs_less_ours("x", arms["slow"], file, "someone")
    assert "has no one accuracy of slow from someone" in row["note"]


def test_what_these_runs_do_not_say_has_no_value_and_says_why(results, arms):
    (none,) = Experiment(results / "headline").arms("none")
    (other,) = Experiment(results / "other").arms("slow")
    for arm, why in (
        (arms["slow"].at(7), "not evaluated at 7"),
        (none, "no run with the policy 'none'"),
        (other, "no complete run in other"),
    ):
        row = notes.accuracy("x", arm)
        assert "value" not in row
        assert why in row["note"]


#: Which published results a study's numbers are of.
STUDIES = {
    "digits": "digits",
    "caffe-quick": "cifar10-quick",
    "fashion-mnist": "fashion-mnist",
    "mnist": "mnist",
    "cifar10": "cifar10",
    "headline-controls": "headline-controls",
    "policies": "cifar10-jpeg",
    "wide-resnet": "cifar10-jpeg",
    "sigmoid": "sigmoid",
    "sigmoid-short": "sigmoid-short",
}


def test_published_numbers_are_found_again_in_the_published_runs():
    asked = {
        (name, PUBLISHED / published)
        for study, published in STUDIES.items()
        for values in read_study(study)["notebooks"].values()
        if (name := values.get("quoted"))
    }
    assert {name for name, _ in asked} | {"smoke_headline"} == set(quoted.QUOTED)
    for name, folder in asked:
        for experiment, rows in quoted.QUOTED[name](folder).items():
            found = table_of(rows)
            assert found.policy.is_unique
            assert found.policy.str.fullmatch(r"[\w .-]+").all()  # or no marker could name them
            for quantity in found.quantity:
                known(quantity)
            there = pd.read_csv(folder / "tables" / f"{experiment}_notes.csv")
            both = found.merge(there, on=["quantity", "policy"], suffixes=("", "_there"))
            assert len(both) == len(found), experiment
            for column in ("value", "low", "high", "runs"):
                np.testing.assert_allclose(
                    both[column].astype(float), both[f"{column}_there"].astype(float), rtol=1e-9, err_msg=experiment
                )


@every("name", quoted.QUOTED)
def test_what_is_not_in_a_folder_is_said_alike_wherever_it_lies(tmp_path, name):
    found = []
    for folder in (tmp_path / "here" / "mine", tmp_path / "else" / "where" / "mine"):
        quoted.write_quoted(name, folder)
        found.append({path.name: path.read_bytes() for path in (folder / "tables").iterdir()})
    assert found[0] == found[1]


def test_numbers_beside_another_study_are_found_again_before_they_are_published(tmp_path, monkeypatch):
    """Whatever the study is called: `cifar10-quick` beside `cifar10`."""
    mine = tmp_path / "results" / "mine-quick"
    (mine / "notebooks").mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(), mine / "notebooks" / "05_policies.ipynb")
    for experiment in ("policies", "policies_range_test"):
        shutil.copytree(PUBLISHED / "cifar10-quick" / experiment, mine / experiment)
    (mine.parent / "mine").symlink_to((PUBLISHED / "cifar10").resolve())
    table = quoted.write_quoted("caffe_quick", mine)
    assert table.value.notna().all()
    monkeypatch.setattr(publishing, "one_kernel", nullcontext)
    monkeypatch.setattr(
        publishing, "execute", lambda name, plan, results, kernel: quoted.write_quoted("caffe_quick", results)
    )
    publishing._check_tables(mine, None)
    (mine / "tables" / "policies_notes.csv").write_text("quantity,policy,value\n")
    with pytest.raises(StudyError, match="policies_notes.csv is not what its runs give"):
        publishing._check_tables(mine, None)


def test_rows_are_written_by_experiment(results):
    assert quoted.write_quoted(None, results) is None
    written = quoted.write_quoted("smoke_headline", results)
    table = pd.read_csv(results / "tables" / "headline_notes.csv")
    assert table.policy.tolist() == written.policy.tolist() == ["clr at the end", "clr - fixed", "lost"]
    assert table.value.isna().all()  # there are other arms here
