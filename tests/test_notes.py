"""Notes: every kind against numbers worked out by hand, and what they refuse."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from toys import FIXED, small

from modules.checks import RunError
from modules.report.formatting import known
from modules.report.notes import KINDS, check_notes, notes_table, write_notes
from modules.runs.files import RunFiles

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
    (folder / "headline").mkdir()
    for arm, runs in CURVES.items():
        for seed, values in enumerate(runs, 1):
            run = small(CYCLE if arm == "fast" else FIXED, variant=arm, seed=seed, iterations=20, evaluate_every=5)
            data = {"label": "toy", "fingerprint": "same", "train": 1000}
            record = {
                "spec": run.model_dump(mode="json"),
                "diverged": False,
                "seconds": 1800.0,
                "iterations": 20,
                "data": data,
            }
            rows = [(5 * index, 0.1, 1.0, 1.0, value) for index, value in enumerate(values, 1)]
            RunFiles(folder / "headline", run.name).finish(rows, record)
    others = [("slow", run, 20, value) for run, value in enumerate((0.5, 0.52, 0.54), 1)]
    pd.DataFrame(others, columns=["policy", "run", "iteration", "val_acc"]).to_csv(folder / "others.csv", index=False)
    return folder


def note(results, **entry):
    """The row of one note, checked first."""
    notes = [{"pooled": list(CURVES)}, {"name": "x", **entry}]
    check_notes({"headline": notes})
    (row,) = notes_table(notes, results, "headline").to_dict("records")
    assert row["policy"] == "x"
    known(row["quantity"])
    return row


@pytest.mark.parametrize(
    ("at", "values"),
    [
        ("end", END["slow"]),
        ("best", END["slow"]),
        (10, [0.20, 0.22, 0.27]),
        ([5, 15], [0.20, 0.25, 0.21]),
        ({"last": 2}, [0.35, 0.40, 0.39]),
        ({"first": 5, "last": 15, "every": 10}, [0.20, 0.25, 0.21]),
    ],
)
def test_an_accuracy_is_taken_where_it_is_asked_for(results, at, values):
    row = note(results, kind="accuracy", a="slow", at=at)
    assert (row["value"], row["error"]) == pytest.approx((np.mean(values), stats.sem(values)))
    assert (row["method"], row["runs"]) == ("Student", 3)


def test_differences_by_each_method(results):
    found = note(results, kind="difference", a="fast", b="slow")
    expected = stats.ttest_ind(END["fast"], END["slow"], equal_var=False).confidence_interval()
    assert (found["low"], found["high"]) == pytest.approx(tuple(expected))
    pairs = note(results, kind="difference", method="pairs", a={"arm": "fast", "at": 20}, b={"arm": "fast", "at": 15})
    assert pairs["value"] == pytest.approx(np.mean([0.04, 0.06, 0.11]))
    assert pairs["df"] == 2
    several = note(results, kind="difference", method="pooled", a="fast", b=["slow", "third"])
    sd = np.sqrt(np.mean([np.var(end, ddof=1) for end in END.values()]))
    assert several["value"] == pytest.approx(END["fast"].mean() - (END["slow"].mean() + END["third"].mean()) / 2)
    assert (several["error"], several["df"]) == (pytest.approx(sd * np.sqrt(1 / 3 + 1 / 6)), 6)


def test_runs_of_others_are_an_arm_like_any(results):
    found = note(results, kind="difference", a="slow", b={"arm": "slow", "file": str(results / "others.csv")})
    assert found["value"] == pytest.approx(0.44 - 0.52)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        (dict(kind="least", a="slow", at=5), 0.10),
        (dict(kind="prediction", a="slow"), 0.44),
        (dict(kind="gap", a="slow", published=0.5, source="the paper"), 0.06),
        (dict(kind="sd", a="slow", at={"last": 2}), np.sqrt((0.0012 + 0.0016) / 2)),
        (dict(kind="reached", a="fast", target=0.5), 15),
        (dict(kind="reached", a="fast", target={"arm": "slow"}), 15),
        (dict(kind="reached", a="fast", target={"arm": "slow", "until": 10}), 5),
        (dict(kind="best_mean", a="slow", until=10), 0.23),
        (dict(kind="best_mean_at", a="slow"), 20),
        (dict(kind="crossing", a="fast", b="slow"), 15),
        (dict(kind="factor", a="fast", b="slow", target=0.3), 1.5),
        (dict(kind="factor_counting", a="fast", b="slow", experiment="headline", count=2), 20 / (15 + 40)),
        (dict(kind="ratio", a={"arm": "fast", "rate": "mean"}, b={"arm": "slow", "rate": "lr"}), 0.003 / FIXED["lr"]),
        (dict(kind="falls", a="slow"), 0),
        (dict(kind="roughness", a="third", first=10, last=10), np.mean([0.025, 0.015, 0.005])),
        (dict(kind="hours", experiments=["headline"], workers=2), 9 / 4),
        (dict(kind="minutes", experiments=["headline"]), 270),
        (dict(kind="epochs", experiment="headline", of="all"), 9 * 20 * small(FIXED).batch_size / 1000),
        (dict(kind="epochs", experiment="headline", of="longest"), 20 * small(FIXED).batch_size / 1000),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_the_value_of_each_kind(results, entry, value):
    assert note(results, **entry)["value"] == pytest.approx(value)


def test_a_share_is_that_of_the_resamples(results):
    shares = [note(results, kind="share", a="fast", b="slow", at=at)["value"] for at in (5, 10, 15, 20)]
    assert sum(shares) == pytest.approx(1)
    assert shares[2] > 0.5


def test_what_these_runs_do_not_say_has_no_value_and_says_why(results):
    for entry, why in (
        (dict(kind="accuracy", a="slow", at=7), "not evaluated at 7"),
        (dict(kind="accuracy", a="none"), "no run with the policy 'none'"),
        (dict(kind="accuracy", a={"arm": "slow", "experiment": "other"}), "no complete run in"),
    ):
        row = note(results, **entry)
        assert np.isnan(row["value"])
        assert why in row["note"]


def test_notes_are_written_by_experiment(results):
    write_notes({"headline": [{"name": "end", "kind": "accuracy", "a": "slow", "note": "why"}]}, results)
    table = pd.read_csv(results / "tables" / "headline_notes.csv")
    assert table.policy.tolist() == ["end"]
    assert table.note.tolist() == ["why"]


GOOD = {"name": "x", "kind": "accuracy", "a": "slow"}


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        ([GOOD], "a list of notes under the name of each experiment"),
        ({"headline": GOOD}, "a list of notes under the name of each experiment"),
        ({"headline": ["x"]}, "an entry with a name is needed, not 'x'"),
        ({"headline": [GOOD | {"name": "a: b"}]}, "'a: b': a marker takes letters"),
        ({"headline": [GOOD, GOOD]}, "x stands there twice"),
        ({"headline": [GOOD | {"kind": "acuracy"}]}, "unknown kind 'acuracy', did you mean 'accuracy'"),
        ({"headline": [{"name": "x", "kind": "accuracy"}]}, "a must be given"),
        ({"headline": [GOOD | {"b": "fast"}]}, "has no b"),
        ({"headline": [GOOD | {"kind": "difference", "b": "fast", "method": "t"}]}, "method='t'"),
        ({"headline": [GOOD | {"kind": "difference", "b": "fast", "method": "pooled"}]}, "must name the arms"),
    ],
)
def test_bad_notes_are_named_in_one_line(notes, message):
    with pytest.raises(RunError, match=message) as error:
        check_notes(notes)
    assert "\n" not in str(error.value)


def test_every_kind_is_a_known_quantity():
    for quantity, *_ in KINDS.values():
        known(quantity)
