"""A cluster of separate processes on loopback: its bytes, and the loss of its workers, scheduler and client."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import dask
import psutil
import pytest
from small_study import family, gone, in_full, kill, until
from toys import small

from modules.checks import RunError
from modules.runs.parallel import run_all


class Cluster:
    """`dask scheduler` and `dask worker` processes started by hand.

    Args:
        place: a folder for the scheduler's file.
        protocol: `tcp` or `tls`.
        environment: further environment variables of all processes.
    """

    def __init__(self, place, protocol="tcp", **environment):
        self.file, self.processes, self.environment = place / "scheduler.json", [], environment
        self.scheduler = self.start(
            "scheduler",
            "--port=0",
            f"--protocol={protocol}",
            "--dashboard-address=127.0.0.1:0",
            f"--scheduler-file={self.file}",
        )
        until(lambda: self.scheduler.poll() is not None or self.file.exists())
        until(lambda: self.file.read_text().rstrip().endswith("}"))
        self.address = json.loads(self.file.read_text())["address"]
        self.workers = [self.add(), self.add()]

    def start(self, kind, *options):
        command = [sys.executable, "-m", "distributed.cli.dask_" + kind, "--host=127.0.0.1", *options]
        silent = subprocess.DEVNULL
        environment = {**os.environ, "PYTHONWARNINGS": "ignore", **self.environment}
        process = subprocess.Popen(command, stdout=silent, stderr=silent, env=environment)
        self.processes.append(process)
        return process

    def add(self, threads=1):
        return self.start("worker", self.address, f"--nthreads={threads}")

    def close(self):
        for process in self.processes:
            for one in family(process.pid):
                kill(one)
            process.wait()


@contextmanager
def running(place, *arguments, **environment):
    made = Cluster(place, *arguments, **environment)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def cluster(tmp_path):
    with ExitStack() as stack:
        yield lambda *arguments, **environment: stack.enter_context(running(tmp_path, *arguments, **environment))


@pytest.mark.ci
def test_cluster_gives_the_same_bytes_while_workers_come_and_go(study, cluster, whole):
    small, others = study(), cluster()
    small.start(DASK_SCHEDULER_ADDRESS=others.address)
    until(lambda: list(small.results.rglob("*.pt")))
    for process in family(others.workers[0].pid):
        kill(process)
    others.add()
    whole("worker of a cluster killed, another joins", 1, small, small.finish())


@pytest.mark.ci
def test_killed_scheduler_is_said_and_the_study_goes_on(study, cluster, whole):
    small, others = study(), cluster()
    small.start(DASK_SCHEDULER_ADDRESS=others.address)
    until(lambda: list(small.results.rglob("*.pt")))
    others.scheduler.kill()
    status, output = small.finish()
    assert status == 2
    assert "the connection to the scheduler was lost: the same command goes on" in output
    assert "Traceback" not in output
    whole("scheduler of a cluster killed", 1, small, small.run())


@in_full
def test_killed_client_frees_the_cluster_for_the_next(study, cluster, whole):
    small, others = study(), cluster()
    small.start(DASK_SCHEDULER_ADDRESS=others.address)
    until(lambda: list(small.results.rglob("*.pt")))
    assert gone(small.kill())
    until(lambda: not list(small.results.rglob(".*-seed*.lock")), 30)
    assert len(small.csvs("headline")) < 4
    whole("client of a cluster killed", 1, small, small.run(DASK_SCHEDULER_ADDRESS=others.address))
    assert all(psutil.Process(worker.pid).is_running() for worker in others.workers)


@in_full
def test_worker_with_two_threads_is_refused(study, cluster):
    small, others = study(), cluster()
    for worker in others.workers:
        for process in family(worker.pid):
            kill(process)
    others.add(threads=2)
    status, output = small.run(DASK_SCHEDULER_ADDRESS=others.address)
    assert status == 2
    assert "start workers with --nthreads 1" in output
    assert small.csvs("headline") == {}


def test_nobody_at_the_address(tmp_path, monkeypatch):
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://127.0.0.1:9")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(RunError, match="no scheduler answers at DASK_SCHEDULER_ADDRESS=tcp://127.0.0.1:9"),
    ):
        run_all([small()], tmp_path)


@in_full
def test_cluster_that_demands_certificates(study, cluster, whole, tmp_path):
    """As README says to set it up; without the certificate nobody gets in."""
    if not shutil.which("openssl"):
        pytest.skip("openssl, which README's command needs, is not installed")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=clr -keyout key.pem -out cert.pem"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    tls = {"DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "true"}
    tls["DASK_DISTRIBUTED__COMM__TLS__CA_FILE"] = str(tmp_path / "cert.pem")
    for side in ("SCHEDULER", "WORKER", "CLIENT"):
        tls[f"DASK_DISTRIBUTED__COMM__TLS__{side}__KEY"] = str(tmp_path / "key.pem")
        tls[f"DASK_DISTRIBUTED__COMM__TLS__{side}__CERT"] = str(tmp_path / "cert.pem")
    small, others = study(), cluster("tls", **tls)
    assert others.address.startswith("tls://")
    impatient = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "3s"}
    for address in (others.address, others.address.replace("tls", "tcp")):
        status, output = small.run(DASK_SCHEDULER_ADDRESS=address, **impatient)
        assert status == 2
        assert "no scheduler answers" in output
    whole("cluster that demands certificates", 1, small, small.run(DASK_SCHEDULER_ADDRESS=others.address, **tls))
