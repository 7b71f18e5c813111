"""What the machinery around the runs costs: seconds a run and memory, from 10 to 10,000 runs, and on 1 and 2 workers.

    make benchmark-scale        # about eight minutes; writes results/benchmarks/scale.{csv,png} and workers.csv

A trivial run is one iteration of the dense network on the digits. Each number of runs gets a process of its own, which
is client and scheduler in one. Real runs are `cifar10_quick` on the digits, the same four with one worker, with two,
and in a plain loop without any cluster, in turn, three times.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import psutil
from dask.system import CPU_COUNT

from modules.report.figures import save, style
from modules.runs.parallel import run_all
from modules.runs.provenance import processor, revision
from modules.runs.spec import spec
from modules.runs.training import train

SIZES = (10, 100, 1000, 10_000)
FIXED = dict(name="fixed")


def trivial(count: int) -> list:
    """Runs that do next to nothing."""
    one = spec(dataset="digits", model="mlp", policy=FIXED, batch_size=10, iterations=1, evaluate_every=1, seed=0)
    return [one.model_copy(update={"seed": seed}) for seed in range(count)]


def real(iterations: int) -> list:
    """Four runs as the study on digits has them."""
    common = dict(dataset="digits", policy=FIXED, batch_size=10, iterations=iterations, evaluate_every=35)
    return [spec(seed=seed, **common) for seed in range(4)]


def measure(kind: str, count: int, workers: int) -> dict:
    """Make the runs here and now; 0 workers are a plain loop."""
    runs = trivial(count) if kind == "trivial" else real(count)
    peak = [0.0]
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        if workers:
            with _Watch() as peak:
                run_all(runs, folder, workers=workers)
        else:
            for run in runs:
                train(run, folder)
        seconds = time.monotonic() - started
        training = sum(
            json.loads((Path(folder) / f"{run.name}.json").read_text(encoding="utf-8"))["seconds"] for run in runs
        )
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
    return {
        "kind": kind,
        "runs": len(runs),
        "workers": workers,
        "seconds": seconds,
        "training_seconds": training / max(workers, 1),
        "client_mib": own,
        "worker_mib": max(peak),
    }


class _Watch:
    """Largest resident memory of any worker process, looked at twice a second."""

    def __enter__(self) -> list[float]:
        self.peak, self.done = [0.0], threading.Event()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self.peak

    def __exit__(self, *exception) -> None:
        self.done.set()
        self.thread.join()

    def _look(self) -> None:
        while not self.done.wait(0.5):
            for child in psutil.Process().children(recursive=True):
                try:
                    self.peak[0] = max(self.peak[0], child.memory_info().rss / 2**20)
                except psutil.NoSuchProcess:
                    continue


def apart(*arguments: object) -> dict:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--one", *map(str, arguments)]
    output = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout
    return json.loads(output.splitlines()[-1])


def draw(table: pd.DataFrame):
    """Seconds and the client's memory against the number of runs."""
    import matplotlib.pyplot as plt

    style()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    left.plot(table.runs, table.seconds, marker="o")
    left.set(xscale="log", yscale="log", xlabel="trivial runs", ylabel="seconds, all in all")
    right.plot(table.runs, table.client_mib, marker="o", label="client and scheduler")
    right.plot(table.runs, table.worker_mib, marker="o", label="largest worker")
    right.set(xscale="log", xlabel="trivial runs", ylabel="peak memory, MiB", ylim=(0, None))
    right.legend()
    figure.suptitle(f"{table.processor.iloc[0]}, {table.workers.max()} workers", fontsize=10)
    figure.tight_layout()
    return figure


def main() -> None:
    """Measure, write the CSV and the plot, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="numbers of trivial runs")
    parser.add_argument("--iterations", type=int, default=400, help="length of a real run")
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks"), help="folder for CSV and plot")
    parser.add_argument("--one", nargs=3, metavar=("KIND", "COUNT", "WORKERS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.chdir(Path(__file__).resolve().parents[1])
    if options.one:
        kind, count, workers = options.one
        print(json.dumps(measure(kind, int(count), int(workers))))
        return
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "torch": version("torch"),
        "revision": revision(),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    if options.sizes:
        table = pd.DataFrame([apart("trivial", size, CPU_COUNT) for size in options.sizes])
        table.insert(4, "seconds_a_run", table.seconds / table.runs)
        write(table.assign(**about), options.output / "scale.csv")
        save(draw(table.assign(**about)), options.output / "scale.png")
    rounds = [apart("real", options.iterations, workers) for _ in range(3) for workers in (0, 1, CPU_COUNT)]
    table = pd.DataFrame(rounds).groupby(["kind", "runs", "workers"], as_index=False).median()
    write(table.assign(**about), options.output / "workers.csv")


def write(table: pd.DataFrame, path: Path) -> None:
    """Write a table, and print it without what is the same in every row."""
    table = table.round({"seconds": 2, "training_seconds": 2, "seconds_a_run": 4, "client_mib": 0, "worker_mib": 0})
    table.to_csv(path, index=False)
    print(table.drop(columns=["date", "processor", "torch", "revision"]).to_string(index=False))


if __name__ == "__main__":
    main()
