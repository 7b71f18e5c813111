"""Workers that die, again and again or before they have begun: others take their place, or the study ends in a line."""

import os
import signal
import subprocess
import sys
from multiprocessing import forkserver

import pytest
from distributed import Client
from small_study import ROOT, until
from toys import FIXED, TRIANGULAR, small

from modules.checks import RunError, enough_files
from modules.runs import parallel
from modules.runs.parallel import run_all
from modules.runs.progress import Progress

#: A network that ends the worker it is trained in.
DEADLY = """
import multiprocessing, os, signal
from torch import nn


class Deadly(nn.Sequential):
    def forward(self, x):
        if multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def network(channels, size, classes):
    return Deadly(nn.Flatten(), nn.Linear(channels * size * size, classes))
"""


@pytest.fixture
def deadly(tmp_path):
    (tmp_path / "net.py").write_text(DEADLY)
    return small(TRIANGULAR, model=f"{tmp_path}/net.py:network")


@pytest.mark.ci
def test_a_run_that_kills_its_worker_is_set_aside_and_the_others_go_on(tmp_path, deadly):
    others = [small(FIXED, seed) for seed in (1, 2)]
    with pytest.raises(RunError, match="^triangular-seed1 ended the worker process 3 times in a row") as error:
        run_all([deadly, *others], tmp_path / "results", workers=2)
    assert "\n" not in str(error.value)
    assert sorted(path.stem for path in (tmp_path / "results").glob("*.csv")) == ["fixed-seed1", "fixed-seed2"]


@pytest.mark.parametrize(
    ("came_to", "gave_up"),
    [([0, 0, 0], [False, False, True]), ([90, 95, 99], [False, False, True]), ([0, 0, 100, 150, 300], [False] * 5)],
    ids=["at once", "at the same evaluation", "with progress in between"],
)
def test_only_deaths_without_progress_in_between_are_counted(came_to, gave_up):
    spec = small(evaluate_every=100, iterations=1000)
    progress, kills = Progress([spec], {spec.name: 0}), {}
    found = []
    for iteration in came_to:
        progress.at[spec.name] = iteration
        found.append(parallel._gave_up(kills, [spec], progress))
    assert found == gave_up


def test_a_worker_that_dask_gave_up_is_replaced():
    with parallel._local_cluster(1) as started, Client(started.scheduler_address) as client:
        client.wait_for_workers(1, timeout=60)
        (before,) = client.scheduler_info()["workers"]
        until(lambda: 0 in started.workers, 60)  # which knows of it a moment after the scheduler
        started.sync(started.workers[0].close)
        until(lambda: client.scheduler_info()["workers"].keys() - {before}, 60)


@pytest.mark.ci
@pytest.mark.skipif(not parallel.FORKED, reason="there is no such process here")
def test_killed_fork_server_is_started_again():
    with parallel.cluster(0) as client:
        parallel._prepare_workers()
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)  # while it loads torch, or later
    with parallel.cluster(1) as client:
        client.wait_for_workers(1, timeout=60)


def test_no_worker_for_a_minute_ends_the_study_and_says_why(tmp_path, monkeypatch):
    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parallel, "PATIENCE", 3)
    monkeypatch.setattr(parallel, "_prepare_workers", full)
    with pytest.raises(RunError, match=r"^no worker process for 3 seconds \(.*No space left on device\): the same"):
        run_all([small()], tmp_path)


def test_scheduler_without_workers_ends_the_study_and_names_it(tmp_path, monkeypatch):
    from distributed import LocalCluster

    monkeypatch.setattr(parallel, "PATIENCE_ELSEWHERE", 3)
    with LocalCluster(n_workers=0, dashboard_address=None, host="127.0.0.1") as nobody:
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", nobody.scheduler_address)
        with pytest.raises(RunError, match=f"^no worker process at {nobody.scheduler_address} for 3 seconds"):
            run_all([small()], tmp_path)


@pytest.mark.ci
def test_a_temporary_folder_too_deep_for_a_socket_is_no_hindrance(tmp_path):
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    code = (
        "from modules.runs.parallel import cluster\nwith cluster(1) as client: client.wait_for_workers(1, timeout=60)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "TMPDIR": str(deep)}, check=True)


def test_no_more_workers_are_started_than_the_cores_can_use(tmp_path, monkeypatch):
    asked = []

    def cluster(*wanted):
        asked.append(wanted)
        raise KeyboardInterrupt

    monkeypatch.setattr("dask.system.CPU_COUNT", 2)
    monkeypatch.setattr(parallel, "cluster", cluster)
    with pytest.raises(KeyboardInterrupt):
        run_all([small(seed=seed) for seed in range(1, 9)], tmp_path, workers=300)
    assert asked == [(4, 4)]


@pytest.mark.ci
def test_too_few_open_files_are_named_before_any_work(tmp_path):
    command = f'ulimit -n 64; "{sys.executable}" -m modules reproduce --study smoke --results "{tmp_path / "results"}"'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: this shell allows 64 open files (ulimit -n): at least 256 are needed\n"
    assert not (tmp_path / "results").exists()


def test_a_soft_limit_of_open_files_is_raised():
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, before[1]))
    try:
        enough_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 128
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
