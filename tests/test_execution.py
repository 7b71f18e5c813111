"""Many runs: the same bytes for any number of workers, and no work lost to a dead worker or a killed study."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import FIXED, TRIANGULAR, small

from modules.execution import check_all, run_all
from modules.runs import RunError
from modules.training import train

SPECS = [small(policy, seed) for seed in (1, 2) for policy in (FIXED, TRIANGULAR)]

KILLED_STUDY = """
import sys
from conftest import TRIANGULAR, small
from modules.execution import run_all
if __name__ == "__main__":
    specs = [small(TRIANGULAR, seed, iterations=600, evaluate_every=20) for seed in (1, 2)]
    run_all(specs, sys.argv[1])
"""


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.csv")}


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
    assert "100%" in output.err


def test_complete_runs_start_no_cluster(tmp_path, one_worker, monkeypatch, capsys):
    for name, content in one_worker.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr("modules.files.RunFiles.check", lambda *arguments: None)
    monkeypatch.setattr("modules.execution.cluster", None)
    run_all(SPECS, tmp_path)
    assert "4 runs complete, 0 of them trained now" in capsys.readouterr().out


def test_killed_study_goes_on_and_gives_the_same_bytes(tmp_path):
    """SIGKILL in mid-training; workers must die with it, and a second call must finish from the checkpoints."""
    script, folder = tmp_path / "study.py", tmp_path / "results"
    script.write_text(KILLED_STUDY)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), os.getcwd()])}
    command = [sys.executable, str(script), str(folder)]
    silent = subprocess.DEVNULL
    process = subprocess.Popen(command, env=environment, stdout=silent, stderr=silent)
    deadline = time.monotonic() + 60
    while not list(folder.glob(".partial/*.pt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(folder.glob(".partial/*.pt"))
    assert not contents(folder)
    time.sleep(1)
    specs = [small(TRIANGULAR, seed, iterations=600, evaluate_every=20) for seed in (1, 2)]
    run_all(specs, folder)
    (whole := tmp_path / "whole").mkdir()
    for spec in specs:
        train(spec, whole)
    assert contents(folder) == contents(whole)
    assert not (folder / ".partial").exists()


def test_killed_worker_costs_no_run(tmp_path):
    """SIGKILL one worker process in mid-training; the study must end by itself, complete."""
    import threading

    import psutil

    folder = tmp_path / "results"
    specs = [small(TRIANGULAR, seed, iterations=600, evaluate_every=20) for seed in (1, 2)]
    killed = []

    def kill_one():
        deadline = time.monotonic() + 60
        while not list(folder.glob(".partial/*.pt")) and time.monotonic() < deadline:
            time.sleep(0.05)
        for child in psutil.Process().children(recursive=True):
            if "spawn_main" in " ".join(child.cmdline()):
                child.kill()
                killed.append(child.pid)
                return

    thread = threading.Thread(target=kill_one)
    thread.start()
    files = run_all(specs, folder, workers=2)
    thread.join()
    assert killed
    assert all(file.complete for file in files)


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


def test_damaged_checkpoint_is_said_on_this_terminal(tmp_path, capsys):
    train(small(), tmp_path, stop_after=6)
    (tmp_path / ".partial" / "triangular-seed1.pt").write_bytes(b"")
    run_all([small(seed=2), small()], tmp_path)
    assert "triangular-seed1.pt could not be read" in capsys.readouterr().out
    assert len(contents(tmp_path)) == 2


def test_check_all_changes_nothing(tmp_path):
    check_all(SPECS, tmp_path / "results")
    assert not (tmp_path / "results").exists()
