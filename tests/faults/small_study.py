"""A small study as a real process, to be killed or starved: with make and notebooks, or its runs alone.

`CLR_FAULTS=full` (make test-faults) makes a fault as often as is claimed for it; otherwise it is made once or twice.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from run_small import BOUNDS, EVERY, FULL, LENGTH, MILESTONES, NETWORK, RAMP

from modules.runs.parallel import SHARED

ROOT = Path(__file__).resolve().parents[2]

#: For faults whose kin is made in the short form already.
in_full = pytest.mark.skipif(not FULL, reason="make test-faults makes this fault")

#: The same as parameters of a notebook.
ASKED = dict(dataset="digits", **NETWORK, settings={})
RANGE_TEST = dict(**ASKED, **RAMP, iterations=LENGTH, evaluate_every=EVERY, runs=2)
HEADLINE = dict(
    **ASKED,
    **BOUNDS,
    evaluate_every=EVERY,
    by_hand=EVERY,
    fixed_lr=0.001,
    fixed_milestones=MILESTONES,
    fixed_iterations=LENGTH,
    step_size=LENGTH // 4,
    clr_iterations=LENGTH // 2,
    runs=2,
)


class Study:
    """The small study in a folder of its own, and the processes that run it.

    Args:
        place: an empty folder.
        notebooks: by name, the parameters of its notebooks, for `make reproduce`; without any, `run_small` runs it.
        experiments: what `run_small` runs.
    """

    def __init__(self, place, notebooks=None, experiments=("headline",)):
        self.file, self.results, self.process = place / "study.yaml", place / "results", None
        self.experiments, self.notebooks = experiments, notebooks
        if notebooks:
            self.file.write_text(yaml.safe_dump({"notebooks": notebooks}))

    def start(self, *prefix, **environment):
        """Start it as its own process group, whose Ctrl-C is not this process's."""
        if self.notebooks:
            command = ["make", "reproduce", f"STUDY={self.file}", f"RESULTS={self.results}"]
            # The interpreter that runs the tests, so that no environment is made.
            command += [f"PYTHON={sys.executable}", "ENV="]
        else:
            command = [sys.executable, "-m", "tests.faults.run_small", str(self.results), *self.experiments]
        inherited = {name: value for name, value in os.environ.items() if name != SHARED}
        self.process = subprocess.Popen(
            [*prefix, *command],
            cwd=ROOT,
            env={**inherited, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        return self

    def finish(self, timeout=300):
        """Its exit status and all it printed."""
        output, _ = self.process.communicate(timeout=timeout)
        return self.process.returncode, output.decode()

    def run(self, *prefix, **environment):
        """Start it and wait for its end; while processes of a killed study hold the folder, again."""
        deadline = time.monotonic() + 60
        while True:
            status, output = self.start(*prefix, **environment).finish()
            if "is being written by another process" not in output or time.monotonic() > deadline:
                return status, output
            time.sleep(0.5)

    def kill(self, everything=True):
        """SIGKILL: all processes at the same time, or make and the driver alone. Returns all that were there."""
        processes = family(self.process.pid)
        for process in processes if everything else processes[:2]:
            kill(process)
        self.process.communicate()
        return processes

    def csvs(self, notebook):
        """The bytes of a notebook's finished runs, by name."""
        return {path.stem: path.read_bytes() for path in (self.results / notebook).glob("*.csv")}

    def leftovers(self):
        """Partial and temporary files; what was set aside stays, and so does who held a study that was killed."""
        return [path for path in self.results.rglob(".*") if path.name not in (".lock", ".holder", ".set-aside")]


def family(pid):
    """A process and all its descendants."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def workers(pid):
    """The worker processes that a process has started: forked from its child that waits for nothing else."""
    return [process for process in family(pid) if _is_forked(process) and _is_forked(process.parent())]


def _is_forked(process):
    with suppress(psutil.NoSuchProcess):
        return process is not None and "multiprocessing.forkserver" in " ".join(process.cmdline())
    return False


def kill(process):
    with suppress(psutil.NoSuchProcess):
        process.kill()


def gone(processes, seconds=30):
    """Whether all processes have ended within some seconds; one whose parent has not asked how has ended, too."""
    deadline = time.monotonic() + seconds
    while any(_runs(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _runs(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(condition, seconds=180):
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
