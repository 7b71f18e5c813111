"""Runs in a pack are the runs that were packed; what is damaged is named, and what is there is never overwritten."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import FIXED, ROWS, a_record, edited, small

from modules.checks import RunError
from modules.report.tables import read_runs
from modules.runs import packed
from modules.runs.files import RunFiles, atomic_write, complete_runs, pack_runs
from modules.runs.parallel import run_all
from modules.runs.training import train

HEADER = "iteration,lr,train_loss,val_loss,val_acc"
#: Few names and values, so that much is common; among the values some that are equal and not the same.
VALUES = st.sampled_from([0, 1, 1.0, True, 0.0, -0.0, float("nan"), None, "a", "\u2028", [], [1], [{"a": 1.0}], {}])
RECORDS = st.recursive(
    st.dictionaries(st.sampled_from("abc"), VALUES),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner | VALUES),
)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_.]{1,3}-seed[0-9]", fullmatch=True),
        st.tuples(st.lists(st.sampled_from(["6,0.1,2.0,2.0,0.5", "12,1e-05,nan,,"]), max_size=3), RECORDS),
        min_size=1,
        max_size=5,
    )
)
def test_what_comes_out_of_a_pack_is_what_went_in(runs):
    runs = {name: ("\n".join([HEADER, *rows]) + "\n", record) for name, (rows, record) in runs.items()}
    pack = packed.Pack(*packed.packed(runs))
    assert pack.names == list(runs)
    for name, (table, record) in runs.items():
        found, again = pack.run(name)
        assert found == table
        assert json.dumps(again, sort_keys=True) == json.dumps(record, sort_keys=True)


def finish(folder, *seeds, rows=ROWS, **more):
    for seed in seeds:
        record = a_record(small(FIXED, seed), **{"seconds": seed, **more})
        RunFiles(folder, f"fixed-seed{seed}").finish(rows, record)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_runs_are_added_to_a_pack(tmp_path):
    finish(tmp_path, 1, 2)
    finish(tmp_path, 3, rows=[])  # diverged before its first evaluation
    whole = read_runs(tmp_path)
    for seed in (1, 3, 2):
        finish(tmp_path / "parts", seed, rows=[] if seed == 3 else ROWS)
        pack_runs(tmp_path / "parts")
        assert set(contents(tmp_path / "parts")) == {"runs.csv", "runs.jsonl"}
    assert read_runs(tmp_path / "parts").equals(whole)
    pack_runs(tmp_path)
    assert read_runs(tmp_path).equals(whole)
    assert [run.place.name for run in complete_runs(tmp_path)] == ["fixed-seed1", "fixed-seed2", "fixed-seed3"]


LAST = "fixed,2,12,0.2,1.5,1.75,0.625\n"
SECOND = '{"run": "fixed-seed2"'


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("runs.csv", LAST, LAST.replace("0.625", "0.99"), "fixed-seed2 is not as the run"),
        ("runs.csv", LAST, "", "fixed-seed2 is not as the run wrote it .*restore .*runs.csv"),
        ("runs.csv", "fixed,2,6", "fixed,4,6", "no run for a row of runs.csv: 'fixed,4,6,0.1"),
        ("runs.jsonl", '"seconds": 2', '"seconds": 20', "fixed-seed2 is not as .* wrote it .*restore .*runs.jsonl"),
        ("runs.jsonl", '"sha256"', '"sha"', "fixed-seed1 has no readable record .KeyError.: restore .*runs.jsonl"),
        ("runs.jsonl", SECOND, '{"run" "fixed-seed2"', "a damaged line in runs.jsonl"),
        ("runs.jsonl", '"runs": 3', '"runs": 4', "runs.jsonl has 3 of 4 runs"),
        ("runs.jsonl", SECOND, '{"run": "fixed-seed1"', "runs.jsonl has 2 of 3 runs"),
        ("runs.jsonl", SECOND, '{"run": "../x/fixed-seed2"', "a damaged line in runs.jsonl .ValueError."),
        ("runs.jsonl", '"common"', '"uncommon"', "a damaged line in runs.jsonl .KeyError."),
    ],
)
def test_damage_to_a_pack_is_named(tmp_path, file, old, new, message):
    finish(tmp_path, 1, 2, 3)
    pack_runs(tmp_path)
    edited(tmp_path / file, old, new)
    with pytest.raises(RunError, match=message):
        read_runs(tmp_path)


def test_half_a_pack_is_no_pack_and_lines_may_end_as_elsewhere(tmp_path):
    finish(tmp_path, 1, 2)
    pack_runs(tmp_path)
    whole, before = read_runs(tmp_path), contents(tmp_path)
    for name, content in before.items():
        (tmp_path / name).write_bytes(content.replace(b"\n", b"\r\n"))
    assert read_runs(tmp_path).equals(whole)
    (tmp_path / "runs.jsonl").unlink()
    with pytest.raises(RunError, match="runs.csv has no runs.jsonl beside it"):
        complete_runs(tmp_path)


def test_packing_changes_nothing_when_a_run_is_damaged_or_is_there_twice(tmp_path):
    finish(tmp_path, 1, 2)
    pack_runs(tmp_path)
    finish(tmp_path, 2, seconds=5)
    before = contents(tmp_path)
    with pytest.raises(RunError, match="fixed-seed2.csv is not the fixed-seed2 of .*runs.csv: take one of them out"):
        pack_runs(tmp_path)
    assert contents(tmp_path) == before
    finish(tmp_path, 2)
    edited(tmp_path / "fixed-seed2.csv", "0.625", "0.99")
    with pytest.raises(RunError, match="fixed-seed2.csv is not as the run wrote it"):
        pack_runs(tmp_path)
    (tmp_path / "fixed-seed2.csv").unlink()
    (tmp_path / "fixed-seed2.json").unlink()
    assert contents(tmp_path) == {name: before[name] for name in ("runs.csv", "runs.jsonl")}


@pytest.mark.parametrize("stop", range(8))
def test_packing_may_stop_anywhere_and_loses_nothing(tmp_path, monkeypatch, stop):
    """Each replacing and each deleting is one step."""
    finish(tmp_path, 1, 2)
    pack_runs(tmp_path)
    finish(tmp_path, 3, 4)
    whole, steps = read_runs(tmp_path), []

    def step(do):
        def counted(*arguments, **options):
            if len(steps) == stop:
                raise KeyboardInterrupt
            steps.append(do)
            return do(*arguments, **options)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr("modules.runs.files.atomic_write", step(atomic_write))
        patch.setattr("modules.runs.files.Path.unlink", step(Path.unlink))
        with pytest.raises(KeyboardInterrupt):
            pack_runs(tmp_path)
    assert read_runs(tmp_path).equals(whole)
    pack_runs(tmp_path)
    assert read_runs(tmp_path).equals(whole)
    assert set(contents(tmp_path)) == {"runs.csv", "runs.jsonl"}


def test_a_packed_run_counts_as_complete_and_is_not_trained_again(tmp_path):
    train(small(FIXED, 1), tmp_path)
    pack_runs(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(RunError, match="fixed-seed1 is a complete run with other settings .momentum: 0.9, not 0.5"):
        train(small(FIXED, 1, momentum=0.5), tmp_path)
    assert [run.complete for run in run_all([small(FIXED, 1)], tmp_path)] == [True]
    assert contents(tmp_path) == before
    train(small(FIXED, 2), tmp_path)
    assert contents(tmp_path).keys() - before.keys() == {"fixed-seed2.csv", "fixed-seed2.json"}
    assert before.items() <= contents(tmp_path).items()
    assert read_runs(tmp_path).seed.unique().tolist() == [1, 2]
