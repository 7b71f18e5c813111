"""A run's files: whole or not at all, checked by their checksums, one writer at a time."""

import json
import multiprocessing
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import FIXED, ROWS, a_record, edited, small

from modules.checks import RunError
from modules.report.tables import read_runs
from modules.runs.files import RunFiles, atomic_write, checksums, complete_runs, experiments, pack_runs, sweep, writing
from modules.runs.spec import Spec


@pytest.fixture
def complete(tmp_path):
    """The files of a complete run."""
    files = RunFiles(tmp_path, small().name)
    files.finish(ROWS, a_record())
    return files


def test_complete_run_is_checked_never_overwritten(complete):
    complete.check(small(), "same")
    before = complete.csv.read_bytes()
    with pytest.raises(RunError, match="momentum: 0.9, not 0.5"):
        complete.check(small(momentum=0.5), "same")
    with pytest.raises(RunError, match="fingerprint same, not def"):
        complete.check(small(), "def")
    assert complete.csv.read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda files: edited(files.csv, "0.625", "0.825"), "triangular-seed1.csv is not as the run wrote it"),
        (lambda files: files.csv.write_bytes(files.csv.read_bytes()[:-20]), "triangular-seed1.csv is not as"),
        (lambda files: files.csv.write_text(""), "triangular-seed1.csv is not as"),
        (lambda files: edited(files.json, '"momentum": 0.9', '"momentum": 0.5'), "triangular-seed1.json is not as"),
        (lambda files: files.json.write_bytes(files.json.read_bytes()[:100]), "no readable triangular-seed1.json"),
        (lambda files: files.json.write_text("[]"), "no readable triangular-seed1.json"),
        (lambda files: edited(files.json, "sha256", "sha"), "no readable triangular-seed1.json"),
        (lambda files: files.json.unlink(), "no readable triangular-seed1.json"),
    ],
)
def test_edited_and_damaged_results_are_named(complete, damage, message):
    damage(complete)
    for look in (complete.read, lambda: complete.check(small(), "same")):
        with pytest.raises(RunError, match=message):
            look()


def paths(nested, before=()):
    """Where the entries of a record are, at any depth."""
    for key, value in nested.items():
        yield (*before, key)
        if isinstance(value, dict):
            yield from paths(value, (*before, key))


def around(record, path):
    """The part of a record in which an entry is."""
    for key in path[:-1]:
        record = record[key]
    return record


def refusal(read, *arguments):
    """What is said when something is refused; None when it is not."""
    try:
        read(*arguments)
    except ValueError as error:
        return str(error)


FIXED_FIELDS = type(small(FIXED).policy).model_fields
#: What older records lack, and settings that have a default.
OPTIONAL = {("data", "validation"), ("versions", "python"), ("test",)}
OPTIONAL |= {("spec", name) for name, field in Spec.model_fields.items() if not field.is_required()}
OPTIONAL |= {("spec", "policy", name) for name in FIXED_FIELDS if name != "name"}


def test_a_record_without_an_entry_is_refused_in_one_line_that_names_it(tmp_path):
    whole = json.dumps(a_record(small(FIXED), test={"loss": 1.0, "accuracy": 0.5}))
    files, said = RunFiles(tmp_path, "fixed-seed1"), {}
    for path in paths(json.loads(whole)):
        record = json.loads(whole)
        del around(record, path)[path[-1]]
        files.finish(ROWS, record)
        said[path] = refusal(files.read)
    assert {path for path, message in said.items() if message is None} == OPTIONAL
    said.pop(("spec", "policy", "name"))  # it is called an unknown policy
    refused = {path: message for path, message in said.items() if message is not None}
    assert {
        path: message for path, message in refused.items() if message != f"{files.csv}: {path[-1]} is missing"
    } == {}


WRONG = st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["", "x", "nan", -0.5, 5.0]) | st.just([])


@given(st.data())
def test_whatever_stands_in_a_record_is_read_or_refused_in_one_line(tmp_path_factory, data):
    record = a_record(small(FIXED), test={"loss": 1.0, "accuracy": 0.5}, ema={"test": {"loss": 1.0, "accuracy": 0.5}})
    path = data.draw(st.sampled_from(list(paths(record))))
    around(record, path)[path[-1]] = data.draw(WRONG | st.dictionaries(st.sampled_from(["name", "x"]), WRONG))
    files = RunFiles(tmp_path_factory.mktemp("runs"), "fixed-seed1")
    files.finish(ROWS, record)
    if said := refusal(read_runs, files.folder):
        assert "\n" not in said
        assert len(said) < 1000
    else:
        assert read_runs(files.folder).test_acc.dropna().between(0, 1).all()


def test_a_row_that_no_run_writes_is_named(tmp_path):
    files, said = RunFiles(tmp_path, small().name), {}
    for row in (
        *("6,0.1,2.0,2.0,5.0", "6,0.1,2.0,2.0,-0.1", "6,0.1,2.0,2.0,nan", "6,0.1,inf,2.0,0.5", "6,-0.1,2.0,2.0,0.5"),
        *("6,nan,2.0,2.0,0.5", "6,0.1,2.0,2.0", "6,0.1,2.0,2.0,0.5,1", "6.5,0.1,2.0,2.0,0.5", "0,0.1,2.0,2.0,0.5", "a"),
    ):
        files.finish([row.split(",")], a_record())
        said[row] = refusal(files.read)
    assert said == {row: f"{files.csv}: no run writes the row '{row}'" for row in said}
    files.finish([ROWS[1], ROWS[0]], a_record())
    assert refusal(files.read).endswith("no run writes the row '6,0.1,2.0,2.0,0.5'")


def test_checksums_are_compared_by_name(complete):
    """Whatever the order in which the JSON has them."""
    record = json.loads(complete.json.read_text())
    record["sha256"] = dict(reversed(record["sha256"].items()))
    complete.json.write_text(json.dumps(record))
    assert complete.read()[0] == complete.csv.read_text()


def test_complete_runs_are_listed_by_experiment_and_by_policy(tmp_path):
    assert complete_runs(tmp_path / "results" / "headline") == experiments(tmp_path / "results") == []
    assert not (tmp_path / "results").exists()
    folder = tmp_path / "results" / "headline"
    for name in ("fixed-seed2", "fixed-seed1", "triangular-seed1"):
        files = RunFiles(folder, name)
        files.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        files.finish(ROWS, a_record())
    RunFiles(tmp_path / "results" / "range_test", "range_test-seed1").checkpoint.parent.mkdir(parents=True)
    for _ in range(2):
        assert [run.name for run in complete_runs(folder)] == ["fixed-seed1", "fixed-seed2", "triangular-seed1"]
        assert [run.name for run in complete_runs(folder, "fixed")] == ["fixed-seed1", "fixed-seed2"]
        assert experiments(tmp_path / "results") == ["headline"]
        pack_runs(folder)


def test_what_is_read_is_what_was_written(complete):
    table, record = complete.read()
    assert table == "iteration,lr,train_loss,val_loss,val_acc\n6,0.1,2.0,2.0,0.5\n12,0.2,1.5,1.75,0.625\n"
    assert json.loads(complete.json.read_text()) == {**record, "sha256": checksums(table.encode(), record)}


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    atomic_write(path, "old")

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("modules.runs.files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    happened = []
    monkeypatch.setattr("modules.runs.files.os.fsync", lambda number: happened.append("content"))
    monkeypatch.setattr("modules.runs.files.os.replace", lambda *names: happened.append("name"))
    atomic_write(tmp_path / "table.csv", "new")
    assert happened == ["content", "name"]


def test_sweep_deletes_what_a_killed_write_left_and_nothing_else(tmp_path):
    for name in (".a.csv.123.tmp", ".b.csv.123.tmp", "a.csv", "c.tmp"):
        (tmp_path / name).write_text("")
    sweep(tmp_path, "a.csv")
    assert {path.name for path in tmp_path.iterdir()} == {".b.csv.123.tmp", "a.csv", "c.tmp"}


def test_one_writer_a_folder_and_the_second_is_told_who_holds_it(tmp_path):
    folder = tmp_path / "results"
    with (
        writing(folder),
        pytest.raises(RunError, match=rf"being written by another process \(process {os.getpid()}, since \d\d:"),
        writing(folder),
    ):
        pass
    assert not (folder / ".holder").exists()


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file/results cannot be written"), writing(tmp_path / "file" / "results"):
        pass


def _hold(folder, ready, release):
    files = RunFiles(folder, "run")
    with files.training():
        ready.set()
        release.wait(30)
        files.checkpoint.parent.mkdir()
        files.checkpoint.write_text("")
        files.finish(ROWS, a_record())


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready, release))
    process.start()
    assert ready.wait(60)
    files = RunFiles(tmp_path, "run")
    assert not files.complete
    threading.Timer(0.5, release.set).start()
    with files.training():  # waits
        assert files.complete
    process.join()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.csv", "run.json"]
