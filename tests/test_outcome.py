"""The last lines of a study: what it found, in words; one row a table; what is not as published."""

import shutil

import pandas as pd

from modules.report import tables
from modules.report.comparison import TABLES, compare
from modules.report.outcome import SAID, report, sentences
from modules.study.parameters import PUBLISHED


def copied(tmp_path):
    ours = tmp_path / "digits"
    shutil.copytree(PUBLISHED / "digits", ours, ignore=shutil.ignore_patterns("notebooks", "figures"))
    return ours


def test_a_study_that_came_out_says_so_in_a_few_lines(tmp_path):
    ours = copied(tmp_path)
    comparison = compare(ours, PUBLISHED / "digits")
    lines = report(comparison, ours, PUBLISHED / "digits").splitlines()
    assert lines[0] == "Result"
    assert f"{len(comparison)} of {len(comparison)} numbers as published in" in lines[-1]
    assert len(lines) < 20
    assert max(map(len, lines)) <= 130


def test_sentences_take_their_numbers_from_the_tables(tmp_path):
    ours = copied(tmp_path)
    path = ours / "tables" / "policies.csv"
    table = pd.read_csv(path)
    first = table.quantity == "final_accuracy_difference"
    for low, high, said in ((-0.01, 0.03, ": no difference is seen."), (0.01, 0.03, ".")):
        table.loc[first, ["value", "low", "high"]] = [0.02, low, high]
        table.to_csv(path, index=False)
        shown = f"{100 * low:+.2f}, {100 * high:+.2f}"
        assert f"triangular less mean_rate is +2.00 points [{shown}] at the end (policies){said}" in sentences(ours)
    assert 3 <= len(sentences(ours)) <= 5


def test_every_table_that_a_study_is_judged_by_has_a_sentence():
    assert {name for name, table in TABLES.items() if table.always and table.compared} <= set(SAID) <= TABLES.keys()


def test_a_registered_tournaments_verdicts_are_said(tmp_path):
    (tmp_path / "tables").mkdir()
    rows = {"cycle - linear": "D2: not needed", "cycle - constant": "", "cycle_drop - constant_drop": "D1: not needed"}
    rows["cycle - constant_drop 40"] = "A1: harms; collapsed: 1 of 8 (at most 47 %)"
    table = tables.table_of(
        {"quantity": f"{'registered' if note else 'described'}_difference", "policy": policy, "value": 0, "note": note}
        for policy, note in rows.items()
    )
    together = {"quantity": "share", "policy": "cycle any time", "note": "not shown to be a good any-time schedule"}
    table = pd.concat([table, tables.table_of([together])])
    tables.write(table, tmp_path / "tables" / "tournament_2.csv")
    assert sentences(tmp_path) == [
        "By the registered rule: D2, D1 not needed; A1 harms.",
        "CLR is not shown to be a good any-time schedule.",
    ]


def test_only_what_is_not_as_published_is_named(tmp_path):
    ours = copied(tmp_path)
    path = ours / "tables" / "policies.csv"
    table = pd.read_csv(path)
    table.loc[(table.quantity == "final_accuracy") & (table.policy == "linear"), "value"] = 0.5
    table.to_csv(path, index=False)
    comparison = compare(ours, PUBLISHED / "digits")
    lines = report(comparison, ours, PUBLISHED / "digits").splitlines()
    assert f"{len(comparison) - 1} of {len(comparison)} numbers as published in" in "\n".join(lines)
    assert [line.split()[:2] for line in lines if line.endswith("differs")] == [["final_accuracy", "linear"]]


def test_nothing_to_compare_with_is_one_line(tmp_path):
    ours = copied(tmp_path)
    said = report(compare(ours, tmp_path / "none"), ours, tmp_path / "none")
    assert said.splitlines()[-1].startswith("Nothing to compare with in ")
    assert report(compare(tmp_path, tmp_path / "none"), tmp_path, tmp_path / "none") == ""
