"""Many runs: the same bytes for any number of workers, checked before anything starts. Kills are in faults/."""

import json
from dataclasses import replace

import pytest
from toys import FIXED, TRIANGULAR, contents, small

from modules.checks import RunError
from modules.data.datasets import load
from modules.runs.parallel import check_all, run_all

SPECS = [small(policy, seed) for seed in (1, 2) for policy in (FIXED, TRIANGULAR)]


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    run_all(SPECS, folder, workers=1)
    return contents(folder)


def test_two_workers_give_the_bytes_of_one(tmp_path, one_worker, capsys):
    files = run_all(SPECS, tmp_path, workers=2)
    assert all(file.complete for file in files)
    assert contents(tmp_path) == one_worker
    output = capsys.readouterr()
    assert "4 runs complete, 4 of them trained now" in output.out
    assert "fixed-seed1: accuracy" in output.out


def test_complete_runs_start_no_cluster(tmp_path, one_worker, monkeypatch, capsys):
    for name, content in one_worker.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr("modules.runs.files.RunFiles.check", lambda *arguments: None)
    monkeypatch.setattr("modules.runs.parallel.cluster", None)
    run_all(SPECS, tmp_path)
    assert "4 runs complete, 0 of them trained now" in capsys.readouterr().out


def test_everything_is_checked_before_anything_is_written(tmp_path):
    folder = tmp_path / "results"
    for specs, workers, message in (
        ([small(), small(batch_size=5000, seed=2)], None, "batch_size=5000"),
        ([small(), small(momentum=0.5)], None, "same name: triangular-seed1"),
        ([small()], 0, "workers=0"),
    ):
        with pytest.raises(RunError, match=message):
            run_all(specs, folder, workers=workers)
    assert not folder.exists()


def test_a_run_of_every_kind_is_checked(tmp_path):
    """With images held out there are fewer to train on: a batch that fits one run need not fit the next."""
    both = [small(batch_size=1200, split="validation", variant="held_out"), small(batch_size=1200)]
    with pytest.raises(RunError, match="batch_size=1200 exceeds the 11.. training images"):
        check_all(both, tmp_path)


def test_a_worker_with_other_data_trains_nothing(tmp_path, monkeypatch):
    """A cluster's machines may have different files under one name; here it is the client that is lied to."""
    other = replace(load("digits"), fingerprint="another")
    monkeypatch.setattr("modules.runs.parallel.load", lambda *arguments: other)
    with pytest.raises(RunError, match="triangular-seed1 failed: digits in .* are other data here than"):
        run_all([small()], tmp_path, workers=1)
    assert not contents(tmp_path)


def test_check_all_changes_nothing(tmp_path):
    check_all(SPECS, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_branches_wait_for_the_run_they_go_on_from(tmp_path):
    together, alone = tmp_path / "together", tmp_path / "alone"
    branches = [small({**TRIANGULAR, "anneal": 0.5}, seed, variant="annealed") for seed in (1, 2)]
    branches += [small(TRIANGULAR, seed, variant="beginning", iterations=12) for seed in (1, 2)]
    run_all([*branches, *SPECS], together, workers=2)
    run_all(branches, alone, workers=2)
    assert contents(alone).items() <= contents(together).items()
    for kind in ("annealed", "beginning"):
        records = [json.loads(path.read_text()) for path in sorted(together.glob(f"{kind}-*.json"))]
        assert [record["forked"]["iteration"] for record in records] == [12, 12]
    assert not (together / ".partial").exists()
