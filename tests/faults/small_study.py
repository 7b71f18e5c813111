"""A small study as a real process, to be killed or starved.

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

from modules.runs.spec import spec

ROOT = Path(__file__).resolve().parents[2]
FULL = os.environ.get("CLR_FAULTS") == "full"

#: For faults whose kin is made in the short form already.
in_full = pytest.mark.skipif(not FULL, reason="make test-faults makes this fault")

NETWORK = dict(model="mlp", optimizer="adam", weight_decay=0.0, batch_size=50)
#: The same as parameters of a notebook.
ASKED = dict(model="mlp", batch_size=50, settings=dict(optimizer="adam", weight_decay=0.0))
LENGTH = 2400 if FULL else 1200
EVERY = 100 if FULL else 50
BOUNDS = dict(base_lr=0.0025, max_lr=0.01)
RANGE_TEST = dict(**ASKED, iterations=LENGTH, evaluate_every=EVERY, min_lr=0.0001, max_lr=0.02, runs=2)
HEADLINE = dict(
    **ASKED,
    **BOUNDS,
    evaluate_every=EVERY,
    fixed_milestones=[LENGTH - 200, LENGTH - 100],
    fixed_iterations=LENGTH,
    step_size=LENGTH // 4,
    clr_iterations=LENGTH // 2,
    runs=2,
)


def specs(notebook):
    """The runs that a notebook of the small study makes, by name."""
    common = dict(dataset="digits", evaluate_every=EVERY, **NETWORK)
    if notebook == "range_test":
        policies = [(dict(name="range_test", min_lr=0.0001, max_lr=0.02), LENGTH)]
    else:
        policies = [
            (dict(name="fixed", milestones=HEADLINE["fixed_milestones"]), LENGTH),
            (dict(name="triangular", **BOUNDS, step_size=LENGTH // 4), LENGTH // 2),
        ]
    runs = [spec(policy=p, iterations=n, seed=seed, **common) for p, n in policies for seed in (1, 2)]
    return {run.name: run for run in runs}


class Study:
    """The small study in a folder of its own, and the processes that run it.

    Args:
        place: an empty folder.
        notebooks: by name, the parameters of its notebooks.
    """

    def __init__(self, place, notebooks):
        self.file, self.results, self.process = place / "study.yaml", place / "results", None
        self.file.write_text(yaml.safe_dump({"notebooks": notebooks}))

    def start(self, *prefix, **environment):
        """`make reproduce` as its own process group, whose Ctrl-C is not this process's."""
        command = ["make", "reproduce", f"STUDY={self.file}", f"RESULTS={self.results}"]
        # The interpreter that runs the tests, so that no environment is made.
        command += [f"PYTHON={sys.executable}", "ENV="]
        self.process = subprocess.Popen(
            [*prefix, *command],
            cwd=ROOT,
            env={**os.environ, **environment},
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
        """SIGKILL: all processes at the same time, or the driver alone. Returns all that were there."""
        processes = family(self.process.pid)
        for process in processes if everything else processes[:2]:
            kill(process)
        self.process.communicate()
        return processes

    def csvs(self, notebook):
        """The bytes of a notebook's finished runs, by name."""
        return {path.stem: path.read_bytes() for path in (self.results / notebook).glob("*.csv")}

    def leftovers(self):
        """Partial and temporary files; what was set aside is meant to stay."""
        return [path for path in self.results.rglob(".*") if path.name not in (".lock", ".set-aside")]


def family(pid):
    """A process and all its descendants."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill(process):
    with suppress(psutil.NoSuchProcess):
        process.kill()


def gone(processes, seconds=30):
    """Whether all processes have ended within some seconds."""
    return not psutil.wait_procs(processes, timeout=seconds)[1]


def until(condition, seconds=180):
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
