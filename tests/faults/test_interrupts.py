"""Ctrl-C in the terminal, the stop button in Jupyter, and two studies on one folder."""

import os
import random
import signal
import time

import psutil
from jupyter_client.manager import start_new_kernel
from small_study import FULL, HEADLINE, NETWORK, family, gone, until

from modules.runs.files import RunFiles
from modules.runs.spec import spec
from modules.runs.training import train

TIMES = 5 if FULL else 1


def test_ctrl_c_ends_everything_and_the_study_goes_on(study, uninterrupted, tally):
    small, chance = study(), random.Random(2)
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
    status, output = small.run()
    assert status == 0, output
    assert small.leftovers() == []
    tally("Ctrl-C in the terminal", TIMES, small.csvs("headline"), uninterrupted("headline"))


CELL = """
from modules.runs.parallel import run_all
from modules.runs.spec import spec
network = {network!r}
policy = dict(name="fixed", milestones=[])
runs = [spec(dataset="digits", policy=policy, iterations=3000, evaluate_every=100, seed=k, **network) for k in (1, 2)]
_ = run_all(runs, {folder!r})
"""


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
            kernel = psutil.Process(manager.provisioner.pid)
            processes = kernel.children(recursive=True)
            started = time.monotonic()
            manager.interrupt_kernel()
            reply = client.get_shell_msg(timeout=60)
            assert reply["parent_header"]["msg_id"] == request
            assert reply["content"]["ename"] == "KeyboardInterrupt"
            assert time.monotonic() - started < 30
            assert gone([process for process in processes if "spawn_main" in " ".join(cmdline(process))])
        assert client.execute(cell, reply=True, timeout=300)["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    (whole := tmp_path / "whole").mkdir()
    policy = dict(name="fixed", milestones=())
    runs = [
        spec(dataset="digits", policy=policy, iterations=3000, evaluate_every=100, seed=seed, **NETWORK)
        for seed in (1, 2)
    ]
    expected = {run.name: train(run, whole).read_bytes() for run in runs}
    found = {run.name: RunFiles(tmp_path / "results", run.name).csv.read_bytes() for run in runs}
    tally("stop button in Jupyter", TIMES, found, expected)


def cmdline(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_second_study_on_the_same_folder_says_who_holds_it(study, uninterrupted, tally):
    first = study(**{"03_headline_experiment": HEADLINE})
    first.start()
    until(lambda: list(first.results.rglob("*.pt")))
    holder = first.process
    status, output = first.start().finish()
    assert status == 2
    driver = (first.results / ".holder").read_text()
    assert f"error: {first.results} is being written by another process ({driver})" in output
    assert driver.split(",")[0] in {f"process {process.pid}" for process in family(holder.pid)}
    first.process = holder
    status, output = first.finish()
    assert status == 0, output
    tally("two studies on one folder", 1, first.csvs("headline"), uninterrupted("headline"))
