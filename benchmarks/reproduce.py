"""Where the seconds of `make reproduce` go: by notebook, with the training that it asked for.

    make benchmark-reproduce STUDY=digits    # as long as the study; writes results/benchmarks/reproduce.csv

The study runs into a folder of its own, as a user runs it; its lines are timed as they come. Training is what the runs
took by their own records, all workers together: two workers train two seconds in one.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from dask.system import CPU_COUNT

from modules.runs.files import complete_runs, experiments
from modules.runs.provenance import processor, revision


def parts(study: str, results: Path) -> pd.DataFrame:
    """Run a study; one row a part, in order: what comes before the notebooks, each of them, what comes after.

    Columns `part`, `seconds`, `runs` (trained in it), `training_seconds` (theirs together).
    """
    command = [sys.executable, "-m", "modules", "reproduce", "--study", study, "--results", str(results)]
    started, part, known, rows = time.monotonic(), "start and checks", set(), []

    def close() -> None:
        found = {run.place: run for name in experiments(results) for run in complete_runs(results / name)}
        new = found.keys() - known
        training = sum(found[place].read()[1]["seconds"] for place in new)
        row = {"part": part, "seconds": time.monotonic() - started, "runs": len(new), "training_seconds": training}
        rows.append(row)
        known.update(new)
        print(f"{row['seconds']:7.1f} s  {part}", flush=True)

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8") as process:
        for line in process.stdout:
            if line.startswith("== ") or (line.startswith("This run beside") and part != "comparison and pages"):
                close()
                started, part = time.monotonic(), line[3:].strip() if line[0] == "=" else "comparison and pages"
    if process.returncode:
        raise SystemExit(f"error: {' '.join(command)} failed: run it by hand to see why")
    close()
    return pd.DataFrame(rows)


def main() -> None:
    """Run the study, write the CSV, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", default="digits", help="a folder of studies/")
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks"), help="folder for the CSV")
    options = parser.parse_args()
    os.chdir(Path(__file__).resolve().parents[1])
    with tempfile.TemporaryDirectory() as folder:
        table = parts(options.study, Path(folder) / options.study)
    table.loc[len(table)] = {"part": "all", **table[["seconds", "runs", "training_seconds"]].sum()}
    table = table.astype({"runs": int}).round({"seconds": 1, "training_seconds": 1})
    print(table.to_string(index=False))
    about = {
        "study": options.study,
        "workers": CPU_COUNT,
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "torch": version("torch"),
        "revision": revision(),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    table.assign(**about).to_csv(options.output / "reproduce.csv", index=False)


if __name__ == "__main__":
    main()
