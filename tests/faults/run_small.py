"""The small study's runs without make, notebooks or kernels: a process to be killed or starved.

python -m tests.faults.run_small RESULTS EXPERIMENT ...
"""

import os
import sys
from pathlib import Path

from modules.checks import RunError
from modules.runs.parallel import run_all
from modules.runs.spec import Spec, spec

FULL = os.environ.get("CLR_FAULTS") == "full"
NETWORK = dict(model="mlp", optimizer="adam", weight_decay=0.0, batch_size=50)
LENGTH = 2400 if FULL else 1200
EVERY = 100 if FULL else 50
BOUNDS = dict(base_lr=0.0025, max_lr=0.01)
RAMP = dict(min_lr=0.0001, max_lr=0.02)
MILESTONES = [LENGTH - 200, LENGTH - 100]


def specs(experiment: str) -> dict[str, Spec]:
    """The runs of an experiment of the small study, by name; the same that its notebook makes."""
    common = dict(dataset="digits", evaluate_every=EVERY, **NETWORK)
    if experiment == "range_test":
        policies = [(dict(name="range_test", **RAMP), LENGTH)]
    else:
        policies = [
            (dict(name="fixed", milestones=MILESTONES), LENGTH),
            (dict(name="triangular", **BOUNDS, step_size=LENGTH // 4), LENGTH // 2),
        ]
    runs = [spec(policy=p, iterations=n, seed=seed, **common) for p, n in policies for seed in (1, 2)]
    return {run.name: run for run in runs}


if __name__ == "__main__":
    results, *experiments = sys.argv[1:]
    try:
        for experiment in experiments:
            run_all(list(specs(experiment).values()), Path(results) / experiment, workers=2)
    except RunError as error:
        print(f"error: {error}")
        sys.exit(2)
