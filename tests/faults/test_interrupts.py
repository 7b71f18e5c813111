"""Ctrl-C in the terminal, the stop button in Jupyter, and two studies on one folder."""

import os
import random
import signal
import time

import pytest
from jupyter_client.manager import start_new_kernel
from run_small import FULL, NETWORK
from small_study import HEADLINE, family, gone, in_full, until, workers

from modules.runs.files import RunFiles, writing
from modules.runs.spec import spec
from modules.runs.training import train
from modules.study import cli

TIMES = 5 if FULL else 1


@pytest.mark.ci
def test_ctrl_c_and_a_closed_terminal_end_everything_and_the_study_goes_on(study, whole):
    small, chance = study(notebooks={"03_headline_experiment": HEADLINE}), random.Random(2)
    for number in range(TIMES):
        small.start()
        if number == 0:
            until(lambda: list(small.results.rglob("*.pt")))
        else:  # make itself says nothing when it is stopped before it has started Python
            until(lambda: len(family(small.process.pid)) > 1)
            time.sleep(chance.uniform(0.5, 20))
        processes = family(small.process.pid)
        os.killpg(small.process.pid, signal.SIGINT)
        assert gone(processes), "processes are left behind"
        _, output = small.finish()
        assert "interrupted: finished runs are kept, the same command goes on with the rest" in output
        assert "Traceback" not in output, output
    small.start()
    until(lambda: len(workers(small.process.pid)) > 1)
    processes = family(small.process.pid)
    os.killpg(small.process.pid, signal.SIGHUP)
    assert gone(processes), "processes are left behind by a closed terminal"
    small.finish()
    if not FULL:
        small.notebooks = None  # how notebooks go on is seen in test_kills
    whole("Ctrl-C in the terminal, then a closed one", TIMES, small, small.run())


CELL = """
from modules.runs.parallel import run_all
from modules.runs.spec import spec
network = {network!r}
policy = dict(name="fixed", milestones=[])
runs = [spec(dataset="digits", policy=policy, iterations=3000, evaluate_every=100, seed=k, **network) for k in (1, 2)]
_ = run_all(runs, {folder!r})
"""


@pytest.mark.ci
def test_stopped_cell_leaves_kernel_alive_and_goes_on(tmp_path, tally):
    manager, client = start_new_kernel(kernel_name="python3", cwd=os.getcwd())
    chance = random.Random(3)
    try:
        cell = CELL.format(network=NETWORK, folder=str(tmp_path / "results"))
        for number in range(TIMES):
            # Otherwise the kernel may, for a moment after its reply, refuse what is sent next as "aborted".
            request = client.execute(cell, stop_on_error=False)
            if number == 0:
                until(lambda: list(tmp_path.rglob("*.pt")))
            else:
                time.sleep(chance.uniform(0.5, 10))
            running = workers(manager.provisioner.pid)
            started = time.monotonic()
            manager.interrupt_kernel()
            while (reply := client.get_shell_msg(timeout=60))["parent_header"]["msg_id"] != request:
                pass  # a kernel that starts slowly is asked several times whether it is there, and answers each time
            assert reply["content"]["ename"] == "KeyboardInterrupt"
            assert time.monotonic() - started < 30
            assert gone(running)
        assert client.execute(cell, reply=True, timeout=300)["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    whole = tmp_path / "whole"
    policy = dict(name="fixed", milestones=())
    runs = [
        spec(dataset="digits", policy=policy, iterations=3000, evaluate_every=100, seed=seed, **NETWORK)
        for seed in (1, 2)
    ]
    expected = {run.name: train(run, whole).read_bytes() for run in runs}
    found = {run.name: RunFiles(tmp_path / "results", run.name).csv.read_bytes() for run in runs}
    tally("stop button in Jupyter", TIMES, found, expected)


@in_full
def test_second_study_on_the_same_folder_says_who_holds_it(study, whole):
    first = study()
    first.start()
    until(lambda: list(first.results.rglob("*.pt")))
    holder, stopped = first.process, family(first.process.pid)
    for process in stopped:  # or it may have ended before the second has begun
        process.suspend()
    status, output = first.start().finish()
    for process in stopped:
        process.resume()
    assert status == 2
    driver = (first.results / "headline" / ".holder").read_text()
    assert f"error: {first.results}/headline is being written by another process ({driver})" in output
    assert driver.split(",")[0] == f"process {holder.pid}"
    first.process = holder
    whole("two studies on one folder", 1, first, first.finish())


def test_second_driver_on_the_same_results_says_who_holds_them(tmp_path, capsys):
    with writing(tmp_path / "results"):
        assert cli.main(["reproduce", "--study", "smoke", "--results", str(tmp_path / "results")]) == 2
    assert f"results is being written by another process (process {os.getpid()}, since" in capsys.readouterr().err
